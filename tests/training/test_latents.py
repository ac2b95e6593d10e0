"""Every YAML of configs/latents trains both stages, and what comes out samples, is diagnosed, saved and loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import AveragedModel
from transformers import BertConfig, BertModel

from fewstep.cli.main import main
from fewstep.data.tokenizer import load_tokenizer, vocabulary_size
from fewstep.model import SavedModel
from fewstep.pipeline import TextGenerator
from fewstep.settings import read_yaml
from fewstep.training.callbacks.weights import moving_average
from tests.runs import CONFIGS, Workshop

FOLDER = CONFIGS / "latents"
LATENTS = sorted(file.stem for file in FOLDER.glob("*.yaml") if not file.stem.endswith("_flow"))


def train(workshop: Workshop, stage: str, name: str, run: Path, *flags: str) -> int:
    """Two steps of a stage with ``configs/latents/NAME.yaml``, if that exists, put on top."""
    arguments = ["train", *workshop.arguments(stage, f"--run_dir={run}", *flags, steps=2)]
    if (FOLDER / f"{name}.yaml").exists():
        place = next(number for number, word in enumerate(arguments) if word.startswith("--data."))
        arguments[place:place] = ["--config", str(FOLDER / f"{name}.yaml")]
    return main(arguments)


def write_encoder(workshop: Workshop, folder: Path) -> Path:
    """A tiny BERT of random weights, with the tokenizer of the tiny text."""
    tokenizer = workshop.autoencoder / "tokenizer"
    sizes = {"vocab_size": vocabulary_size(load_tokenizer(tokenizer)), "hidden_size": 16, "num_hidden_layers": 3}
    with torch.random.fork_rng():
        BertModel(BertConfig(**sizes, num_attention_heads=2, intermediate_size=16)).save_pretrained(folder)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    return folder


@pytest.mark.parametrize("name", LATENTS)
def test_a_latent_trains_both_stages_and_its_model_works(workshop: Workshop, tmp_path: Path, name: str) -> None:
    encoder = write_encoder(workshop, tmp_path / "encoder")
    from_hub = "tokenizer" in read_yaml(FOLDER / f"{name}.yaml").get("data", {})
    own = [f"--data.tokenizer={encoder}", f"--model.autoencoder.model={encoder}"] if from_hub else []
    assert train(workshop, "autoencoder", name, tmp_path / "latent", *own) == 0
    shutil.rmtree(encoder)  # from here on the saved model is enough
    base = SavedModel.from_pretrained(tmp_path / "latent" / "model")
    ids = torch.randint(100, (3, base.identity.block_size), generator=torch.Generator().manual_seed(0))
    z = base.encoder().encode(ids, torch.ones_like(ids).bool()).z
    flags = [f"--model.autoencoder={tmp_path / 'latent' / 'model'}"]
    flow_file = FOLDER / f"{name}_flow.yaml"
    settings = read_yaml(flow_file)["model"]["init_args"] if flow_file.exists() else {}
    if "vocab_size" in settings.get("denoiser", {}).get("init_args", {}):
        flags.append(f"--model.denoiser.vocab_size={vocabulary_size(base.tokenizer)}")
    assert train(workshop, "flow", f"{name}_flow", tmp_path / "flow", *flags) == 0
    model = SavedModel.from_pretrained(tmp_path / "flow" / "model")
    assert torch.equal(model.encoder().encode(ids, torch.ones_like(ids).bool()).z, z), "the flow left the latents alone"
    texts = TextGenerator(model).generate(2, num_steps=2, seed=0).texts
    model.save_pretrained(tmp_path / "copy")
    again = SavedModel.from_pretrained(tmp_path / "copy")
    assert TextGenerator(again).generate(2, num_steps=2, seed=0).texts == texts
    out, few = tmp_path / "diagnosis", ["--examples", "4", "--positions", "1", "--device", "cpu"]
    few += ["--cache_dir", workshop.settings().cache_dir, "--out", str(out)]
    assert main(["diagnose", str(tmp_path / "copy"), "--only", "noise_robustness", *few]) == 0
    assert json.loads((out / "diagnostics.json").read_text())["table"]


def test_an_average_of_weights_leaves_positions_as_they_are() -> None:
    network = torch.nn.Linear(2, 2)
    network.register_buffer("position_ids", torch.arange(512))
    average = AveragedModel(network, multi_avg_fn=moving_average(0.9), use_buffers=True)
    start = network.weight.detach().clone()
    average.update_parameters(network)
    with torch.no_grad():
        network.weight += 1
    average.update_parameters(network)
    assert torch.equal(average.module.position_ids, torch.arange(512))
    torch.testing.assert_close(average.module.weight, start + 0.1)


def test_another_tokenizer_than_the_encoders_is_refused_in_a_line(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = write_encoder(workshop, tmp_path / "encoder")
    flags = ["--data.tokenizer=null", "--data.vocab_size=290", f"--model.autoencoder.model={encoder}"]
    assert train(workshop, "autoencoder", "pretrained", tmp_path / "run", *flags) == 2
    assert f"not that of model.autoencoder, {encoder}: pass --data.tokenizer={encoder}" in capsys.readouterr().err

"""A resumed run is the run of its checkpoint: what changes its meaning is refused, what may change is applied."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from fewstep.cli.main import main
from fewstep.data import corpus
from fewstep.model import SavedModel
from fewstep.storage import load_checkpoint
from tests.runs import Workshop, logged, write_text

STEPS = 4


@pytest.fixture(scope="module")
def run(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the language model on a text of its own, in whose folder ``text.jsonl`` lies too."""
    folder = tmp_path_factory.mktemp("resumed")
    write_text(folder / "text.jsonl")
    assert main(arguments(workshop, folder)) == 0
    return folder


def arguments(workshop: Workshop, folder: Path, *flags: str, steps: int = STEPS) -> list[str]:
    own = [f"--run_dir={folder / 'run'}", f"--data.source={folder / 'text.jsonl'}"]
    return ["train", *workshop.arguments("language_model", *own, *flags, steps=steps)]


def refusals(capsys: pytest.CaptureFixture[str], command: list[str]) -> list[str]:
    """The lines of a command that must be refused."""
    capsys.readouterr()
    assert main(command) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fewstep:")]
    assert all(line.startswith("fewstep: error: cannot resume from ") for line in lines), lines
    return lines


@pytest.mark.parametrize(
    "differences",
    [
        {
            "--data.batch_size=2": "give --data.batch_size=4",
            "--data.seed=1": "give --data.seed=0",
            "--model.seed=1": "give --model.seed=0",
            "--model.network.depth=2": "give --model.network.depth=1",
            "--trainer.accumulate_grad_batches=2": "accumulate_grad_batches x processes is 2, in the checkpoint 1",
            "--seed_everything=1": "give --seed_everything=0",
        },
        {
            "--data.max_documents=30": "give --data.max_documents=40",
            "--data.validation_fraction=0.1": "give --data.validation_fraction=0.05",
            "--data.vocab_size=290": "give --data.vocab_size=300",
            "--data.blocks=documents": "give --data.blocks=null",
        },
        {"--data.streaming=true": "give --data.streaming=false"},
        {"--data.source=grammar": "give the text as it was"},
    ],
)
def test_what_changes_the_meaning_of_a_run_is_refused_with_a_line_for_each_difference(
    workshop: Workshop, run: Path, capsys: pytest.CaptureFixture[str], differences: dict[str, str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in (run / "run").rglob("[!.]*")}
    lines = refusals(capsys, arguments(workshop, run, "--ckpt_path=last", *differences, steps=8))
    assert len(lines) == len(differences) and all("start a new run" in line for line in lines)
    assert all(any(advice in line for line in lines) for advice in differences.values())
    assert {file: file.stat().st_mtime_ns for file in (run / "run").rglob("[!.]*")} == before


def test_a_text_that_grew_is_refused_and_no_tokenizer_is_trained(
    workshop: Workshop, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    text = tmp_path / "text.jsonl"
    content = text.read_text()
    text.write_text(json.dumps({"text": "quite other words than those"}) + "\n" + content)
    monkeypatch.setattr(corpus, "train_tokenizer", lambda *_: pytest.fail("a tokenizer was trained"))
    (line,) = refusals(capsys, arguments(workshop, tmp_path, "--ckpt_path=last", steps=8))
    assert "data.source names other content than in the checkpoint" in line
    text.write_text(content)
    cache = f"--data.cache_dir={tmp_path / 'another_cache'}"
    assert main(arguments(workshop, tmp_path, "--ckpt_path=last", cache, steps=8)) == 0
    one, other = (SavedModel.from_pretrained(folder / "run" / "model") for folder in (run, tmp_path))
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()


def test_another_tokenizer_is_refused(workshop: Workshop, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = SavedModel.from_pretrained(run / "run" / "model").tokenizer
    tokenizer.add_tokens(["sailed past"])
    tokenizer.save_pretrained(run / "tokenizer")
    lines = refusals(capsys, arguments(workshop, run, "--ckpt_path=last", f"--data.tokenizer={run / 'tokenizer'}"))
    assert len(lines) == 1 and "leave --data.tokenizer out" in lines[0]


def test_new_optimizer_settings_are_used_and_recorded_and_the_first_config_stays(
    workshop: Workshop, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    first = (tmp_path / "run" / "config.yaml").read_bytes()
    new = {"learning_rate": 0.125, "weight_decay": 0.5, "beta_2": 0.75, "warmup_steps": 2, "final_fraction": 1.0}
    flags = [f"--model.optimizer.{name}={value}" for name, value in new.items()]
    assert main(arguments(workshop, tmp_path, "--ckpt_path=last", *flags, "--ema.decay=0.5", steps=8)) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "changed since the checkpoint" in line)
    assert "model.optimizer.weight_decay 0.01 -> 0.5" in line and "trainer.max_steps 4 -> 8" in line
    assert {logged(tmp_path / "run")["train/learning_rate"][step] for step in range(4, 8)} == {0.125}
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    decays, spared = checkpoint["optimizer_states"][0]["param_groups"]
    assert (decays["weight_decay"], spared["weight_decay"]) == (0.5, 0.0)
    assert tuple(decays["betas"]) == (0.9, 0.75) and decays["initial_lr"] == 0.125
    assert checkpoint["fewstep"]["run"]["settings"]["model.optimizer.learning_rate"] == 0.125
    assert (tmp_path / "run" / "config.yaml").read_bytes() == first
    resumed = yaml.safe_load((tmp_path / "run" / "config_resumed_1.yaml").read_text())
    assert resumed["model"]["init_args"]["optimizer"] == new
    assert main(arguments(workshop, tmp_path, "--overwrite")) == 0
    assert not list((tmp_path / "run").glob("config_resumed_*"))


def test_a_written_config_starts_the_same_run_again(workshop: Workshop, run: Path, tmp_path: Path) -> None:
    assert main(["train", "fit", "--config", str(run / "run" / "config.yaml"), f"--run_dir={tmp_path}"]) == 0
    assert logged(tmp_path)["train/loss"] == logged(run / "run")["train/loss"]


def test_a_flow_is_not_resumed_on_an_autoencoder_that_was_trained_again(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, flow = tmp_path / "autoencoder", tmp_path / "flow"
    shutil.copytree(workshop.autoencoder, base)

    def command(steps: int, *flags: str) -> list[str]:
        own = [f"--model.autoencoder={base}", f"--run_dir={flow}"]
        return ["train", *workshop.arguments("flow", *own, *flags, steps=steps)]

    assert main(command(2, "--model.optimizer.final_fraction=1")) == 0
    model = SavedModel.from_pretrained(base)
    with torch.no_grad():
        model.autoencoder.embedding.weight.add_(0.01)
    model.save_pretrained(base, overwrite=True)
    resume = ["--model.optimizer.final_fraction=1", "--ckpt_path=last"]
    (line,) = refusals(capsys, command(4, *resume))
    assert "model.autoencoder names other content" in line and "give the checkpoint itself" in line
    checkpoint = flow / "checkpoints" / "last.ckpt"
    assert main(command(4, *resume, f"--model.autoencoder={checkpoint}")) == 0
    weights = SavedModel.from_pretrained(workshop.autoencoder).autoencoder.state_dict()
    resumed = SavedModel.from_pretrained(flow / "model").autoencoder.state_dict()
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_a_checkpoint_of_an_earlier_version_is_not_resumed(
    workshop: Workshop, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "last.ckpt"
    content = load_checkpoint(run / "run" / "checkpoints" / "last.ckpt")
    del content["fewstep"]["run"]
    torch.save(content, file)
    (line,) = refusals(capsys, arguments(workshop, tmp_path, f"--ckpt_path={file}", f"--data.source={run}/text.jsonl"))
    assert "an earlier fewstep" in line

"""Saved models of text and of images: the same model comes back, only trusted classes are built, parts fit together."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from fewstep.cli.main import main
from fewstep.denoisers import CategoricalDenoiser, RegressionDenoiser
from fewstep.errors import UserError
from fewstep.lab.images.generator import generate_images, images_of
from fewstep.model import SavedModel, class_path, kind_of, merge_models
from fewstep.pipeline import TextGenerator
from fewstep.readouts import LinearReadout, TransformerReadout
from tests.bundles import BLOCK_SIZE, LINES, STRIDE, only, tiny_bundle, tokenizer, with_identity, write_checkpoint
from tests.fake_hub import running_hub
from tests.lab.images.models import tiny_image_flow, tiny_image_model

OUTSIDE = '''
import torch
from torch import nn
from fewstep.readouts import ParallelReadout
from fewstep.types import Latents

class BagEncoder(nn.Module):
    """Embeddings, nothing more: knows nothing of fewstep's own encoder."""

    def __init__(self, vocab_size: int, latent_dim: int = 3) -> None:
        super().__init__()
        self.config = {"vocab_size": vocab_size, "latent_dim": latent_dim}
        self.latent_dim = latent_dim
        self.table = nn.Embedding(vocab_size, latent_dim)

    def num_latents(self, num_tokens: int) -> int:
        return num_tokens

    def encode(self, ids, mask):
        return Latents(self.table(ids).float(), mask.bool())

class BagReadout(ParallelReadout):
    def __init__(self, vocab_size: int, latent_dim: int) -> None:
        super().__init__()
        self.config = {"vocab_size": vocab_size, "latent_dim": latent_dim}
        self.stride = 1
        self.linear = nn.Linear(latent_dim, vocab_size)

    def forward(self, z, mask):
        return self.linear(z)

class Useless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = {}

def function() -> None: ...
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a package that lies outside of fewstep."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "my_parts.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    yield "my_parts"
    sys.modules.pop("my_parts", None)


def assert_same(ours: SavedModel, theirs: SavedModel) -> None:
    """Same parts, weights, identity and tokens."""
    first, second = ({name: part.state_dict() for name, part in model.parts().items()} for model in (ours, theirs))
    assert {name: list(weights) for name, weights in first.items()} == {name: list(w) for name, w in second.items()}
    assert all(torch.equal(first[name][key], second[name][key]) for name in first for key in first[name])
    assert ours.manifest() == theirs.manifest()
    for text in LINES if ours.tokenizer is not None else ():
        assert ours.tokenizer(text)["input_ids"] == theirs.tokenizer(text)["input_ids"]
        assert (theirs.tokenizer.eos_token_id, theirs.tokenizer.pad_token_id) == (0, 0)


def test_a_folder_and_a_checkpoint_give_the_text_model_back_and_the_same_text(tmp_path: Path) -> None:
    model = tiny_bundle()
    model.save_pretrained(tmp_path / "model")
    for path in (tmp_path / "model", write_checkpoint(model, tmp_path / "last.ckpt", "denoiser")):
        loaded = SavedModel.from_pretrained(path)
        assert_same(model, loaded)
        assert not any(part.training for part in loaded.parts().values())
        assert TextGenerator(model).generate(3).texts == TextGenerator(loaded).generate(3).texts
    loaded.save_pretrained(tmp_path / "again")
    for name in ("config.json", "tokenizer/tokenizer.json", "head.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes(), name


def test_a_folder_and_a_checkpoint_give_the_image_model_back_and_the_same_images(tmp_path: Path) -> None:
    model, alone = tiny_image_flow(), tiny_image_model()
    model.save_pretrained(tmp_path / "model")
    images = generate_images(model, 3, 2, seed=4).images
    for path in (tmp_path / "model", write_checkpoint(model, tmp_path / "flow.ckpt", "denoiser")):
        loaded = SavedModel.from_pretrained(path, kind="images")
        assert_same(model, loaded)
        assert torch.equal(generate_images(loaded, 3, 2, seed=4).images, images)
        assert torch.equal(images_of(loaded).held_out(5), images_of(model).held_out(5))
    edited = (tmp_path / "model" / "config.json").read_text().replace("fewstep.lab.images.", "fewstep.autoencoders.")
    (tmp_path / "model" / "config.json").write_text(edited)
    assert_same(model, SavedModel.from_pretrained(tmp_path / "model"))  # as saved before images moved into lab
    assert len(images_of(model).held_out()) == 97
    assert_same(alone, SavedModel.from_pretrained(write_checkpoint(alone, tmp_path / "image.ckpt", "autoencoder")))
    with pytest.raises(UserError, match=r"^[^\n]*has no denoiser .*train the stage flow first"):
        generate_images(alone, 1)


def test_text_and_images_are_never_mixed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_bundle().save_pretrained(tmp_path / "text")
    tiny_image_model().save_pretrained(tmp_path / "images")
    text_checkpoint = write_checkpoint(tiny_bundle(), tmp_path / "text.ckpt", "denoiser")
    checkpoint = write_checkpoint(tiny_image_model(), tmp_path / "image.ckpt", "autoencoder")
    assert [kind_of(path) for path in (tmp_path / "text", text_checkpoint)] == ["text", "text"]
    for path in (tmp_path / "images", checkpoint):
        assert kind_of(str(path)) == "images"
        for command in (["sample", str(path)], ["convert", str(path), str(tmp_path / "out")]):
            assert main(command) == 2
            errors = capsys.readouterr().err
            assert errors.count("\n") == 1
            assert "holds a model of images, expected one of text" in errors
    with pytest.raises(UserError, match="holds a model of text, expected one of images"):
        SavedModel.from_pretrained(tmp_path / "text", kind="images")


def test_a_categorical_denoiser_comes_back_with_its_path_and_codebook(tmp_path: Path) -> None:
    model = with_identity(only(tiny_bundle(), "autoencoder"), path="variance_preserving")
    network = CategoricalDenoiser(6, 4, len(tokenizer()), "variance_preserving", width=16, depth=1, num_heads=2)
    network.set_codebook(torch.randn(network.codebook.shape), torch.randn(network.log_prior.shape))
    model.denoiser = network
    model.save_pretrained(tmp_path / "model")
    loaded = SavedModel.from_pretrained(tmp_path / "model")
    assert_same(model, loaded)
    x_t, t = torch.randn(2, 4, 6), torch.tensor([0.3, 0.6])
    torch.testing.assert_close(model.flow().denoise(x_t, t), loaded.flow().denoise(x_t, t))


def outside_model() -> SavedModel:
    import my_parts  # type: ignore[import-not-found]

    vocab_size = len(tokenizer())
    identity = replace(tiny_bundle().identity, versions={"fewstep": "0.1.0"})
    denoiser = RegressionDenoiser(3, BLOCK_SIZE, width=16, depth=1, num_heads=2)
    return SavedModel(
        tokenizer(), identity, my_parts.BagEncoder(vocab_size), my_parts.BagReadout(vocab_size, 3), denoiser
    )


def test_classes_from_outside_are_built_only_where_their_package_is_allowed(
    outside: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = outside_model().to("cpu")
    model.save_pretrained(tmp_path / "model")
    paths = (tmp_path / "model", write_checkpoint(model, tmp_path / "last.ckpt", "denoiser"))
    expected = TextGenerator(model).generate(2, 3, reinjection=0.5, snap="every")
    for path in paths:
        sys.modules.pop(outside)
        for allow in ((), ("my_part",), ("fewstep",)):
            with pytest.raises(UserError, match=r"^[^\n]*my_parts\.BagEncoder, outside of fewstep: .*--allow my_parts"):
                SavedModel.from_pretrained(path, allow=allow)
        assert outside not in sys.modules, "refused before any of its code ran"
        loaded = TextGenerator.from_pretrained(path, allow=[outside])
        assert torch.equal(loaded.generate(2, 3, reinjection=0.5, snap="every").ids, expected.ids)
        assert float(loaded.decidedness(expected.x_1, torch.ones(2, BLOCK_SIZE).bool()).min()) > 0
    convert = ["convert", *map(str, paths), str(tmp_path / "out")]
    assert main(convert) == 2
    assert main([*convert, "--allow", outside]) == 0
    assert SavedModel.from_pretrained(tmp_path / "out", allow=outside).reader().config == model.reader().config


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_parts.Useless", "cannot be built from its init_args"),
        ("my_parts.Useless()", "readout is of class my_parts.Useless, which is no Readout"),
        ("my_parts.function", "which is no network of these packages"),
        ("my_parts.nn.Linear", "cannot be imported"),
        ("my_parts.Missing", "cannot be imported: AttributeError"),
        ("my_parts.ParallelReadout", "cannot be built"),
        ("fewstep.readouts.CausalTransformer", "the network would have more than"),
        ("fewstep.denoisers.FlowModel", "cannot be built"),
        ("fewstep.readouts.parallel.Tensor", "no network of these packages"),
        ("fewstep.training.AutoencoderModule", "outside of fewstep"),
        ("os.system", "outside of fewstep: if you trust the code of os"),
        ("fewstep.readouts", "no network of these packages"),
        ("", "outside of fewstep"),
    ],
)
def test_what_is_no_readout_is_refused_in_one_line(outside: str, tmp_path: Path, path: str, message: str) -> None:
    outside_model().save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["parts"]["readout"]["class_path"] = path.removesuffix("()")
    if path.endswith("()"):
        config["parts"]["readout"]["init_args"] = {}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        SavedModel.from_pretrained(tmp_path / "model", allow=[outside])
    assert message in str(caught.value)


def test_classes_are_named_by_their_shortest_path_and_scripts_have_none() -> None:
    assert class_path(TransformerReadout) == "fewstep.readouts.TransformerReadout"
    with pytest.raises(UserError, match="needs a module"):
        class_path(type("Local", (LinearReadout,), {"__module__": "__main__"}))


def test_a_model_goes_to_the_hub_and_comes_back(tmp_path: Path) -> None:
    tiny_bundle().save_pretrained(tmp_path / "model")
    script = (
        "import sys; from fewstep.model import SavedModel\n"
        "from fewstep.pipeline import TextGenerator\n"
        "model = SavedModel.from_pretrained(sys.argv[1])\n"
        "print(model.push_to_hub('me/tiny', private=True, scores='| K | entropy |'))\n"
        "loaded = TextGenerator.from_pretrained('me/tiny', revision='main')\n"
        "assert loaded.generate(2).texts == TextGenerator(model).generate(2).texts\n"
        "for name in ('me/none', 'me/tiny/more', 'me tiny'):\n"
        "    try: SavedModel.from_pretrained(name)\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    with running_hub() as hub:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_TOKEN": "hf_test",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        command = [sys.executable, "-c", script, str(tmp_path / "model")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    address, missing, *others = done.stdout.splitlines()
    assert address == f"{hub.endpoint}/me/tiny"
    assert hub.private == {"me/tiny"}
    assert "fewstep sample me/tiny" in hub.models["me/tiny"]["README.md"].decode()
    assert missing.startswith("UserError model 'me/none' is no local path and the hub did not give it (")
    assert [line.partition(":")[0] for line in others] == [
        f"UserError {n} does not exist" for n in ("me/tiny/more", "me tiny")
    ]


def test_a_card_tells_what_the_model_is_and_never_matters_to_loading(tmp_path: Path) -> None:
    model = with_identity(tiny_bundle(), source="sotu", trained_nfe=2, objective="ProgressiveDistillation")
    model.save_pretrained(
        tmp_path / "tiny", scores="| K | perplexity | entropy |\n|---|---|---|\n| 2 | 90 | 3.3 |", license="mit"
    )
    card = (tmp_path / "tiny" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "mit"
    for fact in ("public domain", "trained for: 2", "| 2 | 90 | 3.3 |", "sample tiny --num_samples 4 --steps 2"):
        assert fact in text
    for content in (b"\xff\xfe broken", b"---\nformat: 99\n---\n"):
        (tmp_path / "tiny" / "README.md").write_bytes(content)
        assert_same(model, SavedModel.from_pretrained(tmp_path / "tiny"))
    (tmp_path / "tiny" / "README.md").unlink()
    assert_same(model, SavedModel.from_pretrained(tmp_path / "tiny"))


def test_stages_merge_and_what_describes_a_part_goes_with_it() -> None:
    whole = tiny_bundle()
    flow = with_identity(only(whole, "autoencoder", "readout", "denoiser"), path="variance_preserving", grid_mean=0.7)
    flow = with_identity(flow, estimate="endpoint", trained_nfe=3)
    head = with_identity(only(whole, "autoencoder", "head"), path="linear", grid_mean=None, trust_level=0.9)
    later = only(tiny_bundle(seed=1), "language_model")
    merged = merge_models([flow, head, only(whole, "language_model"), later], ["flow", "head", "lm", "later"])
    assert list(merged.parts()) == ["autoencoder", "readout", "denoiser", "head", "language_model"]
    fields = ("estimate", "trained_nfe", "path", "grid_mean", "trust_level")
    expected = ["endpoint", 3, "variance_preserving", 0.7, 0.9]
    assert [getattr(merged.identity, name) for name in fields] == expected
    assert merged.language_model is later.language_model


def test_models_that_do_not_fit_together_are_not_merged() -> None:
    ours, theirs = tiny_bundle(), tiny_bundle(seed=1)
    with pytest.raises(UserError, match="one and two hold different autoencoders"):
        merge_models([ours, theirs], ["one", "two"])
    for change in ({"block_size": 4}, {"tokenizer_fingerprint": "0"}, {"kind": "images"}):
        with pytest.raises(UserError, match=f"two and one differ in {next(iter(change))}"):
            merge_models([ours, with_identity(ours, **change)], ["one", "two"])


@pytest.mark.parametrize("stride", [1, STRIDE])
def test_parts_of_different_sizes_are_refused(tmp_path: Path, stride: int) -> None:
    model = tiny_bundle()
    model.readout = LinearReadout(len(tokenizer()), 5 if stride == STRIDE else 6, stride=stride)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"do not fit together, (latent_dim|stride) is autoencoder"):
        SavedModel.from_pretrained(tmp_path / "model")


def test_an_encoder_without_weights_is_where_the_other_parts_are() -> None:
    bundle = replace(tiny_bundle(), autoencoder=torch.nn.Identity())
    assert next(iter(bundle.parts())) == "autoencoder" and bundle.device == torch.device("cpu")

"""Model folders and checkpoints: the same model comes back, damage is one line, nothing on disk is lost."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep import storage
from fewstep.bundle import ModelBundle
from fewstep.denoisers import CategoricalDenoiser
from fewstep.errors import UserError
from fewstep.merging import merge_bundles
from fewstep.pipeline import TextGenerator
from tests.bundles import LINES, flip_a_bit, only, tiny_bundle, tokenizer, with_identity, write_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_bundle().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def weights_of(bundle: ModelBundle) -> dict[str, torch.Tensor]:
    """All tensors by part and name."""
    return {f"{name}.{key}": value for name, part in bundle.parts().items() for key, value in part.state_dict().items()}


def assert_same(ours: ModelBundle, theirs: ModelBundle) -> None:
    """Same parts, weights, identity and tokens."""
    first, second = weights_of(ours), weights_of(theirs)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert ours.manifest() == theirs.manifest()
    for text in LINES:
        assert ours.tokenizer(text)["input_ids"] == theirs.tokenizer(text)["input_ids"]
    assert (ours.tokenizer.eos_token_id, ours.tokenizer.pad_token_id) == (0, 0)
    assert (theirs.tokenizer.eos_token_id, theirs.tokenizer.pad_token_id) == (0, 0)


def test_a_folder_gives_the_model_back(folder: Path) -> None:
    loaded = ModelBundle.from_pretrained(folder)
    assert_same(tiny_bundle(), loaded)
    assert not any(part.training for part in loaded.parts().values())


def test_a_model_saved_before_there_were_other_estimates_and_frequencies_is_a_flow(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["identity"]["estimate"], config["parts"]["denoiser"]["config"]["max_frequency"]
    (folder / "config.json").write_text(json.dumps(config))
    assert_same(tiny_bundle(), ModelBundle.from_pretrained(folder))


def test_a_folder_tells_the_digest_of_each_weight_file_and_an_older_one_that_does_not_loads(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    files = folder.glob("*.safetensors")
    assert config["sha256"] == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    del config["sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    assert_same(tiny_bundle(), ModelBundle.from_pretrained(folder))


def test_a_model_that_is_loaded_and_saved_again_has_the_same_bytes_but_for_the_tokenizers_settings(
    folder: Path, tmp_path: Path
) -> None:
    ModelBundle.from_pretrained(folder).save_pretrained(tmp_path / "again")
    kept = ["config.json", "tokenizer/tokenizer.json", *sorted(file.name for file in folder.glob("*.safetensors"))]
    assert len(kept) == 7
    for name in kept:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_checkpoint_gives_the_model_back_and_the_same_text(tmp_path: Path) -> None:
    bundle = tiny_bundle()
    file = write_checkpoint(bundle, tmp_path / "last.ckpt", "denoiser")
    assert_same(bundle, ModelBundle.from_pretrained(file))
    ours, theirs = TextGenerator(bundle), TextGenerator.from_pretrained(file)
    assert ours.generate(3).texts == theirs.generate(3).texts


def test_a_categorical_denoiser_comes_back_with_its_path_and_codebook(tmp_path: Path) -> None:
    bundle = with_identity(only(tiny_bundle(), "autoencoder"), path="variance_preserving")
    path = bundle.identity.path
    network = CategoricalDenoiser(6, 4, len(tokenizer()), storage_path(path), width=16, depth=1, num_heads=2)
    network.set_codebook(torch.randn(network.codebook.shape), torch.randn(network.log_prior.shape))
    bundle.denoiser = network
    bundle.save_pretrained(tmp_path / "model")
    loaded = ModelBundle.from_pretrained(tmp_path / "model")
    assert_same(bundle, loaded)
    x_t, t = torch.randn(2, 4, 6), torch.tensor([0.3, 0.6])
    torch.testing.assert_close(bundle.flow().denoise(x_t, t), loaded.flow().denoise(x_t, t))


def storage_path(name: str):
    from fewstep.paths import PATHS

    return PATHS[name]()


def _edit_config(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def _truncate(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return cut


def _edit_weights(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "readout.safetensors")
        change(weights)
        save_file(weights, folder / "readout.safetensors")
        _edit_config(lambda c: c.pop("sha256"))(folder)  # else the bytes themselves would be refused

    return edit


DAMAGE = {
    "truncated weights": (_truncate("denoiser.safetensors"), "denoiser.safetensors is damaged or cut short"),
    "missing weights": (lambda f: (f / "denoiser.safetensors").unlink(), "denoiser.safetensors is missing"),
    "a flipped bit": (
        lambda f: flip_a_bit(f / "denoiser.safetensors"),
        "denoiser.safetensors is damaged on the disk: its bytes are not those that were written",
    ),
    "digests of others": (
        _edit_config(lambda c: c["sha256"].update({"denoiser.safetensors": c["sha256"]["readout.safetensors"]})),
        "denoiser.safetensors is damaged on the disk",
    ),
    "digests no object": (_edit_config(lambda c: c.update(sha256=[1])), "sha256 is [1], expected 64 hexadecimal"),
    "digests null": (_edit_config(lambda c: c.update(sha256=None)), "sha256 is None, expected 64 hexadecimal"),
    "digest no text": (
        _edit_config(lambda c: c["sha256"].update({"readout.safetensors": 7})),
        "config.json: sha256 is {'autoencoder.safetensors': ",
    ),
    "digest cut short": (
        _edit_config(lambda c: c["sha256"].update({"readout.safetensors": "0" * 63})),
        "expected 64 hexadecimal digits for each weight file",
    ),
    "missing tensor": (_edit_weights(lambda w: w.pop("outputs.bias")), "(readout): weights do not fit"),
    "extra tensor": (_edit_weights(lambda w: w.update(more=torch.zeros(1))), "(readout): weights do not fit"),
    "other shape": (_edit_weights(lambda w: w.update({"norm.bias": torch.zeros(3)})), "(readout): weights do not fit"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config cut short": (_truncate("config.json"), "config.json cannot be read"),
    "config of others": (lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), "not describe a fewstep"),
    "config no object": (lambda f: (f / "config.json").write_text("[1]"), "not describe a fewstep"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer is missing"),
    "tokenizer cut short": (_truncate("tokenizer/tokenizer.json"), "tokenizer"),
    "other format": (_edit_config(lambda c: c.update(format=99)), "model format 99"),
    "unknown class": (_edit_config(lambda c: c["parts"]["readout"].update({"class": "X"})), "readout is of class 'X'"),
    "class of another part": (
        _edit_config(lambda c: c["parts"]["readout"].update({"class": "RegressionDenoiser"})),
        "readout is of class 'RegressionDenoiser', expected LinearReadout or TransformerReadout",
    ),
    "unknown part": (
        lambda f: (
            _edit_config(lambda c: c["parts"].update(extra=c["parts"]["readout"]))(f),
            shutil.copy(f / "readout.safetensors", f / "extra.safetensors"),
        ),
        "unknown part 'extra'",
    ),
    "unknown argument": (
        _edit_config(lambda c: c["parts"]["readout"]["config"].update(colour=1)),
        "TransformerReadout cannot be built from its config",
    ),
    "identity key too many": (_edit_config(lambda c: c["identity"].update(extra=1)), "identity whose keys ['extra']"),
    "identity key missing": (_edit_config(lambda c: c["identity"].pop("path")), "identity whose keys ['path']"),
    "other time": (_edit_config(lambda c: c["identity"].update(time_convention="t=1 noise")), "time runs 't=1 noise'"),
    "unknown path": (_edit_config(lambda c: c["identity"].update(path="curved")), "unknown path 'curved'"),
    "unknown prediction": (_edit_config(lambda c: c["identity"].update(prediction="score")), "prediction 'score'"),
    "unknown estimate": (_edit_config(lambda c: c["identity"].update(estimate="mode")), "unknown estimate 'mode'"),
    "flow map of one time": (
        _edit_config(lambda c: c["identity"].update(estimate="flow_map")),
        "a flow map, but its denoiser has one time only",
    ),
    "block too long": (_edit_config(lambda c: c["identity"].update(block_size=64)), "denoiser has 4 latent positions"),
    "other tokenizer": (
        _edit_config(lambda c: c["identity"].update(tokenizer_fingerprint="0")),
        "its tokenizer is not",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_told_in_one_line(folder: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    damage(folder)
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        ModelBundle.from_pretrained(folder)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_checkpoint_that_is_none_or_of_others_is_told_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "some.ckpt"
    whole = write_checkpoint(tiny_bundle(), tmp_path / "whole.ckpt", "denoiser").read_bytes()
    cases = {
        "cannot be read as a checkpoint": [b"", b"hello\n", whole[: len(whole) // 2]],
        "not of fewstep": [_saved({"state_dict": {}}, file)],
        "it holds a Tensor": [_saved(torch.zeros(2), file)],
        "another fewstep version": [_saved({"fewstep": {"manifest": {}}, "state_dict": {}}, file)],
    }
    for message, contents in cases.items():
        for content in contents:
            file.write_bytes(content)
            with pytest.raises(UserError, match=rf"^[^\n]*{message}[^\n]*$"):
                ModelBundle.from_pretrained(file)
    with pytest.raises(UserError, match="does not exist"):
        ModelBundle.from_pretrained(tmp_path / "nothing")


def _saved(value: object, file: Path) -> bytes:
    torch.save(value, file)
    return file.read_bytes()


def test_a_checkpoint_without_the_weights_of_a_part_is_refused(tmp_path: Path) -> None:
    file = write_checkpoint(tiny_bundle(), tmp_path / "last.ckpt", "denoiser")
    checkpoint = storage.load_checkpoint(file)
    checkpoint["state_dict"] = {}
    torch.save(checkpoint, file)
    with pytest.raises(UserError, match=r"\(denoiser\): weights do not fit"):
        ModelBundle.from_pretrained(file)


def test_what_is_there_is_replaced_only_when_asked_and_only_if_it_is_a_model(folder: Path, tmp_path: Path) -> None:
    other = tiny_bundle(seed=1)
    with pytest.raises(UserError, match="exists already"):
        other.save_pretrained(folder)
    assert_same(tiny_bundle(), ModelBundle.from_pretrained(folder))
    other.save_pretrained(folder, overwrite=True)
    assert_same(other, ModelBundle.from_pretrained(folder))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt beside a model"):
        other.save_pretrained(folder, overwrite=True)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="not describe a fewstep model"):
        other.save_pretrained(foreign, overwrite=True)
    assert [item.name for item in foreign.iterdir()] == ["config.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        other.save_pretrained(tmp_path / "file", overwrite=True)
    (tmp_path / "empty").mkdir()
    other.save_pretrained(tmp_path / "empty")


@pytest.mark.parametrize("moment", ["weights", "moving in", "interrupted"])
def test_a_write_that_fails_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    rename = Path.rename

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def refuse_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt if moment == "interrupted" else OSError(5, "Input/output error")
        return rename(self, target)

    if moment == "weights":
        monkeypatch.setattr(storage, "save_file", full_disk)
    else:
        monkeypatch.setattr(Path, "rename", refuse_new)
    expected = KeyboardInterrupt if moment == "interrupted" else UserError
    with pytest.raises(expected):
        tiny_bundle(seed=1).save_pretrained(folder, overwrite=True)
    monkeypatch.undo()
    assert_same(tiny_bundle(), ModelBundle.from_pretrained(folder))
    assert [item.name for item in folder.parent.iterdir()] == ["model"]


def test_stages_merge_and_what_belongs_to_a_part_goes_with_it() -> None:
    whole = tiny_bundle()
    flow = with_identity(only(whole, "autoencoder", "readout", "denoiser"), path="variance_preserving", grid_mean=0.7)
    flow = with_identity(flow, estimate="endpoint", trained_nfe=3)
    head = with_identity(only(whole, "autoencoder", "head"), path="linear", grid_mean=None, trust_level=0.9)
    later = only(tiny_bundle(seed=1), "language_model")
    merged = merge_bundles([flow, head, only(whole, "language_model"), later], ["flow", "head", "lm", "later"])
    assert list(merged.parts()) == ["autoencoder", "readout", "denoiser", "head", "language_model"]
    assert (merged.identity.estimate, merged.identity.trained_nfe) == ("endpoint", 3)
    assert (merged.identity.path, merged.identity.grid_mean, merged.identity.trust_level) == (
        "variance_preserving",
        0.7,
        0.9,
    )
    assert merged.language_model is later.language_model


def test_models_that_do_not_fit_together_are_not_merged() -> None:
    ours, theirs = tiny_bundle(), tiny_bundle(seed=1)
    with pytest.raises(UserError, match="one and two hold different autoencoders"):
        merge_bundles([ours, theirs], ["one", "two"])
    with pytest.raises(UserError, match="two and one differ in block_size"):
        merge_bundles([ours, with_identity(ours, block_size=4)], ["one", "two"])
    with pytest.raises(UserError, match="two and one differ in tokenizer_fingerprint"):
        merge_bundles([ours, with_identity(ours, tokenizer_fingerprint="0")], ["one", "two"])

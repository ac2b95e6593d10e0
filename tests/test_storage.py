"""Files of models: written whole or not at all; damage is one line; no code in them is run; nothing on disk is lost."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fewstep import storage
from fewstep.cli.main import main
from fewstep.denoisers import RegressionDenoiser
from fewstep.errors import UserError
from fewstep.lab.images.generator import images_of
from fewstep.locking import LOCK_FILE
from fewstep.model import SavedModel
from fewstep.storage import load_checkpoint, load_strictly, recover_folder
from tests.bundles import flip_a_bit, tiny_bundle, write_checkpoint
from tests.lab.images.models import tiny_image_flow
from tests.runs import Workshop
from tests.test_model import assert_same

Damage = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_bundle().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_config(change: Callable[[dict], object]) -> Damage:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def identity(**changes: object) -> Damage:
    return edit_config(lambda config: config["identity"].update(changes))


def part(name: str, **changes: object) -> Damage:
    return edit_config(lambda config: config["parts"][name].update(changes))


def truncate(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: (folder / name).stat().st_size // 2]
    )


def edit_weights(change: Callable[[dict], object]) -> Damage:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "readout.safetensors")
        change(weights)
        save_file(weights, folder / "readout.safetensors")
        edit_config(lambda config: config["sha256"].clear())(folder)  # else the bytes themselves would be refused

    return edit


DAMAGE: dict[str, tuple[Damage, str]] = {
    "truncated weights": (truncate("denoiser.safetensors"), "denoiser.safetensors is damaged or cut short"),
    "missing weights": (lambda f: (f / "denoiser.safetensors").unlink(), "denoiser.safetensors is missing"),
    "a flipped bit": (lambda f: flip_a_bit(f / "denoiser.safetensors"), "denoiser.safetensors is damaged: its SHA-256"),
    "other digest": (
        edit_config(lambda c: c["sha256"].update({"denoiser.safetensors": c["sha256"]["readout.safetensors"]})),
        "denoiser.safetensors is damaged: its SHA-256",
    ),
    "no digests": (edit_config(lambda c: c.pop("sha256")), "unexpected or missing keys: ['sha256']"),
    "missing tensor": (edit_weights(lambda w: w.pop("outputs.bias")), "(readout): weights do not fit"),
    "extra tensor": (edit_weights(lambda w: w.update(more=torch.zeros(1))), "(readout): weights do not fit"),
    "other shape": (edit_weights(lambda w: w.update({"norm.bias": torch.zeros(3)})), "(readout): weights do not fit"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config cut short": (truncate("config.json"), "config.json cannot be read"),
    "config of others": (lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), "not describe a fewstep"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer is missing"),
    "tokenizer cut short": (truncate("tokenizer/tokenizer.json"), "tokenizer"),
    "key too many": (edit_config(lambda c: c.update(colour=1)), "unexpected or missing keys: ['colour']"),
    "other class": (part("readout", class_path="fewstep.denoisers.RegressionDenoiser"), "cannot be built from"),
    "no class": (edit_config(lambda c: c["parts"]["readout"].pop("class_path")), "parts.readout.class_path is"),
    "unknown part": (
        lambda f: (
            edit_config(lambda c: c["parts"].update(extra=c["parts"]["readout"]))(f),
            shutil.copy(f / "readout.safetensors", f / "extra.safetensors"),
        ),
        "unknown part 'extra'",
    ),
    "part out of the folder": (
        edit_config(lambda c: c["parts"].update({"../model/readout": c["parts"]["readout"]})),
        "not describe a fewstep",
    ),
    "unknown argument": (
        edit_config(lambda c: c["parts"]["readout"]["init_args"].update(colour=1)),
        "fewstep.readouts.TransformerReadout cannot be built from its init_args",
    ),
    "a network without end": (
        edit_config(lambda c: c["parts"]["denoiser"]["init_args"].update(depth=10**12)),
        "cannot be built from its init_args (the network would have more than 1,0",
    ),
    "identity key too many": (identity(extra=1), "identity: unexpected or missing keys: ['extra']"),
    "identity key missing": (edit_config(lambda c: c["identity"].pop("path")), "unexpected or missing keys: ['path']"),
    "other time": (identity(time_convention="t=1 noise"), "time_convention is 't=1 noise'"),
    "unknown kind": (identity(kind="sound"), "kind is 'sound': Input should be 'text' or 'images'"),
    "unknown path": (identity(path="curved"), "path is 'curved'"),
    "unknown estimate": (identity(estimate="mode"), "unknown estimate 'mode'"),
    "number as text": (identity(trust_level="0.5"), "trust_level is '0.5'"),
    "negative level": (identity(trust_level=-1.0), "trust_level is -1.0"),
    "grid of nothing": (identity(grid_std=-1.0), "save the model again"),
    "flow map of one time": (identity(estimate="flow_map"), "a flow map, but its denoiser has one time only"),
    "no block": (identity(block_size=0), "block_size is 0, expected at least 1"),
    "lengths of another block": (identity(length_counts=[0, 3]), "length_counts are (0, 3), expected 8 numbers"),
    "no lengths": (identity(length_counts=[0] * 8), "expected 8 numbers of texts"),
    "block too long": (identity(block_size=64), "the denoiser is built for 4 latent positions"),
    "other tokenizer": (identity(tokenizer_fingerprint="0"), "its tokenizer is not"),
}
IMAGE_DAMAGE: dict[str, tuple[Damage, str]] = {
    "no autoencoder": (edit_config(lambda c: c["parts"].pop("autoencoder")), "has no autoencoder"),
    "autoencoder of text": (
        part("autoencoder", class_path="fewstep.autoencoders.TransformerAutoencoder"),
        "cannot be built from its init_args",
    ),
    "part of text": (
        edit_config(lambda c: c["parts"].update(head=c["parts"]["denoiser"])),
        "head.safetensors is missing",
    ),
    "other size": (edit_config(lambda c: c["parts"]["autoencoder"]["init_args"].update(size=9)), "cannot be built"),
    "flow map of one time": (identity(estimate="flow_map"), "a flow map, but its denoiser"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_line(folder: Path, case: str) -> None:
    refused(folder, *DAMAGE[case])


@pytest.mark.parametrize("case", IMAGE_DAMAGE)
def test_damage_to_an_image_model_is_one_line(tmp_path: Path, case: str) -> None:
    tiny_image_flow().save_pretrained(tmp_path / "image")
    refused(tmp_path / "image", *IMAGE_DAMAGE[case])


def refused(folder: Path, damage: Damage, message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        SavedModel.from_pretrained(folder)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_denoiser_for_other_latents_and_an_unknown_source_are_refused(tmp_path: Path) -> None:
    model = tiny_image_flow()
    model.denoiser = RegressionDenoiser(3, 4, width=16, depth=1, num_heads=2)
    model.save_pretrained(tmp_path / "flow")
    with pytest.raises(UserError, match=r"built for 4 latent positions of 3 dimensions, the model needs 4 of 2"):
        SavedModel.from_pretrained(tmp_path / "flow")
    tiny_image_flow(source="Faces").save_pretrained(tmp_path / "faces")
    with pytest.raises(UserError, match="unknown images 'Faces'"):
        images_of(SavedModel.from_pretrained(tmp_path / "faces"))


def test_the_config_holds_the_digest_of_each_weight_file(folder: Path) -> None:
    digests = json.loads((folder / "config.json").read_text())["sha256"]
    files = folder.glob("*.safetensors")
    assert digests == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def saved(value: object, file: Path) -> bytes:
    torch.save(value, file)
    return file.read_bytes()


def test_what_is_no_checkpoint_of_ours_is_one_line(tmp_path: Path) -> None:
    file = write_checkpoint(tiny_bundle(), tmp_path / "some.ckpt", "denoiser")
    whole, entry = file.read_bytes(), load_checkpoint(file)["fewstep"]
    cases = {
        "cannot be read as a checkpoint": [b"", b"hello\n", whole[: len(whole) // 2]],
        "not of fewstep": [saved({"state_dict": {}}, file)],
        "it holds a Tensor": [saved(torch.zeros(2), file)],
        "another fewstep version": [saved({"fewstep": {"manifest": {}}, "state_dict": {}}, file)],
        "not describe a fewstep model": [saved({"fewstep": {**entry, "manifest": {}}, "state_dict": {}}, file)],
        "(denoiser): weights do not fit": [saved({"fewstep": entry, "state_dict": {}}, file)],
    }
    for message, contents in cases.items():
        for content in contents:
            file.write_bytes(content)
            with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
                SavedModel.from_pretrained(file)
            assert message in str(caught.value)
    with pytest.raises(UserError, match="does not exist"):
        SavedModel.from_pretrained(tmp_path / "nothing")


def test_one_changed_bit_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    file = write_checkpoint(tiny_bundle(), tmp_path / "some.ckpt", "denoiser")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    torch.load(file, weights_only=True)  # which does not notice
    with pytest.raises(UserError, match=r"^[^\n]*its record some/data/\d+ is damaged on the disk$"):
        SavedModel.from_pretrained(file)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_asks_to_run_code_is_refused_by_every_command(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], zipped: bool
) -> None:
    target, file = tmp_path / "exploded", tmp_path / "bomb.ckpt"
    checkpoint = load_checkpoint(write_checkpoint(tiny_bundle(), file, "denoiser"))
    torch.save({**checkpoint, "epoch": Bomb(target)}, file, _use_new_zipfile_serialization=zipped)
    torch.load(file, weights_only=False)
    assert target.exists(), "the bomb is a real one"
    target.unlink()
    train = ["train", *workshop.arguments("flow", f"--run_dir={tmp_path / 'run'}")]
    commands = [["sample", str(file)], ["convert", str(file), str(tmp_path / "out")]]
    commands += [[*train, f"--ckpt_path={file}"], [*train, f"--model.initialise_from={file}"]]
    for command in commands:
        capsys.readouterr()
        assert main(command) == 2, command
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("fewstep"))
        assert "cannot be read as a checkpoint: it asks to run code (" in line
        assert not target.exists(), command


def test_what_does_not_fit_is_counted_and_named() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weights = {"0.weight": torch.zeros(3, 5), "1.weight": torch.zeros(4, 3)}
    with pytest.raises(UserError) as caught:
        load_strictly(network, weights | dict.fromkeys("abc", torch.zeros(1)), "here")
    assert str(caught.value) == (
        "here: weights do not fit: 2 missing (0.bias, 1.bias); 3 unexpected (a, b, ...); "
        "1 of another shape (0.weight (3, 5) for (3, 2))"
    )
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items()), "nothing was copied"


def test_a_model_of_a_newer_version_is_warned_about(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for version, warnings in (("999.0", 1), ("0.0.1", 0), ("of tomorrow", 0)):
        identity(versions={"fewstep": version})(folder)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            SavedModel.from_pretrained(folder)
        assert sum("was saved by fewstep 999.0" in record.getMessage() for record in caplog.records) == warnings


def test_what_is_there_is_replaced_only_when_asked_and_only_if_it_is_a_model(folder: Path, tmp_path: Path) -> None:
    other = tiny_bundle(seed=1)
    with pytest.raises(UserError, match="exists already"):
        other.save_pretrained(folder)
    assert_same(tiny_bundle(), SavedModel.from_pretrained(folder))
    other.save_pretrained(folder, overwrite=True)
    assert_same(other, SavedModel.from_pretrained(folder))
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
    with pytest.raises(KeyboardInterrupt if moment == "interrupted" else UserError):
        tiny_bundle(seed=1).save_pretrained(folder, overwrite=True)
    monkeypatch.undo()
    assert_same(tiny_bundle(), SavedModel.from_pretrained(folder))
    assert [item.name for item in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("new_exists", [True, False])
def test_a_model_that_a_killed_write_moved_aside_is_put_back(folder: Path, new_exists: bool) -> None:
    shutil.copytree(folder, folder.parent / ".model-abc" / "old")
    if not new_exists:
        shutil.rmtree(folder)
    (folder.parent / LOCK_FILE).touch()
    recover_folder(folder)
    assert sorted(item.name for item in folder.parent.iterdir()) == [LOCK_FILE, "model"]
    SavedModel.from_pretrained(folder)

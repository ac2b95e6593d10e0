"""Files of weights: no code in them is run, no changed byte is taken, and what does not fit is counted and named."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from fewstep.bundle import ModelBundle
from fewstep.cli.main import main
from fewstep.errors import UserError
from fewstep.locking import LOCK_FILE
from fewstep.storage import recover_folder
from fewstep.weights import load_checkpoint, load_strictly
from tests.bundles import tiny_bundle, write_checkpoint
from tests.runs import Workshop


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


def armed(file: Path, target: Path, *, zipped: bool) -> Path:
    """A whole checkpoint with a bomb in it."""
    checkpoint = load_checkpoint(write_checkpoint(tiny_bundle(), file, "denoiser"))
    checkpoint["epoch"] = Bomb(target)
    torch.save(checkpoint, file, _use_new_zipfile_serialization=zipped)
    return file


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_asks_to_run_code_is_refused_by_every_command(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], zipped: bool
) -> None:
    target = tmp_path / "exploded"
    file = armed(tmp_path / "bomb.ckpt", target, zipped=zipped)
    torch.load(file, weights_only=False)
    assert target.exists(), "the bomb is a real one"
    target.unlink()
    train = ["train", *workshop.arguments("flow", f"--run_dir={tmp_path / 'run'}")]
    commands = [
        ["sample", str(file)],
        ["convert", str(file), str(tmp_path / "out")],
        [*train, f"--ckpt_path={file}"],
        [*train, f"--model.initialise_from={file}"],
    ]
    for command in commands:
        capsys.readouterr()
        assert main(command) == 2, command
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("fewstep"))
        assert "cannot be read as a checkpoint: it asks to run code (" in line
        assert not target.exists(), command


def test_one_changed_bit_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    file = write_checkpoint(tiny_bundle(), tmp_path / "some.ckpt", "denoiser")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    torch.load(file, weights_only=True)  # which does not notice
    with pytest.raises(UserError, match=r"^[^\n]*its record some/data/\d+ is damaged on the disk$"):
        ModelBundle.from_pretrained(file)


def test_what_does_not_fit_is_counted_and_named() -> None:
    part = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    before = {name: value.clone() for name, value in part.state_dict().items()}
    weights = {"0.weight": torch.zeros(3, 5), "1.weight": torch.zeros(4, 3), "a": torch.zeros(1), "b": torch.zeros(1)}
    weights["c"] = torch.zeros(1)
    with pytest.raises(UserError) as caught:
        load_strictly(part, weights, "here")
    assert str(caught.value) == (
        "here: weights do not fit: 2 missing (0.bias, 1.bias); 3 unexpected (a, b, ...); "
        "1 of another shape (0.weight (3, 5) for (3, 2))"
    )
    assert all(torch.equal(before[name], value) for name, value in part.state_dict().items()), "nothing was copied"


def test_a_checkpoint_of_another_size_is_one_line(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = workshop.arguments("language_model", f"--run_dir={tmp_path}", steps=2)
    assert main(["train", *arguments]) == 0
    capsys.readouterr()
    assert main(["train", *arguments, "--ckpt_path=last", "--model.network.width=48"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fewstep")]
    assert len(errors) == 1
    assert "the checkpoint does not fit the model of this run: " in errors[0]
    assert " of another shape (" in errors[0]


def test_a_model_of_a_newer_version_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "model"
    bundle = tiny_bundle()
    bundle.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for version, told in (("999.0", 1), ("0.0.1", 0), ("of tomorrow", 0)):
        config["identity"]["versions"] = {"fewstep": version}
        (folder / "config.json").write_text(json.dumps(config))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            ModelBundle.from_pretrained(folder)
        assert sum("was saved by fewstep 999.0" in record.getMessage() for record in caplog.records) == told
    config["identity"]["versions"] = ["fewstep"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"versions is \['fewstep'\], expected"):
        ModelBundle.from_pretrained(folder)


@pytest.mark.parametrize("new_is_there", [True, False])
def test_a_model_that_a_killed_write_moved_aside_is_put_back(tmp_path: Path, new_is_there: bool) -> None:
    folder, scratch = tmp_path / "model", tmp_path / ".model-abc"
    tiny_bundle().save_pretrained(folder)
    shutil.copytree(folder, scratch / "old")
    if not new_is_there:
        shutil.rmtree(folder)
    (tmp_path / LOCK_FILE).touch()
    recover_folder(folder)
    assert sorted(item.name for item in tmp_path.iterdir()) == [LOCK_FILE, "model"]
    ModelBundle.from_pretrained(folder)

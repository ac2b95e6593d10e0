"""What the process has set, of torch or of its user's rights, changes no result: own dtype, own device, own numbers."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.cli.main import main
from fewstep.errors import UserError
from fewstep.model import SavedModel
from fewstep.pipeline import TextGenerator
from tests.bundles import tiny_bundle
from tests.runs import Workshop


@contextmanager
def set_and_restored(setter: Callable[..., object], value: object, before: object) -> Iterator[None]:
    setter(value)
    try:
        yield
    finally:
        setter(before)


AMBIENT: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "float64": lambda: set_and_restored(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": lambda: set_and_restored(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "meta": lambda: set_and_restored(torch.set_default_device, "meta", None),
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "deterministic": lambda: set_and_restored(torch.use_deterministic_algorithms, True, False),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny_bundle().save_pretrained(folder := tmp_path_factory.mktemp("ambient") / "model")
    return folder


def texts(folder: Path) -> list[list[int]]:
    """Ids of both readouts with every control that draws or makes numbers."""
    generator = TextGenerator.from_pretrained(folder)
    settings = (
        {"readout": "parallel", "temperature": 1.0, "reinjection": "cosine:1,0", "solver": "heun"},
        {"readout": "head", "top_p": 0.9, "top_k": 40, "reinjection": 0.5, "snap": "every"},
        {"readout": "parallel", "reinjection": "by_position:0.9", "noise_temperature": 0.9},
    )
    return [ids for each in settings for ids in generator.generate(5, 3, 7, **each).ids.tolist()]


@pytest.mark.parametrize("state", AMBIENT)
def test_a_loaded_model_gives_the_same_tokens(state: str, folder: Path) -> None:
    expected = texts(folder)
    with AMBIENT[state]():
        assert texts(folder) == expected
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_default_device().type == "cpu"


@pytest.fixture(scope="module")
def plain(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Weights of a training in which nothing is set."""
    return trained_weights(workshop, tmp_path_factory.mktemp("plain"))


def trained_weights(workshop: Workshop, run_dir: Path) -> bytes:
    assert main(["train", *workshop.arguments("flow", f"--run_dir={run_dir}", steps=2)]) == 0
    return (run_dir / "model" / "denoiser.safetensors").read_bytes()


@pytest.mark.parametrize("state", ["float64", "meta", "inference mode"])
def test_training_gives_the_same_weights(state: str, workshop: Workshop, plain: bytes, tmp_path: Path) -> None:
    with AMBIENT[state]():
        assert trained_weights(workshop, tmp_path) == plain


def test_numbers_of_numpy_are_numbers(folder: Path, tmp_path: Path) -> None:
    generator = TextGenerator.from_pretrained(folder)
    settings = {"reinjection": 0.5, "temperature": 0.75, "top_p": 0.5, "top_k": 5, "noise_temperature": 0.5}
    ours = generator.generate(3, 2, 7, readout="head", stop=True, **settings)
    numbers = {name: np.int64(v) if isinstance(v, int) else np.float32(v) for name, v in settings.items()}
    theirs = generator.generate(np.int64(3), np.int32(2), np.int64(7), readout="head", stop=np.bool_(True), **numbers)
    assert theirs.texts == ours.texts
    assert generator.generate(2, 2, reinjection=np.array([0.5, 0.25])).texts
    bundle = tiny_bundle()
    config = bundle.autoencoder.config
    config.update({name: np.int64(value) for name, value in config.items() if type(value) is int})
    bundle.save_pretrained(tmp_path / "model")
    assert TextGenerator.from_pretrained(tmp_path / "model").generate(2, 1).texts


@contextmanager
def as_another_user() -> Iterator[Path]:
    """A folder open to all, in a process that may not read what others closed."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o777)
        os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in folder.rglob("*")}


def test_files_have_the_mode_that_the_umask_gives(workshop: Workshop, tmp_path: Path) -> None:
    umask = 0o027
    before = os.umask(umask)
    try:
        run = tmp_path / "run"
        cache = [f"--data.cache_dir={tmp_path / 'cache'}", f"--run_dir={run}"]
        assert main(["train", *workshop.arguments("flow", *cache, "--checkpoint.every_n_steps=1", steps=2)]) == 0
        sample = ["sample", str(run / "model"), "--device", "cpu", "--num_samples", "1"]
        assert main([*sample, "--output", str(tmp_path / "out.jsonl")]) == 0
        assert main(["convert", str(run / "checkpoints" / "last.ckpt"), str(tmp_path / "converted")]) == 0
        assert main(["configs", "copy", str(tmp_path / "configs")]) == 0
    finally:
        os.umask(before)
    for name, mode in modes(tmp_path).items():
        assert mode == (0o777 if (tmp_path / name).is_dir() else 0o666) & ~umask, name


@pytest.mark.parametrize("name", ["readout.safetensors", "config.json", "tokenizer"])
def test_what_is_closed_to_the_reader_is_not_reported_as_missing(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with as_another_user() as place:
        tiny_bundle().save_pretrained(place / "model")
        os.seteuid(0)
        (place / "model" / name).chmod(0)
        os.chown(place / "model" / name, 0, 0)
        os.seteuid(65534)
        assert main(["sample", str(place / "model"), "--device", "cpu"]) == 2
        error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "missing" not in error and "does not exist" not in error and "cut short" not in error
    assert "closed to you" in error or "ermission denied" in error


def test_a_checkpoint_that_is_closed_is_reported_so(folder: Path) -> None:
    with as_another_user() as place:
        (place / "last.ckpt").write_bytes(b"x")
        (place / "last.ckpt").chmod(0)
        with pytest.raises(UserError, match="ermission denied"):
            SavedModel.from_pretrained(place / "last.ckpt")

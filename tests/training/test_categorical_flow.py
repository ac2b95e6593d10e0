"""A denoiser that reads a codebook trains from a YAML alone, and its model is saved, loaded and sampled."""

from pathlib import Path

import pytest
import torch
import yaml

from fewstep.denoisers import CategoricalDenoiser
from fewstep.errors import UserError
from fewstep.model import SavedModel
from fewstep.pipeline import TextGenerator
from fewstep.training.command import main
from tests.runs import Workshop, logged


@pytest.fixture(scope="module")
def code(workshop: Workshop) -> Path:
    """Model folder of an autoencoder whose latents are a code of single tokens."""
    run_dir = workshop.folder / "code"
    flags = ["--model.autoencoder.depth=0", "--model.autoencoder.stride=1", f"--run_dir={run_dir}"]
    assert main(workshop.arguments("autoencoder", *flags, steps=2)) == 0
    return run_dir / "model"


def settings(file: Path, vocab_size: int, path: str = "linear") -> Path:
    denoiser = {
        "class_path": "fewstep.denoisers.CategoricalDenoiser",
        "init_args": {"vocab_size": vocab_size, "path": path, "width": 16, "depth": 1, "num_heads": 2},
    }
    objective = {
        "class_path": "fewstep.objectives.FlowMatching",
        "init_args": {"time_sampler": "fewstep.schedules.UniformTime", "cross_entropy_weight": 1.0},
    }
    file.write_text(yaml.safe_dump({"model": {"init_args": {"denoiser": denoiser, "objective": objective}}}))
    return file


def test_it_trains_is_saved_loaded_and_sampled(workshop: Workshop, code: Path, tmp_path: Path) -> None:
    autoencoder = SavedModel.from_pretrained(code).autoencoder
    config = settings(tmp_path / "categorical.yaml", autoencoder.vocab_size)
    flags = ["--config", str(config), f"--model.autoencoder={code}", f"--run_dir={tmp_path / 'run'}"]
    assert main(workshop.arguments("flow", *flags, steps=2)) == 0
    assert len(logged(tmp_path / "run")["train/cross_entropy_nats"]) == 2
    model = SavedModel.from_pretrained(tmp_path / "run" / "model")
    denoiser = model.denoiser
    assert isinstance(denoiser, CategoricalDenoiser)
    torch.testing.assert_close(denoiser.codebook, autoencoder.codebook())
    torch.testing.assert_close(denoiser.log_prior.exp().sum(), torch.tensor(1.0))
    assert denoiser.log_prior.std() > 0.1, "tokens of the train split are likelier than others"
    assert len(TextGenerator(model).generate(2, num_steps=2, seed=0).texts) == 2


def test_what_does_not_fit_is_refused_in_a_line(workshop: Workshop, code: Path, tmp_path: Path) -> None:
    vocab_size = SavedModel.from_pretrained(code).autoencoder.vocab_size
    cases = [
        (code, vocab_size + 1, "linear", f"give vocab_size={vocab_size}"),
        (code, vocab_size, "variance_preserving", "predicts x1 on path variance_preserving"),
        (workshop.autoencoder, vocab_size, "linear", "has no codebook"),
    ]
    for autoencoder, size, path, message in cases:
        flags = ["--config", str(settings(tmp_path / "categorical.yaml", size, path)), f"--run_dir={tmp_path / 'run'}"]
        with pytest.raises(UserError, match=message):
            main(workshop.arguments("flow", *flags, f"--model.autoencoder={autoencoder}"))

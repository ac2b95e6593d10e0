"""The image control goes the way of the text stages: run folder, averaged weights, resume, one line for a mistake."""

import shutil
from pathlib import Path

import pytest
import torch

from fewstep.cli.main import main
from fewstep.lab.images.generator import image_autoencoder, images_of
from fewstep.model import SavedModel, kind_of
from fewstep.storage import load_checkpoint
from tests.lab.images.models import image_arguments
from tests.runs import CONFIGS, Workshop, logged
from tests.training.test_resume import assert_equal


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 200 steps on digits."""
    run_dir = tmp_path_factory.mktemp("digits")
    flags = ["--model.optimizer.learning_rate=0.01", "--data.batch_size=32", "--data.num_validation_images=512"]
    flags += ["--model.autoencoder.width=16", f"--run_dir={run_dir}"]
    assert main(["train", *image_arguments(*flags, steps=200)]) == 0
    return run_dir


def test_a_short_run_explains_half_of_what_the_mean_image_leaves(trained: Path) -> None:
    model = SavedModel.from_pretrained(trained / "model")
    held_out, mean = images_of(model).held_out(), images_of(model).train().mean(0)
    autoencoder = image_autoencoder(model)
    with torch.no_grad():
        error = (autoencoder.decode(autoencoder.encode(held_out)) - held_out).square()
    constant = (mean - held_out).square().mean()
    assert error.mean() < 0.5 * constant
    metrics = logged(trained)
    psnr = -10 * error.mean((1, 2, 3)).log10().mean()
    assert metrics["val/psnr_db"][199] == pytest.approx(float(psnr), abs=1e-3), "of the averaged weights"
    assert metrics["val/r_squared"][199] == pytest.approx(float(1 - error.mean() / constant), abs=1e-4)
    assert metrics["val/loss"][199] < metrics["val/loss"][99]


def test_latents_of_held_out_images_have_unit_variance_after_training(trained: Path) -> None:
    model = SavedModel.from_pretrained(trained / "checkpoints" / "last.ckpt")
    with torch.no_grad():
        z = image_autoencoder(model).encode(images_of(model).held_out())
    assert z.mean().abs() < 0.2
    assert z.var() == pytest.approx(1, abs=0.15)
    assert (z.flatten(1).var(0) - 1).abs().max() < 0.5


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    # A constant rate, for the cosine spans the steps that the run was given.
    flags = ["--model.optimizer.final_fraction=1.0", "--trainer.val_check_interval=3"]
    long, grown = tmp_path / "long", tmp_path / "grown"
    assert main(["train", *image_arguments(*flags, f"--run_dir={long}", steps=9)]) == 0
    assert main(["train", *image_arguments(*flags, f"--run_dir={grown}", steps=6)]) == 0
    shutil.rmtree(grown / "model")
    assert main(["train", *image_arguments(*flags, f"--run_dir={grown}", "--ckpt_path=last", steps=6)]) == 0
    assert kind_of(grown / "model") == "images", "a run that ended before its export is exported by going on"
    assert main(["train", *image_arguments(*flags, f"--run_dir={grown}", "--ckpt_path=last", steps=9)]) == 0
    expected, found = logged(long), logged(grown)
    for name in ("train/loss", "val/loss", "val/psnr_db", "val/r_squared", "train/grad_norm"):
        assert found[name] == expected[name]
    assert len(expected["train/images_per_second"]) == 9
    one, other = (load_checkpoint(run / "checkpoints" / "last.ckpt") for run in (long, grown))
    for key in ("state_dict", "current_model_state", "optimizer_states"):
        assert_equal(one[key], other[key], key)


def test_the_drawn_set_is_one_flag_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data.images=DrawnShapes", "--data.images.num_train=40", "--data.images.num_held_out=5"]
    assert main(["train", *image_arguments(*flags, f"--run_dir={tmp_path}", steps=2)]) == 0
    out = capsys.readouterr().out
    assert "2 steps of 16 images" in out
    assert "DrawnShapes (num_train 40, num_held_out 5, size 32, seed 0): 3 x 32 x 32; 40 to train on, 5 held out" in out
    model = SavedModel.from_pretrained(tmp_path / "model")
    assert model.latent_shape() == (64, 4)
    assert tuple(images_of(model).held_out().shape) == (5, 3, 32, 32)


def refusal(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line on stderr of a command that must fail with exit 2."""
    capsys.readouterr()
    assert main(["train", *arguments]) == 2
    out, errors = capsys.readouterr()
    assert not out
    assert errors.count("\n") == 1, errors
    return errors


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--data.batch_siz=3"], "batch_siz"),
        (["--data.images=Faces"], "Faces"),
        (["--data.images.num_held_out=0"], "num_held_out is 0"),
        (["--data.images.colour=red"], "colour"),
        (["--data.batch_size=0"], "batch_size 0"),
        (["--data.num_validation_images=0"], "num_validation_images 0"),
        (["--model.autoencoder.width=wide"], "width"),
        (["--model.autoencoder.num_halvings=4"], "cannot be halved 4 times"),
        (["--model.objective.noise_level_max=-1"], "noise_level_max is -1.0"),
        (["--data.batch_size=5000"], "fewer than one batch"),
        (["--data=TextDataModule"], "data.class_path is TextDataModule, but ImageAutoencoderModule trains on"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], named: str
) -> None:
    assert named in refusal(capsys, image_arguments(*flags, f"--run_dir={tmp_path / 'run'}"))


def test_an_earlier_run_is_kept_and_a_text_stage_does_not_take_images(
    workshop: Workshop, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--overwrite" in refusal(capsys, image_arguments(f"--run_dir={trained}"))
    for base in (trained / "model", trained / "checkpoints" / "last.ckpt"):
        flags = [f"--model.autoencoder={base}", f"--run_dir={tmp_path / 'flow'}"]
        assert "expected one of text" in refusal(capsys, workshop.arguments("flow", *flags))
    checkpoint = trained / "checkpoints" / "last.ckpt"
    flags = [f"--ckpt_path={checkpoint}", f"--run_dir={tmp_path / 'other'}"]
    assert "'image_autoencoder', but this run trains 'autoencoder'" in refusal(
        capsys, workshop.arguments("autoencoder", *flags)
    )
    images = ["--data=fewstep.lab.images.training.ImageDataModule", "--data.images=Digits"]
    images = ["fit", "--config", str(CONFIGS / "autoencoder.yaml"), *images]
    assert "but AutoencoderModule trains on TextDataModule" in refusal(capsys, images)

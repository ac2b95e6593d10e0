"""The image control goes the way of the text stages: autoencoder, flow on it, resume, one line for a mistake."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange

from fewstep.cli.main import main
from fewstep.denoisers import FlowModel, RegressionDenoiser
from fewstep.lab.images import Digits
from fewstep.lab.images.generator import generate_images, image_autoencoder, images_of, sampled_latents
from fewstep.lab.images.training import ImageDataModule, ImageFlowModule
from fewstep.metrics.frechet import frechet_distance, moments
from fewstep.model import SavedModel, kind_of
from fewstep.objectives import OBJECTIVES, Objective
from fewstep.samplers import FlowSampler
from fewstep.schedules import LogitNormalTime
from fewstep.storage import load_checkpoint
from fewstep.types import LossOutput
from tests.lab.images.models import tiny_image_flow
from tests.runs import CONFIGS, Workshop, logged
from tests.training.test_resume import assert_equal


def fit(stage: str, *flags: str, steps: int = 4) -> list[str]:
    """``fit`` of a stage on digits, tiny and with every step logged; ``flags`` come last."""
    trainer = {"max_steps": steps, "val_check_interval": max(steps // 2, 1), "log_every_n_steps": 1}
    trainer |= {"enable_progress_bar": "false", "accelerator": "cpu"}
    settings = [f"--trainer.{name}={value}" for name, value in trainer.items()]
    size = ["--size", "debug"] if stage == "digits" else []
    return ["train", "fit", "--config", str(CONFIGS / f"{stage}.yaml"), *size, *settings, *flags]


def fit_flow(base: Path, *flags: str, objective: str | None = None, steps: int = 4) -> list[str]:
    config = [] if objective is None else ["--config", str(CONFIGS / "objectives" / f"{objective}.yaml")]
    size = {"width": 32, "depth": 1, "num_heads": 2, "local_reach": 2, "max_frequency": 30.0}
    sizes = [f"--model.denoiser.{name}={value}" for name, value in size.items()]
    own = [f"--model.autoencoder={base / 'model'}", "--model.prediction=x1", "--data.images=Digits", *sizes]
    return fit("image_flow", *config, *own, *flags, steps=steps)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder after 200 steps on digits."""
    run_dir = tmp_path_factory.mktemp("digits")
    flags = ["--model.optimizer.learning_rate=0.01", "--data.batch_size=32", "--data.num_validation_images=512"]
    flags += ["--model.autoencoder.width=16", f"--run_dir={run_dir}"]
    assert main(fit("digits", *flags, steps=200)) == 0
    return run_dir


@pytest.fixture(scope="module")
def flow(base: Path) -> Path:
    """A flow after 300 steps on it."""
    flags = ["--model.optimizer.learning_rate=0.01", "--model.optimizer.warmup_steps=5", "--ema.decay=0.9"]
    assert main(fit_flow(base, f"--run_dir={base / 'flow'}", *flags, steps=300)) == 0
    return base / "flow"


def test_a_short_run_explains_half_of_what_the_mean_image_leaves_in_latents_of_unit_variance(base: Path) -> None:
    model = SavedModel.from_pretrained(base / "model")
    held_out, mean = images_of(model).held_out(), images_of(model).train().mean(0)
    autoencoder = image_autoencoder(model)
    with torch.no_grad():
        z = autoencoder.encode(held_out)
        error = (autoencoder.decode(z) - held_out).square()
    assert error.mean() < 0.5 * (mean - held_out).square().mean()
    metrics = logged(base)
    psnr = -10 * error.mean((1, 2, 3)).log10().mean()
    assert metrics["val/psnr_db"][199] == pytest.approx(float(psnr), abs=1e-3), "of the averaged weights"
    assert metrics["val/loss"][199] < metrics["val/loss"][99]
    assert z.mean().abs() < 0.2
    assert (z.flatten(1).var(0) - 1).abs().max() < 0.5


def test_a_flow_is_saved_with_its_frozen_autoencoder_and_brings_latents_to_those_of_the_images(
    base: Path, flow: Path
) -> None:
    assert kind_of(flow / "model") == "images"
    model, before = SavedModel.from_pretrained(flow / "model"), SavedModel.from_pretrained(base / "model")
    assert_equal(model.encoder().state_dict(), before.encoder().state_dict(), "autoencoder")
    identity = model.identity
    assert (identity.objective, identity.estimate, identity.trained_nfe) == ("FlowMatching", "posterior_mean", None)
    assert (identity.path, identity.prediction, identity.grid_mean, identity.grid_std) == ("linear", "x1", 0.0, 1.0)
    from_checkpoint = SavedModel.from_pretrained(flow / "checkpoints" / "last.ckpt")
    assert torch.equal(generate_images(from_checkpoint, 2).images, generate_images(model, 2).images)
    assert len(logged(flow)["train/images_per_second"]) == 300
    sampler = FlowSampler(model.flow().path, grid=identity.default_grid())
    with torch.no_grad():
        z = image_autoencoder(model).encode(images_of(model).train())
        (batch,) = sampled_latents(model, sampler, 8, 0, 0, 200, 200)
    noise = torch.randn(batch.states[-1].shape, generator=torch.Generator().manual_seed(0))
    data = moments(rearrange(z, "b c h w -> b (h w) c"))
    assert frechet_distance(data, moments(batch.states[-1])) < 0.5 * frechet_distance(data, moments(noise))


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    # A constant rate, for the cosine spans the steps that the run was given.
    flags = ["--model.optimizer.final_fraction=1.0", "--trainer.val_check_interval=3"]
    long, grown = tmp_path / "long", tmp_path / "grown"
    assert main(fit("digits", *flags, f"--run_dir={long}", steps=9)) == 0
    assert main(fit("digits", *flags, f"--run_dir={grown}", steps=6)) == 0
    shutil.rmtree(grown / "model")
    assert main(fit("digits", *flags, f"--run_dir={grown}", "--ckpt_path=last", steps=6)) == 0
    assert kind_of(grown / "model") == "images", "a run that ended before its export is exported by going on"
    assert main(fit("digits", *flags, f"--run_dir={grown}", "--ckpt_path=last", steps=9)) == 0
    expected, found = logged(long), logged(grown)
    for name in ("train/loss", "val/loss", "val/psnr_db", "train/grad_norm"):
        assert found[name] == expected[name]
    one, other = (load_checkpoint(run / "checkpoints" / "last.ckpt") for run in (long, grown))
    for key in ("state_dict", "current_model_state", "optimizer_states"):
        assert_equal(one[key], other[key], key)


@pytest.mark.parametrize("objective", ["mean_flow", "reflow", "distribution_matching"])
def test_objectives_train_on_images(base: Path, flow: Path, tmp_path: Path, objective: str) -> None:
    flags = [f"--model.initialise_from={flow / 'model'}", "--data.batch_size=16", f"--run_dir={tmp_path}"]
    flags += [f"--model.teacher={flow / 'model'}"] if OBJECTIVES[objective].needs_teacher else []
    assert main(fit_flow(base, *flags, objective=objective, steps=2)) == 0
    model, expected = SavedModel.from_pretrained(tmp_path / "model"), OBJECTIVES[objective]
    assert (model.identity.objective, model.identity.estimate) == (expected.__name__, expected.estimate.name)
    assert generate_images(model, 2, model.identity.trained_nfe or 1).images.isfinite().all()
    losses = [*logged(tmp_path)["train/loss"].values(), *logged(tmp_path)["val/loss"].values()]
    assert torch.tensor(losses).isfinite().all()


def test_the_objective_sees_the_latents_of_the_images_and_no_tokens(base: Path) -> None:
    seen: dict[str, Any] = {}

    class Recording(Objective):
        def forward(self, model: FlowModel, latents: object, **given: object) -> LossOutput:  # type: ignore[override]
            seen.update(given, latents=latents)
            return LossOutput(torch.zeros(()), torch.zeros(3))

    make = partial(RegressionDenoiser, width=32, depth=1, num_heads=2)
    objective = Recording(LogitNormalTime(0.2, 0.9))
    module = ImageFlowModule(ImageDataModule(Digits()), str(base / "model"), objective, make).eval()
    images = Digits().held_out(3)
    module.batch_loss({"images": images, "index": torch.arange(3)}, torch.Generator())
    latents = seen["latents"]
    with torch.no_grad():
        z = image_autoencoder(SavedModel.from_pretrained(base / "model")).encode(images)
    assert torch.equal(latents.z, rearrange(z, "b c h w -> b (h w) c"))
    assert bool(latents.mask.all()) and not latents.z.requires_grad
    assert [seen[name] for name in ("tokens", "readout", "teacher", "progress")] == [None, None, None, 1.0]
    assert (module.identity().grid_mean, module.identity().grid_std) == (0.2, 0.9)


def test_the_drawn_set_is_one_flag_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data.images=DrawnShapes", "--data.images.num_train=40", "--data.images.num_held_out=5"]
    assert main(fit("digits", *flags, f"--run_dir={tmp_path}", steps=2)) == 0
    out = capsys.readouterr().out
    assert "DrawnShapes (num_train 40, num_held_out 5, size 32, seed 0): 3 x 32 x 32; 40 to train on, 5 held out" in out
    model = SavedModel.from_pretrained(tmp_path / "model")
    assert model.latent_shape() == (64, 4)
    assert tuple(images_of(model).held_out().shape) == (5, 3, 32, 32)


def refusal(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line on stderr of a training that must fail with exit 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    out, errors = capsys.readouterr()
    assert not out and errors.count("\n") == 1, errors
    return errors


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--data.images=Faces", "Faces"),
        ("--data.images.num_held_out=0", "num_held_out is 0"),
        ("--data.images.colour=red", "colour"),
        ("--data.num_validation_images=0", "num_validation_images 0"),
        ("--model.autoencoder.num_halvings=4", "cannot be halved 4 times"),
        ("--model.objective.noise_level_max=-1", "noise_level_max is -1.0"),
        ("--data.batch_size=5000", "fewer than one batch"),
        ("--data=TextDataModule", "data.class_path is TextDataModule, but ImageAutoencoderModule trains on"),
        ("--run_dir={base}", "--overwrite"),
        ("flow --data.images.seed=4", "was trained on other images: give --data.images=Digits --data.images.num_he"),
        ("flow --data.images=DrawnShapes", "was trained on other images"),
        ("flow --model.objective.cross_entropy_weight=1", "weight is 1.0, but these data have no tokens"),
        ("flow --model.initialise_from={base}/model", "no denoiser"),
        ("reflow --model.teacher={base}/model", "no denoiser"),
        ("reflow --model.teacher={other} --data.images.num_held_out=97 --data.images.seed=3", "other images"),
    ],
)
def test_a_mistake_is_one_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, named: str
) -> None:
    tiny_image_flow().save_pretrained(tmp_path / "other")
    given = [f"--run_dir={tmp_path / 'run'}", *flags.format(base=base, other=tmp_path / "other").split()]
    if given[1].startswith("--"):
        line = fit("digits", *given)
    else:
        line = fit_flow(base, given[0], *given[2:], objective=None if given[1] == "flow" else given[1])
    assert named in refusal(capsys, line)


def test_a_text_stage_does_not_take_images(
    workshop: Workshop, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, run_dir = base / "checkpoints" / "last.ckpt", f"--run_dir={tmp_path / 'run'}"
    for path in (base / "model", checkpoint):
        flags = [f"--model.autoencoder={path}", run_dir]
        assert "expected one of text" in refusal(capsys, ["train", *workshop.arguments("flow", *flags)])
    line = ["train", *workshop.arguments("autoencoder", f"--ckpt_path={checkpoint}", run_dir)]
    assert "'image_autoencoder', but this run trains 'autoencoder'" in refusal(capsys, line)
    line = fit("autoencoder", "--data=fewstep.lab.images.training.ImageDataModule", "--data.images=Digits")
    assert "but AutoencoderModule trains on TextDataModule" in refusal(capsys, line)

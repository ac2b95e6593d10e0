"""Flows on image latents: trained like those of text, with every objective, on a frozen autoencoder."""

from functools import partial
from pathlib import Path

import pytest
import torch

from fewstep.cli.main import main
from fewstep.denoisers import FlowModel, RegressionDenoiser
from fewstep.lab.images import Digits, to_positions
from fewstep.lab.images.generator import generate_images, image_autoencoder
from fewstep.lab.images.training import ImageDataModule, ImageFlowModule
from fewstep.metrics.frechet import frechet_distance, moments
from fewstep.model import SavedModel, kind_of
from fewstep.objectives import OBJECTIVES, Objective
from fewstep.pipeline import sampled_latents
from fewstep.samplers import FlowSampler
from fewstep.schedules import LogitNormalTime
from fewstep.types import LossOutput
from tests.lab.images.models import tiny_image_flow, tiny_image_model
from tests.runs import CONFIGS, logged
from tests.training.test_resume import assert_equal

IMAGES = Digits(num_held_out=97, seed=3)
"""Those that the tiny image model is of."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny image autoencoder as ``model``."""
    folder = tmp_path_factory.mktemp("images")
    white_image_model().save_pretrained(folder / "model")
    return folder


def white_image_model() -> SavedModel:
    """The tiny image model, its latents of unit variance as those of a trained one are."""
    model = tiny_image_model()
    with torch.no_grad():
        raw = model.autoencoder.encode_raw(IMAGES.train()).flatten(1)[:, None]
    model.autoencoder.whitening.fit(raw, torch.ones(raw.shape[:2], dtype=torch.bool))
    return model


@pytest.fixture(scope="module")
def flow(base: Path) -> Path:
    """A run of 100 steps on it."""
    flags = ["--model.optimizer.learning_rate=0.01", "--model.optimizer.warmup_steps=5", "--ema.decay=0.9"]
    assert main(["train", *arguments(base, f"--run_dir={base / 'flow'}", *flags, steps=100)]) == 0
    return base / "flow"


def arguments(base: Path, *flags: str, objective: str | None = None, steps: int = 4) -> list[str]:
    """``fit`` of the image flow on digits, tiny and with every step logged; ``flags`` come last."""
    files = [CONFIGS / "image_flow.yaml", *([CONFIGS / "objectives" / f"{objective}.yaml"] if objective else [])]
    images = ["--data.images=Digits", "--data.images.num_held_out=97", "--data.images.seed=3", "--data.batch_size=32"]
    size = [f"--model.denoiser.{name}={value}" for name, value in SIZE.items()]
    trainer = {"max_steps": steps, "val_check_interval": max(steps // 2, 1), "log_every_n_steps": 1}
    trainer |= {"enable_progress_bar": "false", "accelerator": "cpu"}
    return [
        "fit",
        *(flag for file in files for flag in ("--config", str(file))),
        f"--model.autoencoder={base / 'model'}",
        *images,
        "--model.prediction=x1",
        *size,
        *(f"--trainer.{name}={value}" for name, value in trainer.items()),
        *flags,
    ]


SIZE = {"width": 32, "depth": 1, "num_heads": 2, "local_reach": 2, "max_frequency": 30.0}


def module(base: Path, objective: Objective, **options: str) -> ImageFlowModule:
    """The module on digits, without a trainer."""
    size = {**SIZE, "two_times": objective.estimate.two_times}
    make = partial(RegressionDenoiser, **size)
    return ImageFlowModule(ImageDataModule(IMAGES), str(base / "model"), objective, make, **options)


def test_a_run_leaves_the_frozen_autoencoder_with_its_flow(base: Path, flow: Path) -> None:
    assert kind_of(flow / "model") == "images"
    model, before = SavedModel.from_pretrained(flow / "model"), white_image_model()
    assert_equal(model.autoencoder.state_dict(), before.autoencoder.state_dict(), "autoencoder")
    told = model.identity
    assert (told.objective, told.estimate, told.trained_nfe) == ("FlowMatching", "posterior_mean", None)
    assert (told.path, told.prediction, told.grid_mean, told.grid_std) == ("linear", "x1", 0.0, 1.0)
    from_checkpoint = SavedModel.from_pretrained(flow / "checkpoints" / "last.ckpt")
    assert torch.equal(generate_images(from_checkpoint, 2).images, generate_images(model, 2).images)
    metrics = logged(flow)
    assert metrics["val/loss"][99] < metrics["val/loss"][49] < 1.0, "of data of unit variance"
    assert len(metrics["train/images_per_second"]) == 100


def test_training_brings_generated_latents_to_those_of_the_images(flow: Path) -> None:
    model = SavedModel.from_pretrained(flow / "model")
    sampler = FlowSampler(model.flow().path, grid=model.identity.default_grid())
    with torch.no_grad():
        z = to_positions(image_autoencoder(model).encode(IMAGES.train()))
        ((_, _, last),) = sampled_latents(model, sampler, 8, 0, 0, 200, 200)
    noise = torch.randn(200, 4, 2, generator=torch.Generator().manual_seed(0))
    distance = [frechet_distance(moments(z), moments(x)) for x in (last.x_t, noise)]
    assert distance[0] < 0.5 * distance[1]


@pytest.mark.parametrize("objective", ["mean_flow", "reflow", "distribution_matching"])
def test_objectives_train_on_images(base: Path, flow: Path, tmp_path: Path, objective: str) -> None:
    given = [f"--model.initialise_from={flow / 'model'}"]
    given += [f"--model.teacher={flow / 'model'}"] if OBJECTIVES[objective].needs_teacher else []
    flags = [*given, "--data.batch_size=16", f"--run_dir={tmp_path}"]
    assert main(["train", *arguments(base, *flags, objective=objective, steps=2)]) == 0
    model = SavedModel.from_pretrained(tmp_path / "model")
    told = model.identity
    expected = OBJECTIVES[objective]
    assert (told.objective, told.estimate) == (expected.__name__, expected.estimate.name)
    assert generate_images(model, 2, told.trained_nfe or 1).images.isfinite().all()
    assert all(
        torch.tensor(list(logged(tmp_path)[f"{part}/loss"].values())).isfinite().all() for part in ("train", "val")
    )


def test_the_objective_sees_the_latents_of_the_images_and_no_tokens(base: Path) -> None:
    seen: dict[str, object] = {}

    class Recording(Objective):
        def forward(self, model: FlowModel, latents: object, **given: object) -> LossOutput:  # type: ignore[override]
            seen.update(given, model=model, latents=latents)
            seen["modes"] = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
            return LossOutput(torch.zeros(()), torch.zeros(3))

    built = module(base, Recording(LogitNormalTime(0.2, 0.9))).eval()
    images, noise = IMAGES.held_out(3), torch.Generator()
    batch = {"images": images, "index": torch.arange(3)}
    built.batch_loss(batch, noise)
    assert seen["modes"] == (False, True)
    with torch.inference_mode():
        built.batch_loss(batch, noise)
    assert seen["modes"] == (False, False), "validation takes derivatives, but records none"
    reference, latents = white_image_model(), seen["latents"]
    with torch.no_grad():
        assert torch.equal(latents.z, to_positions(image_autoencoder(reference).encode(images)))
    assert latents.mask.shape == (3, 4) and bool(latents.mask.all())
    assert not latents.z.requires_grad
    assert [seen[name] for name in ("tokens", "readout", "teacher", "progress")] == [None, None, None, 1.0]
    assert seen["generator"] is noise
    assert (built.identity().grid_mean, built.identity().grid_std) == (0.2, 0.9)


def refusal(capsys: pytest.CaptureFixture[str], given: list[str]) -> str:
    """The one line on stderr of a command that must fail with exit 2."""
    capsys.readouterr()
    assert main(["train", *given]) == 2
    out, errors = capsys.readouterr()
    assert not out
    assert errors.count("\n") == 1, errors
    return errors


@pytest.mark.parametrize(
    ("objective", "flags", "named"),
    [
        (None, ["--data.images.seed=4"], "was trained on other images: give --data.images=Digits --data.images.num_he"),
        (None, ["--data.images=DrawnShapes"], "was trained on other images"),
        (
            None,
            ["--model.objective.cross_entropy_weight=1"],
            "weight is 1.0, but these data have no tokens",
        ),
        (None, ["--model.initialise_from={base}"], "no denoiser"),
        ("reflow", ["--model.teacher={base}"], "no denoiser"),
        ("reflow", ["--model.teacher={other}"], "hold different autoencoders"),
        ("reflow", ["--model.teacher={endpoint}"], "the teacher's estimate is of kind endpoint"),
    ],
)
def test_a_mistake_is_one_line(
    base: Path,
    flow: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    objective: str | None,
    flags: list[str],
    named: str,
) -> None:
    other, endpoint = tiny_image_flow(), tiny_image_flow(estimate="endpoint")
    endpoint.autoencoder = white_image_model().autoencoder
    other.save_pretrained(tmp_path / "other")
    endpoint.save_pretrained(tmp_path / "endpoint")
    folders = {"flow": flow / "model", "base": base / "model", "run": base}
    folders |= {name: tmp_path / name for name in ("other", "endpoint")}
    given = [flag.format(**folders) for flag in flags]
    assert named in refusal(capsys, arguments(base, f"--run_dir={tmp_path / 'run'}", *given, objective=objective))

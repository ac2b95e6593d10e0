"""Every YAML file in ``configs/`` builds its stage and trains one step of it, at every size."""

from pathlib import Path

import pytest
import yaml

from fewstep import objectives
from fewstep.settings import STAGES, read_yaml, size_sections, stage_of
from fewstep.training.command import main
from tests.lab.images.models import tiny_image_model
from tests.runs import CONFIGS, Workshop
from tests.training.flows import needs_teacher, trained_flow

OBJECTIVES = sorted((CONFIGS / "objectives").glob("*.yaml"))
FILES = sorted(CONFIGS.glob("*.yaml"))
FLOW_MATCHING = "fewstep.objectives.FlowMatching"  # of flow.yaml
SIZES = sorted(file.stem for file in (CONFIGS / "sizes").glob("*.yaml"))


def one_step(workshop: Workshop, config: Path, *flags: str) -> int:
    """A fast step on the tiny text, or on images, with all else as in the file."""
    stage = stage_trained_by(config)
    base = [f"--model.autoencoder={workshop.autoencoder}"] if stage in ("flow", "head") else []
    base += [f"--model.autoencoder={trained_flow(workshop)}"] if stage == "distribution_matching" else []
    base += ["--model.language_model=null"] if stage == "head" else []
    base += [f"--model.autoencoder={image_autoencoder(workshop)}"] if stage == "image_flow" else []
    images = ["--data.images=Digits", "--data.images.num_held_out=97", "--data.images.seed=3"]
    text = [*workshop.data(), "--data.tokenizer=null"]
    data = {"image_autoencoder": [], "image_flow": images}.get(stage, text)
    trial = ["--trainer.fast_dev_run=1", "--trainer.accelerator=cpu"]
    return main(["fit", "--config", str(config), *flags, *data, *trial, *base])


def image_autoencoder(workshop: Workshop) -> Path:
    """The folder of a tiny image model, made when it is first asked for."""
    folder = workshop.autoencoder.parent / "images"
    if not folder.exists():
        tiny_image_model().save_pretrained(folder)
    return folder


def stage_trained_by(config: Path) -> str:
    """The stage's name in a size file."""
    return stage_of(read_yaml(config)["model"]["class_path"])


def shallow(config: Path) -> list[str]:
    """Flags for networks of one layer. A size for a big machine keeps its widths, which its heads have to divide."""
    parts = yaml.safe_load(config.read_text())["model"]["init_args"]
    names = [name for name in ("denoiser", "categorical_denoiser", "network") if name in parts]
    return [f"--model.{name}.depth=1" for name in names]


def test_there_is_a_file_and_a_section_for_every_stage() -> None:
    assert sorted(map(stage_trained_by, FILES)) == sorted(STAGES)
    assert "debug" in SIZES
    for size in SIZES:
        assert set(size_sections(size)) <= set(STAGES)


@pytest.mark.parametrize("config", FILES, ids=lambda file: file.stem)
def test_a_config_trains_a_step(workshop: Workshop, config: Path) -> None:
    assert one_step(workshop, config, *shallow(config)) == 0


def test_there_is_a_file_for_every_objective_of_a_flow() -> None:
    settings = {file.stem: yaml.safe_load(file.read_text())["model"]["init_args"] for file in OBJECTIVES}
    assert set(settings) == set(objectives.OBJECTIVES)
    for name, one in settings.items():
        cls = objectives.OBJECTIVES[name]
        assert one.get("objective", {}).get("class_path", FLOW_MATCHING) == f"fewstep.objectives.{cls.__name__}"
        assert one["denoiser"]["init_args"].get("two_times", False) == cls.estimate.two_times
    assert len({one["denoiser"]["init_args"]["max_frequency"] for one in settings.values()}) == 1, "of one architecture"


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda file: file.stem)
def test_an_objective_trains_a_step(workshop: Workshop, objective: Path) -> None:
    given = ["--model.denoiser.depth=1"]
    if objective.stem != "flow_matching" and needs_teacher(objective.stem):
        given.append(f"--model.teacher={trained_flow(workshop)}")
    if objective.stem == "distribution_matching":  # starts from its teacher, which is of the debug size
        given = [*given, "--size", "debug", f"--model.initialise_from={trained_flow(workshop)}"]
    assert one_step(workshop, CONFIGS / "flow.yaml", "--config", str(objective), *given) == 0


@pytest.mark.parametrize("size", [size for size in SIZES if size != "debug"])  # which many tests train
@pytest.mark.parametrize("config", FILES, ids=lambda file: file.stem)
def test_a_size_trains_a_step(workshop: Workshop, config: Path, size: str) -> None:
    if stage_trained_by(config) not in size_sections(size):
        pytest.skip(f"{size} leaves {config.stem} as it is")
    assert one_step(workshop, config, "--size", size, *shallow(config)) == 0

"""Models saved by earlier versions load, and generate what they generated.

``model_v1`` and ``flow_v1.ckpt`` are the tiny bundle of fewstep 0.1.0; the files are never made again.
"""

import json
from pathlib import Path

import pytest

from fewstep.cli.main import main
from fewstep.lab.images.generator import generate_images
from fewstep.model import SavedModel
from fewstep.pipeline import TextGenerator

FIXTURES = Path(__file__).parent / "fixtures"
STEPS, SEED, COUNT = 4, 0, 3
SAVED = ["model_v1", "flow_v1.ckpt"]


@pytest.mark.parametrize(
    ("name", "readout"), [("model_v1", "parallel"), ("model_v1", "head"), ("flow_v1.ckpt", "parallel")]
)
def test_a_model_of_version_0_1_generates_the_same_ids(name: str, readout: str) -> None:
    generator = TextGenerator.from_pretrained(FIXTURES / name)
    expected = json.loads((FIXTURES / "ids_v1.json").read_text())[readout]
    assert generator.generate(COUNT, STEPS, SEED, readout=readout).ids.tolist() == expected


@pytest.mark.parametrize("name", SAVED)
def test_a_model_of_version_0_1_is_sampled_and_saved_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["sample", str(FIXTURES / name), "--num_samples=2"]) == 0
    assert capsys.readouterr().out.strip()
    assert main(["convert", str(FIXTURES / name), str(tmp_path / "again")]) == 0
    expected = json.loads((FIXTURES / "ids_v1.json").read_text())["parallel"]
    again = TextGenerator.from_pretrained(tmp_path / "again")
    assert again.generate(COUNT, STEPS, SEED).ids.tolist() == expected


def test_a_folder_from_before_blocks_of_one_document_is_packed(tmp_path: Path) -> None:
    SavedModel.from_pretrained(FIXTURES / "model_v1").save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    assert config["identity"].pop("blocks") == "packed"
    file.write_text(json.dumps(config))
    assert SavedModel.from_pretrained(tmp_path / "model").identity.blocks == "packed"


def test_an_image_model_of_version_0_1_generates_the_same_images(tmp_path: Path) -> None:
    model = SavedModel.from_pretrained(FIXTURES / "image_v1")
    identity = model.identity
    assert (identity.kind, identity.source, identity.objective) == ("images", "Digits", "ProgressiveDistillation")
    assert (identity.source_config, identity.trained_nfe, identity.grid_mean) == (
        {"num_held_out": 97, "seed": 3},
        2,
        0.3,
    )
    model.save_pretrained(tmp_path / "again")
    for path in (FIXTURES / "image_v1", tmp_path / "again"):
        images = generate_images(SavedModel.from_pretrained(path, kind="images"), 2, 2, 0).images.double()
        assert float(images.sum()) == pytest.approx(53.51235294342041, rel=1e-5)
        assert float(images.square().sum()) == pytest.approx(52.64919618526817, rel=1e-5)

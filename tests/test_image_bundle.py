"""Image models on disk: the same model comes back, and text and images are never taken for each other."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.bundle import ModelBundle
from fewstep.cli.main import main
from fewstep.errors import UserError
from fewstep.image_bundle import ImageModel
from fewstep.storage import CHECKPOINT_KEY, check_target, checkpoint_entry, kind_of
from tests.bundles import tiny_bundle, write_checkpoint
from tests.images import tiny_image_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_image_model().save_pretrained(tmp_path / "image")
    return tmp_path / "image"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = tiny_image_model()
    state = {f"autoencoder.{key}": value for key, value in model.autoencoder.state_dict().items()}
    entry = checkpoint_entry(model.manifest(), {}, None)
    torch.save({"state_dict": state, CHECKPOINT_KEY: entry}, tmp_path / "image.ckpt")
    return tmp_path / "image.ckpt"


def test_saved_then_loaded_it_gives_the_same_images_from_folder_and_checkpoint(folder: Path, checkpoint: Path) -> None:
    model = tiny_image_model()
    images = model.held_out(5)
    z = model.encode(images)
    for path in (folder, checkpoint):
        loaded = ImageModel.from_pretrained(path)
        assert loaded.identity == model.identity
        assert loaded.latent_shape == model.latent_shape
        assert torch.equal(loaded.held_out(5), images)
        assert torch.equal(loaded.encode(images), z)
        assert torch.equal(loaded.decode(z), model.decode(z))
        assert not loaded.autoencoder.training
    assert len(model.held_out()) == 97


def test_a_folder_is_replaced_only_when_asked(folder: Path) -> None:
    other = tiny_image_model(seed=1)
    with pytest.raises(UserError, match="exists already"):
        other.save_pretrained(folder)
    check_target(folder, overwrite=True)
    other.save_pretrained(folder, overwrite=True)
    z = torch.zeros(1, 2, 2, 2)
    assert torch.equal(ImageModel.from_pretrained(folder).decode(z), other.decode(z))


def test_text_and_images_are_told_apart_and_never_mixed_up(
    folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    tiny_bundle().save_pretrained(text)
    text_checkpoint = write_checkpoint(tiny_bundle(), tmp_path / "text.ckpt", "denoiser")
    assert [kind_of(path) for path in (text, text_checkpoint)] == ["text", "text"]
    assert [kind_of(path) for path in (folder, str(checkpoint))] == ["images", "images"]
    for path in (text, text_checkpoint):
        with pytest.raises(UserError, match=r"^[^\n]*holds a model of text, expected one of images"):
            ImageModel.from_pretrained(path)
    for path in (folder, checkpoint):
        with pytest.raises(UserError, match=r"^[^\n]*holds a model of images, expected one of text"):
            ModelBundle.from_pretrained(path)
        for command in (["sample", str(path)], ["convert", str(path), str(tmp_path / "out")]):
            assert main(command) == 2
            errors = capsys.readouterr().err
            assert errors.count("\n") == 1
            assert "expected one of text" in errors
    assert not (tmp_path / "out").exists()


def test_a_manifest_without_a_kind_is_of_text_and_an_unknown_kind_is_told(tmp_path: Path) -> None:
    tiny_bundle().save_pretrained(tmp_path / "text")
    config = tmp_path / "text" / "config.json"
    manifest = json.loads(config.read_text())
    assert manifest.pop("kind") == "text"
    config.write_text(json.dumps(manifest))
    assert kind_of(tmp_path / "text") == "text"
    ModelBundle.from_pretrained(tmp_path / "text")
    config.write_text(json.dumps({**manifest, "kind": "sound"}))
    with pytest.raises(UserError, match="model of 'sound': this fewstep knows text and images"):
        kind_of(tmp_path / "text")
    with pytest.raises(UserError, match="does not exist"):
        kind_of(tmp_path / "nothing")


def _edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def _drop_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "autoencoder.safetensors")
    del weights["place"]
    save_file(weights, folder / "autoencoder.safetensors")


DAMAGE = {
    "missing weights": (lambda f: (f / "autoencoder.safetensors").unlink(), "autoencoder.safetensors is missing"),
    "missing tensor": (_drop_a_tensor, "(autoencoder): weights do not fit"),
    "other format": (_edit(lambda c: c.update(format=99)), "image model format 99"),
    "other class": (_edit(lambda c: c["parts"]["autoencoder"].update({"class": "X"})), "its parts are"),
    "no part": (_edit(lambda c: c["parts"].clear()), "its parts are {}"),
    "other size": (_edit(lambda c: c["parts"]["autoencoder"]["config"].update(size=9)), "cannot be built"),
    "unknown argument": (_edit(lambda c: c["parts"]["autoencoder"]["config"].update(colour=1)), "cannot be built"),
    "identity key missing": (_edit(lambda c: c["identity"].pop("data")), "identity whose keys ['data']"),
    "no shape": (_edit(lambda c: c["identity"].update(latent_shape=3)), "latent_shape is 3"),
    "other shape": (_edit(lambda c: c["identity"].update(latent_shape=[2, 2, 1])), "latent_shape (2, 2, 1)"),
    "no settings": (_edit(lambda c: c["identity"].update(data_config=3)), "data_config is 3"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_told_in_one_line(folder: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    damage(folder)
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        ImageModel.from_pretrained(folder)
    assert message in str(caught.value)


def test_unknown_images_are_told_when_they_are_asked_for(folder: Path) -> None:
    _edit(lambda c: c["identity"].update(data="Faces"))(folder)
    with pytest.raises(UserError, match="unknown images 'Faces'"):
        ImageModel.from_pretrained(folder).held_out()

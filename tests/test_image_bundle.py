"""Image models on disk: the same model comes back, and text and images are never taken for each other."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.bundle import ModelBundle
from fewstep.cli.main import main
from fewstep.denoisers import RegressionDenoiser
from fewstep.errors import UserError
from fewstep.image_bundle import ImageFlowIdentity, ImageModel
from fewstep.paths import PATHS
from fewstep.samplers import FlowSampler
from fewstep.schedules import LogitNormalGrid, UniformGrid
from fewstep.shapes import example_generators
from fewstep.storage import CHECKPOINT_KEY, check_target, checkpoint_entry, kind_of
from tests.bundles import flip_a_bit, randomise, tiny_bundle, write_checkpoint
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
    _edit(lambda c: c.pop("sha256"))(folder)


DAMAGE = {
    "missing weights": (lambda f: (f / "autoencoder.safetensors").unlink(), "autoencoder.safetensors is missing"),
    "a flipped bit": (lambda f: flip_a_bit(f / "autoencoder.safetensors"), "its bytes are not those that were written"),
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


FLOW = ImageFlowIdentity(objective="FlowMatching", grid_mean=0.3, grid_std=0.8)


def tiny_image_flow(seed: int = 0, *, two_times: bool = False, **changes: Any) -> ImageModel:
    """The tiny image model with a flow of random weights; ``changes`` of its flow's identity."""
    model = tiny_image_model()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        denoiser = RegressionDenoiser(2, 4, width=16, depth=1, num_heads=2, two_times=two_times)
    randomise(denoiser, torch.Generator().manual_seed(seed))
    identity = replace(model.identity, flow=replace(FLOW, **changes))
    return ImageModel(identity, model.autoencoder, denoiser).to("cpu")


def test_a_model_with_a_flow_comes_back_whole_from_folder_and_checkpoint(tmp_path: Path) -> None:
    model = tiny_image_flow()
    model.save_pretrained(tmp_path / "flow")
    state = {f"denoiser.{key}": value for key, value in model.denoiser.state_dict().items()}
    entry = checkpoint_entry(model.manifest(), {"autoencoder": model.autoencoder.state_dict()}, None)
    torch.save({"state_dict": state, CHECKPOINT_KEY: entry}, tmp_path / "flow.ckpt")
    expected = model.generate(3, 2, seed=4)
    for path in (tmp_path / "flow", tmp_path / "flow.ckpt"):
        loaded = ImageModel.from_pretrained(path)
        assert loaded.identity == model.identity
        assert torch.equal(loaded.generate(3, 2, seed=4).images, expected.images)


def test_a_folder_from_before_there_were_flows_still_loads(folder: Path) -> None:
    _edit(lambda c: c["identity"].pop("flow"))(folder)
    model = ImageModel.from_pretrained(folder)
    assert model.identity.flow is None
    with pytest.raises(UserError, match=r"^[^\n]*has no flow: train one"):
        model.generate(1)


def test_positions_are_the_latents_row_by_row() -> None:
    model, z = tiny_image_model(), torch.arange(24.0).reshape(3, 2, 2, 2)
    x = model.to_positions(z)
    assert x.shape == (3, 4, 2)
    assert torch.equal(x[1, 2], z[1, :, 1, 0])
    assert torch.equal(model.from_positions(x), z)


@pytest.mark.parametrize("path", ["linear", "variance_preserving"])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_images_are_what_the_one_sampler_makes_on_the_models_own_grid(path: str, strength: float) -> None:
    model = tiny_image_flow(path=path)
    made = model.generate(3, 4, seed=7, reinjection=strength)
    generators = example_generators(7, 0, 3)
    x_0 = torch.stack([torch.randn(4, 2, generator=generator) for generator in generators])
    sampler = FlowSampler(PATHS[path](), grid=LogitNormalGrid(0.3, 0.8), reinjection=strength)
    with torch.no_grad():
        trajectory = sampler.sample(model.flow(), x_0, num_steps=4, generator=generators)
        expected = model.decode(model.from_positions(trajectory.x_1)).clamp(0, 1)
    assert torch.allclose(made.images, expected, atol=1e-6)
    assert torch.allclose(made.x_1, trajectory.x_1, atol=1e-6)
    assert made.nfe == 4
    assert made.images.min() >= 0 and made.images.max() <= 1
    uniform = model.generate(3, 4, seed=7, reinjection=strength, grid=UniformGrid())
    assert not torch.allclose(uniform.x_1, made.x_1)


def test_an_image_depends_on_seed_and_number_alone() -> None:
    model = tiny_image_flow()
    whole = model.generate(5, 3, seed=1, reinjection=0.5)
    parts = model.generate(4, 3, seed=1, reinjection=0.5, batch_size=3)
    # Products of other batch sizes round otherwise, by 1e-5 after three steps of this net; another noise is off by 1.
    assert torch.allclose(parts.x_1, whole.x_1[:4], atol=1e-4)
    assert not torch.allclose(model.generate(5, 3, seed=2, reinjection=0.5).x_1, whole.x_1)


@pytest.mark.parametrize(
    ("changes", "options", "named"),
    [
        ({}, {"num_samples": 0}, "num_samples is 0"),
        ({}, {"num_steps": 0}, "num_steps is 0"),
        ({}, {"num_steps": 3, "reinjection": [0.1]}, "3"),
        ({}, {"reinjection": 1.5}, "1.5"),
        ({"trained_nfe": 2}, {"num_steps": 3}, "2 steps"),
        ({"estimate": "endpoint"}, {"num_steps": 3}, "strength 1"),
        ({"estimate": "endpoint"}, {"num_steps": 3, "reinjection": 1.0, "solver": "heun"}, "euler"),
    ],
)
def test_a_sampler_that_does_not_fit_is_refused_in_one_line(changes: dict, options: dict, named: str) -> None:
    with pytest.raises(UserError, match=rf"^[^\n]*{named}[^\n]*$"):
        tiny_image_flow(**changes).generate(**{"num_samples": 2, **options})


FLOW_DAMAGE = {
    "unknown path": (_edit(lambda c: c["identity"]["flow"].update(path="bent")), "unknown path 'bent'"),
    "unknown estimate": (_edit(lambda c: c["identity"]["flow"].update(estimate="x")), "unknown estimate 'x'"),
    "unknown prediction": (_edit(lambda c: c["identity"]["flow"].update(prediction="eps")), "unknown prediction"),
    "backward time": (_edit(lambda c: c["identity"]["flow"].update(time_convention="t=1 noise")), "time_convention"),
    "key missing": (_edit(lambda c: c["identity"]["flow"].pop("grid_std")), "flow whose keys ['grid_std']"),
    "no mapping": (_edit(lambda c: c["identity"].update(flow=3)), "flow is 3"),
    "told of none": (_edit(lambda c: c["identity"].update(flow=None)), "it has a denoiser, but its identity tells"),
    "without denoiser": (_edit(lambda c: c["parts"].pop("denoiser")), "it has no denoiser, but its identity tells"),
    "one time": (_edit(lambda c: c["identity"]["flow"].update(estimate="flow_map")), "a flow map, but its denoiser"),
    "other class": (_edit(lambda c: c["parts"]["denoiser"].update({"class": "X"})), "its parts are"),
    "other width": (_edit(lambda c: c["parts"]["denoiser"]["config"].update(width=32)), "(denoiser): weights do not"),
    "no weights": (lambda f: (f / "denoiser.safetensors").unlink(), "denoiser.safetensors is missing"),
}


@pytest.mark.parametrize("case", FLOW_DAMAGE)
def test_damage_to_a_flow_is_told_in_one_line(tmp_path: Path, case: str) -> None:
    tiny_image_flow().save_pretrained(tmp_path / "flow")
    damage, message = FLOW_DAMAGE[case]
    damage(tmp_path / "flow")
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        ImageModel.from_pretrained(tmp_path / "flow")
    assert message in str(caught.value)


def test_a_denoiser_for_other_latents_is_refused(tmp_path: Path) -> None:
    model = tiny_image_flow()
    model.denoiser = RegressionDenoiser(3, 4, width=16, depth=1, num_heads=2)
    model.save_pretrained(tmp_path / "flow")
    with pytest.raises(UserError, match=r"\(2, 4\), the denoiser is made for \(3, 4\)"):
        ImageModel.from_pretrained(tmp_path / "flow")

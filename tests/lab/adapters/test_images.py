"""Image autoencoders of diffusers against themselves, the images that they are given, and those of pipelines."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.diagnostics.decoding import directional
from fewstep.errors import UserError
from fewstep.lab.adapters import Decoder
from fewstep.lab.adapters.autoencoder_kl import image_reader, load_autoencoder_kl
from fewstep.lab.images import Digits, DrawnShapes
from tests.fake_hub import running_hub
from tests.lab.adapters.folders import refusal

diffusers = pytest.importorskip("diffusers")
KL = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "latent_channels": 2,
    "norm_num_groups": 4,
    "sample_size": 8,
}
TINY = {f"{part}_block_out_channels": (8, 8) for part in ("encoder", "decoder")}
TINY |= {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1), "latent_channels": 2}
DC = {f"{part}_block_types": ("ResBlock", "EfficientViTBlock") for part in ("encoder", "decoder")}
DC |= {f"{part}_block_out_channels": (8, 8) for part in ("encoder", "decoder")}
DC |= {f"{part}_layers_per_block": (1, 1) for part in ("encoder", "decoder")}
DC |= {"latent_channels": 4, "attention_head_dim": 4, "encoder_qkv_multiscales": ((), (5,))}
DC |= {"decoder_qkv_multiscales": ((), (5,))}
"""SANA's kind: no posterior, linear attention, and casts to float32 within."""


def options_of(model: Path, **changes: Any) -> DiagnoseOptions:
    return DiagnoseOptions(**{"model": str(model), "examples": 2, "device": "cpu", **changes})


def loaded(model: Path, **changes: Any) -> Decoder:
    return load_autoencoder_kl(options_of(model, **changes))


def write_model(folder: Path, name: str = "AutoencoderKL", sizes: dict[str, Any] = KL) -> Path:
    with torch.random.fork_rng():  # constructors draw from the global generator
        torch.manual_seed(0)
        getattr(diffusers, name)(**sizes).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_latents_are_the_posteriors_mean_or_the_latent_and_the_decoder_is_the_models_own(tmp_path: Path) -> None:
    decoder = loaded(write_model(tmp_path / "kl"), examples=11)
    model = diffusers.AutoencoderKL.from_pretrained(tmp_path / "kl").eval()
    images = DrawnShapes(num_held_out=11, size=8).held_out() * 2 - 1
    assert torch.equal(decoder.data, images)
    torch.testing.assert_close(decoder.z, model.encode(images).latent_dist.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decoder.decode(decoder.z), model.decode(decoder.z).sample, rtol=1e-4, atol=1e-5)
    assert decoder.z.shape == (11, 2, 4, 4)
    decoder = loaded(write_model(tmp_path / "tiny", "AutoencoderTiny", TINY), images="digits", image_size=16)
    tiny = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "tiny").eval()
    torch.testing.assert_close(decoder.z, tiny.encode(decoder.data).latents, rtol=1e-4, atol=1e-5)


def test_the_derivatives_of_a_linear_attention_autoencoder_are_those_of_finite_differences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = loaded(write_model(tmp_path / "dc", "AutoencoderDC", DC), examples=3, image_size=16, dtype="float64")
    assert decoder.z.shape == (3, 4, 8, 8)  # more places than the head has numbers: attention is linear
    assert "no posterior" in decoder.notes[0]
    u = torch.randn(decoder.z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tangent, h = directional(decoder.decode, decoder.z, u)[1], 1e-6
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "float32", torch.float64)  # the difference of two roundings to float32 would say nothing
        difference = (decoder.decode(decoder.z + h * u) - decoder.decode(decoder.z - h * u)) / (2 * h)
    torch.testing.assert_close(tangent, difference, rtol=1e-3, atol=1e-4)


def test_images_are_stretched_over_the_models_channels_and_size_and_folders_are_read_in_order(tmp_path: Path) -> None:
    given = image_reader("digits", 3)(3, 8)
    assert torch.equal(given, (Digits().held_out(3) * 2 - 1).expand(-1, 3, -1, -1))
    assert image_reader("digits", 3)(1, 16).shape == (3, 1, 16, 16)
    grey = image_reader("shapes", 2)(1, 8)
    torch.testing.assert_close(grey[:, 0], (DrawnShapes(num_held_out=2, size=8).held_out() * 2 - 1).mean(1))
    colours: dict[str, tuple[int, int, int]] = {"b.png": (255, 0, 0), "a.jpg": (0, 0, 0), "c.PNG": (255, 255, 255)}
    for name, colour in colours.items():
        Image.new("RGB", (20, 10), colour).save(tmp_path / name)
    Image.new("L", (4, 4), 51).save(tmp_path / "d.png")
    (tmp_path / "notes.txt").write_text("mine")

    def colour_of(image: Tensor) -> list[float]:
        return [round(float(value), 2) for value in image.flatten(1).mean(1)]

    read = image_reader(str(tmp_path), 4)(3, 8)
    assert [colour_of(image) for image in read] == [[-1, -1, -1], [1, -1, -1], [1, 1, 1], [-0.6, -0.6, -0.6]]
    with pytest.raises(UserError, match=r"holds 4 \.png or \.jpg files, and examples is 5"):
        image_reader(str(tmp_path), 5)
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"0\.png cannot be read as an image"):
        image_reader(str(tmp_path), 2)(3, 8)


def test_only_an_autoencoder_of_diffusers_is_loaded_and_only_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("UNet2DModel", "AutoencoderOfMine", "os.system", None):
        folder = tmp_path / f"class {name}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"_class_name": name}))
        save_file({}, folder / "model.safetensors")
        assert "expected an autoencoder of diffusers" in refusal("autoencoder-kl", options_of(folder))
    broken = write_model(tmp_path / "broken")
    weights = broken / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    gone = min(tensors)
    del tensors[gone]
    save_file(tensors, weights)
    assert f"lacks 1 weights of AutoencoderKL, first {gone}" in refusal("autoencoder-kl", options_of(broken))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "pip install 'fewstep[diffusers]'" in refusal("autoencoder-kl", options_of(broken))
    weights.unlink()
    torch.save({}, broken / "diffusion_pytorch_model.bin")
    assert "--allow_pickle" in refusal("autoencoder-kl", options_of(broken))


SCRIPT = """
from fewstep.errors import UserError
from fewstep.evaluation.pretrained import model_folder
for name, subfolder in (("me/pipe", None), ("me/pipe", "transformer"), ("me/pipe", "vae"), ("me/plain", None)):
    try:
        folder = model_folder(name, subfolder=subfolder)
        print(" ".join(sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())))
    except UserError as error:
        print(error)
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A pipeline whose autoencoder is whole and whose other weights, also those beside the index, are junk."""
    folder = tmp_path / "pipe"
    write_model(folder / "vae")
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "AutoencoderKL"]}))
    (folder / "flux1.safetensors").write_bytes(b"large")
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    (folder / "transformer" / "model.safetensors").write_bytes(b"large")
    return folder


def test_the_hub_gives_the_asked_folder_alone_and_of_a_refused_pipeline_its_index(
    pipeline: Path, tmp_path: Path
) -> None:
    files = {str(file.relative_to(pipeline)): file.read_bytes() for file in pipeline.rglob("*") if file.is_file()}
    plain = {"config.json": b"{}", "model.safetensors": b"x", "onnx/model.json": b"{}", "sub/model.safetensors": b"x"}
    with running_hub() as hub:
        hub.models |= {"me/pipe": files, "me/plain": plain}
        own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
        environment = {**os.environ, **own, "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", SCRIPT]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    refused, transformer, vae, whole = done.stdout.splitlines()
    assert refused == (
        "me/pipe is a pipeline of several models (FluxPipeline): pass --adapter autoencoder-kl --subfolder vae"
    )
    assert "me/pipe/transformer is a 'FluxTransformer2DModel': expected an autoencoder" in transformer
    assert vae == "config.json diffusion_pytorch_model.safetensors"
    assert whole == "config.json model.safetensors"
    fetched = {line.partition("/resolve/")[2].partition("/")[2] for line in hub.requests if "/resolve/" in line}
    weights = {"vae/diffusion_pytorch_model.safetensors", "model.safetensors"}
    assert fetched == {"model_index.json", "transformer/config.json", "vae/config.json", "config.json", *weights}


def test_a_folder_here_is_read_as_its_autoencoder_is_by_itself(pipeline: Path) -> None:
    inside, alone = loaded(pipeline, subfolder="vae"), loaded(pipeline / "vae")
    assert torch.equal(inside.z, alone.z)
    assert inside.name == f"{pipeline}/vae"
    for subfolder, message in (
        (None, "pass --adapter autoencoder-kl --subfolder vae"),
        ("transformer", "expected an autoencoder"),
    ):
        assert message in refusal("autoencoder-kl", options_of(pipeline, subfolder=subfolder))

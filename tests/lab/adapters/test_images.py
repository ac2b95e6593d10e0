"""Image autoencoders of diffusers against themselves, and the images that they are given."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.diagnostics.decoding import directional
from fewstep.errors import UserError
from fewstep.evaluation.diagnosis import diagnose
from fewstep.lab.adapters.autoencoder_kl import load_autoencoder_kl, read_images
from fewstep.lab.images import Digits, DrawnShapes

diffusers = pytest.importorskip("diffusers")


def options_of(
    model: Path, images: str = "shapes", examples: int = 2, image_size: int | None = None
) -> DiagnoseOptions:
    return DiagnoseOptions(model=str(model), images=images, examples=examples, image_size=image_size, device="cpu")


def write_kl(folder: Path, channels: int = 3, size: int = 8) -> Path:
    with torch.random.fork_rng():  # constructors draw from the global generator
        torch.manual_seed(0)
        model = diffusers.AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=2,
            norm_num_groups=4,
            sample_size=size,
        )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kl(tmp_path_factory.mktemp("kl") / "model")


@torch.no_grad()
def test_latents_are_the_posteriors_mean_and_the_decoder_is_the_models_own(folder: Path) -> None:
    decoder = load_autoencoder_kl(options_of(folder, examples=11))
    model = diffusers.AutoencoderKL.from_pretrained(folder).eval()
    images = DrawnShapes(num_held_out=11, size=8).held_out() * 2 - 1
    assert torch.equal(decoder.data, images)
    torch.testing.assert_close(decoder.z, model.encode(images).latent_dist.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decoder.decode(decoder.z), model.decode(decoder.z).sample, rtol=1e-4, atol=1e-5)
    assert decoder.z.shape == (11, 2, 4, 4)


@torch.no_grad()
def test_an_autoencoder_without_posterior_is_read_by_its_latent(tmp_path: Path) -> None:
    tiny = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=2,
    )
    tiny.save_pretrained(tmp_path / "tiny")
    decoder = load_autoencoder_kl(options_of(tmp_path / "tiny", "digits", image_size=16))
    torch.testing.assert_close(decoder.z, tiny.eval().encode(decoder.data).latents, rtol=1e-4, atol=1e-5)


def write_dc(folder: Path) -> Path:
    """SANA's kind of autoencoder: no posterior, linear attention, and casts to float32 within."""
    with torch.random.fork_rng():  # constructors draw from the global generator
        torch.manual_seed(0)
        model = diffusers.AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
        )
    model.save_pretrained(folder)
    return folder


def test_the_derivatives_of_a_linear_attention_autoencoder_are_those_of_finite_differences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(options_of(write_dc(tmp_path / "dc"), examples=3, image_size=16), dtype="float64")
    decoder = load_autoencoder_kl(options)
    assert decoder.z.shape == (3, 4, 8, 8)  # more places than the head has numbers: attention is linear
    assert "no posterior" in decoder.notes[0]
    u = torch.randn(decoder.z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tangent, h = directional(decoder.decode, decoder.z, u)[1], 1e-6
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "float32", torch.float64)  # the difference of two roundings to float32 would say nothing
        difference = (decoder.decode(decoder.z + h * u) - decoder.decode(decoder.z - h * u)) / (2 * h)
    torch.testing.assert_close(tangent, difference, rtol=1e-3, atol=1e-4)
    subject = decoder.subject(num_examples=3, num_positions=1, seed=0)
    found = diagnose(subject, only=["dabi", "dabi_worst"])
    for name in ("dabi_segment", "dabi_data_segment", "dabi_worst"):
        assert 0 < (found.estimate(name).value or 0) <= 4 * 8 * 8


def test_digits_are_stretched_over_the_models_channels_and_size() -> None:
    given = read_images("digits", 3, channels=3, size=8)
    assert torch.equal(given, (Digits().held_out(3) * 2 - 1).expand(-1, 3, -1, -1))
    assert read_images("digits", 3, channels=1, size=16).shape == (3, 1, 16, 16)
    grey = read_images("shapes", 2, channels=1, size=8)
    torch.testing.assert_close(grey[:, 0], (DrawnShapes(num_held_out=2, size=8).held_out() * 2 - 1).mean(1))


def test_a_folder_is_read_in_order_of_names_scaled_and_converted(tmp_path: Path) -> None:
    colours: dict[str, tuple[int, int, int]] = {"b.png": (255, 0, 0), "a.jpg": (0, 0, 0), "c.PNG": (255, 255, 255)}
    for name, colour in colours.items():
        Image.new("RGB", (20, 10), colour).save(tmp_path / name)
    Image.new("L", (4, 4), 51).save(tmp_path / "d.png")
    (tmp_path / "notes.txt").write_text("mine")
    given = read_images(str(tmp_path), 4, channels=3, size=8)

    def colour_of(image: Tensor) -> list[float]:
        return [round(float(value), 2) for value in image.flatten(1).mean(1)]

    assert [colour_of(image) for image in given] == [[-1, -1, -1], [1, -1, -1], [1, 1, 1], [-0.6, -0.6, -0.6]]
    with pytest.raises(UserError, match=r"holds 4 \.png or \.jpg files, and examples is 5"):
        read_images(str(tmp_path), 5, channels=3, size=8)
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"0\.png cannot be read as an image"):
        read_images(str(tmp_path), 2, channels=3, size=8)
    with pytest.raises(UserError, match="expected digits or shapes, or a folder"):
        read_images("circles", 2, channels=3, size=8)


def test_only_an_autoencoder_of_diffusers_is_loaded_and_only_whole(folder: Path, tmp_path: Path) -> None:
    def load(path: Path) -> None:
        load_autoencoder_kl(options_of(path))

    for name in ("UNet2DModel", "AutoencoderOfMine", "os.system", None):
        made = tmp_path / f"class {name}"
        made.mkdir()
        (made / "config.json").write_text(json.dumps({"_class_name": name}))
        save_file({}, made / "model.safetensors")
        with pytest.raises(UserError, match="expected an autoencoder of diffusers"):
            load(made)
    broken = write_kl(tmp_path / "broken")
    weights = broken / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    gone = next(iter(sorted(tensors)))
    del tensors[gone]
    save_file(tensors, weights)
    with pytest.raises(UserError, match=f"lacks 1 weights of AutoencoderKL, first {gone}"):
        load(broken)
    weights.unlink()
    torch.save({}, broken / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="--allow_pickle"):
        load(broken)


def test_without_diffusers_one_line_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install 'fewstep\[diffusers\]'"):
        load_autoencoder_kl(options_of(folder))

"""Of a pipeline of diffusers only the autoencoder's folder is fetched, and nothing large before a refusal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.errors import UserError
from fewstep.lab.adapters.autoencoder_kl import load_autoencoder_kl
from tests.fake_hub import running_hub
from tests.lab.adapters.test_images import write_kl

INDEX = {
    "_class_name": "FluxPipeline",
    "_diffusers_version": "0.30.0",
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SCRIPT = """
import sys
from fewstep.errors import UserError
from fewstep.evaluation.pretrained import model_folder
for name, subfolder in (("me/pipe", None), ("me/pipe", "transformer"), ("me/pipe", "vae"), ("me/plain", None)):
    print("ask", name, subfolder)
    try:
        folder = model_folder(name, subfolder=subfolder)
        print(" ".join(sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())))
    except UserError as error:
        print(error)
"""


def write_pipeline(folder: Path) -> Path:
    """A pipeline whose autoencoder is whole and whose other weights, also those beside the index, are junk."""
    write_kl(folder / "vae")
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    (folder / "flux1.safetensors").write_bytes(b"large")
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    (folder / "transformer" / "model.safetensors").write_bytes(b"large")
    return folder


def test_the_hub_gives_the_asked_folder_alone_and_of_a_refused_pipeline_its_index(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    pipeline = write_pipeline(tmp_path / "pipe")
    files = {str(f.relative_to(pipeline)): f.read_bytes() for f in pipeline.rglob("*") if f.is_file()}
    plain = {"config.json": b"{}", "model.safetensors": b"x", "onnx/model.json": b"{}", "sub/model.safetensors": b"x"}
    with running_hub() as hub:
        hub.models |= {"me/pipe": files, "me/plain": plain}
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache")}
        environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    refused, transformer, vae, whole = [part.splitlines()[1] for part in done.stdout.split("ask ")[1:]]
    assert refused == (
        "me/pipe is a pipeline of several models (FluxPipeline): pass --adapter autoencoder-kl --subfolder vae"
    )
    assert "me/pipe/transformer is a 'FluxTransformer2DModel': expected an autoencoder" in transformer
    assert vae == "config.json diffusion_pytorch_model.safetensors"
    assert whole == "config.json model.safetensors"
    fetched = {line.partition("/resolve/")[2].partition("/")[2] for line in hub.requests if "/resolve/" in line}
    assert fetched == {
        "model_index.json",
        "transformer/config.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "config.json",
        "model.safetensors",
    }


def test_a_folder_here_is_read_as_its_autoencoder_is_by_itself(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    pipeline = write_pipeline(tmp_path / "pipe")
    options = {"examples": 2, "device": "cpu"}
    inside = load_autoencoder_kl(DiagnoseOptions(model=str(pipeline), subfolder="vae", **options))
    alone = load_autoencoder_kl(DiagnoseOptions(model=str(pipeline / "vae"), **options))
    assert torch.equal(inside.z, alone.z)
    assert inside.name == f"{pipeline}/vae"
    for subfolder, message in (
        (None, "pass --adapter autoencoder-kl --subfolder vae"),
        ("transformer", "expected an autoencoder"),
        ("nothing", "holds no config.json"),
        ("..", "expected the name of a folder"),
    ):
        with pytest.raises(UserError, match=message):
            load_autoencoder_kl(DiagnoseOptions(model=str(pipeline), subfolder=subfolder, **options))

"""Published text latents as tiny random weights in their real format on disk: names, shapes and files."""

import json
from pathlib import Path

import torch
from torch import Tensor

from tests.lab.adapters.folders import byte_tokenizer

WIDTH, INNER, LATENT, CHUNK = 12, 20, 5, 4
VOCABULARY = len(byte_tokenizer(False, False))


class Draw:
    """Random weights by name, each of an rms that keeps a layer's outputs of the order of 1."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.tensors: dict[str, Tensor] = {}

    def add(self, name: str, *shape: int, scale: float = 1.0, mean: float = 0.0) -> None:
        self.tensors[name] = mean + scale * torch.randn(shape, generator=self.generator)

    def linear(self, name: str, inputs: int, outputs: int, *, bias: bool = True) -> None:
        self.add(f"{name}.weight", outputs, inputs, scale=1.5 * inputs**-0.5)
        if bias:
            self.add(f"{name}.bias", outputs, scale=0.3)

    def norm(self, name: str, width: int, *, bias: bool = False) -> None:
        self.add(f"{name}.weight", width, scale=0.3, mean=1.0)
        if bias:
            self.add(f"{name}.bias", width, scale=0.3)


def calm_weights() -> dict[str, Tensor]:
    """Of CALM's autoencoder, the output tied to the embedding and stored with it."""
    draw = Draw()
    draw.add("encoder.embed_tokens.weight", VOCABULARY, WIDTH)
    draw.tensors["decoder.lm_head_weight"] = draw.tensors["encoder.embed_tokens.weight"]
    for part in ("encoder", "decoder"):
        for number in range(2):
            name = f"{part}.{part}_layers.{number}"
            draw.norm(f"{name}.layernorm", WIDTH)
            draw.linear(f"{name}.mlp.gate_proj", WIDTH, INNER, bias=False)
            draw.linear(f"{name}.mlp.up_proj", WIDTH, INNER, bias=False)
            draw.linear(f"{name}.mlp.down_proj", INNER, WIDTH, bias=False)
        draw.norm(f"{part}.norm", WIDTH)
    draw.linear("encoder.squeeze_layer", CHUNK * WIDTH, WIDTH)
    draw.linear("encoder.hidden_to_latent", WIDTH, 2 * LATENT)
    draw.linear("decoder.latent_to_hidden", LATENT, WIDTH)
    draw.linear("decoder.expand_layer", WIDTH, CHUNK * WIDTH)
    return draw.tensors


def write_calm(folder: Path) -> Path:
    """config.json and pytorch_model.bin; the tokenizer is elsewhere."""
    folder.mkdir()
    config = {"model_type": "autoencoder", "patch_size": CHUNK, "hidden_size": WIDTH, "rms_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "silu"}))
    torch.save(calm_weights(), folder / "pytorch_model.bin")
    return folder

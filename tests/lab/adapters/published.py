"""Published text latents as tiny random weights in their real format on disk: names, shapes and files."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.lab.adapters.folders import byte_tokenizer

WIDTH, INNER, LATENT, CHUNK = 12, 20, 5, 4
CONDITION, NUM_HEADS = 6, 3
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


def langflow_weights() -> dict[str, Tensor]:
    """Of LangFlow, its schedule learned to other numbers than those of its config."""
    draw = Draw()
    draw.add("backbone.vocab_embed.embedding", VOCABULARY, WIDTH)
    draw.linear("backbone.sigma_map.mlp.0", 256, CONDITION)
    draw.linear("backbone.sigma_map.mlp.2", CONDITION, CONDITION)
    head_dim = WIDTH // NUM_HEADS
    draw.tensors["backbone.rotary_emb.inv_freq"] = 10_000 ** (-torch.arange(0, head_dim, 2) / head_dim)
    for number in range(2):
        name = f"backbone.blocks.{number}"
        draw.norm(f"{name}.norm1", WIDTH)
        draw.linear(f"{name}.attn_qkv", WIDTH, 3 * WIDTH, bias=False)
        draw.linear(f"{name}.attn_out", WIDTH, WIDTH, bias=False)
        draw.norm(f"{name}.norm2", WIDTH)
        draw.linear(f"{name}.mlp.0", WIDTH, 4 * WIDTH)
        draw.linear(f"{name}.mlp.2", 4 * WIDTH, WIDTH)
        draw.linear(f"{name}.adaLN_modulation", CONDITION, 6 * WIDTH)
    draw.linear("backbone.self_cond_proj", 2 * WIDTH, WIDTH, bias=False)
    draw.norm("backbone.output_layer.norm_final", WIDTH)
    draw.linear("backbone.output_layer.linear", WIDTH, VOCABULARY)
    draw.linear("backbone.output_layer.adaLN_modulation", CONDITION, 2 * WIDTH)
    for name, value in (("loc", 4.5), ("scale", 0.9), ("entropy", 7.02)):
        draw.tensors[f"proposal.{name}"] = torch.tensor(value)
    return draw.tensors


def write_langflow(folder: Path) -> Path:
    """config.json and model.safetensors; the tokenizer is elsewhere."""
    folder.mkdir()
    config = {"gumbel_loc": 4.723, "gumbel_scale": 0.852, "gumbel_cutoff": 1e-5, "use_bias": True}
    config |= {"use_normalized_embedding": True, "self_conditioning": True, "hidden_size": WIDTH}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(langflow_weights(), folder / "model.safetensors")
    return folder

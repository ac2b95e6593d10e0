"""ELF: normalised states of a T5 encoder, read by the denoiser in its decode mode.

B examples, L tokens, D numbers of a state, W width, V vocabulary.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.data.hub import model_snapshot
from fewstep.errors import UserError, first_line
from fewstep.lab.adapters.decoder import Decoder
from fewstep.lab.adapters.published import (
    Shapes,
    Weights,
    attention,
    linear_shapes,
    named_tensors,
    read_pickle,
    split_heads,
    time_features,
)
from fewstep.lab.adapters.text import load_text_model
from fewstep.nn.attention import Rotation, rotary

PATTERNS = ("checkpoint_*", "config.yml")
WEIGHTS = "ema_params1"
"""The entry of a checkpoint that holds the averaged weights."""
COMPILED = "_orig_mod."
PREFIX = ("t_emb_tokens", "self_cond_cfg_tokens", "mode_tokens")
"""Learned tokens before a block, which are not rotated."""
GUIDANCE = 3.0
"""The scale of the self-condition's guidance that the decoder is given."""
NORM_EPS = 1e-6


def load_elf(options: DiagnoseOptions) -> Decoder:
    """ELF from its folder or hub name and the encoder that ``encoder`` names, with latents of held-out text.

    A latent is the encoder's last states (L, D) of a block without special tokens around it, less the mean and over
    the deviation of config.yml. The readout is the denoiser in decode mode at t = 1, its self-condition zero. Raises
    ``UserError`` for whatever is wrong with checkpoint, encoder or text.
    """
    if not options.allow_pickle:
        raise UserError(
            f"{options.model} holds its weights in a checkpoint_NNN file, a pickle that may run code: pass "
            "--allow_pickle if you trust it"
        )
    folder = model_snapshot(options.model, PATTERNS)
    config = read_yaml(folder / "config.yml")
    if options.encoder is None:
        raise UserError(
            f"{options.model} reads the states of another model: name it, "
            f"--encoder {config.get('encoder_model_name', 't5-small')}"
        )
    model = Elf.of(read_checkpoint(folder)).to(options)
    from transformers import AutoModel

    text = load_text_model(replace(options, model=options.encoder), AutoModel, "an encoder", unused=("decoder.",))
    mean, deviation = (float(config.get(name, left_out)) for name, left_out in (("latent_mean", 0), ("latent_std", 1)))
    encoder = text.model.get_encoder() if hasattr(text.model, "decoder") else text.model
    z = (text.states(encoder, text.blocks) - mean) / deviation
    if z.shape[-1] != model.latent_dim:
        raise UserError(
            f"encoder {options.encoder} has states of {z.shape[-1]} numbers, and {options.model} reads "
            f"{model.latent_dim}: give the encoder that it was trained with"
        )
    note = (
        f"elf: latent: the last states of {options.encoder}, less {mean:g} and over {deviation:g}, "
        f"{tuple(z.shape[1:])}, no special tokens around a block; readout: the denoiser in decode mode at t = 1, "
        f"self-condition 0, guidance {GUIDANCE:g}"
    )
    return replace(text.decoder(model.decode, z, text.blocks, note), name=options.model)


def read_yaml(file: Path) -> Mapping[str, Any]:
    """The settings in a YAML file. Raises ``UserError`` where it is missing or holds no settings."""
    import yaml

    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}): give a model folder of ELF") from None
    if not isinstance(config, Mapping):
        raise UserError(f"{file} holds no settings: expected names and values in YAML")
    return config


def read_checkpoint(folder: Path) -> Weights:
    """The averaged weights of the checkpoint with the highest number.

    Raises ``UserError`` where there is no such file, or no such entry in it.
    """
    numbers = {int(file.name[11:]): file for file in folder.iterdir() if re.fullmatch(r"checkpoint_\d+", file.name)}
    if not numbers:
        raise UserError(f"{folder} holds no file checkpoint_NNN: give a folder or hub name of ELF in torch's format")
    file = numbers[max(numbers)]
    entries = read_pickle(file)
    if WEIGHTS not in entries:
        raise UserError(f"{file} has no entry {WEIGHTS}: expected a checkpoint of ELF's training")
    tensors = named_tensors(entries[WEIGHTS], f"{file}, {WEIGHTS},")
    return Weights(str(file), {name.removeprefix(COMPILED): value for name, value in tensors.items()})


@dataclass(frozen=True)
class Elf:
    """The denoiser; all its sizes are those of the weights."""

    weights: Weights

    @classmethod
    def of(cls, weights: Weights) -> "Elf":
        """Raises ``UserError`` unless the weights are exactly this model's."""
        weights.check(elf_shapes(weights))
        return cls(weights)

    def to(self, options: DiagnoseOptions) -> "Elf":
        """The same in the precision and on the device that the options name."""
        return Elf(self.weights.to(options))

    @property
    def latent_dim(self) -> int:
        """Numbers of a state."""
        return len(self.weights["unembed_kernel"])

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, L, D) to logits (B, L, V)."""
        weights = self.weights
        x = weights.linear("self_cond_proj", torch.cat([z, torch.zeros_like(z)], -1))
        x = weights.linear("text_proj.proj2", weights.linear("text_proj.proj1", x))
        prefix = self._prefix(z)
        x = torch.cat([prefix.expand(len(z), -1, -1), x], 1)
        head_dim = len(weights["blocks.0.attn.q_norm.weight"])
        positions = torch.cat([torch.zeros(prefix.shape[1]), torch.arange(z.shape[1])])  # 0: not rotated
        rotation = rotary(positions, head_dim, z)
        for number in range(weights.count("blocks")):
            x = self._block(f"blocks.{number}", x, rotation)
        x = x[:, prefix.shape[1] :]
        hidden = F.gelu(x @ weights["proj_kernel"] + weights["proj_bias"], approximate="tanh")
        return hidden @ weights["unembed_kernel"] + weights["unembed_bias"]

    def _prefix(self, like: Tensor) -> Tensor:
        """The tokens of the time, of the guidance and of the mode (1, P, W)."""
        time, guidance, mode = (self.weights[name] for name in PREFIX)
        time = time + self._embedded("t_embedder", 1.0, like)
        guidance = guidance + self._embedded("self_cond_cfg_embedder", GUIDANCE, like)
        return torch.cat([time, guidance, mode], 1)

    def _embedded(self, name: str, value: float, like: Tensor) -> Tensor:
        features = time_features(value, self.weights[f"{name}.mlp_0.weight"].shape[1], like)
        return self.weights.linear(f"{name}.mlp_2", F.silu(self.weights.linear(f"{name}.mlp_0", features)))

    def _block(self, name: str, x: Tensor, rotation: Rotation) -> Tensor:
        weights = self.weights
        num_heads = x.shape[-1] // rotation.cos.shape[-1]
        h = weights.rms_norm(f"{name}.norm1", x, NORM_EPS)
        q, k, v = (split_heads(part, num_heads) for part in weights.linear(f"{name}.attn.qkv", h).chunk(3, -1))
        q, k = (
            rotation.rotate(halves(weights.rms_norm(f"{name}.attn.{side}_norm", part, NORM_EPS)))
            for side, part in (("q", q), ("k", k))
        )
        x = x + weights.linear(f"{name}.attn.proj", attention(q, k, v))
        gate, up = weights.linear(f"{name}.mlp.w12", weights.rms_norm(f"{name}.norm2", x, NORM_EPS)).chunk(2, -1)
        return x + weights.linear(f"{name}.mlp.w3", F.silu(gate) * up)


def halves(x: Tensor) -> Tensor:
    """(..., d) with the even numbers before the odd ones: ELF rotates neighbours, our rotation halves.

    Queries and keys change places alike, so that their products stay.
    """
    return torch.cat([x[..., ::2], x[..., 1::2]], -1)


def elf_shapes(weights: Weights) -> Shapes:
    """The shapes that the sizes of a few weights ask for; the head that denoises is there and is not read."""
    latent_dim, (vocab_size,) = weights.shape("unembed_kernel")[0], weights.shape("unembed_bias", 1)
    width, bottleneck = weights.shape("text_proj.proj2.weight")
    inner = weights.shape("blocks.0.mlp.w3.weight")[1]
    (head_dim,) = weights.shape("blocks.0.attn.q_norm.weight", 1)
    shapes: Shapes = {name: (1, weights.shape(name, 3)[1], width) for name in PREFIX}
    shapes |= linear_shapes("self_cond_proj", 2 * latent_dim, latent_dim)
    shapes |= linear_shapes("text_proj.proj1", latent_dim, bottleneck, bias=False)
    shapes |= linear_shapes("text_proj.proj2", bottleneck, width)
    for name in ("t_embedder", "self_cond_cfg_embedder"):
        shapes |= linear_shapes(f"{name}.mlp_0", weights.shape(f"{name}.mlp_0.weight")[1], width)
        shapes |= linear_shapes(f"{name}.mlp_2", width, width)
    for number in range(weights.count("blocks")):
        name = f"blocks.{number}"
        shapes |= {f"{name}.{norm}.weight": (width,) for norm in ("norm1", "norm2")}
        shapes |= {f"{name}.attn.{norm}.weight": (head_dim,) for norm in ("q_norm", "k_norm")}
        shapes |= linear_shapes(f"{name}.attn.qkv", width, 3 * width)
        shapes |= linear_shapes(f"{name}.attn.proj", width, width)
        shapes |= linear_shapes(f"{name}.mlp.w12", width, 2 * inner)
        shapes |= linear_shapes(f"{name}.mlp.w3", inner, width)
    shapes |= {"final_layer.norm_final.weight": (width,)} | linear_shapes("final_layer.linear", width, latent_dim)
    shapes |= {"proj_kernel": (width, latent_dim), "proj_bias": (latent_dim,)}
    return shapes | {"unembed_kernel": (latent_dim, vocab_size), "unembed_bias": (vocab_size,)}

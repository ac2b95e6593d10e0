"""LangFlow: noisy embeddings of tokens, read by the denoiser at the end of its own sampling.

B examples, L tokens, W width, V vocabulary. gamma is minus the log of the signal-to-noise ratio.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.errors import UserError
from fewstep.evaluation.pretrained import model_folder, read_config
from fewstep.lab.adapters.decoder import Decoder
from fewstep.lab.adapters.published import (
    Shapes,
    Weights,
    attention,
    find_tokenizer,
    linear_shapes,
    safetensors_weights,
    split_heads,
    text_blocks,
    time_features,
)
from fewstep.nn.attention import Rotation
from fewstep.shapes import example_generators, randn

EMBEDDING, SELF_CONDITION = "backbone.vocab_embed.embedding", "backbone.self_cond_proj.weight"
FREQUENCIES = "backbone.rotary_emb.inv_freq"
DEFAULTS = {"gumbel_cutoff": 1e-5, "use_bias": True, "use_normalized_embedding": True}
"""Settings that do not show in the weights."""


def load_langflow(options: DiagnoseOptions) -> Decoder:
    """LangFlow from its folder or hub name, with latents of held-out text.

    A latent is where its sampler ends: alpha times the embeddings (L, W) of a block plus sigma times noise that
    ``seed`` draws, at the smallest gamma of its schedule, whose noise is most of it. The readout is the denoiser there,
    its self-condition zero. Raises ``UserError`` for whatever is wrong with weights, tokenizer or text.
    """
    folder = model_folder(options.model)
    config = {**DEFAULTS, **read_config(folder)}
    if not config["use_bias"]:
        raise UserError(f"{folder} has use_bias false: expected the model whose logits have a skip connection")
    weights = safetensors_weights(folder, options)
    weights.check(langflow_shapes(weights))
    cutoff, normalized = float(config["gumbel_cutoff"]), bool(config["use_normalized_embedding"])
    model = LangFlow.of(weights, cutoff=cutoff, normalized=normalized, options=options)
    tokenizer = find_tokenizer(options, folder, example="gpt2", rows=len(model.embedding))
    text = text_blocks(options, tokenizer, len(model.embedding))
    with torch.no_grad():
        clean = model.embedding[text.ids]
        noise = randn(tuple(clean.shape), clean, example_generators(options.seed, 0, len(clean)))
        z = model.alpha * clean + model.sigma * noise.to(clean.dtype)
    note = (
        f"langflow: latent: {model.alpha:.3f} x embedding + {model.sigma:.3f} x noise (seed {options.seed}), where its "
        f"sampler ends (gamma {model.gamma:.3f}), {tuple(z.shape[1:])}; readout: the denoiser there, self-condition 0"
    )
    return text.decoder(options, model, z, note)


@dataclass(frozen=True)
class LangFlow:
    """The denoiser at ``gamma``: ``embedding`` (V, W) of its latents, ``frequencies`` (d / 2,) of its rotation."""

    weights: Weights
    embedding: Tensor
    frequencies: Tensor
    gamma: float

    @classmethod
    def of(cls, weights: Weights, *, cutoff: float, normalized: bool, options: DiagnoseOptions) -> "LangFlow":
        """In the precision and on the device that ``options`` name.

        gamma is the quantile ``cutoff`` of the Gumbel law of the weights, the last time of its sampler.
        """
        loc, scale = (float(weights[f"proposal.{name}"]) for name in ("loc", "scale"))
        rows = weights[EMBEDDING].float()
        embedding = F.normalize(rows, dim=-1) * math.sqrt(rows.shape[-1]) if normalized else rows
        ready = weights.to(options)
        gamma = loc - scale * math.log(-math.log(cutoff))
        frequencies = weights[FREQUENCIES].to(ready[FREQUENCIES].device)  # in their own precision
        return cls(ready, embedding.to(ready[EMBEDDING]), frequencies, gamma)

    @property
    def alpha(self) -> float:
        """The share of the embedding in a latent; alpha^2 + sigma^2 = 1."""
        return math.sqrt(1 / (1 + math.exp(self.gamma)))

    @property
    def sigma(self) -> float:
        """The level of the noise in a latent."""
        return math.sqrt(1 / (1 + math.exp(-self.gamma)))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, L, W) to logits (B, L, V): those of the network, and alpha / sigma^2 times z E^T.

        The second are the logits of the posterior of a token by itself under equal lengths of the embeddings.
        """
        weights = self.weights
        x = z
        if SELF_CONDITION in weights.tensors:
            x = x + weights.linear("backbone.self_cond_proj", torch.cat([z, torch.zeros_like(z)], -1))
        features = time_features(self.gamma, weights["backbone.sigma_map.mlp.0.weight"].shape[1], z)
        condition = weights.linear("backbone.sigma_map.mlp.0", features)
        condition = F.silu(weights.linear("backbone.sigma_map.mlp.2", F.silu(condition)))
        angles = torch.outer(torch.arange(z.shape[1], device=z.device), self.frequencies)
        cos, sin = angles.cos(), angles.sin()
        rotation = Rotation(torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1))
        for number in range(weights.count("backbone.blocks")):
            x = self._block(f"backbone.blocks.{number}", x, condition, rotation)
        last = "backbone.output_layer"
        shift, scale = weights.linear(f"{last}.adaLN_modulation", condition)[:, None].chunk(2, -1)
        x = weights.layer_norm(f"{last}.norm_final", x) * (1 + scale) + shift
        return weights.linear(f"{last}.linear", x) + self.alpha / self.sigma**2 * F.linear(z, self.embedding)

    def _block(self, name: str, x: Tensor, condition: Tensor, rotation: Rotation) -> Tensor:
        weights = self.weights
        num_heads = x.shape[-1] // rotation.cos.shape[-1]
        modulation = weights.linear(f"{name}.adaLN_modulation", condition)[:, None].chunk(6, -1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation
        h = weights.layer_norm(f"{name}.norm1", x) * (1 + scale_a) + shift_a
        q, k, v = (split_heads(part, num_heads) for part in weights.linear(f"{name}.attn_qkv", h).chunk(3, -1))
        h = attention(rotation.rotate(q), rotation.rotate(k), v)
        x = x + gate_a * weights.linear(f"{name}.attn_out", h)
        h = weights.layer_norm(f"{name}.norm2", x) * (1 + scale_m) + shift_m
        h = F.gelu(weights.linear(f"{name}.mlp.0", h), approximate="tanh")
        return x + gate_m * weights.linear(f"{name}.mlp.2", h)


def langflow_shapes(weights: Weights) -> Shapes:
    """The shapes that the sizes of a few weights ask for; only the self-condition may be left out."""
    vocab_size, width = weights.shape(EMBEDDING)
    condition, features = weights.shape("backbone.sigma_map.mlp.0.weight")
    shapes: Shapes = {EMBEDDING: (vocab_size, width), FREQUENCIES: weights.shape(FREQUENCIES, 1)}
    if SELF_CONDITION in weights.tensors:
        shapes[SELF_CONDITION] = (width, 2 * width)
    shapes |= {f"proposal.{name}": () for name in ("loc", "scale", "entropy")}
    shapes |= linear_shapes("backbone.sigma_map.mlp.0", features, condition)
    shapes |= linear_shapes("backbone.sigma_map.mlp.2", condition, condition)
    inner = weights.shape("backbone.blocks.0.mlp.0.weight")[0]
    for number in range(weights.count("backbone.blocks")):
        name = f"backbone.blocks.{number}"
        shapes |= {f"{name}.norm1.weight": (width,), f"{name}.norm2.weight": (width,)}
        shapes |= linear_shapes(f"{name}.attn_qkv", width, 3 * width, bias=False)
        shapes |= linear_shapes(f"{name}.attn_out", width, width, bias=False)
        shapes |= linear_shapes(f"{name}.mlp.0", width, inner)
        shapes |= linear_shapes(f"{name}.mlp.2", inner, width)
        shapes |= linear_shapes(f"{name}.adaLN_modulation", condition, 6 * width)
    shapes["backbone.output_layer.norm_final.weight"] = (width,)
    shapes |= linear_shapes("backbone.output_layer.linear", width, vocab_size)
    return shapes | linear_shapes("backbone.output_layer.adaLN_modulation", condition, 2 * width)

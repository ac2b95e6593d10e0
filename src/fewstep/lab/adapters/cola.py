"""The text autoencoder of Cola-DLM (arXiv:2605.06548): a small latent of every token, transformers on both sides.

B examples, L tokens, N = L / patch latents of D numbers, W width, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.data.hub import model_snapshot
from fewstep.errors import UserError
from fewstep.evaluation.pretrained import read_config
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
)
from fewstep.nn.attention import Rotation, rotary

INSIDE = Path("cola_dlm", "cola_vae")
"""Where the autoencoder lies in the hub's repository, beside a diffusion model that is not needed."""
PATTERNS = (f"{INSIDE}/*.json", f"{INSIDE}/*.safetensors", "tokenizer*.json")
DEFAULTS = {
    "num_heads": 12,
    "layer_norm_eps": 1e-6,
    "rope_theta": 500_000,
    "block_causal": True,
    "block_size": 4,
    "scaling_factor": 1.0,
    "shifting_factor": 0.0,
}
"""Settings that do not show in the weights, as the model's own code leaves them."""
RELEASED = {
    "post_norm": True,
    "qk_norm": True,
    "use_variation": True,
    "encoder_last_ln": True,
    "shared_heads_kv": 1,
    "clip_qkv": None,
    "act": "swiglu",
}
"""The variant of the architecture that is read, and no other."""


def load_cola(options: DiagnoseOptions) -> Decoder:
    """Cola's text autoencoder from its folder, that of the whole model or a hub name, with latents of held-out text.

    A latent is the mean of the posterior (N, D), normalised over its numbers, then shifted and scaled as the config
    says; the decoder reads it scaled. Both attend to the blocks of latents up to their own. Raises ``UserError`` for
    whatever is wrong with weights, config, tokenizer or text.
    """
    root = model_snapshot(options.model, PATTERNS)
    folder = root / INSIDE if (root / INSIDE).is_dir() else root
    config = {**DEFAULTS, **read_config(folder)}
    for name, value in RELEASED.items():
        if config.get(name, value) != value:
            raise UserError(f"{folder} has {name} {config[name]!r}: expected {value!r}, as in the released model")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds no weights: expected a .safetensors file beside config.json")
    weights = safetensors_weights(folder, options)
    weights.check(cola_shapes(weights))
    model = Cola(weights.to(options), config)
    vocab_size = len(weights["decoder.final_layer.weight"])
    tokenizer = find_tokenizer(options, folder, root, example="allenai/OLMo-2-1124-7B", rows=vocab_size)
    text = text_blocks(options, tokenizer, vocab_size, multiple=model.patch * model.block)
    with torch.no_grad():
        z = model.encode(text.ids)
    seen = f"all latents up to the end of a block of {model.block}" if config["block_causal"] else "all latents"
    note = (
        f"cola: latent: the posterior's mean, normalised, less {config['shifting_factor']} and times "
        f"{config['scaling_factor']}, {tuple(z.shape[1:])}; readout: its decoder, which attends to {seen}"
    )
    return text.decoder(options, model, z, note)


@dataclass(frozen=True)
class Cola:
    """Encoder and decoder; ``config`` holds what the sizes of the weights do not say."""

    weights: Weights
    config: Mapping[str, Any]

    @property
    def patch(self) -> int:
        """Tokens of a latent."""
        return self.weights["encoder.patch_embedder.weight"].shape[-1]

    @property
    def block(self) -> int:
        """Latents that see each other; 1 where all do."""
        return int(self.config["block_size"]) if self.config["block_causal"] else 1

    def encode(self, ids: Tensor) -> Tensor:
        """Tokens (B, L) to scaled means (B, N, D)."""
        weights = self.weights
        x = F.embedding(ids, weights["encoder.wte.weight"]).mT
        kernel, bias = weights["encoder.patch_embedder.weight"], weights["encoder.patch_embedder.bias"]
        x = self._blocks("encoder", F.conv1d(x, kernel, bias, stride=self.patch).mT)
        mean = weights.linear("encoder.final_layer", x).chunk(2, -1)[0]
        mean = F.layer_norm(mean, mean.shape[-1:], eps=self._eps)
        shift, scale = (mean.new_tensor(self.config[f"{name}_factor"]) for name in ("shifting", "scaling"))
        return (mean - shift) * scale

    def decode(self, z: Tensor) -> Tensor:
        """Scaled means (B, N, D) to logits (B, L, V)."""
        x = self._blocks("decoder", self.weights.linear("decoder.in_layer", z))
        x = self.weights.linear("decoder.unpatch_layer", x)
        x = rearrange(x, "b n (w patch) -> b (n patch) w", patch=self.patch)
        return self.weights.linear("decoder.final_layer", self.weights.layer_norm("decoder.final_norm", x, self._eps))

    @property
    def _eps(self) -> float:
        return float(self.config["layer_norm_eps"])

    def _blocks(self, part: str, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        head_dim = x.shape[-1] // int(self.config["num_heads"])
        rotation = rotary(places, head_dim, x, base=float(self.config["rope_theta"]))
        block = places // self.block
        seen = block[:, None] >= block if self.config["block_causal"] else None
        for number in range(self.weights.count(f"{part}.blocks")):
            x = self._layer(f"{part}.blocks.{number}", x, rotation, seen)
        return x

    def _layer(self, name: str, x: Tensor, rotation: Rotation, seen: Tensor | None) -> Tensor:
        """Attention added to the norm of ``x``, and the norm of an MLP added to that."""
        weights, num_heads = self.weights, int(self.config["num_heads"])
        q, k, v = weights.linear(f"{name}.qkv_proj", x).chunk(3, -1)
        q, k = (weights.layer_norm(f"{name}.{side}_norm", part, self._eps) for side, part in (("q", q), ("k", k)))
        q, k, v = (split_heads(part, num_heads) for part in (q, k, v))
        mixed = weights.linear(f"{name}.attn_out_proj", attention(rotation.rotate(q), rotation.rotate(k), v, seen))
        x = weights.layer_norm(f"{name}.norm_attn", x, self._eps) + mixed
        up, gate = weights.linear(f"{name}.ffn_proj", x).chunk(2, -1)
        out = weights.linear(f"{name}.ffn_out", F.silu(gate) * up)
        return x + weights.layer_norm(f"{name}.norm_ffn", out, self._eps)


def cola_shapes(weights: Weights) -> Shapes:
    """The shapes that the sizes of a few weights ask for."""
    vocab_size, width = weights.shape("decoder.final_layer.weight")
    latent_dim = weights.shape("decoder.in_layer.weight")[1]
    inner = weights.shape("encoder.blocks.0.ffn_proj.weight")[0]
    patch = weights.shape("encoder.patch_embedder.weight", 3)[-1]
    shapes: Shapes = {"encoder.wte.weight": (vocab_size + 1, width)}  # one row more than tokens
    shapes |= {"encoder.patch_embedder.weight": (width, width, patch), "encoder.patch_embedder.bias": (width,)}
    for part in ("encoder", "decoder"):
        for number in range(weights.count(f"{part}.blocks")):
            name = f"{part}.blocks.{number}"
            for norm in ("norm_attn", "q_norm", "k_norm", "norm_ffn"):
                shapes |= {f"{name}.{norm}.weight": (width,), f"{name}.{norm}.bias": (width,)}
            shapes |= linear_shapes(f"{name}.qkv_proj", width, 3 * width, bias=False)
            shapes |= linear_shapes(f"{name}.attn_out_proj", width, width)
            shapes |= linear_shapes(f"{name}.ffn_proj", width, inner)
            shapes |= linear_shapes(f"{name}.ffn_out", inner // 2, width)
    shapes |= linear_shapes("encoder.final_layer", width, 2 * latent_dim)
    shapes |= linear_shapes("decoder.in_layer", latent_dim, width)
    shapes |= linear_shapes("decoder.unpatch_layer", width, patch * width)
    shapes |= {"decoder.final_norm.weight": (width,), "decoder.final_norm.bias": (width,)}
    return shapes | linear_shapes("decoder.final_layer", width, vocab_size)

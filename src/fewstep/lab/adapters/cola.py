"""The text autoencoder of Cola-DLM (arXiv:2605.06548): a small latent of every token, transformers on both sides.

B examples, L tokens, N = L / patch latents of D numbers, W width.
"""

from collections.abc import Mapping
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
from fewstep.lab.adapters.published import PublishedModel, Weights, attention, published_decoder, safetensors_weights
from fewstep.nn.attention import rotary

INSIDE = Path("cola_dlm", "cola_vae")
"""Where the autoencoder lies in the hub's repository, beside a diffusion model that is not needed."""
PATTERNS = (f"{INSIDE}/*.json", f"{INSIDE}/*.safetensors", "tokenizer*.json")
DEFAULTS = {
    "num_heads": 12,
    "layer_norm_eps": 1e-6,
    "rope_theta": 500_000,
    "block_size": 4,
    "scaling_factor": 1.0,
    "shifting_factor": 0.0,
}
"""Settings that do not show in the weights, as the model's own code leaves them."""
RELEASED = {
    **dict.fromkeys(("post_norm", "qk_norm", "block_causal", "use_variation", "encoder_last_ln"), True),
    "shared_heads_kv": 1,
    "clip_qkv": None,
    "act": "swiglu",
}
"""The variant of the architecture that is read, and no other."""


def load_cola(options: DiagnoseOptions) -> Decoder:
    """Cola's text autoencoder from its own folder or that of the whole model, with latents of held-out text.

    A latent is the mean of the posterior (N, D), normalised over its numbers, then shifted and scaled as the config
    says; the decoder reads it scaled.
    """
    root = model_snapshot(options.model, PATTERNS)
    folder = root / INSIDE if (root / INSIDE).is_dir() else root
    config = {**DEFAULTS, **read_config(folder)}
    for name, value in RELEASED.items():
        if config.get(name, value) != value:
            raise UserError(f"{folder} has {name} {config[name]!r}: expected {value!r}, as in the released model")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds no weights: expected a .safetensors file beside config.json")
    model = safetensors_weights(folder, options).build(lambda weights: Cola(weights, config), options)
    note = (
        f"latent: the posterior's mean, normalised, less {config['shifting_factor']} and times "
        f"{config['scaling_factor']}; readout: its decoder, which attends to all latents up to the end of a block of "
        f"{config['block_size']}"
    )
    return published_decoder(options, model, [folder, root], note)


class Cola(PublishedModel):
    """Encoder and decoder, block-causal; ``config`` holds what the sizes of the weights do not say."""

    tokenizer = "allenai/OLMo-2-1124-7B"

    def __init__(self, weights: Weights, config: Mapping[str, Any]) -> None:
        self.weights = weights
        self.config = config
        self.eps = float(config["layer_norm_eps"])
        self.vocab_size, self.width = weights.get("decoder.final_layer.weight", None, None).shape
        self.latent_dim = weights.get("decoder.in_layer.weight", self.width, None).shape[1]
        self.inner = weights.get("encoder.blocks.0.ffn_proj.weight", None, self.width).shape[0]
        self.patch = weights.get("encoder.patch_embedder.weight", self.width, self.width, None).shape[-1]
        self.tokens_at_once = self.patch * int(config["block_size"])

    def encode(self, ids: Tensor) -> Tensor:
        weights, width = self.weights, self.width
        x = F.embedding(ids, weights.get("encoder.wte.weight", self.vocab_size + 1, width)).mT  # a row more than tokens
        kernel = weights.get("encoder.patch_embedder.weight", width, width, self.patch)
        x = F.conv1d(x, kernel, weights.get("encoder.patch_embedder.bias", width), stride=self.patch).mT
        x = weights.linear("encoder.final_layer", self._blocks("encoder", x), 2 * self.latent_dim)
        mean = F.layer_norm(x.chunk(2, -1)[0], (self.latent_dim,), eps=self.eps)
        shift, scale = (mean.new_tensor(self.config[f"{name}_factor"]) for name in ("shifting", "scaling"))
        return (mean - shift) * scale

    def decode(self, z: Tensor) -> Tensor:
        x = self._blocks("decoder", self.weights.linear("decoder.in_layer", z, self.width))
        x = self.weights.linear("decoder.unpatch_layer", x, self.patch * self.width)
        x = rearrange(x, "b n (w patch) -> b (n patch) w", patch=self.patch)
        x = self.weights.layer_norm("decoder.final_norm", x, self.eps)
        return self.weights.linear("decoder.final_layer", x, self.vocab_size)

    def _blocks(self, part: str, x: Tensor) -> Tensor:
        """Attention added to the norm of ``x``, and the norm of an MLP added to that, again and again."""
        weights, width, eps = self.weights, self.width, self.eps
        places = torch.arange(x.shape[1], device=x.device)
        rotation = rotary(places, width // int(self.config["num_heads"]), x, base=float(self.config["rope_theta"]))
        block = places // int(self.config["block_size"])
        seen = block[:, None] >= block
        for number in range(weights.count(f"{part}.blocks")):
            name = f"{part}.blocks.{number}"
            q, k, v = weights.linear(f"{name}.qkv_proj", x, 3 * width, bias=False).chunk(3, -1)
            q, k = (weights.layer_norm(f"{name}.{side}_norm", each, eps) for side, each in (("q", q), ("k", k)))
            mixed = weights.linear(f"{name}.attn_out_proj", attention(q, k, v, rotation, seen), width)
            x = weights.layer_norm(f"{name}.norm_attn", x, eps) + mixed
            up, gate = weights.linear(f"{name}.ffn_proj", x, self.inner).chunk(2, -1)
            out = weights.linear(f"{name}.ffn_out", F.silu(gate) * up, width)
            x = x + weights.layer_norm(f"{name}.norm_ffn", out, eps)
        return x

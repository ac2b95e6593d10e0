"""LangFlow: noisy embeddings of tokens, read by the denoiser at the end of its own sampling.

B examples, L tokens, W width, V vocabulary. gamma is minus the log of the signal-to-noise ratio.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.errors import UserError
from fewstep.evaluation.pretrained import model_folder, read_config
from fewstep.lab.adapters.decoder import Decoder
from fewstep.lab.adapters.published import PublishedModel, Weights, attention, published_decoder, safetensors_weights
from fewstep.nn.attention import Rotation
from fewstep.shapes import example_generators, randn

EMBEDDING, FREQUENCIES = "backbone.vocab_embed.embedding", "backbone.rotary_emb.inv_freq"
DEFAULTS = {"gumbel_cutoff": 1e-5, "use_bias": True, "use_normalized_embedding": True}
"""Settings that do not show in the weights."""


def load_langflow(options: DiagnoseOptions) -> Decoder:
    """LangFlow with latents of held-out text, as they are where its sampler ends.

    A latent is alpha times the embeddings (L, W) of a block plus sigma times noise that ``seed`` draws, at the smallest
    gamma of its learned schedule: the quantile ``gumbel_cutoff`` of a Gumbel law.
    """
    folder = model_folder(options.model)
    config = {**DEFAULTS, **read_config(folder)}
    if not config["use_bias"]:
        raise UserError(f"{folder} has use_bias false: expected the model whose logits have a skip connection")
    weights = safetensors_weights(folder, options)
    rows = weights.get(EMBEDDING, None, None).float()
    frequencies = weights.get(FREQUENCIES, None)  # in their own precision
    loc, scale = (float(weights.get(f"proposal.{name}")) for name in ("loc", "scale"))
    if config["use_normalized_embedding"]:
        weights.tensors[EMBEDDING] = F.normalize(rows, dim=-1) * math.sqrt(rows.shape[-1])
    gamma = loc - scale * math.log(-math.log(float(config["gumbel_cutoff"])))
    model = weights.build(lambda each: LangFlow(each, frequencies, gamma, options.seed), options)
    latent = f"{model.alpha:.3f} x embedding + {model.sigma:.3f} x noise (seed {options.seed})"
    note = (
        f"latent: {latent}, where its sampler ends (gamma {gamma:.3f}); readout: the denoiser there, self-condition 0"
    )
    return published_decoder(options, model, [folder], note)


class LangFlow(PublishedModel):
    """The denoiser at ``gamma``; ``frequencies`` (d / 2,) are those of its rotation, ``seed`` draws the noise."""

    tokenizer = "gpt2"

    def __init__(self, weights: Weights, frequencies: Tensor, gamma: float, seed: int) -> None:
        self.weights = weights
        self.frequencies = frequencies
        self.gamma = gamma
        self.seed = seed
        self.alpha = math.sqrt(1 / (1 + math.exp(gamma)))  # alpha^2 + sigma^2 = 1
        self.sigma = math.sqrt(1 / (1 + math.exp(-gamma)))
        self.embedding = weights.get(EMBEDDING, None, None)
        self.vocab_size, self.width = self.embedding.shape
        self.condition = weights.get("backbone.sigma_map.mlp.0.weight", None, None).shape[0]
        self.inner = weights.get("backbone.blocks.0.mlp.0.weight", None, self.width).shape[0]

    def read_all(self) -> None:
        super().read_all()
        self.weights.get(FREQUENCIES, len(self.frequencies))
        for name in ("loc", "scale", "entropy"):
            self.weights.get(f"proposal.{name}")

    def encode(self, ids: Tensor) -> Tensor:
        clean = F.embedding(ids, self.embedding)
        noise = randn(tuple(clean.shape), clean, example_generators(self.seed, 0, len(clean)))
        return self.alpha * clean + self.sigma * noise.to(clean.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """Logits of the network, and alpha / sigma^2 times z E^T.

        The second are the logits of the posterior of a token by itself under equal lengths of the embeddings.
        """
        weights, width = self.weights, self.width
        x = z
        if "backbone.self_cond_proj.weight" in weights.tensors:  # nothing else may be left out
            x = x + weights.linear("backbone.self_cond_proj", F.pad(z, (0, width)), width, bias=False)
        layers = "backbone.sigma_map.mlp.0", "backbone.sigma_map.mlp.2"
        condition = F.silu(weights.embedded_time(*layers, self.gamma, self.condition, z))
        angles = torch.outer(torch.arange(z.shape[1], device=z.device), self.frequencies.to(z.device))
        cos, sin = angles.cos(), angles.sin()
        rotation = Rotation(torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1))
        for number in range(weights.count("backbone.blocks")):
            x = self._block(f"backbone.blocks.{number}", x, condition, rotation)
        shift, scale = self._modulation("backbone.output_layer", condition, 2)
        x = weights.layer_norm("backbone.output_layer.norm_final", x, bias=False) * (1 + scale) + shift
        logits = weights.linear("backbone.output_layer.linear", x, self.vocab_size)
        return logits + self.alpha / self.sigma**2 * F.linear(z, self.embedding)

    def _modulation(self, name: str, condition: Tensor, count: int) -> tuple[Tensor, ...]:
        """``count`` shifts, scales and gates (1, 1, W)."""
        return self.weights.linear(f"{name}.adaLN_modulation", condition, count * self.width)[:, None].chunk(count, -1)

    def _block(self, name: str, x: Tensor, condition: Tensor, rotation: Rotation) -> Tensor:
        weights, width = self.weights, self.width
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self._modulation(name, condition, 6)
        h = weights.layer_norm(f"{name}.norm1", x, bias=False) * (1 + scale_a) + shift_a
        q, k, v = weights.linear(f"{name}.attn_qkv", h, 3 * width, bias=False).chunk(3, -1)
        x = x + gate_a * weights.linear(f"{name}.attn_out", attention(q, k, v, rotation), width, bias=False)
        h = weights.layer_norm(f"{name}.norm2", x, bias=False) * (1 + scale_m) + shift_m
        h = F.gelu(weights.linear(f"{name}.mlp.0", h, self.inner), approximate="tanh")
        return x + gate_m * weights.linear(f"{name}.mlp.2", h, width)

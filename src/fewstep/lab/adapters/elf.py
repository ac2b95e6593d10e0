"""ELF: normalised states of a T5 encoder, read by the denoiser in its decode mode.

B examples, L tokens, D numbers of a state, W width, V vocabulary.
"""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.data.hub import model_snapshot
from fewstep.errors import UserError
from fewstep.lab.adapters.decoder import Decoder
from fewstep.lab.adapters.published import PublishedModel, Weights, attention, pickled_tensors
from fewstep.lab.adapters.text import load_text_model
from fewstep.nn.attention import Rotation, rotary
from fewstep.settings import read_yaml

PATTERNS = ("checkpoint_*", "config.yml")
PREFIX = ("t_emb_tokens", "self_cond_cfg_tokens", "mode_tokens")
"""Learned tokens before a block, which are not rotated."""
GUIDANCE = 3.0
"""The scale of the self-condition's guidance that the decoder is given."""
NORM_EPS = 1e-6


def load_elf(options: DiagnoseOptions) -> Decoder:
    """ELF with latents of held-out text from the encoder that ``encoder`` names.

    A latent is the encoder's last states (L, D) of a block, less the mean and over the deviation of config.yml.
    """
    if not options.allow_pickle:
        raise UserError(f"{options.model} is in pickles, which may run code: pass --allow_pickle if you trust it")
    folder = model_snapshot(options.model, PATTERNS)
    config = read_yaml(folder / "config.yml")
    if options.encoder is None:
        usual = config.get("encoder_model_name", "t5-small")
        raise UserError(f"{options.model} reads the states of another model: name it, --encoder {usual}")
    model = latest_weights(folder).build(Elf, options)
    from transformers import AutoModel

    text = load_text_model(replace(options, model=options.encoder), AutoModel, "an encoder", unused=("decoder.",))
    mean, deviation = float(config.get("latent_mean", 0)), float(config.get("latent_std", 1))
    encoder = text.model.get_encoder() if hasattr(text.model, "decoder") else text.model
    z = (text.states(encoder, text.blocks) - mean) / deviation
    if z.shape[-1] != model.latent_dim:
        expected = f"{model.latent_dim}, those of the encoder that {options.model} was trained with"
        raise UserError(f"encoder {options.encoder} has states of {z.shape[-1]} numbers: expected {expected}")
    note = (
        f"elf: latent: the last states of {options.encoder}, less {mean:g} and over {deviation:g}, no special tokens "
        f"around a block; readout: the denoiser in decode mode at t = 1, self-condition 0, guidance {GUIDANCE:g}"
    )
    return replace(text.decoder(model.decode, z, text.blocks, note), name=options.model)


def latest_weights(folder: Path) -> Weights:
    """The averaged weights of the checkpoint with the highest number. Raises ``UserError`` without one."""
    numbered = {file.name.removeprefix("checkpoint_"): file for file in folder.glob("checkpoint_*")}
    numbers = [number for number in numbered if number.isdecimal()]
    if not numbers:
        raise UserError(f"{folder} holds no file checkpoint_NNN: give a folder or hub name of ELF in torch's format")
    file = numbered[max(numbers, key=int)]
    tensors = pickled_tensors(file, "ema_params1")
    return Weights(str(file), {name.removeprefix("_orig_mod."): value for name, value in tensors.items()})


class Elf(PublishedModel):
    """The denoiser in its decode mode; its latents are another model's."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.latent_dim, self.vocab_size = weights.get("unembed_kernel", None, None).shape
        self.width, self.bottleneck = weights.get("text_proj.proj2.weight", None, None).shape
        self.inner = weights.get("blocks.0.mlp.w3.weight", self.width, None).shape[1]
        (self.head_dim,) = weights.get("blocks.0.attn.q_norm.weight", None).shape

    def read_all(self) -> None:
        self.decode(torch.empty(1, 1, self.latent_dim, device="meta"))
        self.weights.get("final_layer.norm_final.weight", self.width)  # the head that denoises is not read
        self.weights.linear("final_layer.linear", torch.empty(1, self.width, device="meta"), self.latent_dim)

    def decode(self, z: Tensor) -> Tensor:
        weights, latent_dim, width = self.weights, self.latent_dim, self.width
        x = weights.linear("self_cond_proj", F.pad(z, (0, latent_dim)), latent_dim)
        x = weights.linear("text_proj.proj1", x, self.bottleneck, bias=False)
        x = weights.linear("text_proj.proj2", x, width)
        prefix = self._prefix(z)
        x = torch.cat([prefix.expand(len(z), -1, -1), x], 1)
        positions = torch.cat([torch.zeros(prefix.shape[1]), torch.arange(z.shape[1])])  # 0: not rotated
        rotation = rotary(positions, self.head_dim, z)
        for number in range(weights.count("blocks")):
            x = self._block(f"blocks.{number}", x, rotation)
        x = x[:, prefix.shape[1] :] @ weights.get("proj_kernel", width, latent_dim)
        hidden = F.gelu(x + weights.get("proj_bias", latent_dim), approximate="tanh")
        logits = hidden @ weights.get("unembed_kernel", latent_dim, self.vocab_size)
        return logits + weights.get("unembed_bias", self.vocab_size)

    def _prefix(self, like: Tensor) -> Tensor:
        """The tokens of the time, of the guidance and of the mode (1, P, W)."""
        time, guidance, mode = (self.weights.get(name, 1, None, self.width) for name in PREFIX)

        def embedded(name: str, value: float) -> Tensor:
            return self.weights.embedded_time(f"{name}.mlp_0", f"{name}.mlp_2", value, self.width, like)

        guidance = guidance + embedded("self_cond_cfg_embedder", GUIDANCE)
        return torch.cat([time + embedded("t_embedder", 1.0), guidance, mode], 1)

    def _block(self, name: str, x: Tensor, rotation: Rotation) -> Tensor:
        weights, width = self.weights, self.width

        def normed(side: str, part: Tensor) -> Tensor:
            """Each head's numbers over their rms, the even ones before the odd ones.

            ELF rotates neighbours, our rotation halves; queries and keys change places alike, so products stay.
            """
            heads = weights.rms_norm(f"{name}.attn.{side}_norm", part.unflatten(-1, (-1, self.head_dim)), NORM_EPS)
            return torch.cat([heads[..., ::2], heads[..., 1::2]], -1).flatten(-2)

        h = weights.rms_norm(f"{name}.norm1", x, NORM_EPS)
        q, k, v = weights.linear(f"{name}.attn.qkv", h, 3 * width).chunk(3, -1)
        x = x + weights.linear(f"{name}.attn.proj", attention(normed("q", q), normed("k", k), v, rotation), width)
        h = weights.rms_norm(f"{name}.norm2", x, NORM_EPS)
        gate, up = weights.linear(f"{name}.mlp.w12", h, 2 * self.inner).chunk(2, -1)
        return x + weights.linear(f"{name}.mlp.w3", F.silu(gate) * up, width)

"""The autoencoder of CALM (arXiv:2510.27688): a latent of every chunk of K tokens, read by itself.

B examples, C chunks of K tokens, D numbers of a latent, W width.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.errors import UserError
from fewstep.evaluation.pretrained import model_folder, read_config
from fewstep.lab.adapters.decoder import Decoder
from fewstep.lab.adapters.published import (
    PublishedModel,
    Weights,
    pickled_tensors,
    published_decoder,
    safetensors_weights,
)

EMBEDDING, OUTPUT = "encoder.embed_tokens.weight", "decoder.lm_head_weight"
"""The output is tied to the embedding, so a file may leave it out."""


def load_calm(options: DiagnoseOptions) -> Decoder:
    """The autoencoder of CALM, with latents of held-out text: the posterior's means (C, D), not normalised."""
    folder = model_folder(options.model, allow_pickle=options.allow_pickle)
    config = read_config(folder)
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(f"{folder} has hidden_act {config['hidden_act']!r}: expected silu")
    if any(folder.glob("*.safetensors")):
        weights = safetensors_weights(folder, options)
    else:
        weights = Weights(str(folder), pickled_tensors(folder / "pytorch_model.bin"))
    output = weights.tensors.pop(OUTPUT, None)
    if output is not None and not torch.equal(output, weights.get(EMBEDDING, None, None)):
        raise UserError(f"{folder} has a {OUTPUT} other than {EMBEDDING}: expected the tied model")
    model = weights.build(lambda each: Calm(each, float(config.get("rms_norm_eps", 1e-6))), options)
    latent = f"the posterior's mean of each chunk of {model.tokens_at_once} tokens"
    note = f"latent: {latent}; readout: its decoder, which reads every chunk by itself"
    return published_decoder(options, model, [folder], note)


class Calm(PublishedModel):
    """Encoder and decoder, each of two stages of gated MLPs."""

    tokenizer = "meta-llama/Meta-Llama-3-8B"

    def __init__(self, weights: Weights, eps: float) -> None:
        self.weights = weights
        self.eps = eps
        self.embedding = weights.get(EMBEDDING, None, None)
        self.vocab_size, self.width = self.embedding.shape
        self.inner = weights.get("encoder.encoder_layers.0.mlp.gate_proj.weight", None, self.width).shape[0]
        self.latent_dim = weights.get("decoder.latent_to_hidden.weight", self.width, None).shape[1]
        squeezed = weights.get("encoder.squeeze_layer.weight", self.width, None).shape[1]
        self.tokens_at_once = max(1, squeezed // self.width)

    def encode(self, ids: Tensor) -> Tensor:
        x = self._stage("encoder", 0, F.embedding(ids, self.embedding))
        x = rearrange(x, "b (c k) w -> b c (k w)", k=self.tokens_at_once)
        x = self._stage("encoder", 1, self.weights.linear("encoder.squeeze_layer", x, self.width))
        x = self.weights.rms_norm("encoder.norm", x, self.eps)
        return self.weights.linear("encoder.hidden_to_latent", x, 2 * self.latent_dim).chunk(2, -1)[0]

    def decode(self, z: Tensor) -> Tensor:
        x = self._stage("decoder", 0, self.weights.linear("decoder.latent_to_hidden", z, self.width))
        x = self.weights.linear("decoder.expand_layer", x, self.tokens_at_once * self.width)
        x = self._stage("decoder", 1, rearrange(x, "b c (k w) -> b (c k) w", k=self.tokens_at_once))
        return F.linear(self.weights.rms_norm("decoder.norm", x, self.eps), self.embedding)

    def _stage(self, part: str, stage: int, x: Tensor) -> Tensor:
        """One half of a part's layers."""
        half = self.weights.count(f"{part}.{part}_layers") // 2
        for number in range(stage * half, (stage + 1) * half):
            name = f"{part}.{part}_layers.{number}"
            h = self.weights.rms_norm(f"{name}.layernorm", x, self.eps)
            gate, up = (
                self.weights.linear(f"{name}.mlp.{side}_proj", h, self.inner, bias=False) for side in ("gate", "up")
            )
            x = x + self.weights.linear(f"{name}.mlp.down_proj", F.silu(gate) * up, self.width, bias=False)
        return x

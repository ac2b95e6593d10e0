"""The autoencoder of CALM (arXiv:2510.27688): a latent of every chunk of K tokens, read by itself.

B examples, C chunks of K tokens, D numbers of a latent, W width, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.errors import UserError
from fewstep.evaluation.pretrained import model_folder, read_config
from fewstep.lab.adapters.decoder import Decoder
from fewstep.lab.adapters.published import (
    Shapes,
    Weights,
    find_tokenizer,
    linear_shapes,
    named_tensors,
    read_pickle,
    safetensors_weights,
    text_blocks,
)

EMBEDDING, OUTPUT = "encoder.embed_tokens.weight", "decoder.lm_head_weight"
"""The output is tied to the embedding, so a file may leave it out."""


def load_calm(options: DiagnoseOptions) -> Decoder:
    """The autoencoder of CALM from its folder or hub name, with latents of held-out text.

    A latent is the mean of the posterior (C, D) of the chunks of a block, not normalised; the readout are the MLPs of
    the decoder. Raises ``UserError`` for whatever is wrong with weights, tokenizer or text.
    """
    folder = model_folder(options.model, allow_pickle=options.allow_pickle)
    config = read_config(folder)
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(f"{folder} has hidden_act {config['hidden_act']!r}: expected silu")
    if any(folder.glob("*.safetensors")):
        weights = safetensors_weights(folder, options)
    else:
        file = folder / "pytorch_model.bin"
        weights = Weights(str(folder), named_tensors(read_pickle(file), str(file)))
    model = Calm.of(weights, eps=float(config.get("rms_norm_eps", 1e-6))).to(options)
    tokenizer = find_tokenizer(options, folder, example="meta-llama/Meta-Llama-3-8B", rows=model.vocab_size)
    text = text_blocks(options, tokenizer, model.vocab_size, multiple=model.chunk)
    with torch.no_grad():
        z = model.encode(text.ids)
    note = (
        f"calm: latent: the posterior's mean of each chunk of {model.chunk} tokens, {tuple(z.shape[1:])}; readout: its "
        "decoder, which reads every chunk by itself"
    )
    return text.decoder(options, model, z, note)


@dataclass(frozen=True)
class Calm:
    """Encoder and decoder, layers of a gated MLP each; ``chunk`` is K."""

    weights: Weights
    eps: float
    chunk: int

    @classmethod
    def of(cls, weights: Weights, *, eps: float) -> "Calm":
        """All sizes from the weights. Raises ``UserError`` unless they are exactly this model's."""
        width = weights.shape(EMBEDDING)[1]
        chunk = weights.shape("encoder.squeeze_layer.weight")[1] // width
        weights.check(calm_shapes(weights, chunk))
        if not torch.equal(weights.tensors.get(OUTPUT, weights[EMBEDDING]), weights[EMBEDDING]):
            raise UserError(f"{weights.source} has a {OUTPUT} other than {EMBEDDING}: expected the tied model")
        return cls(weights, eps, chunk)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return len(self.weights[EMBEDDING])

    def to(self, options: DiagnoseOptions) -> "Calm":
        """The same in the precision and on the device that the options name."""
        return Calm(self.weights.to(options), self.eps, self.chunk)

    def encode(self, ids: Tensor) -> Tensor:
        """Tokens (B, C K) to means (B, C, D)."""
        x = self._layers("encoder", F.embedding(ids, self.weights[EMBEDDING]), first=True)
        x = self.weights.linear("encoder.squeeze_layer", rearrange(x, "b (c k) w -> b c (k w)", k=self.chunk))
        x = self._layers("encoder", x, first=False)
        x = self.weights.rms_norm("encoder.norm", x, self.eps)
        return self.weights.linear("encoder.hidden_to_latent", x).chunk(2, -1)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, C, D) to logits (B, C K, V)."""
        x = self._layers("decoder", self.weights.linear("decoder.latent_to_hidden", z), first=True)
        x = rearrange(self.weights.linear("decoder.expand_layer", x), "b c (k w) -> b (c k) w", k=self.chunk)
        x = self._layers("decoder", x, first=False)
        return F.linear(self.weights.rms_norm("decoder.norm", x, self.eps), self.weights[EMBEDDING])

    def _layers(self, part: str, x: Tensor, *, first: bool) -> Tensor:
        """The first or the second half of a part's layers."""
        count = self.weights.count(f"{part}.{part}_layers")
        for number in range(count // 2) if first else range(count // 2, count // 2 * 2):
            name = f"{part}.{part}_layers.{number}"
            h = self.weights.rms_norm(f"{name}.layernorm", x, self.eps)
            gate, up = (self.weights.linear(f"{name}.mlp.{side}_proj", h) for side in ("gate", "up"))
            x = x + self.weights.linear(f"{name}.mlp.down_proj", F.silu(gate) * up)
        return x


def calm_shapes(weights: Weights, chunk: int) -> Shapes:
    """The shapes that the sizes of a few weights ask for."""
    vocab_size, width = weights.shape(EMBEDDING)
    inner = weights.shape("encoder.encoder_layers.0.mlp.gate_proj.weight")[0]
    latent_dim = weights.shape("decoder.latent_to_hidden.weight")[1]
    shapes: Shapes = {EMBEDDING: (vocab_size, width)}
    if OUTPUT in weights.tensors:
        shapes[OUTPUT] = (vocab_size, width)
    for part in ("encoder", "decoder"):
        shapes[f"{part}.norm.weight"] = (width,)
        for number in range(weights.count(f"{part}.{part}_layers")):
            name = f"{part}.{part}_layers.{number}"
            shapes[f"{name}.layernorm.weight"] = (width,)
            shapes |= linear_shapes(f"{name}.mlp.gate_proj", width, inner, bias=False)
            shapes |= linear_shapes(f"{name}.mlp.up_proj", width, inner, bias=False)
            shapes |= linear_shapes(f"{name}.mlp.down_proj", inner, width, bias=False)
    shapes |= linear_shapes("encoder.squeeze_layer", chunk * width, width)
    shapes |= linear_shapes("encoder.hidden_to_latent", width, 2 * latent_dim)
    shapes |= linear_shapes("decoder.latent_to_hidden", latent_dim, width)
    return shapes | linear_shapes("decoder.expand_layer", width, chunk * width)

"""Models of transformers: the last hidden state of each token, read by a head; and a text's states, read by a decoder.

B examples, L tokens, K = L and the special tokens, N states, D numbers of a state, V vocabulary.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.diagnostics.decoding import Decode
from fewstep.errors import UserError
from fewstep.lab.adapters.decoder import Decoder
from fewstep.lab.adapters.text import blocks_of, load_text_model
from fewstep.readouts import draw_tokens
from fewstep.shapes import example_generators, rand

CAUSAL_NOTE = (
    "causal-lm: latent: the state at each token after the last norm; readout: the model's own head, which predicts the "
    "next token, so that its token accuracy is that of a language model and not of a copy"
)
MASKED_NOTE = (
    "masked-lm: latent: the last state at each token, the text whole and nothing masked; readout: the model's own "
    "prediction head, which was trained on masked places mostly"
)
COPY_NOTE = (
    "seq2seq: latent: the encoder's states, special tokens included; the text is to be copied, which a model need not "
    "have learnt: see the token accuracies. Parallel readout: one pass of the decoder with its start token everywhere, "
    "for which it was not trained either; rows of the head, and cci: the decoder as it is meant, token after token"
)
BLIND_NOTE = (
    "the parallel readout says the same at every place: this decoder knows a place by the tokens before it only (T5's "
    "relative positions), and they are all alike here; read the rows of the head"
)
FIT_BLOCKS, FIT_STEPS = 1024, 400
"""Blocks of the train split that a readout is fitted on, at most, and steps of the fit."""


def load_causal_lm(options: DiagnoseOptions) -> Decoder:
    """A causal language model as a decoder of the next token from the states (L, D) that its head reads.

    Of blocks of L + 1 tokens the first L make the latent, and the last L are what it stands for.
    """
    from transformers import AutoModelForCausalLM

    text = load_text_model(options, AutoModelForCausalLM, "a causal language model", more_tokens=1)
    inputs = text.blocks[:, :-1]
    z = text.states(trunk_of(text.model), inputs)
    return text.decoder(checked_head(text.model, inputs[:2], z[:2]), z, text.blocks[:, 1:], CAUSAL_NOTE)


def load_masked_lm(options: DiagnoseOptions) -> Decoder:
    """A masked language model as a decoder of its own input from the states (L, D) of a block's own tokens."""
    from transformers import AutoModelForMaskedLM

    text = load_text_model(options, AutoModelForMaskedLM, "a masked language model")
    framed = text.framed(text.blocks)
    states = text.states(trunk_of(text.model), framed)
    return text.decoder(checked_head(text.model, framed[:2], states[:2]), text.inner(states), text.blocks, MASKED_NOTE)


def trunk_of(model: Any) -> nn.Module:
    """The part of a model that makes its last hidden states. Raises ``UserError`` where it is not set apart."""
    trunk = getattr(model, model.base_model_prefix, None)
    if not isinstance(trunk, nn.Module):
        raise UserError(f"{type(model).__name__} has no trunk apart from its head: it cannot be diagnosed this way")
    return trunk


class _GivenStates(nn.Module):
    """Stands where the trunk was, and answers with the states that it is given."""

    states: Tensor | None = None

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.kind(last_hidden_state=self.states)


@torch.no_grad()
def checked_head(model: Any, ids: Tensor, z: Tensor) -> Decode:
    """States (B, L, D) to logits (B, L, V) by all that the model does after its trunk: projection, scaling, capping.

    Its own forward pass runs with a trunk that answers with the given states. Raises ``UserError`` unless it gives the
    states ``z`` (B, L, D) the model's logits for ``ids`` (B, L): then the head reads more than the last hidden state.
    """
    ids = ids.to(z.device)
    given = _GivenStates(type(trunk_of(model)(input_ids=ids[:1, :1])))  # a class of its own, with other fields
    head = copy.copy(model)
    head._modules = {**model._modules, model.base_model_prefix: given}

    def decode(z: Tensor) -> Tensor:
        given.states = z
        try:
            return head(input_ids=torch.zeros(z.shape[:2], dtype=torch.long, device=z.device)).logits
        finally:
            given.states = None

    name = type(model).__name__
    try:
        expected, ours = model(input_ids=ids).logits.double(), decode(z).double()
    except (AttributeError, TypeError, RuntimeError, ValueError) as error:
        raise UserError(f"the head of {name} cannot be read from its last hidden state ({error})") from None
    if not torch.allclose(expected, ours, rtol=1e-3, atol=1e-3):
        apart = f"its logits differ by {float((expected - ours).abs().max()):.2g}"
        raise UserError(f"the head of {name} reads more than the last state ({apart}): it cannot be diagnosed this way")
    return decode


def load_encoder_linear(options: DiagnoseOptions) -> Decoder:
    """Any encoder with a linear readout of its states (L, D), as text diffusion on a frozen encoder has it (ELF).

    The readout is fitted on the train split of the same text, starting from the input embeddings where they have the
    states' width; or ``tied`` to them. Of an encoder-decoder model the encoder is taken.
    """
    from transformers import AutoModel

    text = load_text_model(options, AutoModel, "an encoder", unused=("pooler", "decoder."))  # states need neither
    is_pair = getattr(text.model.config, "is_encoder_decoder", False)
    encoder = text.model.get_encoder() if is_pair else text.model
    z = text.inner(text.states(encoder, text.framed(text.blocks)))
    table = encoder.get_input_embeddings().weight.detach()
    same_width = table.shape[1] == z.shape[-1]
    if options.readout == "tied":
        if not same_width:
            widths = f"embeddings of {table.shape[1]} numbers and states of {z.shape[-1]}"
            raise UserError(f"{options.model} has {widths}, which cannot be tied: take --readout fitted")
        weight, bias, how = table, table.new_zeros(len(table)), "tied to the input embeddings"
    else:
        blocks = blocks_of(text.corpus.train, FIT_BLOCKS)
        states = text.inner(text.states(encoder, text.framed(blocks)))
        start = table if same_width else table.new_zeros(len(table), z.shape[-1])
        weight, bias = fit_linear(states.flatten(0, 1), blocks.flatten().to(z.device), start, options.seed)
        how = f"fitted on {blocks.numel():,} tokens of the train split in {FIT_STEPS} steps, seed {options.seed}"
    note = f"encoder-linear: latent: the encoder's last state at each token; readout: linear, {how}"
    return text.decoder(lambda z: linear(z, weight, bias), z, text.blocks, note)


def fit_linear(states: Tensor, ids: Tensor, start: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Weight (V, D) and bias (V,) that read ``ids`` (N,) from ``states`` (N, D), from the weight ``start`` on.

    AdamW on cross-entropy with linear decay to 0, of batches of 256 drawn with replacement.
    """
    (generator,) = example_generators(seed, 0, 1)
    scale = states.double().square().mean().sqrt().to(states)
    with torch.inference_mode(False), torch.enable_grad():
        weight, bias = (start.clone() * scale).requires_grad_(), start.new_zeros(len(start)).requires_grad_()
        optimizer = torch.optim.AdamW([weight, bias], lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0)
        for step in range(FIT_STEPS):
            rows = torch.randint(len(ids), (256,), generator=generator, device=generator.device).to(ids.device)
            loss = cross_entropy(linear(states[rows].clone() / scale, weight, bias).float(), ids[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / FIT_STEPS)
            optimizer.step()
    return (weight / scale).detach(), bias.detach()


def load_seq2seq(options: DiagnoseOptions) -> Decoder:
    """An encoder-decoder model of transformers as a decoder of its own input.

    The encoder reads a block between the special tokens that the tokenizer writes (T5: an end after it; BART: one on
    either side), and a latent is all of its states (K, D).
    """
    from transformers import AutoModelForSeq2SeqLM

    text = load_text_model(options, AutoModelForSeq2SeqLM, "an encoder-decoder model")
    if getattr(text.model.config, "decoder_start_token_id", None) is None:
        raise UserError(f"{options.model} has no decoder_start_token_id: give it in config.json")
    z = text.states(text.model.get_encoder(), text.framed(text.blocks))
    readout = Seq2SeqReadout(text.model, text.before, text.blocks.shape[1])
    with torch.no_grad():
        logits = readout.parallel(z[:2])
    is_blind = torch.allclose(logits, logits[:, :1].expand_as(logits), rtol=1e-3, atol=1e-3)
    notes = (COPY_NOTE, BLIND_NOTE) if is_blind else (COPY_NOTE,)
    return text.decoder(readout.parallel, z, text.blocks, *notes, conditionals=readout)


class Seq2SeqReadout:
    """The decoder of an encoder-decoder model at latents ``z`` (B, K, D), for the L = ``length`` tokens of a block.

    ``before`` are the special tokens that stand before a block's own in what the model writes.
    """

    def __init__(self, model: Any, before: tuple[int, ...], length: int) -> None:
        self.model = model
        self.length = length
        self.first = [int(model.config.decoder_start_token_id), *before]

    def parallel(self, z: Tensor) -> Tensor:
        """Logits (B, L, V) in one pass, the start token standing at every place: no token depends on any other."""
        inputs = torch.full((len(z), len(self.first) - 1 + self.length), self.first[0], device=z.device)
        return self._read(z, inputs).logits[:, len(self.first) - 1 :]

    def logits(self, z: Tensor, ids: Tensor) -> Tensor:
        """Logits (B, L, V) of each of ``ids`` (B, L) given the latents and the ids before it."""
        first = torch.tensor([self.first] * len(z), device=z.device)
        return self._read(z, torch.cat([first, ids[:, :-1].to(z.device)], 1)).logits[:, len(self.first) - 1 :]

    @torch.no_grad()
    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Tokens (B, L) at temperature 1, for latents ``z`` (B, K, D)."""
        u = rand((len(z), self.length), z, generator)
        inputs, cache, drawn = torch.tensor([self.first] * len(z), device=z.device), None, []
        for place in range(self.length):
            output = self._read(z, inputs, cache, use_cache=True)
            cache = output.past_key_values
            inputs = draw_tokens(output.logits[:, -1], u[:, place])[0][:, None]
            drawn.append(inputs)
        return torch.cat(drawn, 1)

    def _read(self, z: Tensor, inputs: Tensor, cache: Any = None, *, use_cache: bool = False) -> Any:
        """What the decoder says after each of its inputs (B, n)."""
        from transformers.modeling_outputs import BaseModelOutput

        return self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=z),
            decoder_input_ids=inputs,
            past_key_values=cache,
            use_cache=use_cache,
        )

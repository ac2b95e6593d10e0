"""Causal and masked language models: the last hidden state, read by the model's own head.

B examples, L tokens, D numbers of a state, V vocabulary.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.diagnostics.decoding import Decode
from fewstep.errors import UserError
from fewstep.lab.adapters.decoder import Decoder
from fewstep.lab.adapters.text import load_text_model

CAUSAL_NOTE = (
    "causal-lm: latent: the state at each token after the last norm; readout: the model's own head, which predicts the "
    "next token, so that its token accuracy is that of a language model and not of a copy"
)
MASKED_NOTE = (
    "masked-lm: latent: the last state at each token, the text whole and nothing masked; readout: the model's own "
    "prediction head, which was trained on masked places mostly"
)


def load_causal_lm(options: DiagnoseOptions) -> Decoder:
    """A causal language model of transformers as a decoder of the next token.

    A latent is the final hidden states (L, D) as the head reads them; the readout is all that the model does after
    them. Blocks of L + 1 tokens are read: the first L make the latent, the last L are what it stands for. No special
    token is put around them. Raises ``UserError`` for whatever is wrong with model, tokenizer or text.
    """
    from transformers import AutoModelForCausalLM

    text = load_text_model(options, AutoModelForCausalLM, "a causal language model", more_tokens=1)
    inputs = text.blocks[:, :-1]
    z = text.states(trunk_of(text.model), inputs)
    return text.decoder(checked_head(text.model, inputs[:2], z[:2]), z, text.blocks[:, 1:], CAUSAL_NOTE)


def load_masked_lm(options: DiagnoseOptions) -> Decoder:
    """A masked language model of transformers as a decoder of its own input.

    A block stands between the special tokens that the tokenizer writes ([CLS] and [SEP]); a latent is the states (L, D)
    of the block's own tokens, and the readout the model's prediction head, which reads each by itself. Raises
    ``UserError`` for whatever is wrong with model, tokenizer or text.
    """
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

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind
        self.states: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.kind(last_hidden_state=self.states)


@torch.no_grad()
def checked_head(model: Any, ids: Tensor, z: Tensor) -> Decode:
    """States (B, L, D) to logits (B, L, V) by all that the model does after its trunk: projection, scaling, capping.

    The model's own forward pass runs with a trunk that answers with the given states, so that nothing of the head is
    written twice. Raises ``UserError`` unless it gives the states ``z`` (B, L, D) the model's logits for ``ids``
    (B, L): then the head reads more than the last hidden state, and there is no decoder to measure.
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
        expected, ours = model(input_ids=ids).logits, decode(z)
    except (AttributeError, TypeError, RuntimeError, ValueError) as error:
        raise UserError(f"the head of {name} cannot be read from its last hidden state ({error})") from None
    if not torch.allclose(expected.double(), ours.double(), rtol=1e-3, atol=1e-3):
        raise UserError(
            f"the head of {name} reads more than the last hidden state (its logits differ by "
            f"{float((expected.double() - ours.double()).abs().max()):.2g}): it cannot be diagnosed this way"
        )
    return decode

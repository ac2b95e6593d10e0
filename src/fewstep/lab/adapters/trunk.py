"""A model of transformers cut in two: the trunk, which makes states, and its own head, which reads them.

B examples, L tokens, D numbers of a state, V vocabulary.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.diagnostics.decoding import Decode
from fewstep.errors import UserError

BATCH_SIZE = 16
"""Blocks that a trunk reads at once."""


def trunk_of(model: Any) -> nn.Module:
    """The part of a model that makes its last hidden states. Raises ``UserError`` where it is not set apart."""
    trunk = getattr(model, model.base_model_prefix, None)
    if not isinstance(trunk, nn.Module):
        raise UserError(f"{type(model).__name__} has no trunk apart from its head: it cannot be diagnosed this way")
    return trunk


@torch.no_grad()
def last_states(trunk: nn.Module, ids: Tensor, device: str) -> Tensor:
    """The last hidden states (B, L, D) of blocks ``ids`` (B, L), all of them real."""
    return torch.cat([trunk(input_ids=part.to(device)).last_hidden_state for part in ids.split(BATCH_SIZE)])


def head_of(model: Any) -> Decode:
    """States (B, L, D) to logits (B, L, V) by all that the model does after its trunk: projection, scaling, capping.

    The model's own forward pass runs with a trunk that answers with the given states, so that nothing of the head is
    written twice. The model itself stays as it is.
    """
    trunk = trunk_of(model)
    with torch.no_grad():  # a trunk answers in a class of its own, whose other fields the head may ask for
        kind = type(trunk(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device)))
    given = _Given(kind)
    head = copy.copy(model)
    head._modules = {**model._modules, model.base_model_prefix: given}

    def decode(z: Tensor) -> Tensor:
        given.states = z
        try:
            return head(input_ids=torch.zeros(z.shape[:2], dtype=torch.long, device=z.device)).logits
        finally:
            given.states = None

    return decode


@torch.no_grad()
def check_head(model: Any, decode: Decode, ids: Tensor, z: Tensor, name: str) -> None:
    """Raise ``UserError`` unless ``decode`` gives states ``z`` (B, L, D) the logits of ``model`` for ``ids`` (B, L).

    Where it does not, the head reads more than the last hidden state, and there is no decoder to measure.
    """
    try:
        expected, found = model(input_ids=ids.to(z.device)).logits, decode(z)
    except (AttributeError, TypeError, RuntimeError, ValueError) as error:
        raise UserError(f"the head of {name} cannot be read from its last hidden state ({error})") from None
    if not torch.allclose(expected.double(), found.double(), rtol=1e-3, atol=1e-3):
        gap = float((expected.double() - found.double()).abs().max())
        raise UserError(
            f"the head of {name} reads more than the last hidden state (its logits differ by {gap:.2g}): it cannot be "
            "diagnosed this way"
        )


def embedding_rows(model: Any) -> int:
    """How many tokens a model has embeddings of."""
    return int(model.get_input_embeddings().num_embeddings)


def max_positions(model: Any) -> int | None:
    """The longest block that a model reads, where its config says so."""
    for name in ("max_position_embeddings", "n_positions"):
        found = getattr(model.config, name, None)
        if isinstance(found, int) and found > 0:
            return found
    return None


class _Given(nn.Module):
    """Stands where the trunk was, and answers with the states that it is given."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind
        self.states: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.kind(last_hidden_state=self.states)

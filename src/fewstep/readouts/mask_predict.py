"""Mask-predict (arXiv:1904.09324): what is sure is committed to, the rest hidden and read again from what that says.

B batch, L tokens, K positions, D latent dimension, V vocabulary.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.readouts.categorical import Held, TokenDraw, draw_in_parts, draw_unknown, tokens_to_first_end
from fewstep.shapes import Generators, rand, token_mask
from fewstep.types import Ending, KnownTokens, Readout, TokenSample

HIDDEN_SHARE = 0.2
"""Of a text's tokens. A larger share lowers perplexity, and variety with it."""


class MaskPredictReadout:
    """A parallel readout that reads twice: mask-predict of one iteration, with an autoencoder as the masked model.

    The first reading is that of ``readout``. The ``share`` of each text's tokens to which it gives the least
    probability is hidden, the rest encoded by ``encoder``, and the hidden ones are read from these latents. So a text
    is committed to in two parts, where a parallel readout takes one and an autoregressive head one for each token.
    Needs an encoder that was trained with hidden tokens; ``padded``: it was trained without what stands behind an
    end-of-text. Raises ``UserError`` for another encoder.
    """

    def __init__(self, readout: Readout, encoder: Any, *, share: float = HIDDEN_SHARE, padded: bool = False) -> None:
        mask_embedding = getattr(encoder, "mask_embedding", None)
        if mask_embedding is None or not bool(mask_embedding.any()):
            raise UserError(
                f"mask_predict hides tokens from the {type(encoder).__name__}, which was trained without: "
                "choose parallel, or train an autoencoder with model.objective.token_masking above 0"
            )
        if not 0 < share < 1:
            raise ValueError(f"share is {share}: expected a share of the tokens between 0 and 1")
        self.readout, self.encoder, self.share, self.padded = readout, encoder, share, padded

    @torch.no_grad()
    def generate(
        self,
        z: Tensor,
        mask: Tensor,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        ending: Ending | None = None,
        known: KnownTokens | None = None,
        generator: Generators,
    ) -> TokenSample:
        """Tokens (B, L) of ``z`` (B, K, D) with ``mask`` (B, K); temperature 0 takes the likeliest at both readings.

        ``known`` ones stay, and so does where a text ends.
        """
        length, vocab_size = z.shape[1] * getattr(self.readout, "stride", 1), getattr(self.readout, "vocab_size", None)
        u = rand((len(z), 2, length), z, generator)
        draw = TokenDraw(temperature, top_p, top_k, ending, known)
        return draw_in_parts(partial(self._read_twice, draw), (z, mask, u), draw, length * (vocab_size or 0))

    def _read_twice(
        self, draw: TokenDraw, z: Tensor, mask: Tensor, u: Tensor, held: Held | None
    ) -> tuple[Tensor, Tensor]:
        logits = self.readout.logits(z, mask)
        ids, log_probs = draw_unknown(logits, u[:, 0], held, draw)
        real = token_mask(mask, ids.shape[1])
        open_to_change = real if held is None else real & ~held.known
        if draw.ending is not None:
            written = tokens_to_first_end(ids, draw.ending.end_id)
            real = real & written if self.padded else real
            open_to_change = open_to_change & written & (ids != draw.ending.end_id)
        certainty = logits.float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        hidden = least(certainty, open_to_change, self.share)
        again = self.encoder.encode(ids, real, hidden)
        second, second_log_probs = draw_unknown(self.readout.logits(again.z, again.mask), u[:, 1], held, draw)
        return torch.where(hidden, second, ids), torch.where(hidden, second_log_probs, log_probs)


def least(values: Tensor, among: Tensor, share: float) -> Tensor:
    """Mask (B, L) of the ``share``, rounded up, of the places ``among`` (B, L) with the least ``values`` (B, L)."""
    rank = values.masked_fill(~among, math.inf).argsort(dim=1, stable=True).argsort(dim=1)
    return (rank < (among.sum(1, keepdim=True) * share).ceil()) & among

"""Drafts to texts, block by block: what is known is held, the rest sampled, a part of it kept for the next block.

B texts, L tokens in a block, K latent positions, D latent dimension.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.denoisers import ConditionalFlow, Guided, Known
from fewstep.errors import UserError
from fewstep.model import SavedModel
from fewstep.prompts import UNKNOWN, Draft
from fewstep.samplers import FlowSampler
from fewstep.shapes import expand_like, latent_mask, rand, randn, token_mask
from fewstep.types import Ending, FlowLike, KnownTokens, SamplerState, TokenSample


@dataclass
class Text:
    """A text in the making: its tokens so far, and the log-probability that each was drawn with.

    The block that is written next begins at token ``start``, and is kept up to token ``end``.
    """

    draft: Draft
    ids: list[int]
    log_probs: list[float]
    has_ended: bool = False
    start: int = 0
    end: int = 0

    @property
    def given(self) -> list[bool]:
        """Which tokens the draft gave."""
        given = [token != UNKNOWN for token in self.draft.ids]
        return given + [False] * (len(self.ids) - len(given))

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to write."""
        return self.has_ended or (len(self.ids) >= self.draft.length and UNKNOWN not in self.ids)

    def next_block(self, block_size: int, commit_tokens: int | None) -> list[int]:
        """The block to write: all gaps, or ``commit_tokens`` more (None: what there is room for, then half a block)."""
        size, self.start, self.end = len(self.ids), 0, self.draft.length
        if UNKNOWN not in self.ids:
            more = commit_tokens or (block_size - size if size < block_size else block_size // 2)
            self.end = min(self.end, size + min(more, block_size - 1 if size else block_size))  # one at least is known
            self.start = max(0, self.end - block_size)
        ids = self.ids[self.start :]
        return ids + [self.draft.fill] * (block_size - len(ids))

    def keep(self, ids: list[int], log_probs: list[float], end_id: int | None) -> None:
        """Take what the written block holds up to its end, or to the end of the text, ``end_id``."""
        for place in range(self.start, self.end):
            if place < len(self.ids) and self.ids[place] != UNKNOWN:
                continue  # it was there before
            token, own = ids[place - self.start], slice(place, place + 1)
            self.ids[own], self.log_probs[own] = [token], [log_probs[place - self.start]]
            if token == end_id:
                self.has_ended = True
                return


Draw = Callable[..., TokenSample]
"""(z (B, K, D), mask (B, K), generator, known if there are known tokens) -> tokens (B, L)."""

OnState = Callable[[SamplerState, KnownTokens], object]
"""Called with every state of the sampler, known latents in it, and the tokens of these blocks (B, L) that are known."""


class Written(NamedTuple):
    """Texts, the latents ``x_1`` (B, K, D) of the last block of each, and the evaluations of the network, at most."""

    texts: list[Text]
    x_1: Tensor
    nfe: int


@dataclass
class Writer:
    """Writes texts with a model.

    Where the model knows how long its training texts were, the length of a text is drawn from theirs, among those that
    leave room after what is known (:func:`real_tokens`), and the latents behind it are padding, as in training.

    ``draw`` reads latents; a text ends with the end-of-text of ``ending`` (None: at its full length). ``commit_tokens``
    tokens are written at a time, with the text before them known (None: what the block has room for). ``guidance`` is
    the scale of classifier-free guidance on what is known.
    """

    model: SavedModel
    sampler: FlowSampler
    num_steps: int
    draw: Draw
    ending: Ending | None = None
    commit_tokens: int | None = None
    guidance: float = 1.0
    on_state: OnState | None = None

    def __post_init__(self) -> None:
        check_guidance(self.model, self.guidance)
        if self.commit_tokens is not None and self.commit_tokens < 1:
            raise UserError(f"commit_tokens is {self.commit_tokens}: expected a whole number of at least 1")
        self.flow = self.model.flow()

    def write(
        self,
        drafts: Sequence[Draft],
        generators: Sequence[torch.Generator],
        batch_size: int | None = None,
        on_block: Callable[[int, Text], object] = lambda place, text: None,
        progress: Callable[[int], object] = lambda count: None,
    ) -> Written:
        """The texts of these drafts, ``batch_size`` at a time (None: all).

        A text depends on its draft and its generator alone. ``on_block`` is called with a text's place and the text
        whenever a block of it is finished, ``progress`` with the number of texts that a batch has finished.
        """
        texts = [Text(draft, list(draft.ids), [0.0] * len(draft.ids)) for draft in drafts]
        block_size, end_id = self.model.identity.block_size, None if self.ending is None else self.ending.end_id
        x_1, most_nfe = torch.zeros(len(texts), *self.model.latent_shape()), 0
        for batch in torch.arange(len(texts)).split(batch_size or len(texts)):
            nfe = 0
            while places := [place for place in batch.tolist() if not texts[place].is_done]:
                blocks = [texts[place].next_block(block_size, self.commit_tokens) for place in places]
                sample, last = self._block(blocks, [generators[place] for place in places])
                x_1[places], nfe = last.x_t.float().cpu(), nfe + last.nfe
                for place, *drawn in zip(places, sample.ids.tolist(), sample.log_probs.tolist(), strict=True):
                    texts[place].keep(*drawn, end_id)
                    on_block(place, texts[place])
            most_nfe = max(most_nfe, nfe)
            progress(len(batch))
        return Written(texts, x_1, most_nfe)

    def _block(self, blocks: list[list[int]], generators: list[torch.Generator]) -> tuple[TokenSample, SamplerState]:
        """One block of each text: its tokens (B, L) on the CPU, and the sampler's last state."""
        ids = torch.tensor(blocks, device=next(self.flow.parameters()).device)
        num_latents = self.model.latent_shape()[0]
        real = torch.ones_like(ids, dtype=torch.bool)
        if counts := self.model.identity.length_counts:
            real = real_tokens(counts, ids, int(self.model.tokenizer.eos_token_id), num_latents, generators)
        tokens = KnownTokens(ids.clamp(min=0), (ids != UNKNOWN) & real)
        mask = latent_mask(real, num_latents)
        for last in self._states(tokens, real, mask, generators):
            if self.on_state is not None:
                self.on_state(last, tokens)
        given = {"known": tokens} if bool(tokens.mask.any()) else {}
        return self.draw(last.x_t, mask, generator=generators, **given).cpu(), last

    def _states(
        self, tokens: KnownTokens, real: Tensor, mask: Tensor, generators: Sequence[torch.Generator]
    ) -> Iterator[SamplerState]:
        """The sampler's states from noise to latents, known ones in their places.

        ``tokens`` (B, L) are held where they are known; latents outside ``mask`` (B, K), which have none of the
        ``real`` tokens (B, L), are padding and stay zero.
        """
        x_0 = randn((len(real), *self.model.latent_shape()), real, generators)
        steps = self.num_steps
        if not bool(tokens.mask.any()):
            yield from self.sampler.iterate(self.flow, x_0, num_steps=steps, mask=mask, generator=generators)
            return
        known = known_latents(self.model, tokens, real)
        noise = None if self.flow.reads_known else randn(tuple(x_0.shape), x_0, generators)
        conditional = ConditionalFlow(self.flow, known, noise)
        given: FlowLike = conditional if self.guidance == 1 else Guided(conditional, self.guidance)

        def filled(x: Tensor) -> Tensor:
            return torch.where(expand_like(known.mask, x), known.z.to(x.dtype), x)

        for state in self.sampler.iterate(given, x_0, num_steps=steps, mask=mask & ~known.mask, generator=generators):
            yield replace(state, x_t=filled(state.x_t), x1_hat=None if state.x1_hat is None else filled(state.x1_hat))


def check_guidance(model: SavedModel, scale: float) -> None:
    """Raise ``UserError`` for guidance that the model was not trained for."""
    if scale != 1 and model.identity.known_dropped == 0:
        raise UserError(
            f"guidance is {scale}: this flow never saw texts without what is known of them; train it with "
            "model.known.dropped above 0, or leave guidance out"
        )


def real_tokens(
    counts: Sequence[int], ids: Tensor, end_id: int, num_latents: int, generators: Sequence[torch.Generator]
) -> Tensor:
    """Which tokens of the blocks ``ids`` (B, L), ``UNKNOWN`` where they are to be written, belong to the text (B, L).

    A text goes up to its known end. Else its length is drawn from the law of ``counts``, those of 1, 2, ... L tokens,
    among lengths beyond what is known, and filled up to whole latents, in the last of which it may end.
    """
    place = torch.arange(1, ids.shape[1] + 1)
    known = ids.cpu()
    law = torch.tensor(counts, dtype=torch.float64)
    law = torch.where(place > ((known != UNKNOWN) * place).amax(1, keepdim=True), law, 0.0)
    law[:, -1] += law.sum(1) == 0  # no text of the data goes on here: as far as the block
    cumulative = law.cumsum(1)
    u = rand((len(ids), 1), cumulative, generators)
    length = 1 + torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True).clamp(max=ids.shape[1] - 1)
    stride = ids.shape[1] // num_latents
    ends = known == end_id
    length = torch.where(
        ends.any(1, keepdim=True), 1 + ends.long().argmax(1, keepdim=True), -(-length // stride) * stride
    )
    return (place <= length).to(ids.device)


def known_latents(model: SavedModel, tokens: KnownTokens, real: Tensor) -> Known:
    """The latents that stand for known tokens alone, made with the others hidden; ``real`` (B, L): not padding."""
    num_latents = model.latent_shape()[0]
    mask = latent_mask(real, num_latents) & ~latent_mask(real & ~tokens.mask, num_latents)
    seen = token_mask(mask, real.shape[1]) & real
    return Known(model.encoder().encode(tokens.ids, seen).z, mask)

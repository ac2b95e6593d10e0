"""Drafts to texts, block by block: what is known is held, the rest sampled, a part of it kept for the next block.

B texts, L tokens in a block, K latent positions, D latent dimension.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.denoisers import ConditionalFlow, FlowModel, Guided, Known
from fewstep.errors import UserError
from fewstep.model import SavedModel
from fewstep.prompts import UNKNOWN, Draft
from fewstep.samplers import FlowSampler
from fewstep.shapes import expand_like, randn
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
        tokens = KnownTokens(ids.clamp(min=0), ids != UNKNOWN)
        states = block_states(self.model, self.flow, self.sampler, self.num_steps, tokens, generators, self.guidance)
        for last in states:
            if self.on_state is not None:
                self.on_state(last, tokens)
        mask = torch.ones_like(last.x_t[..., 0], dtype=torch.bool)
        given = {"known": tokens} if bool(tokens.mask.any()) else {}
        return self.draw(last.x_t, mask, generator=generators, **given).cpu(), last


def check_guidance(model: SavedModel, scale: float) -> None:
    """Raise ``UserError`` for guidance that the model was not trained for."""
    if scale != 1 and model.identity.known_dropped == 0:
        raise UserError(
            f"guidance is {scale}: this flow never saw texts without what is known of them; train it with "
            "model.known.dropped above 0, or leave guidance out"
        )


def block_states(
    model: SavedModel,
    flow: FlowModel,
    sampler: FlowSampler,
    num_steps: int,
    tokens: KnownTokens | None,
    generators: Sequence[torch.Generator],
    guidance: float = 1.0,
) -> Iterator[SamplerState]:
    """The sampler's states from noise to the latents of a block for each generator, known latents in their places.

    ``tokens`` (B, L) are held where they are known; ``guidance`` is that of :class:`Writer`.
    """
    like = next(flow.parameters())
    x_0 = randn((len(generators), *model.latent_shape()), like, generators)
    mask = torch.ones(x_0.shape[:2], dtype=torch.bool, device=like.device)
    if tokens is None or not bool(tokens.mask.any()):
        yield from sampler.iterate(flow, x_0, num_steps=num_steps, mask=mask, generator=generators)
        return
    known = known_latents(model, tokens)
    conditional = ConditionalFlow(flow, known, None if flow.reads_known else randn(tuple(x_0.shape), like, generators))
    given: FlowLike = conditional if guidance == 1 else Guided(conditional, guidance)

    def filled(x: Tensor) -> Tensor:
        return torch.where(expand_like(known.mask, x), known.z.to(x.dtype), x)

    for state in sampler.iterate(given, x_0, num_steps=num_steps, mask=mask & ~known.mask, generator=generators):
        yield replace(state, x_t=filled(state.x_t), x1_hat=None if state.x1_hat is None else filled(state.x1_hat))


def known_latents(model: SavedModel, tokens: KnownTokens) -> Known:
    """The latents that stand for known tokens alone, made with the other tokens hidden."""
    mask = tokens.mask.unflatten(1, (model.latent_shape()[0], -1)).all(-1)
    seen = mask.repeat_interleave(tokens.mask.shape[1] // mask.shape[1], dim=1)
    return Known(model.encoder().encode(tokens.ids, seen).z, mask)

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


class Window(NamedTuple):
    """The block of a text that is written next: its ``ids`` (L), from token ``start`` on; kept up to token ``end``."""

    ids: list[int]
    start: int
    end: int


@dataclass
class Text:
    """A text in the making: its tokens so far, and the log-probability that each was drawn with."""

    draft: Draft
    ids: list[int]
    log_probs: list[float]
    has_ended: bool = False

    @classmethod
    def of(cls, draft: Draft) -> "Text":
        """The text that a draft begins."""
        return cls(draft, list(draft.ids), [0.0] * len(draft.ids))

    @property
    def given(self) -> list[bool]:
        """Which tokens the draft gave."""
        given = [token != UNKNOWN for token in self.draft.ids]
        return given + [False] * (len(self.ids) - len(given))

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to write."""
        return self.has_ended or (len(self.ids) >= self.draft.length and UNKNOWN not in self.ids)

    def window(self, block_size: int, commit_tokens: int | None) -> Window:
        """The next block: all gaps, or ``commit_tokens`` more (None: what there is room for, then half a block)."""
        size, start, end = len(self.ids), 0, self.draft.length
        if UNKNOWN not in self.ids:
            more = commit_tokens or (block_size - size if size < block_size else block_size // 2)
            end = min(end, size + min(more, block_size - 1 if size else block_size))  # one token at least is known
            start = max(0, end - block_size)
        ids = self.ids[start:]
        return Window(ids + [self.draft.fill] * (block_size - len(ids)), start, end)

    def keep(self, window: Window, ids: list[int], log_probs: list[float], end_id: int | None) -> None:
        """Take what a block of tokens holds up to the window's end, or to the end of the text, ``end_id``."""
        for place in range(window.end - window.start):
            if window.ids[place] != UNKNOWN:
                continue  # it was there before
            own = slice(window.start + place, window.start + place + 1)
            self.ids[own], self.log_probs[own] = [ids[place]], [log_probs[place]]
            if ids[place] == end_id:
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


class Writer:
    """Writes texts with a model.

    ``draw`` reads latents; a text ends with the end-of-text of ``ending`` (None: at its full length). ``commit_tokens``
    tokens are written at a time, with the text before them known (None: what the block has room for). ``guidance`` is
    the scale of classifier-free guidance on what is known. Raises ``UserError`` for a scale that the model was not
    trained for.
    """

    def __init__(
        self,
        model: SavedModel,
        sampler: FlowSampler,
        num_steps: int,
        draw: Draw,
        ending: Ending | None = None,
        commit_tokens: int | None = None,
        guidance: float = 1.0,
        on_state: OnState | None = None,
    ) -> None:
        if guidance != 1 and model.identity.known_dropped == 0:
            raise UserError(
                f"guidance is {guidance}: this flow never saw texts without what is known of them; train it with "
                "model.known.dropped above 0, or leave guidance out"
            )
        if commit_tokens is not None and commit_tokens < 1:
            raise UserError(f"commit_tokens is {commit_tokens}: expected a whole number of at least 1")
        self.model = model
        self.flow = model.flow()
        self.sampler = sampler
        self.num_steps = num_steps
        self.draw = draw
        self.end_id = None if ending is None else ending.end_id
        self.commit_tokens = commit_tokens
        self.guidance = guidance
        self.on_state = on_state
        self.block_size = model.identity.block_size
        self.shape = model.latent_shape()

    def write(
        self,
        drafts: Sequence[Draft],
        generators: Sequence[torch.Generator],
        on_block: Callable[[int, Text], object] | None = None,
    ) -> Written:
        """The texts of these drafts.

        A text depends on its draft and its generator alone. ``on_block`` is called with a text's place and the text,
        whenever a block of it is finished.
        """
        texts, nfe = [Text.of(draft) for draft in drafts], 0
        like = next(self.flow.parameters())
        x_1 = torch.zeros((len(texts), *self.shape), device=like.device)
        while places := [place for place, text in enumerate(texts) if not text.is_done]:
            windows = [texts[place].window(self.block_size, self.commit_tokens) for place in places]
            sample, last = self.block(windows, [generators[place] for place in places])
            x_1[places], nfe = last.x_t.float(), nfe + last.nfe
            for place, window, ids, log_probs in zip(
                places, windows, sample.ids.tolist(), sample.log_probs.tolist(), strict=True
            ):
                texts[place].keep(window, ids, log_probs, self.end_id)
                if on_block is not None:
                    on_block(place, texts[place])
        return Written(texts, x_1.cpu(), nfe)

    def block(
        self, windows: Sequence[Window], generators: Sequence[torch.Generator]
    ) -> tuple[TokenSample, SamplerState]:
        """One block of each text: its tokens (B, L) on the CPU, and the sampler's last state."""
        ids = torch.tensor([window.ids for window in windows], device=next(self.flow.parameters()).device)
        tokens = KnownTokens(ids.clamp(min=0), ids != UNKNOWN)
        states = block_states(self.model, self.flow, self.sampler, self.num_steps, tokens, generators, self.guidance)
        for last in states:
            if self.on_state is not None:
                self.on_state(last, tokens)
        mask = torch.ones(last.x_t.shape[:2], dtype=torch.bool, device=last.x_t.device)
        given = {"known": tokens} if bool(tokens.mask.any()) else {}
        return self.draw(last.x_t, mask, generator=generators, **given).cpu(), last


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
    for state in sampler.iterate(given, x_0, num_steps=num_steps, mask=mask & ~known.mask, generator=generators):
        yield with_known(state, known)


def known_latents(model: SavedModel, tokens: KnownTokens) -> Known:
    """The latents that stand for known tokens alone, made with the other tokens hidden."""
    mask = tokens.mask.unflatten(1, (model.latent_shape()[0], -1)).all(-1)
    seen = mask.repeat_interleave(tokens.mask.shape[1] // mask.shape[1], dim=1)
    return Known(model.encoder().encode(tokens.ids, seen).z, mask)


def with_known(state: SamplerState, known: Known) -> SamplerState:
    """A state and its estimate with the known latents in their places."""

    def filled(x: Tensor) -> Tensor:
        return torch.where(expand_like(known.mask, x), known.z.to(x.dtype), x)

    return replace(state, x_t=filled(state.x_t), x1_hat=None if state.x1_hat is None else filled(state.x1_hat))

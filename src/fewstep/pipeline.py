"""The main door: noise to latents to text. B samples, L tokens, K latent positions, D latent dimension."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from fewstep.data.tokenizer import decode_blocks
from fewstep.data.tokenizer import decode_documents as decode_documents
from fewstep.errors import UserError
from fewstep.model import Identity, SavedModel
from fewstep.paths import PATHS
from fewstep.prompts import Draft, DraftMaker, GapTokens, check_gap_tokens
from fewstep.readouts import READOUTS, check_draw
from fewstep.registry import resolve
from fewstep.samplers import FlowSampler, RuleLike, Snap, SnapRule, Solver, default_sampling
from fewstep.samplers.sampler import check_compatible, check_numbers
from fewstep.schedules import TimeGrid
from fewstep.shapes import example_generators, own_defaults, randn
from fewstep.types import Ending, SamplerState
from fewstep.writing import Draw, OnState, Text, Writer, Written


@dataclass(frozen=True)
class GeneratedText:
    """What was generated, and how.

    ``texts`` B strings; ``ids`` (B, L) int64; ``log_probs`` (B, L) nats, of each token under the distribution it was
    drawn from; ``x_1`` (B, K, D) the latents that were read, of a text of several blocks those of the last; ``mask``
    (B, L) bool, false at the padding behind a text; ``given`` (B, L) bool, true at tokens of a prompt or around a gap,
    whose log-probability is 0. All on the CPU. ``nfe``: evaluations of the denoiser per sample, and of readout and
    encoder where estimates snap or a rule asks for decidedness; reading x_1 (one pass, or L for the commitment head) is
    not among them. ``seconds``: wall time from noise to ids, the readout included, without loading and turning ids
    into text.
    """

    texts: tuple[str, ...]
    ids: Tensor
    log_probs: Tensor
    x_1: Tensor
    nfe: int
    seconds: float
    num_steps: int
    seed: int
    readout: str
    mask: Tensor
    given: Tensor

    def __len__(self) -> int:
        return len(self.texts)

    def new_parts(self) -> list[list[list[int]]]:
        """For each text the tokens that were not given, in pieces: the continuation, or what stands in each gap."""
        parts = []
        for ids, written, given in zip(self.ids.tolist(), self.mask.tolist(), self.given.tolist(), strict=True):
            runs = groupby(zip(ids, written, given, strict=True), key=lambda token: token[1] and not token[2])
            parts.append([[token[0] for token in run] for is_new, run in runs if is_new])
        return parts


class TextGenerator:
    """Samples text with a saved or freshly trained model.

    The parts of ``model`` are used where they are and as they are: put them on their device, in evaluation mode, with
    ``model.to(device)`` (:meth:`from_pretrained` does).
    """

    def __init__(self, model: SavedModel) -> None:
        self.model = model

    @classmethod
    def from_pretrained(
        cls,
        path: str | FilePath,
        device: torch.device | str = "cpu",
        *,
        allow: Sequence[str] = (),
        revision: str | None = None,
    ) -> "TextGenerator":
        """Load a model folder, a ``.ckpt`` file or a hub name; see :meth:`fewstep.model.SavedModel.from_pretrained`."""
        return cls(SavedModel.from_pretrained(path, allow=allow, revision=revision, kind="text").to(device))

    @own_defaults()
    @torch.no_grad()
    def decidedness(self, z: Tensor, mask: Tensor) -> Tensor:
        """How decided each latent position of ``z`` (B, K, D) is, (B, K) in [0, 1]: the probability that the parallel
        readout gives to its likeliest token, the smallest among the tokens of the position. ``mask`` (B, K) bool.

        For re-injection by position (:func:`fewstep.samplers.rules.by_position`). Raises ``UserError`` without a
        readout.
        """
        likeliest = self.model.reader().logits(z, mask).float().softmax(-1).amax(-1)
        return likeliest.unflatten(1, (z.shape[1], -1)).amin(-1)

    def snap(self, rule: str | SnapRule = "every") -> Snap:
        """Snaps estimates to the parallel readout's likeliest tokens, as ``rule`` says: see
        :func:`fewstep.samplers.parse_snap`. Raises ``UserError`` without a readout or an autoencoder."""
        encode = self.model.encoder().encode
        return Snap(self.model.reader().logits, lambda ids, mask: encode(ids, mask).z, rule)

    @own_defaults()
    @torch.no_grad()
    def generate(
        self,
        num_samples: int,
        num_steps: int = 4,
        seed: int = 0,
        *,
        readout: str = "parallel",
        reinjection: RuleLike | None = None,
        solver: str | Solver = "euler",
        grid: TimeGrid | None = None,
        reuse_noise: bool = False,
        noise_scale: float = 1.0,
        noise_temperature: float = 1.0,
        snap: str | SnapRule | None = None,
        head_context: bool = True,
        temperature: float | None = None,
        top_p: float = 1.0,
        top_k: int | None = None,
        stop: bool = False,
        batch_size: int = 64,
        first_sample: int = 0,
        prompt: str | Sequence[str] | None = None,
        infill: str | Sequence[str] | None = None,
        gap_tokens: GapTokens = (1, 8),
        max_new_tokens: int | None = None,
        commit_tokens: int | None = None,
        guidance: float = 1.0,
        on_state: OnState | None = None,
        on_block: Callable[[int, str], object] | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> GeneratedText:
        """``num_samples`` texts in ``num_steps`` steps of ``solver`` ("euler", "heun" or a function).

        Sample i depends on ``seed`` and i alone, not on ``num_samples`` or ``batch_size`` (but for the last bits of
        matrix products, which may tip a token over at a tie); they begin at ``first_sample``.

        From noise to latents: see :meth:`sampler`. From latents to tokens: see :meth:`draw`. What is known of a text,
        ``prompt`` or ``infill``, ``gap_tokens``, ``max_new_tokens``: see :meth:`drafts`; a text that is longer than a
        block is written block by block. ``commit_tokens`` are written at a time, with the text before them known (None:
        what the block has room for). ``guidance`` above 1 leans more on what is known (arXiv:2207.12598). A flow that
        was trained without known positions is given them by replacement.

        ``on_state`` is called with every state of the sampler and the known tokens of its block, ``on_block`` with a
        sample's number and its text so far, ``progress`` with the number of samples just finished. Raises ``UserError``
        for numbers out of range, a part that is missing, and a sampler that the model's identity rules out.
        """
        check_numbers(num_samples, num_steps, batch_size)
        draw, ending = self.draw(
            readout, head_context=head_context, temperature=temperature, top_p=top_p, top_k=top_k, stop=stop
        )
        sampler = self.sampler(num_steps, reinjection, solver, grid, reuse_noise, noise_scale, noise_temperature, snap)
        writer = Writer(self.model, sampler, num_steps, draw, ending, commit_tokens, guidance, on_state)
        generators = example_generators(seed, first_sample, num_samples)
        drafts = self.drafts(prompt, infill, gap_tokens, max_new_tokens, generators)
        began = time.perf_counter()
        written = write_all(writer, drafts, generators, batch_size, on_block, first_sample, progress)
        seconds = time.perf_counter() - began
        return as_generated(written, drafts, self.model.tokenizer, seconds, num_steps, seed, readout)

    def sampler(
        self,
        num_steps: int,
        reinjection: RuleLike | None = None,
        solver: str | Solver = "euler",
        grid: TimeGrid | None = None,
        reuse_noise: bool = False,
        noise_scale: float = 1.0,
        noise_temperature: float = 1.0,
        snap: str | SnapRule | None = None,
    ) -> FlowSampler:
        """The sampler of ``num_steps`` steps that :meth:`generate` uses.

        ``reinjection``: whatever :func:`fewstep.samplers.parse_rule` reads (None: what fits the model,
        :func:`fewstep.samplers.default_sampling`). ``grid``: where the steps end (None: the identity's own). ``snap``
        "every", "confidence:0.9" or another rule of :func:`fewstep.samplers.parse_snap` replaces estimates by those of
        their likeliest tokens. The rest as in :class:`fewstep.samplers.FlowSampler`. Raises ``UserError`` for settings
        that the model was not trained for.
        """
        identity = self.model.identity
        own = default_sampling(identity, num_steps)
        with as_user_error():
            sampler = FlowSampler(
                self.model.flow().path,
                grid=identity.default_grid() if grid is None else grid,
                reinjection=own.reinjection if reinjection is None else reinjection,
                solver=solver,
                reuse_noise=reuse_noise,
                noise_scale=noise_scale,
                noise_temperature=noise_temperature,
                correct=None if snap is None else self.snap(snap),
                decidedness=self.decidedness,
            )
            check_compatible(identity, sampler, num_steps)
        return sampler

    def draw(
        self,
        readout: str = "parallel",
        *,
        head_context: bool = True,
        temperature: float | None = None,
        top_p: float = 1.0,
        top_k: int | None = None,
        stop: bool = False,
    ) -> tuple[Draw, Ending | None]:
        """What :meth:`generate` reads latents with, and what ends a text.

        ``readout`` is one of :data:`fewstep.readouts.READOUTS`; ``temperature``, ``top_p`` and ``top_k`` are for its
        draw: by default the parallel readout takes the likeliest token (0) and the commitment head draws (1).
        ``head_context`` False hides its earlier tokens from the head, for the ablation. ``stop``: a text ends at its
        first end-of-text, always where blocks hold one document. Raises ``UserError`` for a part that is missing.
        """
        choice = resolve(READOUTS, readout, "readout")
        if not head_context:
            if readout != "head":
                raise UserError("head_context=False is for readout 'head': no other sees earlier tokens")
            choice = READOUTS["head_off"]
        self.model.require("denoiser", choice.part)
        temperature = choice.temperature if temperature is None else temperature
        with as_user_error():
            check_draw(temperature, top_p, top_k)
        tokenizer, stops = self.model.tokenizer, stop or self.model.identity.blocks == "documents"
        ending = Ending(int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)) if stops else None
        generate = self.model.open_readout(choice).generate
        return partial(generate, temperature=temperature, top_p=top_p, top_k=top_k, ending=ending), ending

    def drafts(
        self,
        prompt: str | Sequence[str] | None,
        infill: str | Sequence[str] | None,
        gap_tokens: GapTokens,
        max_new_tokens: int | None,
        generators: Sequence[torch.Generator],
    ) -> list[Draft]:
        """What is known of the sample of each generator.

        A text begins with ``prompt``, or is ``infill`` with its gaps, each marked "[..]", filled in by ``gap_tokens``
        tokens (a number, or the least and the most, between which it is drawn); both are one text for all samples, or
        one for each. ``max_new_tokens`` follow a prompt (None: as many as its block has room for). Raises ``UserError``
        for texts that cannot be written.
        """
        identity = self.model.identity
        if max_new_tokens is not None and max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}: expected a whole number of at least 1")
        if prompt is None and infill is None:
            return [Draft(length=max_new_tokens or identity.block_size)] * len(generators)
        if prompt is not None and infill is not None:
            raise UserError("both prompt and infill are given: choose one")
        maker = DraftMaker(self.model.tokenizer, identity.block_size, is_document=identity.blocks == "documents")
        if prompt is not None:
            texts = one_each(prompt, len(generators), "prompt")
            continued = {text: maker.continued(text, max_new_tokens) for text in dict.fromkeys(texts)}
            return [continued[text] for text in texts]
        assert infill is not None
        if max_new_tokens is not None:
            raise UserError("max_new_tokens is for a prompt: the gaps of infill have gap_tokens")
        check_gap_tokens(gap_tokens)
        texts = one_each(infill, len(generators), "infill")
        return [maker.filled_in(text, gap_tokens, noise) for text, noise in zip(texts, generators, strict=True)]


def one_each(texts: str | Sequence[str], count: int, name: str) -> list[str]:
    """A text for each of ``count`` samples. Raises ``UserError``, with the option's ``name``, for another number."""
    listed = [texts] * count if isinstance(texts, str) else list(texts)
    if len(listed) != count:
        raise UserError(f"{name} has {len(listed)} texts for {count} samples: give one for all, or one for each")
    return listed


def as_generated(
    written: Written, drafts: Sequence[Draft], tokenizer: Any, seconds: float, num_steps: int, seed: int, readout: str
) -> GeneratedText:
    """Texts side by side, padded to the longest that they could have become."""
    length = max(draft.length for draft in drafts)

    def column(values: Callable[[Text], list[Any]], padding: Any) -> Tensor:
        rows = (values(text) for text in written.texts)
        return torch.tensor([row + [padding] * (length - len(row)) for row in rows])

    ids = column(lambda text: text.ids, int(tokenizer.pad_token_id))
    return GeneratedText(
        decode_blocks(tokenizer, ids),
        ids,
        column(lambda text: text.log_probs, 0.0),
        written.x_1,
        written.nfe,
        seconds,
        num_steps,
        seed,
        readout,
        mask=column(lambda text: [True] * len(text.ids), False),
        given=column(lambda text: text.given, False),
    )


def write_all(
    writer: Writer,
    drafts: Sequence[Draft],
    generators: Sequence[torch.Generator],
    batch_size: int,
    on_block: Callable[[int, str], object] | None,
    first_sample: int,
    progress: Callable[[int], object] | None,
) -> Written:
    """Write drafts batch by batch; the callbacks are those of :meth:`TextGenerator.generate`."""
    parts = []
    for first in range(0, len(drafts), batch_size):

        def finished(place: int, text: Text, first: int = first) -> None:
            if on_block is not None:
                on_block(
                    first_sample + first + place, decode_blocks(writer.model.tokenizer, torch.tensor([text.ids]))[0]
                )

        rows = slice(first, first + batch_size)
        parts.append(writer.write(drafts[rows], generators[rows], finished))
        if progress is not None:
            progress(len(parts[-1].texts))
    texts = [text for part in parts for text in part.texts]
    return Written(texts, torch.cat([part.x_1 for part in parts]), max(part.nfe for part in parts))


def sampled_latents(
    model: SavedModel, sampler: FlowSampler, num_steps: int, seed: int, first: int, count: int, batch_size: int
) -> Iterator[tuple[list[torch.Generator], Tensor, SamplerState]]:
    """By batch: the examples' generators, the mask (B, K) of ones, and the last state, from their noise."""
    flow, shape = model.flow(), model.latent_shape()
    like = next(flow.parameters())
    for start in range(first, first + count, batch_size):
        generators = example_generators(seed, start, min(batch_size, first + count - start))
        x_0 = randn((len(generators), *shape), like, generators)
        mask = torch.ones(x_0.shape[:2], dtype=torch.bool, device=like.device)
        for state in sampler.iterate(flow, x_0, num_steps=num_steps, mask=mask, generator=generators):
            last = state
        yield generators, mask, last


@contextmanager
def as_user_error() -> Iterator[None]:
    """Raise a ``ValueError`` about the sampler's arguments as a ``UserError``."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from None


def check_sampler(identity: Identity, num_steps: int, reinjection: RuleLike = 0.0) -> None:
    """Raise ``UserError`` where the model was not trained for ``num_steps`` Euler steps with ``reinjection``."""
    with as_user_error():
        sampler = FlowSampler(PATHS[identity.path](), grid=identity.default_grid(), reinjection=reinjection)
        check_compatible(identity, sampler, num_steps)

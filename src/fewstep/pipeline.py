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
from fewstep.errors import UserError
from fewstep.model import SavedModel
from fewstep.prompts import Draft, DraftMaker, GapTokens
from fewstep.readouts import READOUTS, check_draw, cut_at_end
from fewstep.registry import resolve
from fewstep.samplers import FlowSampler, RuleLike, Snap, SnapRule, Solver, default_sampling
from fewstep.samplers.sampler import check_compatible, check_numbers
from fewstep.shapes import example_generators, own_defaults, token_mask
from fewstep.types import Ending, TokenSample
from fewstep.writing import Draw, OnState, Text, Writer


@dataclass(frozen=True)
class GeneratedText:
    """What was generated.

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
    mask: Tensor
    given: Tensor
    nfe: int
    seconds: float

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
        reuse_noise: bool = False,
        noise_scale: float = 1.0,
        noise_temperature: float = 1.0,
        snap: str | SnapRule | None = None,
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
        progress: Callable[[int], object] = lambda count: None,
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
        draw, ending = self.draw(readout, temperature, top_p, top_k, stop=stop)
        sampler = self.sampler(num_steps, reinjection, solver, reuse_noise, noise_scale, noise_temperature, snap)
        writer = Writer(self.model, sampler, num_steps, draw, ending, commit_tokens, guidance, on_state)
        generators = example_generators(seed, first_sample, num_samples)
        drafts = self.drafts(prompt, infill, gap_tokens, max_new_tokens, generators)
        tokenizer = self.model.tokenizer

        def finished(place: int, text: Text) -> None:
            if on_block is not None:
                on_block(first_sample + place, decode_blocks(tokenizer, torch.tensor([text.ids]))[0])

        began = time.perf_counter()
        texts, x_1, nfe = writer.write(drafts, generators, batch_size, finished, progress)
        seconds = time.perf_counter() - began
        length = max(draft.length for draft in drafts)

        def columns(rows: list[list[Any]], padding: float) -> Tensor:
            return torch.tensor([row + [padding] * (length - len(row)) for row in rows])

        ids = columns([text.ids for text in texts], int(tokenizer.pad_token_id))
        log_probs = columns([text.log_probs for text in texts], 0.0)
        mask = columns([[True] * len(text.ids) for text in texts], False)
        given = columns([text.given for text in texts], False)
        return GeneratedText(decode_blocks(tokenizer, ids), ids, log_probs, x_1, mask, given, nfe, seconds)

    def sampler(
        self,
        num_steps: int,
        reinjection: RuleLike | None = None,
        solver: str | Solver = "euler",
        reuse_noise: bool = False,
        noise_scale: float = 1.0,
        noise_temperature: float = 1.0,
        snap: str | SnapRule | None = None,
    ) -> FlowSampler:
        """The sampler of ``num_steps`` steps that :meth:`generate` uses.

        ``reinjection``: whatever :func:`fewstep.samplers.parse_rule` reads (None: what fits the model,
        :func:`fewstep.samplers.default_sampling`). ``snap`` "every", "confidence:0.9" or another rule of
        :func:`fewstep.samplers.parse_snap` replaces estimates by those of their likeliest tokens. The rest as in
        :class:`fewstep.samplers.FlowSampler`. Raises ``UserError`` for settings that the model was not trained for.
        """
        identity, correct = self.model.identity, None
        own = default_sampling(identity, num_steps)
        with as_user_error():
            if snap is not None:
                encode = self.model.encoder().encode
                correct = Snap(self.model.reader().logits, lambda ids, mask: encode(ids, mask).z, snap)
            sampler = FlowSampler(
                self.model.flow().path,
                grid=identity.default_grid(),
                reinjection=own.reinjection if reinjection is None else reinjection,
                solver=solver,
                reuse_noise=reuse_noise,
                noise_scale=noise_scale,
                noise_temperature=noise_temperature,
                correct=correct,
                decidedness=self.decidedness,
            )
            check_compatible(identity, sampler, num_steps)
        return sampler

    def draw(
        self,
        readout: str = "parallel",
        temperature: float | None = None,
        top_p: float = 1.0,
        top_k: int | None = None,
        *,
        stop: bool = False,
    ) -> tuple[Draw, Ending | None]:
        """What :meth:`generate` reads latents with, and what ends a text.

        ``readout`` is one of :data:`fewstep.readouts.READOUTS`; ``temperature``, ``top_p`` and ``top_k`` are for its
        draw: by default the parallel readout takes the likeliest token (0) and the commitment head draws (1). ``stop``:
        a text ends at its first end-of-text, always where blocks hold one document. Raises ``UserError`` for a part
        that is missing.
        """
        choice = resolve(READOUTS, readout, "readout")
        self.model.require("denoiser", choice.part)
        temperature = choice.temperature if temperature is None else temperature
        with as_user_error():
            check_draw(temperature, top_p, top_k)
        tokenizer, stops = self.model.tokenizer, stop or self.model.identity.blocks == "documents"
        ending = Ending(int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)) if stops else None
        generate = partial(
            self.model.open_readout(choice).generate, temperature=temperature, top_p=top_p, top_k=top_k, ending=ending
        )

        def draw(z: Tensor, mask: Tensor, **given: Any) -> TokenSample:
            sample = generate(z, mask, **given)
            if ending is None or not self.model.identity.length_counts:
                return sample
            padding = ~token_mask(mask, sample.ids.shape[1])
            ids, log_probs = sample.ids.masked_fill(padding, ending.end_id), sample.log_probs.masked_fill(padding, 0.0)
            return cut_at_end(ids, log_probs, ending)

        return draw, ending

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
        identity, count = self.model.identity, len(generators)
        if prompt is not None and infill is not None:
            raise UserError("both prompt and infill are given: choose one")
        if max_new_tokens is not None and (infill is not None or max_new_tokens < 1):
            raise UserError(
                f"max_new_tokens is {max_new_tokens}: expected a whole number of at least 1, for a prompt; the gaps of "
                "infill have gap_tokens"
            )
        given = infill if prompt is None else prompt
        if given is None:
            return [Draft(length=max_new_tokens or identity.block_size)] * count
        texts = [given] * count if isinstance(given, str) else list(given)
        if len(texts) != count:
            raise UserError(f"{len(texts)} texts are given for {count} samples: give one for all, or one for each")
        maker = DraftMaker(self.model.tokenizer, identity.block_size, is_document=identity.blocks == "documents")
        if infill is None:
            return [maker.continued(text, max_new_tokens) for text in texts]
        return [maker.filled_in(text, gap_tokens, noise) for text, noise in zip(texts, generators, strict=True)]


@contextmanager
def as_user_error() -> Iterator[None]:
    """Raise a ``ValueError`` about the sampler's arguments as a ``UserError``."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from None

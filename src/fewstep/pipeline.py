"""The main door: noise to latents to text. B samples, L tokens, K latent positions, D latent dimension."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from fewstep.bundle import Identity, ModelBundle
from fewstep.data.documents import decode_blocks
from fewstep.data.documents import decode_documents as decode_documents
from fewstep.denoisers import FlowModel
from fewstep.errors import UserError
from fewstep.paths import PATHS
from fewstep.readouts import Ending, check_draw
from fewstep.samplers import FlowSampler, RuleLike, Snap, SnapRule, Solver, check_compatible, check_numbers
from fewstep.schedules import TimeGrid
from fewstep.shapes import Generators, example_generators, randn
from fewstep.types import TokenSample

Choice = TypeVar("Choice")


class Generating(Protocol):
    """A readout whose noise may come from one generator an example."""

    def generate(
        self,
        z: Tensor,
        mask: Tensor,
        *,
        temperature: float,
        top_p: float,
        top_k: int | None,
        ending: Ending | None,
        generator: Generators,
    ) -> TokenSample:
        """Tokens (B, L) for latents (B, K, D)."""
        ...


@dataclass(frozen=True)
class ReadoutChoice:
    """One way to read latents: the part that does it, how to get it, and its usual temperature."""

    part: str
    get: Callable[[ModelBundle], Generating]
    temperature: float


READOUTS: dict[str, ReadoutChoice] = {
    # Each position on its own: drawing them independently would only add noise, so the likeliest token is taken.
    "parallel": ReadoutChoice("readout", lambda bundle: bundle.reader(), temperature=0.0),
    "head": ReadoutChoice("head", lambda bundle: bundle.commitment_head(), temperature=1.0),
}


@dataclass(frozen=True)
class GeneratedText:
    """What was generated, and how.

    ``texts`` B strings; ``ids`` (B, L) int64; ``log_probs`` (B, L) nats, of each token under the distribution it was
    drawn from; ``x_1`` (B, K, D) the latents that were read; ``mask`` (B, L) bool, false at the padding behind a text
    that was stopped at its end. All on the CPU. ``nfe``: evaluations of the denoiser per sample, and of readout and
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

    def __len__(self) -> int:
        return len(self.texts)


class TextGenerator:
    """Samples text with a saved or freshly trained model.

    The parts of ``bundle`` are used where they are and as they are: put them on their device, in evaluation mode,
    with ``bundle.to(device)`` (:meth:`from_pretrained` does).
    """

    def __init__(self, bundle: ModelBundle) -> None:
        self.bundle = bundle

    @classmethod
    def from_pretrained(cls, path: str | FilePath, device: torch.device | str = "cpu") -> "TextGenerator":
        """Load a model folder or a ``.ckpt`` file. Raises ``UserError`` with one line for whatever is wrong with it."""
        return cls(ModelBundle.from_pretrained(path).to(device))

    def save_pretrained(self, folder: str | FilePath, *, overwrite: bool = False) -> None:
        """Write the model folder, whole or not at all; see :meth:`fewstep.bundle.ModelBundle.save_pretrained`."""
        self.bundle.save_pretrained(folder, overwrite=overwrite)

    def default_grid(self) -> TimeGrid:
        """Where the identity says that training spent its time: logit-normal quantiles, or equal steps."""
        return self.bundle.identity.default_grid()

    @torch.no_grad()
    def decidedness(self, z: Tensor, mask: Tensor) -> Tensor:
        """How decided each latent position of ``z`` (B, K, D) is, (B, K) in [0, 1]: the probability that the parallel
        readout gives to its likeliest token, the smallest among the tokens of the position. ``mask`` (B, K) bool.

        For re-injection by position (:func:`fewstep.samplers.rules.by_position`). Raises ``UserError`` without a
        readout.
        """
        reader = self.bundle.reader()
        likeliest = reader(z, mask).float().softmax(-1).amax(-1)
        return likeliest.unflatten(1, (z.shape[1], -1)).amin(-1)

    def snap(self, rule: str | SnapRule = "every") -> Snap:
        """Snaps estimates to the parallel readout's likeliest tokens, as ``rule`` says: see
        :func:`fewstep.samplers.parse_snap`. Raises ``UserError`` without a readout or an autoencoder."""
        self.bundle.require("autoencoder")
        encoder, reader = self.bundle.autoencoder, self.bundle.reader()
        assert encoder is not None
        encode = encoder.encode
        return Snap(reader, lambda ids, mask: encode(ids, mask).z, rule)

    @torch.no_grad()
    def generate(
        self,
        num_samples: int,
        num_steps: int = 4,
        seed: int = 0,
        *,
        readout: str = "parallel",
        reinjection: RuleLike = 0.0,
        solver: str | Solver = "euler",
        grid: TimeGrid | None = None,
        reuse_noise: bool = False,
        noise_temperature: float = 1.0,
        initial_temperature: float = 1.0,
        snap: str | SnapRule | None = None,
        head_context: bool = True,
        temperature: float | None = None,
        top_p: float = 1.0,
        top_k: int | None = None,
        stop: bool = False,
        batch_size: int = 64,
        first_sample: int = 0,
        progress: Callable[[int], object] | None = None,
    ) -> GeneratedText:
        """``num_samples`` texts in ``num_steps`` steps of ``solver`` ("euler", "heun" or a function).

        Sample i depends on ``seed`` and i alone, not on ``num_samples`` or ``batch_size`` (but for the last bits of
        matrix products, which may tip a token over at a tie); they begin at ``first_sample``. ``readout`` is "parallel"
        or "head"; ``temperature``, ``top_p`` and ``top_k`` are for its draw: by default the parallel readout takes
        the likeliest token (0) and the commitment head draws (1). ``stop``: a text ends at its first end-of-text.
        ``head_context`` False cuts the head off from its earlier tokens, for the ablation. ``snap`` "every",
        "confidence:0.9" or another rule of :func:`fewstep.samplers.parse_snap` replaces estimates on the way by
        those of their likeliest tokens. ``reinjection``: whatever :func:`fewstep.samplers.parse_rule` reads; for its
        controls, ``reuse_noise`` and two temperatures, see :class:`fewstep.samplers.FlowSampler`. ``grid``: where
        the steps end, see :meth:`default_grid`. ``progress`` is called with the number just finished.

        Raises ``UserError`` for numbers out of range, a part that is missing, and a sampler that the model's identity
        rules out.
        """
        chosen = _choose(READOUTS, readout, "readout")
        check_numbers(num_samples, num_steps, batch_size)
        temperature = chosen.temperature if temperature is None else temperature
        self.bundle.require("denoiser", chosen.part)
        flow, reader = self.bundle.flow(), self._reader(chosen, head_context)
        ending = self._ending() if stop else None
        with _told_in_a_line():
            check_draw(temperature, top_p, top_k)
            sampler = FlowSampler(
                flow.path,
                grid=self.default_grid() if grid is None else grid,
                reinjection=reinjection,
                solver=solver,
                reuse_noise=reuse_noise,
                noise_temperature=noise_temperature,
                initial_temperature=initial_temperature,
                correct=None if snap is None else self.snap(snap),
                decidedness=self.decidedness,
            )
            check_compatible(self.bundle.identity, sampler, num_steps)
            draw = partial(reader.generate, temperature=temperature, top_p=top_p, top_k=top_k, ending=ending)
        indices = range(first_sample, first_sample + num_samples)
        return self._written(flow, sampler, draw, indices, num_steps, seed, readout, batch_size, progress)

    def _reader(self, chosen: ReadoutChoice, head_context: bool) -> Generating:
        if head_context:
            return chosen.get(self.bundle)
        if chosen.part != "head":
            raise UserError("head_context=False is for readout 'head': the parallel readout never sees earlier tokens")
        return self.bundle.commitment_head().with_commitment(False)

    def _ending(self) -> Ending:
        tokenizer = self.bundle.tokenizer
        return Ending(int(tokenizer.eos_token_id), int(tokenizer.pad_token_id))

    def _written(
        self,
        flow: FlowModel,
        sampler: FlowSampler,
        draw: Callable[..., TokenSample],
        indices: range,
        num_steps: int,
        seed: int,
        readout: str,
        batch_size: int,
        progress: Callable[[int], object] | None,
    ) -> GeneratedText:
        """The batches one after the other, and as one with their texts."""
        samples, latents, nfe, start = [], [], 0, time.perf_counter()
        for first in indices[::batch_size]:
            generators = example_generators(seed, first, min(batch_size, indices.stop - first))
            x_1, mask, nfe = self._latents(flow, sampler, num_steps, generators)
            samples.append(draw(x_1, mask, generator=generators).cpu())
            latents.append(x_1.cpu())
            if progress is not None:
                progress(len(x_1))
        seconds = time.perf_counter() - start
        ids, log_probs, mask = (
            torch.cat(parts) for parts in zip(*((one.ids, one.log_probs, one.written) for one in samples), strict=True)
        )
        texts = decode_blocks(self.bundle.tokenizer, ids)
        return GeneratedText(texts, ids, log_probs, torch.cat(latents), nfe, seconds, num_steps, seed, readout, mask)

    def _latents(
        self, flow: FlowModel, sampler: FlowSampler, num_steps: int, generators: list[torch.Generator]
    ) -> tuple[Tensor, Tensor, int]:
        """x_1 (B, K, D), its mask (B, K) of ones, and the evaluations spent."""
        like = next(flow.parameters())
        shape = (len(generators), *self.bundle.latent_shape())
        x_0 = randn(shape, like, generators)
        mask = torch.ones(shape[:2], dtype=torch.bool, device=like.device)
        for state in sampler.iterate(flow, x_0, num_steps=num_steps, mask=mask, generator=generators):
            last = state
        return last.x_t, mask, last.nfe


@contextmanager
def _told_in_a_line() -> Iterator[None]:
    """What the sampler's arguments do wrong, as a ``UserError``."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from None


def check_sampler(identity: Identity, num_steps: int, reinjection: RuleLike = 0.0) -> None:
    """Raise ``UserError`` where the model was not trained for ``num_steps`` Euler steps with ``reinjection``."""
    with _told_in_a_line():
        sampler = FlowSampler(PATHS[identity.path](), grid=identity.default_grid(), reinjection=reinjection)
        check_compatible(identity, sampler, num_steps)


def _choose(choices: dict[str, Choice], name: str, what: str) -> Choice:
    if name not in choices:
        raise UserError(f"{what} is {name!r}: expected one of {', '.join(choices)}")
    return choices[name]

"""The texts that a sweep measures, made batch by batch. B samples, L tokens, K latent positions, D latent dimension."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.adapters import HeadConditionals
from fewstep.evaluation.sweep_row import FLOW, FRESH, NO_SNAP, REUSED, Setting
from fewstep.model import SavedModel
from fewstep.pipeline import TextGenerator
from fewstep.readouts import READOUTS, CommitmentHead
from fewstep.registry import resolve
from fewstep.samplers import FlowSampler, check_compatible
from fewstep.shapes import example_generators, randn


@dataclass(frozen=True)
class Batch:
    """Samples ``first`` .. ``first + count - 1`` of ``seed``, the ``seed_index``-th."""

    seed_index: int
    seed: int
    first: int
    count: int


@dataclass(frozen=True)
class Made:
    """One batch of texts: ``ids`` (B, L) on the CPU, and what making them took and left.

    ``seconds`` from noise to ids, ``nfe`` forward passes of all networks a sample, ``late_flips`` (B,) float64 the
    share of a sample's tokens that changed last, ``x_1`` (B, K, D) the latents read; None where there is none.
    ``mask`` (B, L), true at tokens that are no padding; None: the block is full.
    """

    ids: Tensor
    mask: Tensor | None = None
    seconds: float | None = None
    nfe: int | None = None
    late_flips: Tensor | None = None
    x_1: Tensor | None = None


class TextGroup(Protocol):
    """Texts that are made together: one kind for each of ``settings``."""

    settings: tuple[Setting, ...]

    def make(self, batch: Batch, settings: Sequence[Setting]) -> list[Made]:
        """The samples of a batch for each of ``settings``, which are some of the group's."""
        ...


class FlowTexts:
    """The model's own samples by one way from noise to latents, read by several readouts.

    The latents are sampled once and read by all of them; sample i is that of
    :meth:`fewstep.pipeline.TextGenerator.generate` for the same seed and settings. ``sampler`` is their setting but
    for the readout. Raises ``UserError`` for a missing part, an unknown readout, a sampler that does not fit
    the model, and numbers out of range.
    """

    def __init__(self, generator: TextGenerator, sampler: Setting, readouts: Sequence[str]) -> None:
        self.bundle = generator.model
        for name in readouts:
            self.bundle.require(resolve(READOUTS, name, "readout").part)
        self.bundle.require("autoencoder", "denoiser")
        num_steps, cold, start = sampler.num_steps, sampler.noise_temperature, sampler.initial_temperature
        assert num_steps is not None and cold is not None and start is not None and sampler.reinjection is not None
        self.settings: tuple[Setting, ...] = tuple(replace(sampler, readout=name) for name in readouts)
        self.num_steps = num_steps
        self.flow = self.bundle.flow()
        self.readers = {name: self.bundle.open_readout(resolve(READOUTS, name, "readout")) for name in readouts}
        try:
            self.sampler = FlowSampler(
                self.flow.path,
                grid=generator.model.identity.default_grid(),
                reinjection=sampler.reinjection,
                reuse_noise=sampler.noise == REUSED,
                noise_temperature=cold,
                initial_temperature=start,
                correct=None if sampler.snap in (None, NO_SNAP) else generator.snap(sampler.snap),
                decidedness=generator.decidedness,
            )
            check_compatible(self.bundle.identity, self.sampler, num_steps)
        except ValueError as error:
            raise UserError(f"{num_steps} steps with reinjection {sampler.reinjection}: {error}") from None

    @torch.no_grad()
    def make(self, batch: Batch, settings: Sequence[Setting]) -> list[Made]:
        """Sample latents once, then let every readout go on from the noise generators as sampling left them."""
        start = time.perf_counter()
        noise = example_generators(batch.seed, batch.first, batch.count)
        predictions, x_1, nfe = self._latents(noise)
        if x_1.is_cuda:
            torch.cuda.synchronize(x_1.device)
        sampling, left = time.perf_counter() - start, [source.get_state() for source in noise]
        late_flips, made = self._late_flips(predictions), []
        mask = torch.ones(x_1.shape[:2], dtype=torch.bool, device=x_1.device)
        for setting in settings:
            assert setting.readout is not None
            choice = resolve(READOUTS, setting.readout, "readout")
            for source, state in zip(noise, left, strict=True):
                source.set_state(state)
            start = time.perf_counter()
            drawn = self.readers[setting.readout].generate(
                x_1, mask, temperature=choice.temperature, top_p=1.0, top_k=None, ending=None, generator=noise
            )
            ids = drawn.ids.cpu()
            seconds = sampling + time.perf_counter() - start
            made.append(Made(ids, None, seconds, nfe + choice.passes(ids.shape[1]), late_flips, x_1.cpu()))
        return made

    def _latents(self, noise: list[torch.Generator]) -> tuple[list[Tensor], Tensor, int]:
        """The last two predictions (one, where there is one step), x_1, and the forward passes."""
        like = next(self.flow.parameters())
        shape = (len(noise), *self.bundle.latent_shape())
        x_0 = randn(shape, like, noise)
        mask = torch.ones(shape[:2], dtype=torch.bool, device=like.device)
        predictions: list[Tensor] = []
        for state in self.sampler.iterate(self.flow, x_0, num_steps=self.num_steps, mask=mask, generator=noise):
            predictions = [*predictions, *([] if state.x1_hat is None else [state.x1_hat])][-2:]
            last = state
        return predictions, last.x_t, last.nfe

    def _late_flips(self, predictions: list[Tensor]) -> Tensor | None:
        """As :func:`fewstep.diagnostics.late_flip_rate` counts them, a sample (B,)."""
        if len(predictions) < 2 or self.bundle.readout is None:
            return None
        mask = torch.ones(predictions[0].shape[:2], dtype=torch.bool, device=predictions[0].device)
        before, last = (self.bundle.readout.logits(x1_hat, mask).argmax(-1) for x1_hat in predictions)
        return (before != last).double().mean(-1).cpu()


def flow_setting(
    num_steps: int,
    reinjection: str,
    noise_temperature: float = 1.0,
    *,
    initial_temperature: float = 1.0,
    noise: str = FRESH,
    snap: str = NO_SNAP,
) -> Setting:
    """The ``sampler`` of :class:`FlowTexts`; what is left out is at its usual value."""
    return Setting(FLOW, None, num_steps, reinjection, noise_temperature, initial_temperature, noise, snap)


def head_conditionals(bundle: SavedModel, readout: str | None) -> HeadConditionals | None:
    """The head of a readout, at the level that it blurs latents to; None for a readout without one."""
    head = None if readout is None else bundle.open_readout(resolve(READOUTS, readout, "readout"))
    return HeadConditionals(head, head.trust_level) if isinstance(head, CommitmentHead) else None

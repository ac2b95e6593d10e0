"""Makers of text for sweeps: a model's own samples, and what its language model and its readout write by themselves.

B samples, L tokens, K latent positions, D latent dimension, V vocabulary.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.adapters import decoder_of
from fewstep.evaluation.rows import FLOW, LANGUAGE_MODEL, NOISE, READ_BACK, Axis, Setting
from fewstep.evaluation.sweep import Batch, Group, Samples
from fewstep.model import SavedModel
from fewstep.pipeline import TextGenerator
from fewstep.prompts import UNKNOWN, Draft
from fewstep.readouts import READOUTS, tokens_to_first_end
from fewstep.registry import resolve
from fewstep.shapes import example_generators, masked_mean, randn, real_positions, token_mask
from fewstep.types import Ending, KnownTokens, SamplerState, TokenBatch, TokenSample
from fewstep.writing import Writer, check_guidance

FRESH, REUSED, NO_SNAP = "fresh", "reused", "none"
WITH_PROMPT: dict[str, Axis] = {"commit_tokens": 0, "guidance": 1.0}
"""Axes of a sampling that need something given, with their usual values."""


@dataclass(frozen=True)
class Sampling:
    """One way from noise to latents; ``reinjection`` and ``snap`` as on the command line.

    ``noise_temperature``: factor on a step's old noise; ``noise_scale``: on all noise that is drawn; ``noise``: whether
    re-injected noise is drawn in every step ("fresh") or once ("reused"). ``commit_tokens``: written at a time after
    what is given, with all before them known; 0: as many as a block holds. ``guidance``: scale of classifier-free
    guidance on what is given.
    """

    num_steps: int
    reinjection: str = "0"
    noise_temperature: float = 1.0
    noise_scale: float = 1.0
    noise: str = FRESH
    snap: str = NO_SNAP
    commit_tokens: int = 0
    guidance: float = 1.0

    @property
    def axes(self) -> dict[str, Axis]:
        """As a part of settings; the last two, which need a prompt, only if they are not as usual."""
        return {name: value for name, value in asdict(self).items() if WITH_PROMPT.get(name) != value}


class FlowTexts:
    """A model's own samples by one ``sampling``, read by several readouts from the same latents.

    Sample i is that of :meth:`fewstep.pipeline.TextGenerator.generate` for the same seed, written around the ``known``
    tokens (N, L) of the texts of all seeds. Raises ``UserError`` for a missing part, an unknown readout, an axis that
    needs something known where nothing is, and a sampler or a guidance that the model was not trained for.
    """

    def __init__(
        self, bundle: SavedModel, sampling: Sampling, readouts: Sequence[str], known: KnownTokens | None = None
    ) -> None:
        for name in WITH_PROMPT.keys() & sampling.axes.keys() if known is None else ():
            raise UserError(f"{name} is {sampling.axes[name]}, and texts are given nothing: give a prompt too")
        check_guidance(bundle, sampling.guidance)
        self.bundle = bundle
        self.sampling = sampling
        self.known = known
        self.generator = TextGenerator(bundle)
        for name in readouts:
            self.generator.draw(name)
        try:
            self.sampler = self.generator.sampler(
                sampling.num_steps,
                sampling.reinjection,
                reuse_noise=sampling.noise == REUSED,
                noise_scale=sampling.noise_scale,
                noise_temperature=sampling.noise_temperature,
                snap=None if sampling.snap == NO_SNAP else sampling.snap,
            )
        except UserError as error:
            raise UserError(f"{sampling.num_steps} steps with reinjection {sampling.reinjection}: {error}") from None

    @torch.no_grad()
    def make(self, batch: Batch, settings: Sequence[Setting]) -> list[Samples]:
        """Sample latents once; every readout continues from the noise generators as sampling left them.

        Tokens that are committed at a time depend on those before them, and so on the readout.
        """
        runs = [[setting] for setting in settings] if self.sampling.commit_tokens else [settings]
        return [samples for run in runs for samples in self._written(batch, run)]

    def _written(self, batch: Batch, settings: Sequence[Setting]) -> list[Samples]:
        size, commit = self.bundle.identity.block_size, self.sampling.commit_tokens
        noise = example_generators(batch.seed, batch.first, batch.count)
        known = known_tokens(self.known, batch)
        last: deque[SamplerState] = deque(maxlen=2)
        drawn: list[list[TokenSample]] = []
        seconds = [0.0] * len(settings)
        start = time.perf_counter()

        def read(x_1: Tensor, mask: Tensor, *, generator: Sequence[torch.Generator], **given: Any) -> TokenSample:
            if x_1.is_cuda:
                torch.cuda.synchronize(x_1.device)
            sampling, left = time.perf_counter() - start, [source.get_state() for source in generator]
            drawn.append([])
            for index, setting in enumerate(settings):
                for source, state in zip(generator, left, strict=True):
                    source.set_state(state)
                began = time.perf_counter()
                temperature = float(setting["temperature"]) if "temperature" in setting else None
                draw, _ = self.generator.draw(str(setting["readout"]), temperature=temperature)
                drawn[-1].append(draw(x_1, mask, generator=generator, **given).cpu())
                seconds[index] = sampling + time.perf_counter() - began
            return drawn[-1][-1]

        ending = ending_of(self.bundle)
        writer = Writer(
            self.bundle,
            self.sampler,
            self.sampling.num_steps,
            read,
            ending,
            commit or None,
            self.sampling.guidance,
            on_state=lambda state, _: last.append(state),
        )
        written = writer.write(drafts_of(known, size, batch.count), noise)
        samples = []
        for index, setting in enumerate(settings):
            passes = READOUTS[str(setting["readout"])].passes(min(commit or size, size))
            passes += known is not None and bool(known.mask.any())  # one of the encoder
            nfe = {"nfe": written.nfe + len(drawn) * passes}
            if commit:
                fill = ending.pad_id if ending else 0
                ids = torch.tensor([text.ids + [fill] * (size - len(text.ids)) for text in written.texts])
                samples.append(Samples({"ids": ids}, time.perf_counter() - start, nfe))
            else:
                tensors = {"ids": drawn[0][index].ids, "x_1": written.x_1, **self._late_flips(last, known)}
                samples.append(Samples(tensors, seconds[index], nfe))
        return samples

    def _late_flips(self, states: Sequence[SamplerState], known: KnownTokens | None) -> dict[str, Tensor]:
        """Share of each sample's tokens that change between the last two predictions (B,), by the parallel readout."""
        predictions = [state.x1_hat for state in states if state.x1_hat is not None]
        if len(predictions) < 2 or self.bundle.readout is None:
            return {}
        decode = decoder_of(self.bundle.readout)
        before, after = (decode(x1_hat).argmax(-1).cpu() for x1_hat in predictions)
        mask = real_positions(states[-1].x_t).cpu()
        counted = token_mask(mask, after.shape[1])
        if self.bundle.identity.blocks == "documents":
            counted &= tokens_to_first_end(after, int(self.bundle.tokenizer.eos_token_id))
        if known is not None:
            counted = counted & ~known.mask
        return {"late_flips": masked_mean((before != after).double(), counted)}


def known_tokens(known: KnownTokens | None, batch: Batch) -> KnownTokens | None:
    """The known tokens (B, L) of a batch."""
    return None if known is None else KnownTokens(known.ids[batch.rows], known.mask[batch.rows])


def drafts_of(known: KnownTokens | None, length: int, count: int) -> list[Draft]:
    """``count`` texts of ``length`` tokens of which the known ones stand."""
    if known is None:
        return [Draft(length=length)] * count
    ids = torch.where(known.mask, known.ids, UNKNOWN)
    ends = (known.mask * torch.arange(1, ids.shape[1] + 1)).amax(1)
    return [Draft(ids=tuple(row[:end].tolist()), length=length) for row, end in zip(ids, ends, strict=True)]


def ending_of(bundle: SavedModel) -> Ending | None:
    """What ends a text where a block holds one document."""
    ids = int(bundle.tokenizer.eos_token_id), int(bundle.tokenizer.pad_token_id)
    return Ending(*ids) if bundle.identity.blocks == "documents" else None


def flow_settings(
    sampling: Sampling,
    readouts: Sequence[str],
    temperatures: Sequence[float] = (),
    name: str = FLOW,
    *,
    heats_tokens: bool = False,
) -> list[tuple[Sampling, tuple[Setting, ...]]]:
    """The settings of a model's own samples, by the sampling whose latents they read.

    Beside the usual temperature each readout has a row for each of ``temperatures``: of the tokens (``temperature``)
    where it draws them, or with ``heats_tokens``, where the likeliest have 0; else of the noise (``noise_scale``).
    """
    usual = {readout: resolve(READOUTS, readout, "readout").temperature for readout in readouts}
    own: list[Setting] = [{"name": name, "readout": readout, **sampling.axes} for readout in readouts]
    likeliest = [setting for setting in own if usual[str(setting["readout"])] == 0]
    if heats_tokens:
        own, likeliest = [{**setting, "temperature": 0.0} if setting in likeliest else setting for setting in own], []
    drawn = [
        {**setting, "temperature": temperature}
        for setting in own
        for temperature in temperatures
        if setting not in likeliest and temperature != usual[str(setting["readout"])]
    ]
    scaled = [
        (replace(sampling, noise_scale=scale), tuple({**setting, "noise_scale": scale} for setting in likeliest))
        for scale in temperatures
        if likeliest and scale != sampling.noise_scale
    ]
    return [(sampling, (*own, *drawn)), *scaled]


def flow_groups(
    bundle: SavedModel,
    samplings: Sequence[Sampling],
    readouts: Sequence[str],
    temperatures: Sequence[float] = (),
    *,
    name: str = FLOW,
    known: KnownTokens | None = None,
    heats_tokens: bool = False,
) -> list[Group]:
    """A model's own samples: one group for each entry of :func:`flow_settings`."""
    return [
        Group(settings, FlowTexts(bundle, own, readouts, known).make)
        for sampling in samplings
        for own, settings in flow_settings(sampling, readouts, temperatures, name, heats_tokens=heats_tokens)
    ]


def fixed_group(name: str, tokens: TokenBatch, *, padded: bool = True) -> Group:
    """Existing texts (N, L): as many blocks as there are samples for the first seed, then those of the next.

    ``padded`` False: which tokens count is up to the protocol, as for generated blocks.
    """

    def make(batch: Batch, settings: Sequence[Setting]) -> list[Samples]:
        tensors = {"ids": tokens.ids[batch.rows], **({"mask": tokens.mask[batch.rows]} if padded else {})}
        return [Samples(tensors) for _ in settings]

    return Group(({"name": name},), make)


def language_model_group(
    bundle: SavedModel, seed_offset: int = 0, temperatures: Sequence[float] = (), known: KnownTokens | None = None
) -> Group:
    """What the run's language model writes at temperature 1 and at ``temperatures``; block i depends on the seed, i and
    the ``known`` tokens before each token alone."""
    model, block_size = bundle.scorer(), bundle.identity.block_size
    device = next(model.parameters()).device

    def make(batch: Batch, settings: Sequence[Setting]) -> list[Samples]:
        samples, given, passes = [], known_tokens(known, batch), block_size
        if given is not None:
            passes = int((~given.mask).sum(1).max())  # a prompt is read in one of them
            given = KnownTokens(given.ids.to(device), given.mask.to(device))
        for setting in settings:
            start = time.perf_counter()
            drawn = model.generate(
                batch.count,
                block_size,
                temperature=float(setting.get("temperature", 1.0)),
                ending=ending_of(bundle),
                known=given,
                generator=example_generators(batch.seed + seed_offset, batch.first, batch.count),
            )
            samples.append(Samples({"ids": drawn.ids.cpu()}, time.perf_counter() - start, {"nfe": passes}))
        return samples

    own: Setting = {"name": LANGUAGE_MODEL}
    return Group((own, *({**own, "temperature": other} for other in temperatures if other != 1)), make)


def noise_group(bundle: SavedModel) -> Group:
    """Standard normal latents as the parallel readout reads them: the floor of a sweep."""
    decode, shape = decoder_of(bundle.reader()), bundle.latent_shape()
    like = next(bundle.parts()["readout"].parameters())

    @torch.no_grad()
    def make(batch: Batch, settings: Sequence[Setting]) -> list[Samples]:
        start = time.perf_counter()
        z = randn((batch.count, *shape), like, example_generators(batch.seed, batch.first, batch.count))
        ids = decode(z).argmax(-1).cpu()
        return [Samples({"ids": ids, "x_1": z.cpu()}, time.perf_counter() - start, {"nfe": 1}) for _ in settings]

    return Group(({"name": NOISE},), make)


def read_back_group(bundle: SavedModel, tokens: TokenBatch) -> Group:
    """Real texts (N, L) encoded and read in parallel: what a flow without fault would make of these latents."""
    decode = decoder_of(bundle.reader())

    @torch.no_grad()
    def make(batch: Batch, settings: Sequence[Setting]) -> list[Samples]:
        ids, mask = (part[batch.rows].to(bundle.device) for part in (tokens.ids, tokens.mask))
        latents = bundle.encoder().encode(ids, mask if bundle.identity.length_counts else torch.ones_like(mask))
        read = decode(latents.z).argmax(-1)
        padding = ~token_mask(latents.mask, ids.shape[1])
        return [Samples({"ids": torch.where(padding, ids, read).cpu(), "x_1": latents.z.cpu()}) for _ in settings]

    return Group(({"name": READ_BACK},), make)

"""Makers of text for sweeps: a model's own samples, and the yardsticks beside them.

B samples, L tokens, K latent positions, D latent dimension, V vocabulary.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.adapters import all_real, decoder_of
from fewstep.evaluation.baselines import shuffled_blocks, unigram_blocks
from fewstep.evaluation.given import KnownOf, known_of
from fewstep.evaluation.rows import FLOW, HELD_OUT, LANGUAGE_MODEL, NOISE, SHUFFLED, Axis, Setting
from fewstep.evaluation.sweep import Batch, Group, Samples
from fewstep.model import SavedModel
from fewstep.pipeline import TextGenerator
from fewstep.prompts import UNKNOWN, Draft
from fewstep.readouts import READOUTS, tokens_to_first_end
from fewstep.registry import resolve
from fewstep.samplers import FlowSampler, check_compatible
from fewstep.shapes import example_generators, masked_mean, randn
from fewstep.types import Ending, KnownTokens, TokenBatch
from fewstep.writing import Writer, block_states

FRESH, REUSED, NO_SNAP = "fresh", "reused", "none"


@dataclass(frozen=True)
class Sampling:
    """One way from noise to latents; ``reinjection`` and ``snap`` as on the command line.

    ``noise_temperature``: factor on a step's old noise; ``noise_scale``: on all noise that is drawn; ``noise``: whether
    re-injected noise is drawn in every step ("fresh") or once ("reused"). ``commit_tokens``: written at a time after
    what is given, with all before them known; 0: as many as a block holds.
    """

    num_steps: int
    reinjection: str = "0"
    noise_temperature: float = 1.0
    noise_scale: float = 1.0
    noise: str = FRESH
    snap: str = NO_SNAP
    commit_tokens: int = 0

    @property
    def axes(self) -> dict[str, Axis]:
        """As a part of settings; the last only where it is not 0."""
        return {name: value for name, value in asdict(self).items() if name != "commit_tokens" or value}


class FlowTexts:
    """A model's own samples by one ``sampling``, read by several readouts from the same latents.

    Sample i is that of :meth:`fewstep.pipeline.TextGenerator.generate` for the same seed, written around the tokens
    that ``known`` gives. Raises ``UserError`` for a missing part, an unknown readout, tokens to commit after nothing,
    and a sampler that the model was not trained for.
    """

    def __init__(
        self, bundle: SavedModel, sampling: Sampling, readouts: Sequence[str], known: KnownOf | None = None
    ) -> None:
        for name in readouts:
            bundle.require(resolve(READOUTS, name, "readout").part)
        bundle.require("autoencoder", "denoiser")
        self.bundle = bundle
        if sampling.commit_tokens and known is None:
            raise UserError(
                f"commit_tokens is {sampling.commit_tokens}, and texts are given nothing: give a prompt too"
            )
        self.known = known
        self.commit_tokens = sampling.commit_tokens
        self.num_steps = sampling.num_steps
        self.flow = bundle.flow()
        self.readers = {name: bundle.open_readout(resolve(READOUTS, name, "readout")) for name in readouts}
        generator = TextGenerator(bundle)
        try:
            self.sampler = FlowSampler(
                self.flow.path,
                grid=bundle.identity.default_grid(),
                reinjection=sampling.reinjection,
                reuse_noise=sampling.noise == REUSED,
                noise_scale=sampling.noise_scale,
                noise_temperature=sampling.noise_temperature,
                correct=None if sampling.snap == NO_SNAP else generator.snap(sampling.snap),
                decidedness=generator.decidedness,
            )
            check_compatible(bundle.identity, self.sampler, sampling.num_steps)
        except ValueError as error:
            raise UserError(f"{sampling.num_steps} steps with reinjection {sampling.reinjection}: {error}") from None

    @torch.no_grad()
    def make(self, batch: Batch, settings: Sequence[Setting]) -> list[Samples]:
        """Sample latents once; every readout continues from the noise generators as sampling left them."""
        if self.commit_tokens:
            return [self._committed(batch, setting) for setting in settings]
        start = time.perf_counter()
        noise = example_generators(batch.seed, batch.first, batch.count)
        known = known_tokens(self.bundle, self.known, batch)
        predictions, x_1, nfe = self._latents(noise, known)
        if x_1.is_cuda:
            torch.cuda.synchronize(x_1.device)
        sampling, left = time.perf_counter() - start, [source.get_state() for source in noise]
        common = {"x_1": x_1.cpu(), **self._late_flips(predictions, known)}
        given: dict[str, Any] = {} if known is None else {"known": known}
        ending = None if known is None else ending_of(self.bundle)
        mask, samples = all_real(x_1), []
        for setting in settings:
            name = str(setting["readout"])
            choice = resolve(READOUTS, name, "readout")
            for source, state in zip(noise, left, strict=True):
                source.set_state(state)
            start = time.perf_counter()
            temperature = float(setting.get("temperature", choice.temperature))
            drawn = self.readers[name].generate(
                x_1, mask, temperature=temperature, top_p=1.0, top_k=None, ending=ending, generator=noise, **given
            )
            ids = drawn.ids.cpu()
            seconds = sampling + time.perf_counter() - start
            samples.append(Samples({"ids": ids, **common}, seconds, {"nfe": nfe + choice.passes(ids.shape[1])}))
        return samples

    def _committed(self, batch: Batch, setting: Setting) -> Samples:
        """Samples written block by block; the forward passes are those that come one after the other."""
        assert self.known is not None  # see __init__
        choice, start = resolve(READOUTS, str(setting["readout"]), "readout"), time.perf_counter()
        temperature = float(setting.get("temperature", choice.temperature))
        ending, size, known = ending_of(self.bundle), self.bundle.identity.block_size, self.known(batch)
        draw = partial(
            self.readers[str(setting["readout"])].generate,
            temperature=temperature,
            top_p=1.0,
            top_k=None,
            ending=ending,
        )
        drafts = [draft_of(ids, given, size) for ids, given in zip(known.ids, known.mask, strict=True)]
        writer = Writer(self.bundle, self.sampler, self.num_steps, draw, ending, self.commit_tokens)
        written = writer.write(drafts, example_generators(batch.seed, batch.first, batch.count))
        fill = ending.pad_id if ending else 0
        ids = torch.tensor([text.ids + [fill] * (size - len(text.ids)) for text in written.texts])
        num_blocks = written.nfe // self.num_steps
        nfe = written.nfe + num_blocks * (1 + choice.passes(min(self.commit_tokens, size)))
        return Samples({"ids": ids}, time.perf_counter() - start, {"nfe": nfe})

    def _latents(self, noise: list[torch.Generator], known: KnownTokens | None) -> tuple[list[Tensor], Tensor, int]:
        """The last two predictions, x_1, and the forward passes; one of them encodes what is known."""
        predictions: list[Tensor] = []
        for state in block_states(self.bundle, self.flow, self.sampler, self.num_steps, known, noise):
            predictions = [*predictions, *([] if state.x1_hat is None else [state.x1_hat])][-2:]
            last = state
        return predictions, last.x_t, last.nfe + (known is not None and bool(known.mask.any()))

    def _late_flips(self, predictions: list[Tensor], known: KnownTokens | None) -> dict[str, Tensor]:
        """Share of each sample's tokens that change between the last two predictions (B,), by the parallel readout."""
        if len(predictions) < 2 or self.bundle.readout is None:
            return {}
        decode = decoder_of(self.bundle.readout)
        before, last = (decode(x1_hat).argmax(-1).cpu() for x1_hat in predictions)
        counted = torch.ones_like(last, dtype=torch.bool)
        if self.bundle.identity.blocks == "documents":
            counted = tokens_to_first_end(last, int(self.bundle.tokenizer.eos_token_id))
        if known is not None:
            counted = counted & ~known.mask.cpu()
        return {"late_flips": masked_mean((before != last).double(), counted)}


def known_tokens(bundle: SavedModel, known: KnownOf | None, batch: Batch) -> KnownTokens | None:
    """What is given of a batch, on the model's device."""
    if known is None:
        return None
    tokens, device = known(batch), next(next(iter(bundle.parts().values())).parameters()).device
    return KnownTokens(tokens.ids.to(device), tokens.mask.to(device))


def draft_of(ids: Tensor, given: Tensor, length: int) -> Draft:
    """A text of ``length`` tokens of which those of ``ids`` (L,) that are ``given`` (L,) stand."""
    last = int((given * torch.arange(1, len(given) + 1)).max())
    return Draft(ids=tuple(torch.where(given, ids, UNKNOWN)[:last].tolist()), length=length)


def ending_of(bundle: SavedModel) -> Ending | None:
    """What ends a text where a block holds one document."""
    ids = int(bundle.tokenizer.eos_token_id), int(bundle.tokenizer.pad_token_id)
    return Ending(*ids) if bundle.identity.blocks == "documents" else None


def flow_settings(
    sampling: Sampling, readouts: Sequence[str], temperatures: Sequence[float] = (), name: str = FLOW
) -> list[tuple[Sampling, tuple[Setting, ...]]]:
    """The settings of a model's own samples, by the sampling whose latents they read.

    Beside the usual temperature each readout has a row for each of ``temperatures``: of the noise (``noise_scale``)
    where it takes the likeliest tokens, of the tokens (``temperature``) where it draws them.
    """
    usual = {readout: resolve(READOUTS, readout, "readout").temperature for readout in readouts}
    rows = {readout: {"name": name, "readout": readout, **sampling.axes} for readout in readouts}
    drawn = [
        {**row, "temperature": temperature}
        for readout, row in rows.items()
        for temperature in temperatures
        if usual[readout] > 0 and temperature != usual[readout]
    ]
    settings: list[tuple[Sampling, tuple[Setting, ...]]] = [(sampling, (*rows.values(), *drawn))]
    likeliest = [readout for readout in readouts if usual[readout] == 0]
    for scale in temperatures if likeliest else ():
        if scale != sampling.noise_scale:
            scaled = tuple({**rows[readout], "noise_scale": scale} for readout in likeliest)
            settings.append((replace(sampling, noise_scale=scale), scaled))
    return settings


def flow_groups(
    bundle: SavedModel,
    samplings: Sequence[Sampling],
    readouts: Sequence[str],
    temperatures: Sequence[float] = (),
    name: str = FLOW,
    known: KnownOf | None = None,
) -> list[Group]:
    """:class:`FlowTexts` as groups of a sweep, with the settings of :func:`flow_settings`."""
    return [
        Group(
            settings, FlowTexts(bundle, own, list(dict.fromkeys(str(row["readout"]) for row in settings)), known).make
        )
        for sampling in samplings
        for own, settings in flow_settings(sampling, readouts, temperatures, name)
    ]


def fixed_group(name: str, tokens: TokenBatch, num_samples: int, *, padded: bool = True) -> Group:
    """Existing texts: ``num_samples`` blocks for the first seed, then those of the next.

    ``padded`` False: which tokens count is up to the protocol, as for generated blocks.
    """

    def make(batch: Batch, settings: Sequence[Setting]) -> list[Samples]:
        rows = batch.rows(num_samples)
        tensors = {"ids": tokens.ids[rows], **({"mask": tokens.mask[rows]} if padded else {})}
        return [Samples(tensors) for _ in settings]

    return Group(({"name": name},), make)


def language_model_group(
    bundle: SavedModel, seed_offset: int = 0, temperatures: Sequence[float] = (), known: KnownOf | None = None
) -> Group:
    """What the run's language model writes at temperature 1 and at ``temperatures``; block i depends on the seed, i and
    the tokens that ``known`` gives, of which it sees those before each token, alone."""
    model, block_size = bundle.scorer(), bundle.identity.block_size

    def make(batch: Batch, settings: Sequence[Setting]) -> list[Samples]:
        samples, tokens = [], known_tokens(bundle, known, batch)
        ending = None if tokens is None else ending_of(bundle)
        passes = block_size if tokens is None else int((~tokens.mask).sum(1).max())  # a prompt is read in one of them
        for setting in settings:
            start = time.perf_counter()
            noise = example_generators(batch.seed + seed_offset, batch.first, batch.count)
            temperature = float(setting.get("temperature", 1.0))
            ids = model.generate(
                batch.count, block_size, temperature=temperature, ending=ending, known=tokens, generator=noise
            ).ids.cpu()
            samples.append(Samples({"ids": ids}, time.perf_counter() - start, {"nfe": passes}))
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


def yardsticks(
    bundle: SavedModel,
    held_out: TokenBatch,
    train_counts: Tensor,
    num_samples: int,
    *,
    language_model_offset: int = 0,
    temperatures: Sequence[float] = (),
    given: Tensor | None = None,
) -> list[Group]:
    """Held-out text (N, L), the same with its words shuffled, unigram draws from ``train_counts`` (V,), and where the
    model has the parts, decoded noise and samples of its language model, these at ``temperatures`` too. ``num_samples``
    of the N are of one seed. Tokens of held-out text that are ``given`` (N, L) stand in all of them, but for the noise,
    which is left out then.
    """
    shuffling, drawing = (example_generators(offset, 0, 1)[0] for offset in (1, 2))
    shuffled = shuffled_blocks(held_out, bundle.tokenizer, shuffling, given)
    unigrams = unigram_blocks(train_counts, len(held_out.ids), held_out.ids.shape[1], drawing)
    known: KnownOf | None = None
    if given is not None:
        unigrams = TokenBatch(torch.where(given, held_out.ids, unigrams.ids), unigrams.mask)
        known = known_of(held_out, given, num_samples)
    groups = [
        fixed_group(HELD_OUT, held_out, num_samples),
        fixed_group(SHUFFLED, shuffled, num_samples),
        fixed_group("unigram draws", unigrams, num_samples, padded=False),
    ]
    if bundle.readout is not None and bundle.autoencoder is not None and given is None:
        groups.append(noise_group(bundle))
    if bundle.language_model is not None:
        groups.append(language_model_group(bundle, language_model_offset, temperatures, known))
    return groups

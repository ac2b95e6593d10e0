"""Another's decoder under the questions that our own are asked. B examples, L tokens, P positions, V vocabulary."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.adapters import ImageDecoder, TextDecoder
from fewstep.diagnostics import (
    Decode,
    DecodeInParts,
    Diagnostic,
    TokenConditionals,
    draw_positions,
    reconstruction_error,
    rms,
)
from fewstep.errors import UserError
from fewstep.evaluation.diagnosis import Diagnosis, Progress, choose, run_all
from fewstep.evaluation.diagnosis_protocol import diagnosis_protocol
from fewstep.evaluation.image_diagnosis import IMAGE_MEASUREMENTS, ImageSubject, image_result
from fewstep.evaluation.processes import Processes
from fewstep.evaluation.readout_measurements import (
    ReadoutSubject,
    Results,
    measure_boundary_distance,
    measure_cci_noise,
    measure_committed_accuracy,
    measure_dabi,
    measure_dabi_commit,
    measure_dabi_flip,
    measure_dabi_worst,
    measure_noise_robustness,
    measure_token_accuracy,
)
from fewstep.evaluation.subject import noise_source
from fewstep.shapes import example_generators

NUMBERS_AT_ONCE = 2**25
"""Outputs of a decoder that are held at once, 128 MiB in float32; a diagnostic holds a few such tensors."""
CONDITIONALS = "conditionals"


@dataclass(frozen=True)
class DecoderSubject:
    """A text decoder and what it is measured on; ``z`` (B, ...) are its latents over ``unit``, their rms.

    So every radius and noise level is in units of the rms, as it is for our own latents, which are whitened.
    """

    decoder: TextDecoder
    ids: Tensor
    z: Tensor
    positions: Tensor
    seed: int
    unit: float
    examples_at_once: int

    @property
    def decode(self) -> Decode:
        """The decoder for latents in units of their rms, a few examples at a time."""
        return DecodeInParts(lambda z: self.decoder.decode(z * self.unit), self.examples_at_once)

    def conditionals(self, level: float) -> TokenConditionals:
        """The readout that decides token after token; it is not told the noise ``level``."""
        return self._conditionals()

    def committed(self) -> Decode:
        """The same with the text's own tokens before each position, as a decoder."""
        return DecodeInParts(self._conditionals().logits, self.examples_at_once, (self.ids,))

    def noise(self, name: str) -> torch.Generator:
        """The source of noise of the measurement ``name``: the same whatever else is measured."""
        return noise_source(self.seed, name)

    def first(self, num_examples: int, num_positions: int | None = None) -> "DecoderSubject":
        """The same with the first examples, and the first positions in each, only."""
        ids, z, positions = (value[:num_examples] for value in (self.ids, self.z, self.positions))
        return DecoderSubject(
            self.decoder, ids, z, positions[:, :num_positions], self.seed, self.unit, self.examples_at_once
        )

    def _conditionals(self) -> "_InUnits":
        if self.decoder.conditionals is None:
            raise UserError(f"{self.decoder.name} reads all tokens at once: it has no conditionals")
        return _InUnits(self.decoder.conditionals, self.unit)


class _InUnits:
    """Conditionals for latents in units of their rms."""

    def __init__(self, inner: TokenConditionals, unit: float) -> None:
        self.inner = inner
        self.unit = unit

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        return self.inner.draw(z * self.unit, generator)

    def logits(self, z: Tensor, ids: Tensor) -> Tensor:
        return self.inner.logits(z * self.unit, ids)


Measure = Callable[[ReadoutSubject], Results]

DECODER_MEASUREMENTS: Mapping[str, tuple[bool, Measure]] = {
    "token_accuracy": (False, measure_token_accuracy),
    "dabi": (False, measure_dabi),
    "dabi_worst": (False, measure_dabi_worst),
    "dabi_flip": (False, measure_dabi_flip),
    "boundary_distance": (False, measure_boundary_distance),
    "noise_robustness": (False, measure_noise_robustness),
    "token_accuracy_commit": (True, measure_committed_accuracy),
    "dabi_commit": (True, measure_dabi_commit),
    "cci": (True, measure_cci_noise),
}
"""Every question to a text decoder by its name, and whether it is one to its conditionals."""


def check_chosen(only: Sequence[str] | None, *, images: bool) -> None:
    """Raise ``UserError`` for a name in ``only`` that is no question to a decoder of text, or of ``images``."""
    offered: Mapping[str, object] = {"reconstruction": None, **IMAGE_MEASUREMENTS} if images else DECODER_MEASUREMENTS
    choose(offered, only)


def make_decoder_subject(decoder: TextDecoder, *, num_examples: int, num_positions: int, seed: int) -> DecoderSubject:
    """The first ``num_examples`` of a decoder's examples, with positions drawn as for our own models.

    Raises ``UserError`` for numbers that the decoder's text cannot give, and for latents or logits that cannot be
    measured: another shape than (B, L, V), no spread, or a number that is not finite.
    """
    count, length = decoder.ids.shape
    if not 2 <= num_examples <= count:
        raise UserError(f"examples is {num_examples}: expected a number from 2 to {count}, the decoder's examples")
    if not 1 <= num_positions <= length:
        raise UserError(f"positions is {num_positions}: expected a number from 1 to {length}, the tokens of a block")
    z, ids = decoder.z[:num_examples].detach(), decoder.ids[:num_examples]
    unit = _unit_of(z, decoder.name)
    logits = _probe(decoder.decode, z[:1], decoder.name)
    if logits.ndim != 3 or logits.shape[:2] != (1, length) or int(ids.max()) >= logits.shape[2]:
        raise UserError(
            f"decoder {decoder.name} gives logits of shape {tuple(logits.shape)} for one example of {length} tokens up "
            f"to {int(ids.max())}: expected (1, {length}, V), V the vocabulary"
        )
    (source,) = example_generators(seed, 0, 1)
    positions = draw_positions(num_examples, length, num_positions, source).to(z.device)
    return DecoderSubject(decoder, ids, z / unit, positions, seed, unit, _at_once(logits))


def diagnose_decoder(
    decoder: TextDecoder | ImageDecoder,
    *,
    num_examples: int,
    num_positions: int,
    seed: int,
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
    processes: Processes | None = None,
    data: Mapping[str, Any] | None = None,
    packages: tuple[str, ...] = ("transformers",),
) -> Diagnosis:
    """Measure a decoder of text or images on its first ``num_examples`` examples.

    ``only`` names some of :data:`DECODER_MEASUREMENTS`, for images of :data:`~fewstep.evaluation.image_diagnosis.\
IMAGE_MEASUREMENTS` or "reconstruction"; a figure does not depend on what else is measured, so ``processes`` share
    them. ``data`` names what was measured on and ``packages`` what the decoder is made of, for the protocol. Raises
    ``UserError`` for an unknown name, one that asks for conditionals that are not there, and for what
    :func:`make_decoder_subject` does.
    """
    if isinstance(decoder, ImageDecoder):
        return _diagnose_images(decoder, num_examples, seed, only, progress, processes, data, packages)
    chosen = choose(DECODER_MEASUREMENTS, only)
    lacking = [name for name, (needs, _) in chosen.items() if needs and decoder.conditionals is None]
    if only is not None and lacking:
        raise UserError(
            f"{decoder.name} reads all tokens at once: {', '.join(lacking)} needs conditionals, leave it out of --only"
        )
    subject = make_decoder_subject(decoder, num_examples=num_examples, num_positions=num_positions, seed=seed)
    runs = {name: (lambda run=run: run(subject)) for name, (_, run) in chosen.items() if name not in lacking}
    results = run_all(runs, progress, processes)
    protocol = diagnosis_protocol(
        seed=seed,
        num_examples=num_examples,
        num_positions=num_positions,
        block_length=decoder.ids.shape[1],
        data=data,
        packages=packages,
    )
    return Diagnosis(
        kind="text",
        model=decoder.name,
        results=results,
        n=subject.z[0].numel(),
        num_examples=num_examples,
        num_positions=num_positions,
        seed=seed,
        left_out=dict.fromkeys(lacking, CONDITIONALS),
        protocol=protocol,
        notes=decoder.notes,
    )


def _diagnose_images(
    decoder: ImageDecoder,
    num_examples: int,
    seed: int,
    only: Sequence[str] | None,
    progress: Progress | None,
    processes: Processes | None,
    data: Mapping[str, Any] | None,
    packages: tuple[str, ...],
) -> Diagnosis:
    if not 2 <= num_examples <= len(decoder.z):
        raise UserError(
            f"examples is {num_examples}: expected a number from 2 to {len(decoder.z)}, the decoder's examples"
        )
    z = decoder.z[:num_examples].detach()
    unit = _unit_of(z, decoder.name)
    images = _probe(decoder.decode, z[:1], decoder.name)
    in_units = DecodeInParts(lambda x: decoder.decode(x * unit), _at_once(images))
    subject = ImageSubject(_Images(in_units), z / unit, seed)

    def reconstruction() -> tuple[Diagnostic, ...]:
        noise = noise_source(seed, "reconstruction_error")
        return (reconstruction_error(in_units, subject.z, decoder.images[:num_examples], generator=noise),)

    asked = {name: (lambda run=run: run(subject)) for name, run in IMAGE_MEASUREMENTS.items()}
    results = run_all(choose({"reconstruction": reconstruction, **asked}, only), progress, processes)
    return image_result(subject, decoder.name, results, data, packages=packages, notes=decoder.notes)


@dataclass(frozen=True)
class _Images:
    decode: Decode


def _unit_of(z: Tensor, name: str) -> float:
    unit = rms(z)
    if not 0 < unit < math.inf:
        raise UserError(f"decoder {name} has latents of rms {unit}: expected numbers that are finite and not all zero")
    return unit


@torch.no_grad()
def _probe(decode: Decode, z: Tensor, name: str) -> Tensor:
    output = decode(z)
    if not isinstance(output, Tensor) or not bool(output.isfinite().all()):
        raise UserError(f"decoder {name} does not give a tensor of finite numbers for its first example")
    return output


def _at_once(output: Tensor) -> int:
    return max(1, NUMBERS_AT_ONCE // max(1, output[0].numel()))

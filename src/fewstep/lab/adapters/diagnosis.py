"""Diagnostics of a third-party decoder. Legend: B examples, L tokens, P positions, V vocabulary."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.diagnostics.cci import TokenConditionals
from fewstep.diagnostics.decoding import Decode, DecodeInParts, draw_positions, rms
from fewstep.errors import UserError
from fewstep.evaluation.diagnosis import Diagnosis, Progress, diagnose
from fewstep.evaluation.measurement import Measurement, choose
from fewstep.evaluation.measurements import MEASUREMENTS
from fewstep.evaluation.processes import Processes
from fewstep.evaluation.readout_measurements import measure_cci_noise, measure_head_accuracy, measure_token_accuracy
from fewstep.evaluation.subject import ImageSubject, noise_source
from fewstep.lab.adapters import ImageDecoder, TextDecoder
from fewstep.lab.images import diagnosis as image_diagnosis
from fewstep.shapes import example_generators

NUMBERS_AT_ONCE = 2**25
"""Outputs of a decoder that are held at once, 128 MiB in float32; a diagnostic holds a few such tensors."""
HEAD, CONDITIONALS = "head", "conditionals"


@dataclass(frozen=True)
class DecoderSubject:
    """A text decoder and the data that it is measured on; ``z`` (B, ...) are its latents over ``unit``, their rms.

    So radii and noise levels are in units of the rms, as they are for our own, whitened latents.
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
        """The parallel readout for latents in units of their rms, a few examples at a time."""
        return DecodeInParts(lambda z: self.decoder.decode(z * self.unit), self.examples_at_once)

    def conditionals(self, level: float) -> TokenConditionals:
        """The autoregressive readout; it does not take the noise ``level``."""
        return self._conditionals()

    def given_text(self) -> Decode:
        """That readout as a decoder, given the text's own tokens before each position."""
        return DecodeInParts(self._conditionals().logits, self.examples_at_once, (self.ids,))

    def noise(self, name: str) -> torch.Generator:
        """The source of noise of the measurement ``name``."""
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


DECODER_MEASUREMENTS: Mapping[str, Measurement] = {
    "token_accuracy": Measurement(measure_token_accuracy),
    **{
        name: MEASUREMENTS[name]
        for name in ("dabi", "dabi_worst", "dabi_flip", "boundary_distance", "noise_robustness")
    },
    "token_accuracy_head": Measurement(measure_head_accuracy, (HEAD,)),
    "dabi_head": MEASUREMENTS["dabi_head"],
    "cci": Measurement(measure_cci_noise, (HEAD,), thresholds=MEASUREMENTS["cci"].thresholds),
}
"""Measurements of a text decoder by name; those of the part "head" need its conditionals."""


def check_chosen(only: Sequence[str] | None, *, images: bool) -> None:
    """Raise ``UserError`` for a name in ``only`` that is no measurement of a decoder of text, or of ``images``."""
    choose(image_diagnosis.DECODER_MEASUREMENTS if images else DECODER_MEASUREMENTS, only)


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

    ``only`` names some of :data:`DECODER_MEASUREMENTS`, for images of those of
    :mod:`fewstep.lab.images.diagnosis`, or dotted paths;
    ``processes`` share the measurements. ``data`` names the data and ``packages`` what the decoder is made of, for the
    protocol. Raises ``UserError`` for an unknown name, and for one that needs parts that the decoder lacks.
    """
    shared: dict[str, Any] = {
        "notes": decoder.notes,
        "progress": progress,
        "processes": processes,
        "data": data,
        "packages": packages,
    }
    if isinstance(decoder, ImageDecoder):
        images = _image_subject(decoder, num_examples, seed)
        chosen = choose(image_diagnosis.DECODER_MEASUREMENTS, only)
        return diagnose(images, chosen, decoder.name, effort=image_diagnosis.IMAGE_EFFORT, **shared)
    chosen = choose(DECODER_MEASUREMENTS, only)
    has = {"autoencoder", "readout", *([HEAD] if decoder.conditionals else [])}
    missing = {name: [part for part in measurement.parts if part not in has] for name, measurement in chosen.items()}
    left_out = {
        name: ", ".join(CONDITIONALS if part == HEAD else part for part in parts)
        for name, parts in missing.items()
        if parts
    }
    if only is not None and left_out:
        raise UserError(
            f"the decoder {decoder.name} has no {', '.join(dict.fromkeys(left_out.values()))}, which "
            f"{', '.join(left_out)} needs: leave it out of --only"
        )
    subject = make_decoder_subject(decoder, num_examples=num_examples, num_positions=num_positions, seed=seed)
    chosen = {name: measurement for name, measurement in chosen.items() if name not in left_out}
    return diagnose(subject, chosen, decoder.name, left_out=left_out, **shared)


def _image_subject(decoder: ImageDecoder, num_examples: int, seed: int) -> ImageSubject:
    if not 2 <= num_examples <= len(decoder.z):
        raise UserError(
            f"examples is {num_examples}: expected a number from 2 to {len(decoder.z)}, the decoder's examples"
        )
    z = decoder.z[:num_examples].detach()
    unit = _unit_of(z, decoder.name)
    images = _probe(decoder.decode, z[:1], decoder.name)
    in_units = DecodeInParts(lambda x: decoder.decode(x * unit), _at_once(images))
    return ImageSubject(in_units, z / unit, seed, decoder.images[:num_examples])


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

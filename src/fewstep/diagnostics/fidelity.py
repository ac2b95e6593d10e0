"""How much of its data a decoder gives back. B examples, L tokens; outputs of any shape."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.diagnostics.derivatives import Decode
from fewstep.diagnostics.parts import in_parts, read_tokens
from fewstep.diagnostics.results import DiagnosticRow, Estimate, Picture, mean_estimate, ratio_estimate


@dataclass(frozen=True)
class Fidelity:
    """One number with its interval: ``token_accuracy`` or ``reconstruction_error``; ``note`` tells what was counted."""

    name: str
    value: Estimate
    note: str

    def rows(self) -> tuple[DiagnosticRow, ...]:
        """The number."""
        return (DiagnosticRow(self.name, self.value, "", self.note),)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    def picture(self) -> Picture | None:
        """None: one number."""
        return None


@torch.no_grad()
def token_accuracy(
    decode: Decode, z: Tensor, ids: Tensor, *, generator: torch.Generator, name: str = "token_accuracy"
) -> Fidelity:
    """Share of the tokens ``ids`` (B, L) that ``decode`` reads from their latents ``z`` (B, ...), of logits (B, L, V).

    The highest logit counts; intervals resample examples. This project's definition.
    """
    hits = read_tokens(decode, z) == ids.to(z.device)
    return Fidelity(name, mean_estimate(hits, torch.ones_like(hits), generator), f"{ids.numel()} tokens")


@torch.no_grad()
def reconstruction_error(
    decode: Decode, z: Tensor, images: Tensor, *, generator: torch.Generator, name: str = "reconstruction_error"
) -> Fidelity:
    """Squared error of ``decode(z)`` against ``images`` (B, ...), over their variance around their own mean image.

    0 is perfect, 1 what the mean image alone would have. Intervals resample examples. This project's definition.
    """
    images = images.to(z.device)
    scatter = (images.double() - images.double().mean(0)).flatten(1).square().sum(1)
    error = in_parts(decode, _squared_error, z, images)
    return Fidelity(name, ratio_estimate(error, scatter, generator), "squared error / variance of the images")


def _squared_error(decode: Decode, z: Tensor, images: Tensor) -> Tensor:
    return (decode(z).double() - images.double()).flatten(1).square().sum(1)

"""A linear readout of token states: fitted, tied to the embeddings, or read from a file. N states, D, V vocabulary."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fewstep.errors import UserError

KEYS = ("weight", "bias")


@dataclass(frozen=True)
class LinearReadout:
    """Logits (..., V) = z ``weight``' + ``bias`` of states z (..., D); weight (V, D), bias (V,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """Logits (..., V) of ``z`` (..., D)."""
        return torch.nn.functional.linear(z, self.weight, self.bias)


@dataclass(frozen=True)
class ReadoutChoice:
    """Which linear readout: ``file`` where it is given, else ``kind``; ``num_steps`` and ``seed`` are of the fit.

    "fitted" is trained, "tied" is the encoder's own input embeddings. Raises ``UserError`` for an unknown kind or no
    step.
    """

    kind: Literal["fitted", "tied"] = "fitted"
    file: Path | None = None
    num_steps: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("fitted", "tied") or self.num_steps < 1:
            raise UserError(
                f"readout {self.kind!r} with {self.num_steps} steps: expected 'fitted' or 'tied', and at least 1 step"
            )


def fit_linear(
    states: Tensor,
    ids: Tensor,
    start: LinearReadout,
    *,
    num_steps: int,
    generator: torch.Generator,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
) -> LinearReadout:
    """Train ``start`` to read ``ids`` (N,) from ``states`` (N, D): AdamW on cross-entropy, linear decay to 0.

    Batches are drawn with replacement by ``generator``. It has its own gradient mode and leaves ``start`` alone.
    """
    scale = states.double().square().mean().sqrt().to(states)
    with torch.inference_mode(False), torch.enable_grad():
        weight, bias = (
            (value.clone() * factor).requires_grad_() for value, factor in ((start.weight, scale), (start.bias, 1))
        )
        optimizer = torch.optim.AdamW([weight, bias], lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
        for step in range(num_steps):
            rows = torch.randint(len(ids), (batch_size,), generator=generator, device=generator.device).to(ids.device)
            logits = torch.nn.functional.linear(states[rows].clone() / scale, weight, bias)
            loss = torch.nn.functional.cross_entropy(logits.float(), ids[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / num_steps)
            optimizer.step()
    return LinearReadout((weight / scale).detach(), bias.detach())


def read_linear(file: Path, dim: int, rows: int, like: Tensor) -> LinearReadout:
    """The readout in a safetensors file: ``weight`` (V, D) and, where it has one, ``bias`` (V,), V at least ``rows``.

    Raises ``UserError`` where the file cannot be read or does not fit states of ``dim`` numbers.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file} cannot be read as safetensors ({str(error).splitlines()[0]}): give a whole file"
        ) from None
    weight = found.get(KEYS[0])
    if weight is None or set(found) - set(KEYS) or weight.ndim != 2 or weight.shape[1] != dim or len(weight) < rows:
        shapes = {name: tuple(value.shape) for name, value in found.items()}
        raise UserError(
            f"{file} holds {shapes}: expected weight of shape (V, {dim}) with V at least {rows}, and bias (V,) or none"
        )
    bias = found.get(KEYS[1], torch.zeros(len(weight)))
    if bias.shape != weight.shape[:1]:
        raise UserError(f"{file} has a bias of shape {tuple(bias.shape)}: expected ({len(weight)},), one a token")
    return LinearReadout(weight.to(like), bias.to(like))

"""The exact denoiser of a saved model's train latents, as the flow of its samples. B samples, N latents, L tokens."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.sweep_texts import FlowTexts, flow_setting
from fewstep.lab.theory.latents import CapRule, LatentPosterior
from fewstep.model import SavedModel
from fewstep.paths import PATHS
from fewstep.pipeline import TextGenerator

if TYPE_CHECKING:
    from datasets import Dataset


@torch.no_grad()
def train_latents(bundle: SavedModel, ids: Tensor) -> Tensor:
    """Latents (N, K, D) of blocks ``ids`` (N, L) without padding. Raises ``UserError`` without an autoencoder."""
    bundle.require("autoencoder")
    assert bundle.autoencoder is not None
    device = next(bundle.autoencoder.parameters()).device
    parts = (part.to(device) for part in ids.split(256))
    return torch.cat([bundle.autoencoder.encode(part, torch.ones_like(part, dtype=torch.bool)).z for part in parts])


def train_blocks(train: "Dataset", count: int) -> Tensor:
    """``count`` blocks (N, L) int64 without padding, spread evenly over a packed split.

    Raises ``UserError`` where the split has fewer.
    """
    rows = train[:]
    ids, length = torch.as_tensor(rows["input_ids"]).long(), torch.as_tensor(rows["length"])
    full = ids[length == ids.shape[1]]
    if not 1 <= count <= len(full):
        raise UserError(f"{count} latents asked for: expected 1 to {len(full)}, the train blocks without padding")
    return full[(torch.arange(count) * len(full)) // count]


def exact_flow(
    bundle: SavedModel, latents: Tensor, h: float, cap: float | None = None, rule: CapRule = "point"
) -> LatentPosterior:
    """The exact denoiser of ``latents`` (N, K, D) on the path that the model was trained on; it needs no denoiser."""
    return LatentPosterior(latents, h, PATHS[bundle.identity.path](), cap, rule=rule)


def exact_name(flow: LatentPosterior) -> str:
    """The name of rows of the exact denoiser: its width, and its cap where it has one."""
    cap = "" if flow.cap is None else f", cap {flow.cap:g} {flow.rule}"
    return f"exact, h = {flow.h:g}{cap}"


class ExactTexts(FlowTexts):
    """:class:`FlowTexts` with the exact denoiser in place of the model's own, on the model's grid: for a sweep.

    Raises what :class:`FlowTexts` raises; the model's own denoiser must be there, though it is not asked.
    """

    def __init__(
        self, bundle: SavedModel, flow: LatentPosterior, num_steps: int, reinjection: float, readouts: Sequence[str]
    ) -> None:
        super().__init__(TextGenerator(bundle), flow_setting(num_steps, f"{reinjection:g}"), readouts)
        self.flow = flow  # type: ignore[assignment]
        self.settings = tuple(replace(one, name=exact_name(flow)) for one in self.settings)

"""Transformer blocks of the trained networks, compiled or recomputed in the backward pass."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fewstep.errors import UserError
from fewstep.nn import transformer_blocks


class CompiledBlocks(Callback):
    """Compiles the transformer blocks with ``backend``, for example ``inductor``; None: no compilation.

    The blocks have one shape, so one compilation serves all, and parameter names stay as they are. Raises
    ``UserError`` for a backend that torch does not have.
    """

    def __init__(self, backend: str | None = None) -> None:
        if backend is not None and backend not in torch.compiler.list_backends(exclude_tags=()):
            raise UserError(
                f"compile.backend is {backend!r}: expected one of {', '.join(torch.compiler.list_backends())}, or null"
            )
        self.backend = backend

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark the blocks; each is compiled at its first call."""
        if self.backend is not None:
            for block in transformer_blocks(pl_module):
                block.compile(backend=self.backend)


class RecomputedBlocks(Callback):
    """With ``blocks``, keeps only the inputs of the transformer blocks for the backward pass (arXiv:1604.06174).

    Everything inside is computed again when its gradient is due: the same losses and gradients to the bit, for about a
    third more time and much less memory. Objectives that differentiate forward and then backward through that raise
    ``UserError`` at the first step.
    """

    def __init__(self, blocks: bool = False) -> None:
        self.blocks = blocks

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wrap the forward method of each block; parameter names stay as they are."""
        if self.blocks:
            for block in transformer_blocks(pl_module):
                block.forward = partial(_recomputed, block.forward)  # type: ignore[method-assign]


def _recomputed(forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    if torch._C._are_functorch_transforms_active():  # torch has no public name for it
        raise UserError(
            "recompute.blocks is true, but the objective needs gradients of a forward derivative, which torch cannot "
            "recompute: leave it out"
        )
    # A block draws no random numbers; saving their state would sync the device.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

"""The trained networks' blocks computed a second time in the backward pass, in place of being remembered."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fewstep.errors import UserError
from fewstep.nn import transformer_blocks


class RecomputedBlocks(Callback):
    """With ``blocks``, keeps only the inputs of the transformer blocks for the backward pass (arXiv:1604.06174).

    What lies between is computed again when its gradient is due: losses and gradients are the same to the bit, for
    about a third more time and a small part of the memory. Objectives that differentiate forward and then backward
    through that are refused with ``UserError`` at the first step: what torch computes again knows no forward mode.
    """

    def __init__(self, blocks: bool = False) -> None:
        self.blocks = blocks

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change how the blocks are called; their weights keep their names."""
        if not self.blocks:
            return
        for block in transformer_blocks(pl_module):
            block.forward = partial(_recomputed, block.forward)  # type: ignore[method-assign]


def _recomputed(forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """``forward`` of these arguments, its inner tensors forgotten and made again in the backward pass."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    if torch._C._are_functorch_transforms_active():
        raise UserError(
            "recompute.blocks is true, but the objective needs gradients of a forward derivative, which torch cannot "
            "compute again: leave it out"
        )
    # No state of random numbers is kept, which an accelerator would be waited for: a block draws none.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

"""Callbacks on the trained networks: averaged, compiled, or recomputed in the backward pass."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from fewstep.errors import UserError


class WeightAverage(WeightAveraging):
    """Exponential moving average of weights and buffers, updated after every optimizer step.

    All tensors in one call: Lightning's ``EMAWeightAveraging`` goes tensor by tensor, at three times the cost on small
    networks.
    """

    def __init__(self, decay: float = 0.995) -> None:
        super().__init__(multi_avg_fn=moving_average(decay))
        self._is_swapped = False

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Create the average. Its counter of updates stays on the CPU, where reading it needs no device sync."""
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Move the average to the weights: Lightning creates it before it moves the module to its device."""
        assert self._average_model is not None
        self._average_model.module.to(pl_module.device)

    def _swap_models(self, pl_module: Any) -> None:
        super()._swap_models(pl_module)
        self._is_swapped = not self._is_swapped

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Swap the average out again if a validation fails."""
        if self._is_swapped:
            self._swap_models(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Nothing: it is not called if no step was left to train."""

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Copy the average into the weights."""
        super().on_train_end(trainer, pl_module)


def moving_average(decay: float) -> Callable[..., None]:
    """The update of averaged tensors, a list of one dtype. Whole numbers, such as indices, are copied.

    An average of them would be rounded down: position 5 becomes 4.
    """
    average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(averaged: Any, current: Any, num_averaged: Any) -> None:
        if averaged[0].is_floating_point():
            average(averaged, current, num_averaged)
            return
        for old, new in zip(averaged, current, strict=True):
            old.copy_(new)

    return update


class CompiledBlocks(Callback):
    """Compiles the transformer blocks with ``backend``, such as ``inductor``; None: no compilation.

    They have one shape, so one compilation serves all. Raises ``UserError`` for a backend that torch does not have.
    """

    def __init__(self, backend: str | None = None) -> None:
        if backend is not None and backend not in torch.compiler.list_backends(exclude_tags=()):
            raise UserError(
                f"compile.backend is {backend!r}: expected one of {', '.join(torch.compiler.list_backends())}, or null"
            )
        self.backend = backend

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Mark the blocks; each is compiled at its first call."""
        if self.backend is not None:
            for block in pl_module.blocks():
                block.compile(backend=self.backend)


class RecomputedBlocks(Callback):
    """With ``blocks``, keeps only the inputs of the transformer blocks for the backward pass (arXiv:1604.06174).

    The same losses and gradients to the bit, for about a third more time and much less memory. Objectives that
    differentiate forward and then backward through that raise ``UserError`` at the first step.
    """

    def __init__(self, blocks: bool = False) -> None:
        self.blocks = blocks

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Wrap the forward method of each block; parameter names stay as they are."""
        if self.blocks:
            for block in pl_module.blocks():
                block.forward = partial(_recomputed, block.forward)


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

"""The auxiliary network of distribution matching and its updates, which Lightning does not know of."""

from typing import Any

import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from fewstep.storage import load_strictly
from fewstep.training.module import OptimizerSettings


class Auxiliary:
    """A second network that is trained beside a stage's own: kept in checkpoints, never in a saved model.

    It is no submodule of the stage, so the stage's optimizer, gradient norm, weight average and DDP do not see it. All
    its updates happen inside a training step: gradients are averaged over ranks, clipped as the trainer's settings say,
    and dropped if they are not finite. The schedule moves once a training step.
    """

    def __init__(self, network: nn.Module, settings: OptimizerSettings) -> None:
        self.network = network
        self.settings = settings
        self._optimizer: torch.optim.Optimizer | None = None
        self._schedule: LRScheduler | None = None
        self._restored: dict[str, Any] = {}

    def start(self, trainer: Trainer, device: torch.device) -> None:
        """Move the network to the device and build its optimizer, in a resumed run with the state it had."""
        self.network.to(device)
        if self._optimizer is not None:
            return
        self._optimizer, self._schedule = self.settings.build(self.network.parameters(), trainer.max_steps)
        if self._restored:
            self._optimizer.load_state_dict(self._restored["optimizer"])
            self._schedule.load_state_dict(self._restored["schedule"])
            self.settings.replace_restored(self._optimizer, self._schedule)
            self._restored = {}
        if trainer.world_size > 1:
            for tensor in self.network.state_dict().values():
                torch.distributed.broadcast(tensor, 0)

    def update(self, loss: Tensor, trainer: Trainer) -> Tensor:
        """One step of the optimizer. Returns the norm of the gradient before clipping, a detached scalar."""
        assert self._optimizer is not None  # `start` comes before every step
        with torch.autocast(loss.device.type, enabled=False):  # as Lightning does it, outside of the forward pass
            loss.backward()
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        if trainer.world_size > 1:
            flat = trainer.strategy.reduce(torch.cat([g.flatten() for g in gradients]), reduce_op="mean")
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))
        norm = nn.utils.get_total_norm(gradients)
        if trainer.gradient_clip_val:
            if trainer.gradient_clip_algorithm == "value":
                nn.utils.clip_grad_value_(self.network.parameters(), trainer.gradient_clip_val)
            else:
                nn.utils.clip_grads_with_norm_(self.network.parameters(), trainer.gradient_clip_val, norm)
        if bool(torch.isfinite(norm)):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        # Inside of one autocast context the weights' casts are kept, which would now be those of before.
        torch.clear_autocast_cache()
        return norm

    def end_step(self) -> None:
        """Move the learning rate on."""
        assert self._schedule is not None
        self._schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer and schedule, for a checkpoint."""
        assert self._optimizer is not None and self._schedule is not None
        optimizer, schedule = self._optimizer.state_dict(), self._schedule.state_dict()
        return {"network": self.network.state_dict(), "optimizer": optimizer, "schedule": schedule}

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """Restore what :meth:`state_dict` returned. Raises ``UserError`` for another network."""
        load_strictly(self.network, state["network"], source)
        self._restored = state

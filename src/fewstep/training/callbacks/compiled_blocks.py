"""The trained networks' blocks through ``torch.compile``."""

import torch
from lightning import Callback, LightningModule, Trainer

from fewstep.errors import UserError
from fewstep.nn import transformer_blocks
from fewstep.training.module import TrainingModule


class CompiledBlocks(Callback):
    """Compiles the transformer blocks that a run trains, by ``backend``, such as ``inductor``; none where it is None.

    Blocks, not whole networks: they are alike, so one compilation serves all, and their weights keep their names.
    Raises ``UserError`` for a backend that torch does not have.
    """

    def __init__(self, backend: str | None = None) -> None:
        if backend is not None and backend not in torch.compiler.list_backends(exclude_tags=()):
            raise UserError(
                f"compile.backend is {backend!r}: expected one of {', '.join(torch.compiler.list_backends())}, or null"
            )
        self.backend = backend

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark the blocks; each is compiled when it is first called."""
        assert isinstance(pl_module, TrainingModule)
        if self.backend is None:
            return
        for block in transformer_blocks(pl_module):
            block.compile(backend=self.backend)

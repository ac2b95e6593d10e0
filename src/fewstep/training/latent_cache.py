"""Latents of the train split, computed once and kept on disk. N blocks, K positions, D latent dimension."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from fewstep.autoencoders import TransformerAutoencoder
from fewstep.bundle import ModelBundle
from fewstep.data import PreparedCorpus, collate
from fewstep.data.cache import cached_folder
from fewstep.errors import UserError
from fewstep.training.data_module import TextDataModule
from fewstep.types import Latents

BATCH_SIZE = 256


@dataclass(frozen=True)
class LatentCache:
    """Memory-mapped latents ``z`` (N, K, D) float32 and ``mask`` (N, K) bool, in the order of the train split."""

    z: np.ndarray
    mask: np.ndarray
    device: torch.device

    @classmethod
    def open(cls, folder: str | Path, base: ModelBundle, data: TextDataModule) -> "LatentCache":
        """Open the cache of this autoencoder on this corpus, computing it where it is not there yet.

        Of several processes one computes while the others wait. Raises ``UserError`` for a streamed corpus.
        """
        corpus = data.corpus
        if not isinstance(corpus, PreparedCorpus):
            raise UserError("a streamed corpus has no latent cache: leave latent_cache_dir out, or turn streaming off")
        autoencoder = base.autoencoder
        assert autoencoder is not None
        key = f"latents-{corpus.fingerprint}-{weights_fingerprint(autoencoder)}"
        place = cached_folder(
            Path(folder).expanduser(), key, is_whole, lambda draft: write_latents(draft, autoencoder, corpus)
        )
        z, mask = (np.load(place / f"{name}.npy", mmap_mode="r") for name in ("z", "mask"))
        return cls(z, mask, next(autoencoder.parameters()).device)

    def rows(self, index: torch.Tensor) -> Latents:
        """Latents of the rows ``index`` (B,), on the autoencoder's device."""
        rows = index.cpu().numpy()
        z, mask = torch.from_numpy(self.z[rows]), torch.from_numpy(self.mask[rows])
        return Latents(z.to(self.device), mask.to(self.device))


def is_whole(folder: Path) -> bool:
    """Whether a cache folder has both of its files; a folder appears only when it is complete."""
    return (folder / "z.npy").is_file() and (folder / "mask.npy").is_file()


@torch.no_grad()
def write_latents(folder: Path, autoencoder: TransformerAutoencoder, corpus: PreparedCorpus) -> None:
    """Encode the whole train split into ``z.npy`` and ``mask.npy``, with a progress bar."""
    count, device = len(corpus.train), next(autoencoder.parameters()).device
    positions = autoencoder.num_latents(len(corpus.train[0]["input_ids"]))
    shape = (count, positions, autoencoder.latent_dim)
    z = np.lib.format.open_memmap(folder / "z.npy", mode="w+", dtype=np.float32, shape=shape)
    mask = np.lib.format.open_memmap(folder / "mask.npy", mode="w+", dtype=np.bool_, shape=shape[:2])
    for start in tqdm(range(0, count, BATCH_SIZE), desc="encoding the train split", unit="batch"):
        rows = range(start, min(start + BATCH_SIZE, count))
        batch = collate([corpus.train[row] for row in rows])
        latents = autoencoder.encode(batch["ids"].to(device), batch["mask"].to(device))
        z[rows.start : rows.stop] = latents.z.float().cpu().numpy()
        mask[rows.start : rows.stop] = latents.mask.cpu().numpy()
    z.flush()
    mask.flush()


def weights_fingerprint(autoencoder: TransformerAutoencoder) -> str:
    """Hash (16 hex digits) of all weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(autoencoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]

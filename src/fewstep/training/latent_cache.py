"""Latents of the train split, computed once and kept on disk. N blocks, K positions, D latent dimension."""

import hashlib
import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from fewstep.autoencoders import TransformerAutoencoder
from fewstep.bundle import ModelBundle
from fewstep.data import PreparedCorpus, collate, tokenizer_fingerprint
from fewstep.data.cache import cached_folder
from fewstep.errors import UserError
from fewstep.evaluation.processes import Processes
from fewstep.training.data_module import TextDataModule
from fewstep.types import Latents

BATCH_SIZE = 256
FILES, MANIFEST = ("z.npy", "mask.npy"), "cache.json"
_FORMAT = 2
"""Raise it when the files change their meaning."""


@dataclass(frozen=True)
class Told:
    """What the first process tells the others: a ``draft`` to write into, or the end, with a ``problem`` or without."""

    draft: str = ""
    problem: str = ""


@dataclass(frozen=True)
class LatentCache:
    """Memory-mapped latents ``z`` (N, K, D) float32 and ``mask`` (N, K) bool, in the order of the train split."""

    z: np.ndarray
    mask: np.ndarray
    device: torch.device

    @classmethod
    def open(cls, folder: str | Path, base: ModelBundle, data: TextDataModule) -> "LatentCache":
        """Open the cache of this autoencoder on this corpus, computing it where it is not there yet.

        The processes of a group that torch knows of each encode a share of the rows; runs that ask at once wait for the
        one that computes. Raises ``UserError`` for a streamed corpus, and in all processes for what one of them meets:
        a folder that cannot be written, or that not all machines see.
        """
        corpus = data.corpus
        if not isinstance(corpus, PreparedCorpus):
            raise UserError("a streamed corpus has no latent cache: leave latent_cache_dir out, or turn streaming off")
        autoencoder = base.autoencoder
        assert autoencoder is not None
        root, key = Path(folder).expanduser(), cache_key(autoencoder, corpus)
        build_together(root, key, autoencoder, corpus, group())
        z, mask = (np.load(root / key / name, mmap_mode="r") for name in FILES)
        return cls(z, mask, next(autoencoder.parameters()).device)

    def rows(self, index: torch.Tensor) -> Latents:
        """Latents of the rows ``index`` (B,), on the autoencoder's device.

        An accelerator is not waited for where ``index`` lies in the processor's memory.
        """
        rows = index.cpu().numpy()
        z, mask = (self._moved(torch.from_numpy(kept[rows])) for kept in (self.z, self.mask))
        return Latents(z, mask)

    def _moved(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.pin_memory() if self.device.type == "cuda" else rows
        return rows.to(self.device, non_blocking=True)


def group() -> Processes:
    """The processes that train together; this one alone where torch knows of no group."""
    if not (dist.is_available() and dist.is_initialized()):
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size())


def cache_key(autoencoder: TransformerAutoencoder, corpus: PreparedCorpus) -> str:
    """Name of a cache: hashes of corpus and tokenizer, and of the autoencoder's settings and weights."""
    tokenizer = tokenizer_fingerprint(corpus.tokenizer)[:8]
    return f"latents-{_FORMAT}-{corpus.fingerprint}-{tokenizer}-{autoencoder_fingerprint(autoencoder)}"


def is_whole(folder: Path) -> bool:
    """Whether a cache folder has its files, in the sizes that its manifest tells."""
    try:
        sizes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["bytes"]
        return all((folder / name).stat().st_size == sizes[name] for name in FILES)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def build_together(
    root: Path, key: str, autoencoder: TransformerAutoencoder, corpus: PreparedCorpus, processes: Processes
) -> None:
    """Make sure that ``root/key`` is whole, all of ``processes`` encoding their shares where it was not.

    The first process makes a draft, all write their rows beside it, and the first one joins and publishes them. It
    alone holds the folder's lock, so that other runs wait. Raises ``UserError`` in all processes for what one meets.
    """

    def build(draft: Path) -> None:
        processes.from_first(Told(draft=str(draft)))
        encode_share(draft, autoencoder, corpus, processes)
        join(draft, processes)

    told = Told()
    if processes.is_first:
        try:
            cached_folder(root, key, is_whole, build)
        except UserError as error:
            told = Told(problem=str(error))
        except OSError as error:
            told = Told(problem=f"latent_cache_dir {root} cannot be written ({error.strerror or error})")
        processes.from_first(told)
    else:
        told = processes.from_first(told)
        if told.draft:
            try:
                encode_share(Path(told.draft), autoencoder, corpus, processes)
            finally:
                told = processes.from_first(told)
    if told.problem:
        raise UserError(told.problem)
    agree(processes, "" if is_whole(root / key) else f"{root / key} is not seen by process {processes.rank}")


def agree(processes: Processes, problem: str) -> None:
    """Raise ``UserError`` in all processes where one has a ``problem``. All call it, and wait for each other."""
    problems = [found for found in processes.gather([problem]) if found]
    first = processes.from_first(problems[0] if problems else "")
    if first:
        raise UserError(f"{first}: give a latent_cache_dir that all processes can read and write")


@torch.no_grad()
def encode_share(
    folder: Path, autoencoder: TransformerAutoencoder, corpus: PreparedCorpus, processes: Processes
) -> None:
    """Write this process's rows into files of its own in ``folder``, with a progress bar in the first one.

    The batches are the same whatever the number of processes, so the bytes are too. No two processes write one file,
    for machines that share a disk write whole pages of it. Raises ``UserError`` in all where one cannot write.
    """
    count, device = len(corpus.train), next(autoencoder.parameters()).device
    starts = range(0, count, BATCH_SIZE)
    first, last = (len(starts) * rank // processes.world_size for rank in (processes.rank, processes.rank + 1))
    problem = ""
    try:
        with ExitStack() as stack:
            z, mask = (stack.enter_context(part(folder, name, processes.rank).open("wb")) for name in FILES)
            if processes.is_first:
                shape = (count, autoencoder.num_latents(len(corpus.train[0]["input_ids"])), autoencoder.latent_dim)
                write_header(z, "<f4", shape)
                write_header(mask, "|b1", shape[:2])
            for start in tqdm(
                starts[first:last], desc="encoding the train split", unit="batch", disable=not processes.is_first
            ):
                batch = collate([corpus.train[row] for row in range(start, min(start + BATCH_SIZE, count))])
                latents = autoencoder.encode(batch["ids"].to(device), batch["mask"].to(device))
                z.write(latents.z.float().cpu().numpy().astype("<f4").tobytes())
                mask.write(latents.mask.cpu().numpy().tobytes())
            for file in (z, mask):  # what a power cut leaves is no cache either
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        problem = f"{folder} cannot be written by process {processes.rank} ({error.strerror or error})"
    agree(processes, problem)


def part(folder: Path, name: str, rank: int) -> Path:
    """The file that a process writes; the first one's is that which the others are joined to."""
    return folder / (f"{name}.{rank}" if rank else name)


def write_header(file: BinaryIO, kind: str, shape: tuple[int, ...]) -> None:
    """What numpy reads before the numbers."""
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})


def join(folder: Path, processes: Processes) -> None:
    """Append the rows of the other processes to the first one's files, and tell their sizes in the manifest."""
    for name in FILES:
        with (folder / name).open("ab") as whole:
            for rank in range(1, processes.world_size):
                with part(folder, name, rank).open("rb") as rows:
                    shutil.copyfileobj(rows, whole, 1 << 24)
                part(folder, name, rank).unlink()
            whole.flush()
            os.fsync(whole.fileno())
    sizes = {name: (folder / name).stat().st_size for name in FILES}
    (folder / MANIFEST).write_text(json.dumps({"bytes": sizes}), encoding="utf-8")


def autoencoder_fingerprint(autoencoder: TransformerAutoencoder) -> str:
    """Hash (16 hex digits) of settings, weights and buffers: the number of heads, say, is in no weight's shape."""
    digest = hashlib.sha256(json.dumps(autoencoder.config, sort_keys=True).encode())
    for name, value in sorted(autoencoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]

"""Latents kept on disk are the encoder's, and training cannot tell them from fresh ones."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.autoencoders import TransformerAutoencoder
from fewstep.cli.train import main
from fewstep.data import collate
from fewstep.model import SavedModel
from fewstep.training import TextDataModule, latent_cache
from fewstep.training.latent_cache import LatentCache, cache_key, is_complete
from tests.runs import BLOCK_SIZE, DOCUMENTS, Workshop, logged


def data_of(workshop: Workshop, streaming: bool = False) -> TextDataModule:
    return TextDataModule(
        source=str(workshop.folder / "text.jsonl"),
        cache_dir=str(workshop.folder / "cache"),
        tokenizer=str(workshop.autoencoder / "tokenizer"),
        block_size=BLOCK_SIZE,
        max_documents=DOCUMENTS,
        streaming=streaming,
    )


def test_cached_latents_are_the_encoded_ones_and_are_computed_once(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, base = data_of(workshop), SavedModel.from_pretrained(workshop.autoencoder)
    cache = LatentCache.open(tmp_path, base, data)
    index = torch.tensor([5, 0, len(data.corpus.train) - 1])
    batch = collate([data.corpus.train[int(row)] for row in index])
    fresh, stored = base.autoencoder.encode(batch["ids"], batch["mask"]), cache.rows(index)
    torch.testing.assert_close(stored.z, fresh.z, rtol=0, atol=1e-6)
    assert torch.equal(stored.mask, fresh.mask)
    assert isinstance(cache.z, np.memmap)

    calls = []
    encode = TransformerAutoencoder.encode
    monkeypatch.setattr(TransformerAutoencoder, "encode", lambda *given: calls.append(1) or encode(*given))
    again = LatentCache.open(tmp_path, base, data)
    assert not calls
    assert np.array_equal(again.z, cache.z)
    with torch.no_grad():
        base.autoencoder.embedding.weight[0] += 1
    LatentCache.open(tmp_path, base, data)
    assert calls, "another autoencoder has other latents"


def test_a_killed_process_leaves_nothing_that_passes_for_whole(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_cache, "BATCH_SIZE", 100)
    data, base = data_of(workshop), SavedModel.from_pretrained(workshop.autoencoder)
    place = tmp_path / cache_key(base.autoencoder, data.corpus)
    child = os.fork()
    if child == 0:
        encode, calls = TransformerAutoencoder.encode, []

        def killed(*given: object) -> object:
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(*given)

        TransformerAutoencoder.encode = killed
        LatentCache.open(tmp_path, base, data)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert list(tmp_path.glob(".*.partial/z.npy"))
    assert not place.exists()
    whole = LatentCache.open(tmp_path, base, data)
    assert len(whole.z) == len(data.corpus.train)
    assert not list(tmp_path.glob(".*.partial"))
    with (place / "z.npy").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 4)
    assert not is_complete(place)
    again = LatentCache.open(tmp_path, base, data)
    assert len(again.z) == len(data.corpus.train)


def test_losses_with_and_without_the_cache_are_the_same(workshop: Workshop, tmp_path: Path) -> None:
    flags = [f"--model.latent_cache_dir={tmp_path / 'latents'}"]
    plain, cached = tmp_path / "plain", tmp_path / "cached"
    assert main(workshop.arguments("flow", f"--run_dir={plain}", steps=6)) == 0
    assert main(workshop.arguments("flow", f"--run_dir={cached}", *flags, steps=6)) == 0
    assert list((tmp_path / "latents").glob("latents-*/z.npy"))
    one, other = logged(plain)["train/loss"], logged(cached)["train/loss"]
    assert one.keys() == other.keys() == set(range(6))
    for step, loss in one.items():
        assert other[step] == pytest.approx(loss, rel=1e-6)

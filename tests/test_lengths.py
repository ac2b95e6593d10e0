"""Lengths of texts: drawn from those of the data, beyond what is known, and padding behind them."""

from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from fewstep.model import SavedModel, merge_models
from fewstep.pipeline import TextGenerator
from fewstep.prompts import GAP, UNKNOWN
from fewstep.shapes import example_generators
from fewstep.writing import real_tokens
from tests.bundles import BLOCK_SIZE, STRIDE, only, tiny_bundle, with_identity

COUNTS = (0, 4, 0, 8, 16, 0, 2, 10)
END = 0


def drawn(ids: torch.Tensor, counts: tuple[int, ...] = COUNTS, stride: int = 1) -> torch.Tensor:
    """Lengths (B,) for blocks ``ids`` (B, L)."""
    real = real_tokens(counts, ids, END, BLOCK_SIZE // stride, example_generators(0, 0, len(ids)))
    assert torch.equal(real, torch.arange(BLOCK_SIZE) < real.sum(1, keepdim=True)), "what is real comes first"
    return real.sum(1)


@pytest.mark.parametrize("begun", [0, 2, 4])
def test_lengths_have_the_law_of_the_data_beyond_what_is_known(begun: int) -> None:
    ids = torch.full((4000, BLOCK_SIZE), UNKNOWN)
    ids[:, :begun] = 7
    seen = torch.bincount(drawn(ids), minlength=BLOCK_SIZE + 1)[1:]
    law = torch.tensor(COUNTS, dtype=torch.float64) * (torch.arange(1, BLOCK_SIZE + 1) > begun)
    assert not seen[law == 0].any()
    assert chisquare(seen[law > 0], 4000 * (law / law.sum())[law > 0]).pvalue > 1e-3


def test_a_known_end_decides_and_a_text_that_no_other_is_as_long_as_fills_its_block() -> None:
    ids = torch.tensor([[5, 5, END] + [UNKNOWN] * 5, [5] * 7 + [UNKNOWN]])
    assert drawn(ids, (3, 0, 0, 0, 1, 0, 0, 0)).tolist() == [3, BLOCK_SIZE]


def test_drawn_lengths_are_filled_up_to_whole_latents() -> None:
    ids = torch.full((500, BLOCK_SIZE), UNKNOWN)
    assert set(drawn(ids, (1, 0, 1, 0, 1, 0, 1, 0), stride=2).tolist()) == {2, 4, 6, 8}


@pytest.mark.parametrize("readout", ["parallel", "head"])
def test_texts_end_within_their_length_and_the_latents_behind_it_are_zero(readout: str) -> None:
    model = with_identity(tiny_bundle(), blocks="documents", length_counts=(0, 0, 1, 0, 0, 0, 0, 0))
    made = TextGenerator(model).generate(20, 3, readout=readout, reinjection=0.5)
    assert bool((made.mask.sum(1) <= 5).all()), "two latents of two tokens, and the end"
    assert not made.x_1[:, 2:].any() and bool((made.x_1[:, :2] != 0).all())
    assert all(ids[mask][-1] == model.tokenizer.eos_token_id for ids, mask in zip(made.ids, made.mask, strict=True))


def test_a_gap_is_filled_in_within_a_text_of_the_length_it_then_has() -> None:
    model = with_identity(tiny_bundle(), blocks="documents", length_counts=(0,) * 7 + (1,))
    made = TextGenerator(model).generate(4, 2, infill=f"the {GAP} sailed", gap_tokens=1)
    behind = -(-int(made.mask[0].sum()) // STRIDE)
    assert behind < BLOCK_SIZE // STRIDE
    assert not made.x_1[:, behind:].any() and bool((made.x_1[:, :behind] != 0).any(-1).all())


def test_lengths_go_with_the_autoencoder_and_a_folder_may_lack_them(tmp_path: Path) -> None:
    model = with_identity(tiny_bundle(), blocks="documents", length_counts=COUNTS)
    scorer = only(with_identity(tiny_bundle(), blocks="documents"), "language_model")
    merged = merge_models([only(model, "autoencoder", "readout", "denoiser"), scorer], ["latents", "scorer"])
    assert merged.identity.length_counts == COUNTS
    merged.save_pretrained(tmp_path / "model")
    assert SavedModel.from_pretrained(tmp_path / "model").identity == merged.identity

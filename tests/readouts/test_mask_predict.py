"""Mask-predict: what is sure, known or an end stays, the rest is read from what these encode."""

import math
from dataclasses import replace

import pytest
import torch

from fewstep.errors import UserError
from fewstep.pipeline import TextGenerator
from fewstep.readouts import READOUTS, MaskPredictReadout
from fewstep.readouts.mask_predict import least
from fewstep.shapes import randn
from fewstep.types import Ending, KnownTokens
from tests.bundles import BLOCK_SIZE, LATENT_DIM, STRIDE, tiny_bundle

POSITIONS = BLOCK_SIZE // STRIDE


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def trained_with_hidden_tokens(share: float = 0.2) -> MaskPredictReadout:
    """A tiny readout and encoder with random weights, the embedding of hidden tokens among them."""
    model = tiny_bundle()
    model.autoencoder.mask_embedding.data = torch.randn(16, generator=noise())
    return MaskPredictReadout(model.reader(), model.encoder(), share=share)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_the_least_certain_tokens_are_read_from_what_the_others_encode(share: float) -> None:
    reader = trained_with_hidden_tokens(share)
    z, mask = randn((5, POSITIONS, LATENT_DIM), torch.empty(0), noise()), torch.ones(5, POSITIONS, dtype=torch.bool)
    made = reader.generate(z, mask, generator=noise())
    with torch.no_grad():
        certainty, first = reader.readout.logits(z, mask).softmax(-1).max(-1)
        count = math.ceil(share * BLOCK_SIZE)
        hidden = torch.zeros(5, BLOCK_SIZE, dtype=torch.bool)
        for row in range(5):
            hidden[row, sorted(range(BLOCK_SIZE), key=lambda place, r=row: float(certainty[r, place]))[:count]] = True
        encoded = reader.encoder.encode(first, torch.ones_like(first, dtype=torch.bool), hidden)
        again = reader.readout.logits(encoded.z, mask).argmax(-1)
    assert torch.equal(made.ids, torch.where(hidden, again, first))
    assert not torch.equal(made.ids, first), "or this test shows nothing"


def test_what_is_known_and_where_a_text_ends_stays() -> None:
    reader = trained_with_hidden_tokens(0.9)
    z, mask = randn((64, POSITIONS, LATENT_DIM), torch.empty(0), noise()), torch.ones(64, POSITIONS, dtype=torch.bool)
    known = KnownTokens(torch.randint(250, (64, BLOCK_SIZE), generator=noise()), torch.zeros(64, BLOCK_SIZE).bool())
    known.mask[:, [0, 3]] = True
    first = reader.readout.generate(z, mask, known=known, generator=noise())
    end = int(first.ids[:, 5].mode().values)
    ending = Ending(end, end)
    plain = reader.readout.generate(z, mask, known=known, ending=ending, generator=noise())
    made = reader.generate(z, mask, known=known, ending=ending, generator=noise())
    for sample in (plain, made):
        assert torch.equal(sample.ids[known.mask], known.ids[known.mask])
    ends = (plain.ids == end) & plain.written
    assert bool(ends.any()) and bool((made.ids[ends & made.written] == end).all())
    assert not torch.equal(made.ids, plain.ids)


def test_a_text_does_not_depend_on_those_beside_it() -> None:
    model = tiny_bundle()
    model.autoencoder.mask_embedding.data = torch.randn(16, generator=noise())
    model.identity = replace(model.identity, blocks="documents", length_counts=(0, 1, 1, 1, 1, 1, 1, 3))
    generator = TextGenerator(model)
    together = generator.generate(6, 2, 3, readout="mask_predict")
    alone = [generator.generate(1, 2, 3, readout="mask_predict", first_sample=number) for number in range(6)]
    assert together.texts == tuple(text.texts[0] for text in alone)
    assert READOUTS["mask_predict"].passes(BLOCK_SIZE) == 3


def test_ties_and_places_that_stay() -> None:
    values = torch.tensor([[0.0, 0.0, -1.0, -2.0], [0.5, 0.1, 0.2, 0.3]])
    among = torch.tensor([[True, True, True, False], [False, False, False, False]])
    assert least(values, among, 0.5).tolist() == [[True, False, True, False], [False] * 4]


def test_an_encoder_that_never_had_tokens_hidden_is_refused() -> None:
    model = tiny_bundle()
    model.autoencoder.mask_embedding.data.zero_()
    with pytest.raises(UserError, match=r"was trained without: choose parallel, or train .*token_masking above 0"):
        TextGenerator(model).generate(2, 1, readout="mask_predict")
    with pytest.raises(ValueError, match="share is 1"):
        trained_with_hidden_tokens(1.0)

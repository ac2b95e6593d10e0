"""Tiny models and real text, on which some tokens flip and others do not."""

import torch

from fewstep.evaluation.subject import Subject, text_subject
from fewstep.model import SavedModel
from fewstep.types import TokenBatch
from tests.bundles import BLOCK_SIZE, LINES, tiny_bundle, tokenizer


def real_blocks(block_size: int = BLOCK_SIZE) -> TokenBatch:
    """The lines, an end of text between them, cut into blocks."""
    end = tokenizer().eos_token_id
    stream = [token for line in LINES for token in [*tokenizer()(line)["input_ids"], end]]
    ids = torch.tensor(stream[: len(stream) // block_size * block_size]).reshape(-1, block_size)
    return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))


def mild_bundle(*, self_conditioning: bool = False) -> SavedModel:
    """The tiny bundle with a denoiser so smooth that tokens settle on the way."""
    bundle = tiny_bundle(self_conditioning=self_conditioning)
    assert bundle.denoiser is not None
    with torch.no_grad():
        for parameter in bundle.denoiser.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.3)
    return bundle


def tiny_subject(
    bundle: SavedModel | None = None, *, num_examples: int = 4, num_positions: int = 2, seed: int = 0
) -> Subject:
    """``bundle`` (else the mild one) on the lines of the tests."""
    model = mild_bundle() if bundle is None else bundle
    numbers = {"num_examples": num_examples, "num_positions": num_positions, "seed": seed}
    return text_subject(model, real_blocks(), name="a model", **numbers)

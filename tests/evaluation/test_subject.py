"""What a diagnosis looks at: whole held-out blocks, their latents, and noise that hangs on seed and name alone."""

import pytest
import torch

from fewstep.errors import UserError
from fewstep.evaluation.subject import Subject, noise_source, text_subject
from fewstep.types import TokenBatch
from tests.bundles import BLOCK_SIZE, only, tiny_bundle
from tests.evaluation.subjects import real_blocks, tiny_subject


def test_blocks_with_padding_are_left_out_and_the_latents_are_the_autoencoders() -> None:
    real = real_blocks()
    mask = real.mask.clone()
    mask[0, -1] = mask[2, 3] = False
    bundle = tiny_bundle()
    subject = text_subject(bundle, TokenBatch(real.ids, mask), num_examples=3, num_positions=2, seed=0)
    assert torch.equal(subject.data, real.ids[[1, 3, 4]])
    for row, ids in zip(subject.z, subject.data, strict=True):
        alone = bundle.autoencoder.encode(ids[None], torch.ones(1, BLOCK_SIZE, dtype=torch.bool))
        torch.testing.assert_close(row, alone.z[0])
    assert not subject.z.requires_grad


def test_positions_differ_within_an_example_and_hang_on_the_seed() -> None:
    whole = tiny_subject(num_positions=BLOCK_SIZE)
    assert torch.equal(whole.positions.sort(1).values, torch.arange(BLOCK_SIZE).expand(4, -1))
    one, again, other = (tiny_subject(num_positions=3, seed=seed).positions for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_noise_hangs_on_seed_and_name_and_not_on_what_was_drawn_before() -> None:
    def drawn(seed: int, name: str) -> list[float]:
        return torch.randn(4, generator=noise_source(seed, name)).tolist()

    assert len({tuple(drawn(seed, name)) for seed in (0, 1) for name in ("a", "b", "ab")}) == 6
    subject = tiny_subject(seed=1)
    torch.randn(9, generator=subject.noise("a"))
    assert torch.randn(4, generator=subject.noise("a")).tolist() == drawn(1, "a")
    starts = subject.starts("a")
    assert starts.shape == subject.z.shape
    assert torch.equal(starts, tiny_subject(seed=1).starts("a"))
    assert not torch.equal(starts, subject.starts("b"))


def test_first_keeps_the_first_examples_and_positions_and_the_seed() -> None:
    subject = tiny_subject(seed=3)
    few = subject.first(2, 1)
    for name in ("data", "z", "positions"):
        whole, part = getattr(subject, name), getattr(few, name)
        assert torch.equal(part, whole[:2, :1] if name == "positions" else whole[:2])
    assert (few.seed, few.model) == (3, subject.model)
    assert torch.equal(subject.first(9).positions, subject.positions)


def test_a_large_subject_is_decoded_in_parts_and_gives_what_it_gives_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny_subject()
    assert whole.examples_at_once > len(whole.z)
    monkeypatch.setattr("fewstep.evaluation.subject.NUMBERS_AT_ONCE", 3 * whole.decode(whole.z[:1]).numel())
    parts = tiny_subject()
    assert parts.examples_at_once == 3
    torch.testing.assert_close(parts.decode(parts.z), whole.decode(whole.z))
    torch.testing.assert_close(parts.given_text()(parts.z), whole.given_text()(whole.z))


def test_a_model_in_training_mode_is_refused() -> None:
    bundle = tiny_bundle()
    bundle.parts()["language_model"].train()
    with pytest.raises(UserError, match=r"^[^\n]*training mode[^\n]*$"):
        tiny_subject(bundle)


@pytest.mark.parametrize("part", ["autoencoder", "readout"])
def test_a_model_without_autoencoder_or_readout_is_refused(part: str) -> None:
    kept = [name for name in tiny_bundle().parts() if name != part]
    with pytest.raises(UserError, match=rf"^[^\n]*has no {part} [^\n]*train the stage autoencoder[^\n]*$"):
        tiny_subject(only(tiny_bundle(), *kept))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"num_examples": 0}, "examples is 0: expected a number from 2 to 6, the held-out blocks without padding"),
        ({"num_examples": 7}, "examples is 7: expected a number from 2 to 6, the held-out blocks without padding"),
        ({"num_positions": 0}, "positions is 0: expected a number from 1 to 8, the tokens of a block"),
        ({"num_positions": 9}, "positions is 9: expected a number from 1 to 8, the tokens of a block"),
    ],
)
def test_numbers_that_the_text_cannot_give_are_one_line(numbers: dict[str, int], message: str) -> None:
    with pytest.raises(UserError) as caught:
        tiny_subject(**numbers)
    assert str(caught.value) == message
    numbers = {"num_examples": 6, "num_positions": 8}
    assert len(tiny_subject(**numbers).data) == 6
    more = numbers | {"num_examples": 9, "seed": 0}
    assert len(text_subject(tiny_bundle(), real_blocks(), **more, at_most=True).data) == 6


def test_the_callers_mode_and_random_numbers_do_not_matter() -> None:
    def values(subject: Subject) -> list[list[float]]:
        return [value.tolist() for value in (subject.data, subject.z, subject.positions)]

    before = torch.get_rng_state()
    plain = values(tiny_subject())
    assert torch.equal(torch.get_rng_state(), before)
    with torch.inference_mode():
        assert values(tiny_subject()) == plain

"""Known positions in training: which there are, and that every objective learns the others from them alone."""

import pytest
import torch
from torch import Tensor

from fewstep.denoisers import ConditionalFlow, FlowModel, Known, RegressionDenoiser
from fewstep.objectives import OBJECTIVES, KnownPositions
from fewstep.paths import linear_path
from fewstep.types import Latents
from tests.nn.builders import normal, randomised
from tests.objectives.test_objective_laws import build
from tests.objectives.toys import D, K, data, loss_of, seed, single

COUNT = 8
each = pytest.mark.parametrize("name", OBJECTIVES)


def network(two_times: bool) -> FlowModel:
    """A small transformer with random weights."""
    sizes = {"width": 8, "depth": 1, "num_heads": 2, "max_frequency": 4.0}
    built = randomised(lambda: RegressionDenoiser(D, K, two_times=two_times, reads_known=True, **sizes), std=0.2)
    return FlowModel(built.float(), linear_path(), "x1")


def losses(name: str, known: Known | None, z: Tensor) -> Tensor:
    """Losses (B,) of an objective whose networks are all given ``known``."""
    objective, mask = build(name), torch.ones(z.shape[:2], dtype=torch.bool)
    given = (lambda flow: flow) if known is None else lambda flow: ConditionalFlow(flow, known)
    latents = Latents(z, mask if known is None else mask & ~known.mask)
    model, teacher, auxiliary = (given(network(two)) for two in (objective.estimate.two_times, False, True))
    return loss_of(objective, model, latents, seed(3), teacher, 0.5, auxiliary=auxiliary).per_example


@each
def test_where_nothing_is_known_it_is_the_objective_itself(name: str) -> None:
    z = single(data(COUNT, seed(0))).z
    nothing = Known(torch.zeros_like(z), torch.zeros(COUNT, K, dtype=torch.bool))
    torch.testing.assert_close(losses(name, nothing, z), losses(name, None, z), rtol=1e-5, atol=1e-6)


@each
def test_the_data_at_known_positions_are_not_learnt_and_what_is_known_matters_to_its_own_example(name: str) -> None:
    z, part = single(data(COUNT, seed(0))).z, normal((COUNT, K, D), seed(1)).float()
    mask = torch.tensor([[True, False, False], [False, True, True]] * (COUNT // 2))
    before = losses(name, Known(part, mask), z)
    elsewhere = torch.where(mask[..., None], z + 5.0, z)
    torch.testing.assert_close(losses(name, Known(part, mask), elsewhere), before, rtol=1e-5, atol=1e-6)
    moved = part.clone()
    moved[1] += 1.0
    changed = (losses(name, Known(moved, mask), z) - before).abs() > 1e-5
    own = [1, 3, 5, 7] if name == "reflow" else [1]  # the second of its two pairs
    assert changed.nonzero().flatten().tolist() == own


def test_the_shares_of_prefixes_and_gaps_are_as_asked_and_one_position_is_always_left_to_write() -> None:
    count, size = 20_000, 8
    mask = torch.ones(count, size, dtype=torch.bool)
    mask[: count // 2, 5:] = False
    written, known, rows = KnownPositions(prefix=0.5, gaps=0.25, dropped=0.0).split(mask, seed(0))
    assert torch.equal(written | known, mask) and not (written & known).any()
    assert written.any(1).all()
    is_prefix = known.any(1) & (known.long().diff(dim=1) <= 0).all(1) & known[:, 0]
    share = known.any(1).float().mean().item()
    # All gaps but those that leave nothing known: one of full length (1 in n on average over where it begins).
    assert 0.65 < share < 0.75 and len(rows) == pytest.approx(0.75 * count, rel=0.02)
    lengths = known[count // 2 :][is_prefix[count // 2 :]].sum(1)
    counts = lengths.bincount(minlength=size)[1:size].double()
    assert (counts / counts.sum() - 1 / 7).abs().max() < 0.03  # uniform over 1 .. 7, but for gaps at the end


@pytest.mark.parametrize("has_prompts", [False, True])
def test_a_dropped_part_is_neither_written_nor_known_and_prompts_are_known_in_every_example(has_prompts: bool) -> None:
    mask = torch.ones(4000, 6, dtype=torch.bool)
    mask[:, 5] = False
    prompts = torch.arange(6) < torch.randint(1, 4, (4000, 1), generator=seed(0)) if has_prompts else None
    prefix = 0.2 if has_prompts else 1.0  # which does not count beside prompts
    whole, thinned = (KnownPositions(prefix, 0.0, dropped).split(mask, seed(1), prompts) for dropped in (0.0, 0.3))
    assert torch.equal(whole.written, thinned.written) and torch.equal(whole.written, mask & ~whole.known)
    assert prompts is None or torch.equal(whole.known, prompts)
    assert len(whole.rows) == 4000
    gone = (whole.known & ~thinned.known).any(1)
    assert torch.equal(thinned.known[~gone], whole.known[~gone]) and not thinned.known[gone].any()
    share = (gone.sum() / whole.known.any(1).sum()).item()
    assert share == pytest.approx(0.3, abs=0.03)

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
from tests.objectives.toys import D, K, data, seed, single

COUNT = 8
each = pytest.mark.parametrize("name", OBJECTIVES)


def network(two_times: bool, reads_known: bool = True) -> FlowModel:
    """A small transformer with random weights."""
    sizes = {"width": 8, "depth": 1, "num_heads": 2, "max_frequency": 4.0}
    built = randomised(lambda: RegressionDenoiser(D, K, two_times=two_times, reads_known=reads_known, **sizes), std=0.2)
    return FlowModel(built.float(), linear_path(), "x1")


def losses(name: str, known: Known | None, z: Tensor) -> Tensor:
    """Losses (B,) of an objective whose networks are all given ``known``."""
    objective, mask = build(name), torch.ones(z.shape[:2], dtype=torch.bool)
    model, teacher = network(objective.estimate.two_times), network(False)
    given = (lambda flow: flow) if known is None else lambda flow: ConditionalFlow(flow, known)
    latents = Latents(z, mask if known is None else mask & ~known.mask)
    second = given(network(True))
    extra = {"auxiliary": second} if name == "distribution_matching" else {}
    settings = {"tokens": None, "readout": None, "generator": seed(3), "progress": 0.5}
    settings["teacher"] = given(teacher) if objective.needs_teacher else None
    return objective.forward(given(model), latents, **settings, **extra).per_example


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


def test_a_network_that_was_trained_without_is_refused_unless_it_may_be_given_noise() -> None:
    flow, known = network(False, reads_known=False), Known(torch.zeros(1, K, D), torch.ones(1, K, dtype=torch.bool))
    with pytest.raises(ValueError, match="without known positions"):
        ConditionalFlow(flow, known)
    with pytest.raises(ValueError, match="reads_known"):
        flow.network(torch.zeros(1, K, D), torch.zeros(1), known=known.mask)


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


def test_a_dropped_part_is_neither_written_nor_known() -> None:
    mask = torch.ones(4000, 6, dtype=torch.bool)
    kept, dropped = (KnownPositions(prefix=1.0, gaps=0.0, dropped=p).split(mask, seed(1)) for p in (0.0, 0.3))
    assert torch.equal(kept.written, dropped.written)
    gone = kept.known & ~dropped.known
    assert gone.any(1).float().mean().item() == pytest.approx(0.3, abs=0.03) and not (gone & dropped.written).any()
    assert not dropped.known[gone.any(1)].any()


def test_prompts_of_the_data_are_known_in_every_example_but_where_they_are_dropped_and_never_written() -> None:
    mask = torch.ones(4000, 6, dtype=torch.bool)
    mask[:, 5] = False
    prompts = torch.arange(6) < torch.randint(1, 4, (4000, 1), generator=seed(0))
    shares = {"prefix": 0.2, "gaps": 0.5}
    written, known, rows = KnownPositions(**shares, dropped=0.0).split(mask, seed(1), prompts)
    assert torch.equal(known, prompts) and torch.equal(written, mask & ~prompts) and len(rows) == 4000
    thinned = KnownPositions(**shares, dropped=0.3).split(mask, seed(1), prompts)
    assert torch.equal(thinned.written, written)
    kept = thinned.known.any(1)
    assert torch.equal(thinned.known[kept], prompts[kept])
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("shares", [{"prefix": 0.7, "gaps": 0.4}, {"prefix": -0.1}, {"dropped": 1.0}])
def test_shares_that_are_none_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected shares"):
        KnownPositions(**shares)

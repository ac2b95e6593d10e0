"""Promises of the speed benchmarks: what they count is right, and both trees of a comparison make the same step."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fewstep.errors import UserError

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts import their neighbours by name, as they do when they are run."""
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("stage", ["autoencoder", "flow", "head"])
def test_the_recorded_products_make_up_the_operations_that_torch_counts(stage: str) -> None:
    from matmuls import Recorder, dominating
    from training_steps import Size, TrainingStep

    step = TrainingStep(stage, Size(16, 1, 2, length=8, batch=2, vocab_size=32), "fp32")
    with FlopCounterMode(display=False) as counter:
        step()
    with Recorder() as recorder:
        step()
    recorded = sum(kind.flops * count for kind, count in recorder.products.items())
    covered = sum(kind.flops * count for kind, count in dominating(recorder.products, 0.9).items())
    assert recorded == counter.get_total_flops() > covered >= 0.9 * recorded
    assert all(kind.maker()().shape.numel() > 0 for kind in recorder.products)


def test_fused_attention_is_counted_as_its_products_written_out_would_be() -> None:
    from matmuls import flops_of

    from fewstep.nn.attention import attend_unfused

    q, k, v = (torch.randn(2, 3, 256, 8, requires_grad=True) for _ in range(3))
    fused = flops_of(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v))
    assert fused == flops_of(lambda: attend_unfused(q, k, v, None)) == 2 * 2 * 2 * 3 * 256 * 256 * 8
    both = flops_of(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward())
    assert both == 3.5 * fused, "the backward pass computes the scores again: five products beside two"


def test_live_memory_counts_what_is_held_and_forgets_what_is_let_go() -> None:
    from matmuls import Recorder

    with Recorder() as recorder:
        kept = torch.zeros(1000)
        for _ in range(5):
            dropped = torch.zeros(3000)
            del dropped
        kept.view(10, 100).transpose(0, 1).add_(1)
    assert recorder.peak_bytes == 4 * 4000 and recorder.largest == 3000
    assert recorder.written == 1000 + 5 * 3000 + 1000, "a view writes nothing, a change in place does"


def test_a_parameter_stays_in_memory_five_times() -> None:
    """Itself, its gradient, two moments and the average; the optimizer's count of steps is a number a tensor."""
    from training_steps import Size, TrainingStep

    step = TrainingStep("flow", Size(16, 1, 2, length=8, batch=2, vocab_size=32), "fp32")
    step()
    weights = list(step.module.parameters())
    assert step.state_bytes() == 4 * (5 * sum(weight.numel() for weight in weights) + len(weights))


def test_a_step_of_the_benchmark_trains() -> None:
    from training_steps import PRECISIONS, STAGES, Size, TrainingStep

    for stage in STAGES:
        for precision in PRECISIONS:
            step = TrainingStep(stage, Size(16, 1, 2, length=8, batch=2, vocab_size=32), precision)
            first = sum(float(step()) for _ in range(3))
            for _ in range(60):
                step()
            assert sum(float(step()) for _ in range(3)) < first, f"{stage} {precision}"


@pytest.mark.parametrize("target", [2_000_000, 4_088_008, 20_000_000])
def test_the_gpt2_that_is_compared_with_has_equal_parameters(target: int) -> None:
    from generation_speed import parameter_count
    from sampling_speed import matched_gpt2

    assert abs(parameter_count(matched_gpt2(target, 128)) / target - 1) <= 0.05
    with pytest.raises(UserError, match="no GPT-2 has 1000 parameters"):
        matched_gpt2(1000, 128)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.7])
def test_a_power_law_is_fitted_by_its_exponent(exponent: float) -> None:
    from growth import slope

    sizes = [3, 6, 12, 24]
    assert slope(sizes, [5.0 * size**exponent for size in sizes]) == pytest.approx(exponent, abs=1e-12)


def test_an_unknown_stage_is_one_line_and_exit_code_2() -> None:
    command = [sys.executable, str(FOLDER / "training_speed.py"), "--stages", "flows"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert (
        ended.stderr.strip()
        .splitlines()[-1]
        .endswith("--stages 'flows': expected of autoencoder, flow, head; give one or more of these")
    )

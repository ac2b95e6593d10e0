"""Every few-step objective trains by the same module, from the flow that it is given, and says what it trained."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fewstep.denoisers import RegressionDenoiser
from fewstep.errors import UserError
from fewstep.model import SavedModel
from fewstep.objectives import OBJECTIVES, ConsistencyDistillation
from fewstep.shapes import randn
from fewstep.training.command import main
from fewstep.training.flow import start_from
from tests.bundles import randomise
from tests.runs import Workshop, logged
from tests.training.flows import STUDENTS, flow_arguments, trained_flow, upon_a_flow


@pytest.mark.parametrize("objective", STUDENTS)
def test_an_objective_trains_and_its_model_says_what_it_is(workshop: Workshop, tmp_path: Path, objective: str) -> None:
    run_dir = tmp_path / "run"
    assert main(upon_a_flow(workshop, objective, run_dir, "--trainer.precision=bf16-mixed")) == 0
    identity = SavedModel.from_pretrained(run_dir / "model").identity
    assert identity.estimate == OBJECTIVES[objective].estimate.name
    assert identity.trained_nfe == (4 if objective == "progressive" else None)
    found = logged(run_dir)
    assert len(found["train/loss"]) == 4 and len(found["val/loss"]) == 2
    rows = [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]
    assert {row["num_steps"] for row in rows} == ({4} if objective == "progressive" else {1, 4, 32})
    trained = load_file(run_dir / "model" / "denoiser.safetensors")
    start = load_file(trained_flow(workshop) / "denoiser.safetensors")
    new = {name for name in trained if name.startswith("body.distance.")}
    assert set(trained) - set(start) == new and bool(new) == (identity.estimate == "flow_map")
    assert any(not torch.equal(trained[name], start[name]) for name in start)


def test_the_teacher_never_moves_and_schedules_follow_the_steps(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = load_file(trained_flow(workshop) / "denoiser.safetensors")
    seen: list[tuple[bool, float]] = []
    forward = ConsistencyDistillation.forward

    def watched(self, model, latents, *, teacher, progress, **others):  # type: ignore[no-untyped-def]
        assert not any(parameter.requires_grad for parameter in teacher.parameters()) and not teacher.network.training
        assert all(torch.equal(weights[name], value) for name, value in teacher.network.state_dict().items())
        seen.append((model.training and model.network.training, progress))
        return forward(self, model, latents, teacher=teacher, progress=progress, **others)

    monkeypatch.setattr(ConsistencyDistillation, "forward", watched)
    flags = ["--model.optimizer.learning_rate=0.1", "--trainer.num_sanity_val_steps=0", "--trainer.limit_val_batches=1"]
    assert main(upon_a_flow(workshop, "consistency_distillation", tmp_path, *flags)) == 0
    assert [progress for training, progress in seen if training] == [0.0, 0.25, 0.5, 0.75]
    assert [progress for training, progress in seen if not training] == [1.0, 1.0]
    assert not torch.equal(
        load_file(tmp_path / "model" / "denoiser.safetensors")["inputs.weight"], weights["inputs.weight"]
    )


def network(*, randomly: int, **changes: object) -> RegressionDenoiser:
    """A tiny denoiser of two times with random weights; ``changes`` of its arguments."""
    made = RegressionDenoiser(6, 4, **{"width": 16, "depth": 1, "num_heads": 2, "two_times": True, **changes})
    randomise(made, torch.Generator().manual_seed(randomly))
    return made


def test_a_second_time_starts_without_effect_and_is_named(generator: torch.Generator) -> None:
    flow, grown = network(randomly=0, two_times=False), network(randomly=1)
    x_t = randn((3, 4, 6), torch.zeros(()), generator)
    t, s = torch.tensor([[0.1, 0.4, 0.7], [1.0, 0.4, 0.8]])
    assert not torch.allclose(flow(x_t, t).value, grown(x_t, t, s).value)
    new = start_from(grown, flow, "the flow")
    assert new and set(new) == {name for name in grown.state_dict() if name not in flow.state_dict()}
    assert torch.equal(flow(x_t, t).value, grown(x_t, t, s).value)
    loss = grown(x_t, t, s).value.square().mean()
    (gradient,) = torch.autograd.grad(loss, grown.body.distance.mlp[-1].weight)
    assert bool((gradient != 0).any()), "training can make it look at the second time"
    assert start_from(network(randomly=2), grown, "the map") == ()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_frequency": 30.0}, "max_frequency 1000.0 against 30.0"),
        ({"two_times": False}, "two_times True against False"),
    ],
)
def test_another_architecture_is_refused_by_name(changes: dict, named: str) -> None:
    with pytest.raises(UserError, match=rf"^the map: [^\n]*{named}"):
        start_from(network(randomly=0, **changes), network(randomly=1), "the map")


def test_every_objective_is_refused_what_does_not_fit_it(workshop: Workshop, tmp_path: Path) -> None:
    flow, autoencoder = trained_flow(workshop), workshop.autoencoder
    assert main(upon_a_flow(workshop, "progressive", tmp_path / "four")) == 0
    four = tmp_path / "four" / "model"
    given = [f"--model.teacher={four}", f"--model.initialise_from={four}"]
    round_two = [*given, "--model.objective.num_steps=2"]
    cases = {
        ("consistency_distillation",): "model.teacher is missing: ConsistencyDistillation learns from a trained flow",
        ("reflow", f"--model.teacher={autoencoder}"): "has no denoiser",
        ("reflow", f"--model.teacher={flow}", "--model.path=variance_preserving"): "the teacher's path is linear",
        ("mean_flow", f"--model.teacher={flow}"): "MeanFlow learns from data alone: leave it out",
        ("mean_flow", f"--model.initialise_from={autoencoder}"): "has no denoiser",
        ("mean_flow", f"--model.initialise_from={flow}", "--model.prediction=x1"): "its prediction is velocity",
        ("mean_flow", "--model.denoiser.two_times=false"): "two_times is false, but MeanFlow trains a network of two",
        ("flow_matching", "--model.denoiser.two_times=true"): "two_times is true, but FlowMatching trains a network",
        ("mean_flow", "--model.denoiser.self_conditioning=true"): "MeanFlow never feeds an estimate back",
        ("progressive", *given): "trained for 4 steps, but ProgressiveDistillation asks it for others",
        ("reflow", *given): "trained for 4 steps, but Reflow asks it for others: give a flow for any number",
        ("progressive", *round_two, "--model.objective.time_sampler.mean=0.5"): "lie at other times",
    }
    for (objective, *flags), message in cases.items():
        with pytest.raises(UserError, match=message):
            main(flow_arguments(workshop, objective, tmp_path / "run", *flags))
    assert not (tmp_path / "run").exists()
    assert main(flow_arguments(workshop, "progressive", tmp_path / "two", *round_two)) == 0
    assert SavedModel.from_pretrained(tmp_path / "two" / "model").identity.trained_nfe == 2

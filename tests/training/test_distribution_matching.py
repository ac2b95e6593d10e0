"""Distribution matching in training: the auxiliary network follows, resumes, is shared by ranks and is not exported."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fewstep.errors import UserError
from fewstep.model import SavedModel
from fewstep.objectives import DistributionMatching
from fewstep.storage import load_checkpoint
from fewstep.training import FlowModule, OptimizerSettings
from fewstep.training.auxiliary import Auxiliary
from fewstep.training.command import main
from tests.runs import Workshop, logged, start
from tests.training.flows import flow_arguments, trained_flow
from tests.training.test_resume import assert_equal, assert_same_state, last_checkpoint

STEPS = 6
SCRIPT = Path(__file__).with_name("recording_train.py")


def arguments(workshop: Workshop, run_dir: Path, *flags: str) -> list[str]:
    """``fit`` of the stage on the tiny flow."""
    own = [f"--model.autoencoder={trained_flow(workshop)}", f"--run_dir={run_dir}", "--ema.decay=0.9"]
    return workshop.arguments("distribution_matching", *own, "--checkpoint.every_n_steps=3", *flags, steps=STEPS)


@pytest.fixture(scope="module")
def whole(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of 6 steps, whose last checkpoint but one is of step 3."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert main(arguments(workshop, run_dir)) == 0
    return run_dir


def test_a_resumed_run_is_the_uninterrupted_one(workshop: Workshop, tmp_path: Path, whole: Path) -> None:
    half = whole / "checkpoints" / "previous.ckpt"
    assert load_checkpoint(half)["global_step"] == 3
    assert main(arguments(workshop, tmp_path, f"--ckpt_path={half}")) == 0
    assert_same_state(whole, tmp_path, "auxiliary")
    for name in ("train/loss", "train/auxiliary_loss", "train/auxiliary_grad_norm", "train/grad_norm"):
        losses = {step: value for step, value in logged(whole)[name].items() if step >= 3}
        assert logged(tmp_path)[name] == losses and len(losses) == 3, name


def updates(checkpoint: dict) -> list[set[float]]:
    """The numbers of updates that the optimizers of student and auxiliary network have counted."""
    states = (*checkpoint["optimizer_states"], checkpoint["auxiliary"]["optimizer"])
    return [{float(each["step"]) for each in state["state"].values()} for state in states]


def test_steps_count_the_student_s_and_the_saved_model_has_no_auxiliary_network(
    workshop: Workshop, whole: Path
) -> None:
    checkpoint = last_checkpoint(whole)
    auxiliary = checkpoint["auxiliary"]
    assert checkpoint["global_step"] == STEPS and updates(checkpoint) == [{STEPS}, {4 * STEPS}]
    assert auxiliary["schedule"]["last_epoch"] == STEPS
    assert any(name.startswith("body.distance.") for name in auxiliary["network"])
    flow = SavedModel.from_pretrained(trained_flow(workshop))
    for source in (whole / "model", whole / "checkpoints" / "last.ckpt"):
        model = SavedModel.from_pretrained(source)
        assert set(model.parts()) == {"autoencoder", "readout", "denoiser"}
        assert model.denoiser.state_dict().keys() == flow.denoiser.state_dict().keys()
    assert (model.identity.estimate, model.identity.prediction) == ("endpoint", flow.identity.prediction)
    assert model.denoiser.config == flow.denoiser.config
    trained = auxiliary["network"]["inputs.weight"]
    assert not torch.equal(trained, flow.denoiser.inputs.weight)
    assert not torch.equal(trained, checkpoint["current_model_state"]["denoiser.inputs.weight"])


def test_a_loss_of_the_auxiliary_network_that_is_not_finite_skips_the_whole_step(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, calls = DistributionMatching.auxiliary_loss, []

    def bad(self: DistributionMatching, *given: object) -> torch.Tensor:
        calls.append(1)
        return honest(self, *given) * (math.nan if len(calls) == 4 * 2 + 3 else 1.0)  # the third update of step 2

    monkeypatch.setattr(DistributionMatching, "auxiliary_loss", bad)
    assert main(arguments(workshop, tmp_path)) == 0
    assert list(logged(tmp_path)["train/skipped_steps"].values()) == [0, 0, 1, 1, 1, 1]
    assert updates(last_checkpoint(tmp_path)) == [{STEPS - 1}, {4 * STEPS - 1}]


def started(clip: float | None, algorithm: str | None = None) -> tuple[Auxiliary, SimpleNamespace]:
    """An auxiliary network of one layer with its optimizer, and what it asks of a trainer."""
    trainer = SimpleNamespace(
        max_steps=10, world_size=1, gradient_clip_val=clip, gradient_clip_algorithm=algorithm, strategy=None
    )
    network = torch.nn.Linear(3, 1)
    torch.nn.init.ones_(network.weight)
    auxiliary = Auxiliary(network, OptimizerSettings(0.1, warmup_steps=0))
    auxiliary.start(trainer, torch.device("cpu"))
    return auxiliary, trainer


def test_every_update_sees_the_weights_of_the_one_before_under_bf16() -> None:
    (auxiliary, trainer), x = started(None), torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # in one autocast context, as inside of a training step
        with torch.autocast("cpu", torch.bfloat16):
            for _ in range(2):
                auxiliary.update(auxiliary.network(x).float().square().mean(), trainer)
            inside = auxiliary.network(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(inside, auxiliary.network(x))


@pytest.mark.parametrize(
    ("clip", "algorithm", "expected"),
    [(0.5, None, 1.5 / 10**0.5), (0.5, "norm", 1.5 / 10**0.5), (0.5, "value", 0.5), (None, None, 3.0)],
)
def test_gradients_are_clipped_as_the_trainer_says_and_their_norm_is_that_before(
    clip: float | None, algorithm: str | None, expected: float
) -> None:
    auxiliary, trainer = started(clip, algorithm)
    seen: list[torch.Tensor] = []
    assert auxiliary._optimizer is not None
    auxiliary._optimizer.register_step_pre_hook(lambda *_: seen.append(auxiliary.network.weight.grad.clone()))
    norm = auxiliary.update(auxiliary.network(torch.tensor([[3.0, 0.0, 0.0]])).sum(), trainer)
    assert norm == pytest.approx(10**0.5)
    assert seen[0].flatten().tolist() == pytest.approx([expected, 0.0, 0.0], abs=1e-5)


def test_what_it_cannot_train_with_is_refused_in_a_line(workshop: Workshop, tmp_path: Path) -> None:
    flow = trained_flow(workshop)
    teacher_only = flow_arguments(workshop, "distribution_matching", tmp_path, f"--model.teacher={flow}")
    cases = {
        "accumulate_grad_batches is 2": arguments(workshop, tmp_path, "--trainer.accumulate_grad_batches=2"),
        "auxiliary_updates 0": arguments(workshop, tmp_path, "--model.objective.auxiliary_updates=0"),
        "has no denoiser": arguments(workshop, tmp_path, f"--model.autoencoder={workshop.autoencoder}"),
        "model.initialise_from is missing": teacher_only,
    }
    for message, given in cases.items():
        with pytest.raises(UserError, match=message):
            main(given)
    assert not list(tmp_path.iterdir())
    half = SimpleNamespace(accumulate_grad_batches=1, precision="16-mixed")  # on a CPU Lightning takes bf16 instead
    with pytest.raises(UserError, match=r"precision is 16-mixed.*give bf16-mixed"):
        FlowModule.check_trainer(SimpleNamespace(_auxiliary=SimpleNamespace(value=object())), half)


@pytest.mark.parametrize("same_draws", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_share_one_auxiliary_network(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, same_draws: bool
) -> None:
    """Ranks that draw for themselves keep the same weights; ranks that draw the same are one process."""
    monkeypatch.setenv("RECORD", str(tmp_path))
    monkeypatch.setenv("SAME_DRAWS", "1" if same_draws else "")
    flags = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    process = start(arguments(workshop, tmp_path / "run", *flags), SCRIPT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    one, two = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert any(name.startswith("auxiliary.") for name in one)
    assert_equal(one, two, "weights of the ranks")
    if same_draws:
        for name in ("train/loss", "train/auxiliary_loss", "train/auxiliary_grad_norm"):
            assert logged(tmp_path / "run")[name] == pytest.approx(logged(whole)[name], rel=1e-4), name

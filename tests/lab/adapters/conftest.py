"""What the tests of adapters share: a shop of tiny models, made once."""

from pathlib import Path

import pytest

from tests.lab.adapters.folders import KINDS, write
from tests.runs import write_text


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a kind of model, and text.jsonl."""
    folder = tmp_path_factory.mktemp("shop")
    write_text(folder / "text.jsonl")
    for kind in KINDS:
        write(folder / kind, kind)
    return folder

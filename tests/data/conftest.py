"""Settings with a fresh cache and a vocabulary that trains at once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fewstep.data.sources import CorpusSettings


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., CorpusSettings]:
    def make(source: Path | str, **changes: object) -> CorpusSettings:
        fields = {"source": str(source), "vocab_size": 300, "cache_dir": str(tmp_path / "cache"), **changes}
        return CorpusSettings(**fields)

    return make

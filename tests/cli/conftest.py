"""What tests of several commands share: a tiny text with a model on it, and the rows of one whole sweep."""

from pathlib import Path

import pytest

from fewstep.cli.main import main
from tests.cli.shops import evaluation, make_shop


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def whole(shop: Path) -> Path:
    """What one process writes in one go."""
    assert main(evaluation(shop, shop / "whole")) == 0
    return shop / "whole"

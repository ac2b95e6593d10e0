"""What is declared of other packages: the bounds that are tested, and the releases that nobody may get."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def declared() -> dict[str, Requirement]:
    """The dependencies in pyproject.toml, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {one.name: one for one in map(Requirement, project["dependencies"])}


def pinned(file: str) -> dict[str, Version]:
    """The versions in a file of constraints."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    return {name: Version(version) for name, _, version in (line.partition("==") for line in lines if line)}


def test_the_oldest_tested_version_is_the_lower_bound_of_every_package() -> None:
    oldest = pinned("constraints-oldest.txt")
    assert set(oldest) == set(declared())
    for name, requirement in declared().items():
        (bound,) = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
        assert oldest[name] == bound, name


def test_the_versions_that_are_used_are_allowed() -> None:
    for name, requirement in declared().items():
        assert pinned("constraints.txt")[name] in requirement.specifier, name


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_compromised_releases_are_excluded_by_name(version: str) -> None:
    specifier = declared()["lightning"].specifier
    assert f"!={version}" in [str(one) for one in specifier]
    assert Version(version) not in specifier

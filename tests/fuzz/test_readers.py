"""Readers of files under random bytes and random changes of whole files: a result, or a refusal in words."""

import copy
import json
from functools import reduce
from operator import getitem
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, kept, seeds

numbers = st.integers() | st.integers(-3, 70) | st.floats()
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
few = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for key, item in inside for place in places(item, (*here, key)))]


@st.composite
def changed(draw: st.DrawFn, whole: Any) -> Any:
    """A JSON value with one or two of its parts replaced, taken out or added to."""
    result = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(places(result)))
        if not place:
            return draw(values)
        above = reduce(getitem, place[:-1], result)
        kind = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if kind == "replace":
            above[place[-1]] = draw(values)
        elif kind == "remove":
            del above[place[-1]]
        elif isinstance(above, dict):
            above[draw(st.text(max_size=8))] = draw(values)
    return result


def spoilt(content: bytes, start: int, stop: int, put: bytes) -> bytes:
    """A piece of a file replaced."""
    low, high = sorted((start % (len(content) + 1), stop % (len(content) + 1)))
    return content[:low] + put + content[high:]


@pytest.mark.parametrize("name", list(TARGETS))
def test_a_whole_file_is_read(name: str) -> None:
    assert [kept(TARGETS[name], content) for content in seeds(name)] == [None] * len(seeds(name))


@pytest.mark.parametrize("name", list(TARGETS))
@pytest.mark.parametrize("count", [60, pytest.param(5000, marks=pytest.mark.slow)])
def test_bytes_that_are_anything_are_read_or_refused(name: str, count: int) -> None:
    @settings(few, max_examples=count)
    @given(st.binary(max_size=200), st.integers(0), st.integers(0))
    def hold(put: bytes, start: int, stop: int) -> None:
        kept(TARGETS[name], put)
        for content in seeds(name):
            kept(TARGETS[name], spoilt(content, start, stop, put))

    hold()


@pytest.mark.parametrize("name", ["jsonl", "rows", "manifest"])
@pytest.mark.parametrize("count", [150, pytest.param(20_000, marks=pytest.mark.slow)])
def test_json_with_a_part_of_another_kind_is_read_or_refused(name: str, count: int) -> None:
    content = seeds(name)[0]
    whole = json.loads(content if name == "manifest" else content.splitlines()[0])

    @settings(few, max_examples=count)
    @given(changed(whole))
    def hold(value: Any) -> None:
        kept(TARGETS[name], json.dumps(value).encode() + b"\n")

    hold()

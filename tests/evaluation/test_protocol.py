"""The protocol: equal settings, equal hash; other settings are never put in one table."""

import hashlib
import json
from dataclasses import replace

import pytest

from fewstep.errors import UserError
from fewstep.evaluation.protocol import WHOLE_BLOCK, ScoringProtocol, protocol_versions, same_protocol

PROTOCOL = ScoringProtocol(
    scorer={"class": "RunScorer", "dtype": "float32"},
    num_samples=64,
    seeds=(0, 1, 2),
    block_size=32,
    end_of_text=WHOLE_BLOCK,
    versions={"torch": "2.13.0"},
    yardsticks={"source": "text", "temperature": 1.0},
)
OTHERS = {
    "scorer": {"class": "RunScorer", "dtype": "float16"},
    "num_samples": 65,
    "seeds": (0, 1),
    "block_size": 64,
    "end_of_text": "another rule",
    "versions": {"torch": "2.13.1"},
    "yardsticks": {"source": "text", "temperature": 0.9},
}


def test_the_hash_is_that_of_the_settings_and_of_nothing_else() -> None:
    reordered = replace(PROTOCOL, scorer={"dtype": "float32", "class": "RunScorer"}, seeds=[0, 1, 2])
    assert reordered.hash == PROTOCOL.hash
    canonical = (
        f'{{"block_size":32,"end_of_text":"{WHOLE_BLOCK}","num_samples":64,'
        '"scorer":{"class":"RunScorer","dtype":"float32"},"seeds":[0,1,2],"versions":{"torch":"2.13.0"},'
        '"yardsticks":{"source":"text","temperature":1.0}}'
    )
    expected = hashlib.sha256(canonical.encode()).hexdigest()[:12]
    assert PROTOCOL.hash == expected, "files of results carry it: it must not change between versions"


@pytest.mark.parametrize("name", OTHERS)
def test_every_setting_moves_the_hash_and_is_named_in_the_refusal(name: str) -> None:
    other = replace(PROTOCOL, **{name: OTHERS[name]})
    assert other.hash != PROTOCOL.hash
    with pytest.raises(UserError, match=rf"row 3 is of scoring protocol {other.hash}.*\({name}.* against "):
        same_protocol([PROTOCOL.stamp(), PROTOCOL.stamp(), other.stamp()])


def test_a_protocol_comes_back_from_json_and_its_stamps_agree() -> None:
    stamps = [json.loads(json.dumps({**PROTOCOL.stamp(), "perplexity": value})) for value in (1.5, 2.5)]
    assert same_protocol(stamps) == PROTOCOL.hash
    again = ScoringProtocol.from_dict(stamps[0]["protocol"])
    assert again == PROTOCOL and again.hash == PROTOCOL.hash


def test_what_the_caller_changes_later_does_not_reach_the_protocol() -> None:
    scorer = {"dtypes": ["float32"]}
    protocol = replace(PROTOCOL, scorer=scorer)
    before = protocol.hash
    scorer["dtypes"].append("float16")
    protocol.to_dict()["scorer"]["dtypes"].append("float16")
    assert protocol.hash == before


def test_rows_without_a_hash_edited_rows_and_no_rows_are_told() -> None:
    edited = PROTOCOL.stamp()
    edited["protocol"] = {**edited["protocol"], "num_samples": 1000}
    for rows, message in (
        ([], "no rows"),
        ([PROTOCOL.stamp(), {"perplexity": 3.0}], "row 2 carries no protocol_hash"),
        ([edited], "row 1: the stored protocol has not the hash"),
        ([{"protocol_hash": "a"}, {"protocol_hash": "b"}], "settings not stored"),
    ):
        with pytest.raises(UserError, match=message):
            same_protocol(rows)
    assert same_protocol([{"protocol_hash": "a"}, {"protocol_hash": "a"}]) == "a"


def test_settings_that_cannot_be_told_are_refused() -> None:
    for changes in ({"scorer": {"x": float("nan")}}, {"scorer": {"x": object()}}, {"num_samples": 0}, {"seeds": ()}):
        with pytest.raises(ValueError):
            replace(PROTOCOL, **changes)
    with pytest.raises(UserError, match="seeds"):
        ScoringProtocol.from_dict({key: value for key, value in PROTOCOL.to_dict().items() if key != "seeds"})


def test_versions_name_what_scores_depend_on() -> None:
    assert set(protocol_versions()) == {"fewstep", "torch", "transformers", "tokenizers", "numpy"}

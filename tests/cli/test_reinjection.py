"""The words for re-injection: each means the rule it names, and a wrong one is told in one line."""

import math
from collections.abc import Sequence

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from fewstep.cli.reinjection import NOISES, parse_reinjection, rules
from fewstep.errors import UserError
from fewstep.paths import linear_path
from fewstep.samplers import (
    AncestralReinjection,
    ChurnReinjection,
    CommitmentReinjection,
    ConstantReinjection,
    CosineReinjection,
    ElfReinjection,
    FreshNoise,
    LinearReinjection,
    ListedReinjection,
    MatchedCooling,
    NoiseSource,
    Reinjection,
    ReusedNoise,
    WindowReinjection,
    early_reinjection,
    late_reinjection,
)
from fewstep.schedules import UniformGrid


def decided(x1_hat: Tensor) -> Tensor:
    """Half decided everywhere."""
    return torch.full(x1_hat.shape[:2], 0.5)


def weights(rule: Reinjection) -> list[tuple[float, float]]:
    """What a rule does in four equal steps, the initial noise first."""
    plan = rule.plan(linear_path(), UniformGrid().times(4).double())
    x1_hat = torch.zeros(1, 1, 1, dtype=torch.float64)
    all_weights = [plan.initial, *(plan.weights(step, x1_hat, None) for step in range(3))]
    return [(float(one.kept), float(one.fresh)) for one in all_weights]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("0", ConstantReinjection(0.0)),
        ("0.5", ConstantReinjection(0.5)),
        ("1e-1", ConstantReinjection(0.1)),
        ("constant:0.5", ConstantReinjection(0.5)),
        ("listed:0.1,0.2,0.3,0", ListedReinjection([0.1, 0.2, 0.3, 0.0])),
        ("linear", LinearReinjection()),
        ("linear:0.9", LinearReinjection(0.9)),
        ("linear:0.9,0.2", LinearReinjection(0.9, 0.2)),
        ("cosine:0.9,0.2", CosineReinjection(0.9, 0.2)),
        ("early", early_reinjection()),
        ("early:0.7,0.3", early_reinjection(0.7, 0.3)),
        ("late:0.7", late_reinjection(0.7)),
        ("window:0.7,0.2,0.6", WindowReinjection(0.7, 0.2, 0.6)),
        ("ancestral", AncestralReinjection()),
        ("churn:3, 0.1, inf", ChurnReinjection(3.0, 0.1, math.inf)),
        ("commitment", CommitmentReinjection(decided)),
        ("commitment:0.4", CommitmentReinjection(decided, 0.4)),
        ("elf", ElfReinjection()),
        ("elf:2", ElfReinjection(2.0)),
        ("elf_cooling:2", MatchedCooling(ElfReinjection(2.0))),
    ],
)
def test_a_word_means_the_rule_it_names(text: str, rule: Reinjection) -> None:
    parsed = parse_reinjection(text, decided)
    assert type(parsed) is type(rule)
    assert weights(parsed) == weights(rule)


def test_every_name_is_tried_above() -> None:
    tried = test_a_word_means_the_rule_it_names.pytestmark[0].args[1]
    assert {text.split(":")[0] for text, _ in tried} >= set(rules(decided))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2", "'2': re-injection strength is 2.0: expected a number between 0 (none) and 1"),
        ("nan", "re-injection strength is nan"),
        ("", "'': expected a strength from 0 to 1, or NAME or NAME:NUMBER,NUMBER with one of constant, listed, linear"),
        ("liner", "'liner': expected a strength from 0 to 1, or NAME"),
        ("elff:1.5", "'elff:1.5': expected a strength"),
        ("linear:", "'linear:': expected a strength"),
        ("linear:a,b", "'linear:a,b': expected a strength"),
        ("linear:1;0", "'linear:1;0': expected a strength"),
        ("0.5:0.5", "'0.5:0.5': expected a strength"),
        ("linear:1,0,0", "linear does not take 3 numbers but first (left out: 1), last (left out: 0)"),
        ("window:1,0.2", "window does not take 2 numbers but gamma, begin, end"),
        ("window", "window does not take 0 numbers"),
        ("commitment:1,1", "commitment does not take 2 numbers but strength (left out: 1)"),
        ("elf:-1", "ELF's gamma is -1.0"),
        ("early:0.5,0", "window of time is 0.0 to 0.0"),
    ],
)
def test_a_wrong_word_is_one_line_that_quotes_it(text: str, message: str) -> None:
    with pytest.raises(UserError, match=r"^reinjection is [^\n]*$") as caught:
        parse_reinjection(text, decided)
    assert message in str(caught.value)


def test_noise_has_two_names() -> None:
    assert {name: type(make()) for name, make in NOISES.items()} == {"fresh": FreshNoise, "reused": ReusedNoise}


def test_rules_and_noise_are_configured_from_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reinjection", type=float | Sequence[float] | Reinjection)
    parser.add_argument("--noise", type=NoiseSource)
    written = """
        reinjection:
          class_path: fewstep.samplers.WindowReinjection
          init_args: {strength: {class_path: LinearReinjection, init_args: {first: 0.9}}, begin: 0.1, end: 0.6}
        noise: {class_path: fewstep.samplers.ReusedNoise}
        """
    configured = parser.instantiate(parser.parse_string(written))
    assert weights(configured.reinjection) == weights(WindowReinjection(LinearReinjection(0.9), 0.1, 0.6))
    assert isinstance(configured.noise, ReusedNoise)
    elf = parser.instantiate(parser.parse_object({"reinjection": {"class_path": "fewstep.samplers.ElfReinjection"}}))
    assert isinstance(elf.reinjection, ElfReinjection)
    for value in (0.5, [0.5, 0.2]):
        assert parser.parse_object({"reinjection": value}).reinjection == value

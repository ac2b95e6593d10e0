"""Another's decoder: its figures hang on neither the unit of its latents nor how many examples are held at once."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.evaluation.diagnosis import diagnose
from fewstep.lab.adapters import Decoder
from fewstep.lab.adapters import decoder as decoder_module

EXAMPLES, TOKENS, VOCABULARY, DIM = 4, 3, 8, 4
FLOW = ("dabi_generated", "tube", "stiffness", "late_flips", "decidedness")


class Chain:
    """Each token is read from its latent, and from the token before it."""

    def __init__(self, unit: float) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(DIM, VOCABULARY, generator=generator, dtype=torch.float64) / unit
        self.before = 3 * torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.weight

    def logits(self, z: Tensor, ids: Tensor) -> Tensor:
        earlier = torch.nn.functional.one_hot(ids[:, :-1], VOCABULARY).double() @ self.before
        return self.decode(z) + torch.nn.functional.pad(earlier, (0, 0, 1, 0))

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        ids = torch.zeros(len(z), TOKENS, dtype=torch.long)
        for place in range(TOKENS):
            p = self.logits(z, ids)[:, place].softmax(-1)
            ids[:, place] = torch.multinomial(p, 1, generator=generator)[:, 0]
        return ids


def decoder(unit: float) -> Decoder:
    chain = Chain(unit)
    z = unit * torch.randn(EXAMPLES, TOKENS, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Decoder("chain", chain.decode, z, chain.decode(z).argmax(-1), chain)


def figures(made: Decoder, only: list[str] | None = None) -> dict[str, Any]:
    subject = made.subject(num_examples=EXAMPLES, num_positions=2, seed=0)
    return json.loads(diagnose(subject, only=only).to_json())


def test_the_unit_of_the_latents_moves_no_figure() -> None:
    small, large = (figures(decoder(unit)) for unit in (1.0, 1024.0))  # powers of 2: no bit is lost
    assert small["table"] == large["table"]
    nats = small["results"]["cci_noise"]["curves"]["marginal"]["y"]
    assert len(set(nats)) == len(nats)  # the noise is felt
    assert 0 < small["table"]["cci_noise_0"]["value"] < 1


def test_the_number_of_examples_held_at_once_moves_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = figures(decoder(1.0))["table"]
    monkeypatch.setattr(decoder_module, "NUMBERS_AT_ONCE", 1)
    single = figures(decoder(1.0))["table"]
    assert {name: row["value"] for name, row in single.items()} == pytest.approx(
        {name: row["value"] for name, row in whole.items()}, rel=1e-6
    )


def test_the_autoregressive_readout_reads_better_with_the_texts_own_tokens_and_needs_to_be_there() -> None:
    chain, made = Chain(1.0), decoder(1.0)
    ids = chain.draw(made.z, torch.Generator().manual_seed(2))
    table = figures(replace(made, data=ids), ["token_accuracy", "token_accuracy_head"])["table"]
    for name, logits in (
        ("token_accuracy", chain.decode(made.z)),
        ("token_accuracy_head", chain.logits(made.z, ids)),
    ):
        assert table[name]["value"] == pytest.approx(float((logits.argmax(-1) == ids).double().mean()))
    without = figures(replace(made, conditionals=None))
    assert set(without["left_out"]) == {"token_accuracy_head", "dabi_head", "cci", "listening", *FLOW}

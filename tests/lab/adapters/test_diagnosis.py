"""Another's decoder: its figures hang on neither the unit of its latents nor how many examples are held at once."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.lab.adapters import TextDecoder
from fewstep.lab.adapters import diagnosis as decoder_diagnosis
from fewstep.lab.adapters.diagnosis import DECODER_MEASUREMENTS, diagnose_decoder

EXAMPLES, TOKENS, VOCABULARY, DIM = 4, 3, 8, 4


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


def decoder(unit: float) -> TextDecoder:
    chain = Chain(unit)
    z = unit * torch.randn(EXAMPLES, TOKENS, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return TextDecoder("chain", chain.decode, z, chain.decode(z).argmax(-1), chain)


def figures(made: TextDecoder, only: list[str] | None = None) -> dict[str, Any]:
    return diagnose_decoder(made, num_examples=EXAMPLES, num_positions=2, seed=0, only=only).to_dict()


def test_the_unit_of_the_latents_moves_no_figure() -> None:
    small, large = (figures(decoder(unit)) for unit in (1.0, 1024.0))  # powers of 2: no bit is lost
    assert small["table"] == large["table"]
    nats = small["results"]["cci_noise"]["curves"]["marginal"]["y"]
    assert len(set(nats)) == len(nats)  # the noise is felt
    assert 0 < small["table"]["cci_noise_0"]["value"] < 1


def test_the_number_of_examples_held_at_once_moves_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = figures(decoder(1.0))["table"]
    monkeypatch.setattr(decoder_diagnosis, "NUMBERS_AT_ONCE", 1)
    single = figures(decoder(1.0))["table"]
    assert {name: row["value"] for name, row in single.items()} == pytest.approx(
        {name: row["value"] for name, row in whole.items()}, rel=1e-6
    )


@pytest.mark.parametrize("name", DECODER_MEASUREMENTS)
def test_alone_a_measurement_gives_the_figures_of_the_whole(name: str) -> None:
    whole, alone = figures(decoder(1.0))["results"], figures(decoder(1.0), [name])["results"]
    assert alone and alone == {key: value for key, value in whole.items() if key in alone}


def test_the_autoregressive_readout_reads_better_with_the_texts_own_tokens_and_needs_to_be_there() -> None:
    chain, made = Chain(1.0), decoder(1.0)
    ids = chain.draw(made.z, torch.Generator().manual_seed(2))
    table = figures(replace(made, ids=ids), ["token_accuracy", "token_accuracy_head"])["table"]
    for name, logits in (
        ("token_accuracy", chain.decode(made.z)),
        ("token_accuracy_head", chain.logits(made.z, ids)),
    ):
        assert table[name]["value"] == pytest.approx(float((logits.argmax(-1) == ids).double().mean()))
    without = figures(replace(made, conditionals=None))
    assert set(without["left_out"]) == {"token_accuracy_head", "dabi_head", "cci"}

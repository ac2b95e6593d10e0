"""Another's decoder: its figures hang on neither the units of its latents nor how many examples are held at once."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.diagnosis import diagnose
from fewstep.lab.adapters import Decoder
from fewstep.lab.adapters import decoder as decoder_module

EXAMPLES, TOKENS, VOCABULARY, DIM = 8, 3, 8, 4
SCALE, SHIFT = torch.tensor([[0.01, 1.0, 5.0, 300.0], [7.0, -1.0, 0.0, 40.0]], dtype=torch.float64)
FLOW = ("dabi_generated", "tube", "stiffness", "late_flips", "decidedness")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Chain:
    """Each token is read from its latent, given ``back`` in its first unit, and from the token before it."""

    def __init__(self, back: Callable[[Tensor], Tensor] = lambda z: z) -> None:
        self.back = back
        self.weight, self.before = normal(DIM, VOCABULARY), 3 * normal(VOCABULARY, VOCABULARY, seed=2)

    def decode(self, z: Tensor) -> Tensor:
        return self.back(z) @ self.weight

    def logits(self, z: Tensor, ids: Tensor) -> Tensor:
        earlier = torch.nn.functional.one_hot(ids[:, :-1], VOCABULARY).double() @ self.before
        return self.decode(z) + torch.nn.functional.pad(earlier, (0, 0, 1, 0))

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        ids = torch.zeros(len(z), TOKENS, dtype=torch.long)
        for place in range(TOKENS):
            p = self.logits(z, ids)[:, place].softmax(-1)
            ids[:, place] = torch.multinomial(p, 1, generator=generator)[:, 0]
        return ids


def text_decoder(scale: Tensor | float = 1.0, shift: Tensor | float = 0.0) -> Decoder:
    """Tokens from latents (8, 3, 4) in other units, in parallel and token after token."""
    chain, z = Chain(lambda z: (z - shift) / scale), normal(EXAMPLES, TOKENS, DIM, seed=1)
    return Decoder("text", chain.decode, z * scale + shift, Chain().decode(z).argmax(-1), chain)


def image_decoder(scale: Tensor | float = 1.0, shift: Tensor | float = 0.0) -> Decoder:
    """Images from latents of 4 channels (8, 4, 2, 2) in other units."""
    scale, shift = (torch.as_tensor(value).reshape(-1, 1, 1) for value in (scale, shift))
    matrix, z = normal(3, DIM), normal(EXAMPLES, DIM, 2, 2, seed=1)

    def decode(z: Tensor) -> Tensor:
        return torch.tanh(torch.einsum("pc,bchw->bphw", matrix, (z - shift) / scale))

    return Decoder("images", decode, z * scale + shift, decode(z * scale + shift))


def figures(decoder: Decoder, whiten: bool = False, only: list[str] | None = None) -> dict[str, Any]:
    subject = decoder.subject(num_examples=EXAMPLES, num_positions=1, seed=0, whiten=whiten)
    return json.loads(diagnose(subject, only=only).to_json())


def values(found: dict[str, Any]) -> dict[str, float]:
    return {name: row["value"] for name, row in found["table"].items()}


def test_neither_the_unit_of_the_latents_nor_the_examples_held_at_once_move_a_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small, large = figures(text_decoder()), figures(text_decoder(1024.0))  # powers of 2: no bit is lost
    assert small["table"] == large["table"]
    nats = small["results"]["cci_noise"]["curves"]["marginal"]["y"]
    assert len(set(nats)) == len(nats)  # the noise is felt
    assert 0 < small["table"]["cci_noise_0"]["value"] < 1
    monkeypatch.setattr(decoder_module, "NUMBERS_AT_ONCE", 1)
    assert values(figures(text_decoder())) == pytest.approx(values(small), rel=1e-6)


def test_the_autoregressive_readout_reads_better_with_the_texts_own_tokens_and_needs_to_be_there() -> None:
    chain, decoder = Chain(), text_decoder()
    ids = chain.draw(decoder.z, torch.Generator().manual_seed(2))
    found = values(figures(replace(decoder, data=ids), only=["token_accuracy", "token_accuracy_head"]))
    for name, logits in (
        ("token_accuracy", chain.decode(decoder.z)),
        ("token_accuracy_head", chain.logits(decoder.z, ids)),
    ):
        assert found[name] == pytest.approx(float((logits.argmax(-1) == ids).double().mean()))
    without = figures(replace(decoder, conditionals=None))
    assert set(without["left_out"]) == {"token_accuracy_head", "dabi_head", "cci", "listening", *FLOW}


@pytest.mark.parametrize(
    ("kind", "only"),
    [(text_decoder, ["dabi", "boundary_distance", "dabi_head", "cci"]), (image_decoder, ["dabi"])],
)
def test_whitened_figures_are_the_same_after_any_affine_map_of_each_dimension(
    kind: Callable[..., Decoder], only: list[str]
) -> None:
    before, after = (values(figures(decoder, True, only)) for decoder in (kind(), kind(SCALE, SHIFT)))
    assert after == pytest.approx(before, rel=1e-5)
    plain = values(figures(kind(SCALE, SHIFT), False, only))
    assert plain["dabi_segment"] != pytest.approx(before["dabi_segment"], rel=0.05), "coordinates do matter"


@pytest.mark.parametrize("kind", [text_decoder, image_decoder])
def test_whitened_latents_are_standard_and_the_decoder_is_given_its_own(kind: Callable[..., Decoder]) -> None:
    decoder = kind(SCALE, SHIFT)
    subject = decoder.subject(num_examples=EXAMPLES, num_positions=1, seed=0, whiten=True)
    rows = (subject.z if subject.z.ndim == 3 else subject.z.movedim(1, -1)).flatten(0, -2)
    torch.testing.assert_close(rows.mean(0), torch.zeros(DIM, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(rows.square().mean(0), torch.ones(DIM, dtype=torch.float64))
    torch.testing.assert_close(subject.decode(subject.z), decoder.decode(decoder.z))


def test_a_dimension_that_does_not_vary_stays_at_its_value() -> None:
    decoder = text_decoder()
    z = torch.cat([decoder.z[..., :3], torch.full((EXAMPLES, TOKENS, 1), 0.1, dtype=torch.float64)], -1)
    subject = replace(decoder, z=z).subject(num_examples=EXAMPLES, num_positions=1, seed=0, whiten=True)
    assert bool((subject.z[..., 3] == 0).all())
    far = subject.z + torch.tensor([0.0, 0.0, 0.0, 1e6], dtype=torch.float64)
    assert torch.equal(subject.decode(far), subject.decode(subject.z))


def test_the_scale_is_in_the_protocol_and_in_the_notes() -> None:
    decoder = text_decoder(SCALE, SHIFT)
    rms = float(decoder.z.square().mean().sqrt())
    for whiten, words in ((False, "latents not whitened, divided by their rms; "), (True, "latents whitened, 4 dim")):
        found = figures(decoder, whiten, ["token_accuracy"])
        assert (found["protocol"]["whitened"], found["protocol"]["latent_rms"]) == (whiten, pytest.approx(rms))
        assert found["notes"][-1].startswith(words) and f"rms {rms:.4g}" in found["notes"][-1]


@pytest.mark.parametrize(
    ("decode", "z", "message"),
    [
        (lambda z: torch.full((len(z), 2, 3), math.nan), torch.ones(4, 3), "does not give a tensor of finite numbers"),
        (lambda z: z, torch.ones(4, 3), r"logits of shape \(1, 3\) for one example of 2 tokens"),
        (lambda z: z[:, None, :], torch.ones(4, 3), r"expected \(1, 2, V\)"),
        (lambda z: z, torch.zeros(4, 3), r"latents of rms 0\.0"),
    ],
)
def test_a_decoder_that_cannot_be_measured_is_told(decode: Callable[[Tensor], Tensor], z: Tensor, message: str) -> None:
    decoder = Decoder("odd", decode, z, torch.zeros(4, 2).long())
    with pytest.raises(UserError, match=message):
        decoder.subject(num_examples=4, num_positions=1, seed=0)
    with pytest.raises(UserError, match=r"examples is 5: expected a number from 2 to 4, the decoder's examples"):
        decoder.subject(num_examples=5, num_positions=1, seed=0)

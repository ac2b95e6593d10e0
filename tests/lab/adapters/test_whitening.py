"""--whiten: figures that do not depend on the unit of each dimension of another's latents."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.evaluation.diagnosis import diagnose
from fewstep.lab.adapters import Decoder
from fewstep.lab.adapters.decoder import whitening_of
from tests.lab.adapters.test_diagnosis import Chain

SCALE = torch.tensor([0.01, 1.0, 5.0, 300.0], dtype=torch.float64)
SHIFT = torch.tensor([7.0, -1.0, 0.0, 40.0], dtype=torch.float64)


def text_decoder() -> Decoder:
    """Tokens from latents (8, 3, 4), in parallel and token after token."""
    chain = Chain(1.0)
    z = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Decoder("text", chain.decode, z, chain.decode(z).argmax(-1), chain)


def image_decoder() -> Decoder:
    """Images from latents of 4 channels (8, 4, 2, 2)."""
    matrix = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def decode(z: Tensor) -> Tensor:
        return torch.tanh(torch.einsum("pc,bchw->bphw", matrix, z))

    z = torch.randn(8, 4, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Decoder("images", decode, z, decode(z))


class Moved:
    """Conditionals at latents that were moved by an affine map."""

    def __init__(self, inner: Any, back: Callable[[Tensor], Tensor]) -> None:
        self.inner, self.back = inner, back

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        return self.inner.draw(self.back(z), generator)

    def logits(self, z: Tensor, ids: Tensor) -> Tensor:
        return self.inner.logits(self.back(z), ids)


def moved(decoder: Decoder) -> Decoder:
    """The same decoder with other units and origins of its dimensions."""
    shape = (4, 1, 1) if decoder.z.ndim == 4 else (4,)
    scale, shift = SCALE.reshape(shape), SHIFT.reshape(shape)

    def back(z: Tensor) -> Tensor:
        return (z - shift) / scale

    conditionals = decoder.conditionals and Moved(decoder.conditionals, back)
    return replace(
        decoder, decode=lambda z: decoder.decode(back(z)), z=decoder.z * scale + shift, conditionals=conditionals
    )


def figures(decoder: Decoder, whiten: bool, only: list[str]) -> dict[str, float]:
    subject = decoder.subject(num_examples=8, num_positions=1, seed=0, whiten=whiten)
    table = json.loads(diagnose(subject, only=only).to_json())["table"]
    return {name: row["value"] for name, row in table.items()}


@pytest.mark.parametrize(
    ("decoder", "only"),
    [(text_decoder(), ["dabi", "boundary_distance", "dabi_head", "cci"]), (image_decoder(), ["dabi"])],
    ids=["text", "images"],
)
def test_whitened_figures_are_the_same_after_any_affine_map_of_each_dimension(
    decoder: Decoder, only: list[str]
) -> None:
    before, after = (figures(item, True, only) for item in (decoder, moved(decoder)))
    assert after == pytest.approx(before, rel=1e-5)
    plain = figures(moved(decoder), False, only)
    assert plain["dabi_segment"] != pytest.approx(before["dabi_segment"], rel=0.05), "coordinates do matter"


def test_latents_that_are_white_stay_as_they_are_and_so_do_their_figures() -> None:
    decoder = text_decoder()
    white = whitening_of(decoder.z).apply(decoder.z)
    torch.testing.assert_close(white.mean((0, 1)), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(white.square().mean((0, 1)), torch.ones(4, dtype=torch.float64))
    decoder = replace(decoder, z=white)
    whitened = decoder.subject(num_examples=8, num_positions=1, seed=0, whiten=True)
    torch.testing.assert_close(whitened.z, white, rtol=0, atol=1e-12)
    only = ["dabi", "boundary_distance"]
    assert figures(decoder, True, only) == pytest.approx(figures(decoder, False, only), rel=1e-6)


@pytest.mark.parametrize("decoder", [text_decoder(), image_decoder()], ids=["text", "images"])
def test_the_inverse_map_gives_the_decoder_its_own_latents(decoder: Decoder) -> None:
    given = moved(decoder)
    subject = given.subject(num_examples=8, num_positions=1, seed=0, whiten=True)
    torch.testing.assert_close(subject.decode(subject.z), given.decode(given.z))


def test_a_dimension_that_does_not_vary_stays_at_its_value() -> None:
    decoder = text_decoder()
    z = torch.cat([decoder.z[..., :3], torch.full((8, 3, 1), 0.1, dtype=torch.float64)], -1)
    subject = replace(decoder, z=z).subject(num_examples=8, num_positions=1, seed=0, whiten=True)
    assert bool((subject.z[..., 3] == 0).all())
    far = subject.z + torch.tensor([0.0, 0.0, 0.0, 1e6], dtype=torch.float64)
    assert torch.equal(subject.decode(far), subject.decode(subject.z))


def test_the_scale_is_in_the_protocol_and_in_the_notes() -> None:
    decoder = moved(text_decoder())
    for whiten, words in ((False, "latents not whitened, divided by their rms; "), (True, "latents whitened, 4 dim")):
        found = diagnose(
            decoder.subject(num_examples=8, num_positions=1, seed=0, whiten=whiten), only=["token_accuracy"]
        )
        assert found.protocol["whitened"] is whiten
        rms = float(decoder.z.square().mean().sqrt())
        assert found.protocol["latent_rms"] == pytest.approx(rms)
        assert found.notes[-1].startswith(words)
        assert f"rms {rms:.4g}" in found.to_text()

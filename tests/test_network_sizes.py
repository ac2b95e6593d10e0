"""A network refuses a size that is none by its own name, before torch would by a name of its own."""

from typing import Any

import pytest
from torch import nn

from fewstep.autoencoders import ImageAutoencoder, TransformerAutoencoder
from fewstep.denoisers import CategoricalDenoiser, RegressionDenoiser
from fewstep.paths import linear_path
from fewstep.readouts import CausalTransformer, LinearReadout, TransformerReadout
from fewstep.shapes import check_sizes

TEXT = {"vocab_size": 9, "latent_dim": 2, "stride": 1}
BODY = {"width": 8, "depth": 1, "num_heads": 2}
FLOW = {"latent_dim": 2, "num_positions": 3, "local_reach": 1, **BODY}
SIZES: list[tuple[type[nn.Module], dict[str, int]]] = [
    (TransformerAutoencoder, {**TEXT, **BODY}),
    (ImageAutoencoder, {"channels": 1, "size": 8, "latent_channels": 2, "num_halvings": 1, "width": 4, "depth": 1}),
    (LinearReadout, TEXT),
    (TransformerReadout, {**TEXT, **BODY}),
    (CausalTransformer, {**TEXT, **BODY}),
    (RegressionDenoiser, FLOW),
    (CategoricalDenoiser, {**FLOW, "vocab_size": 9}),
]
LEAST = {"depth": 0, "local_reach": 0}
"""The smallest value of what may be less than 1."""


def build(network: type[nn.Module], sizes: dict[str, Any]) -> nn.Module:
    """The network; the codebook's is on the linear path."""
    more = {"path": linear_path()} if network is CategoricalDenoiser else {}
    return network(**sizes, **more)


@pytest.mark.parametrize(("network", "sizes"), SIZES, ids=lambda value: getattr(value, "__name__", ""))
def test_every_size_is_checked_by_its_name_and_no_block_or_neighbour_is_allowed(
    network: type[nn.Module], sizes: dict[str, int]
) -> None:
    config = build(network, sizes).config
    assert {name: config[name] for name in sizes} == sizes
    for name in sizes:
        least = LEAST.get(name, 1)
        for wrong in (least - 1, -8, 2.0, "8"):
            told = f"^{network.__name__}: {name} is {wrong!r}, expected a whole number of at least {least}"
            with pytest.raises(ValueError, match=told):
                build(network, {**sizes, name: wrong})
    for name in LEAST.keys() & sizes:
        build(network, {**sizes, name: 0})


def test_what_is_left_out_passes() -> None:
    check_sizes("any", {"latent_dim": None})
    assert CausalTransformer(9, **BODY).config["latent_dim"] is None

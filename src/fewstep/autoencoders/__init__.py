"""Text to continuous latents. The module of another encoder than ours is imported when it is asked for (PEP 562)."""

from typing import TYPE_CHECKING

from fewstep.autoencoders.transformer import TransformerAutoencoder, Whitening
from fewstep.registry import lazy_attributes

if TYPE_CHECKING:
    from fewstep.autoencoders.pretrained import PretrainedEncoder
    from fewstep.autoencoders.variants import (
        Posterior,
        QuantisedAutoencoder,
        SphericalEmbeddings,
        VariationalAutoencoder,
    )

__all__ = [
    "Posterior",
    "PretrainedEncoder",
    "QuantisedAutoencoder",
    "SphericalEmbeddings",
    "TransformerAutoencoder",
    "VariationalAutoencoder",
    "Whitening",
]

_VARIANTS = ("Posterior", "QuantisedAutoencoder", "SphericalEmbeddings", "VariationalAutoencoder")
__getattr__ = lazy_attributes(__name__, {**dict.fromkeys(_VARIANTS, "variants"), "PretrainedEncoder": "pretrained"})

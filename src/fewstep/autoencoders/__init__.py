"""Text to continuous latents. The module of another encoder than ours is imported when it is asked for (PEP 562)."""

from typing import TYPE_CHECKING

from fewstep.autoencoders.transformer import TransformerAutoencoder, Whitening
from fewstep.registry import lazy_attributes

if TYPE_CHECKING:
    from fewstep.autoencoders.pretrained import PretrainedEncoder
    from fewstep.autoencoders.quantised import QuantisedAutoencoder
    from fewstep.autoencoders.spherical import SphericalEmbeddings
    from fewstep.autoencoders.variational import Posterior, VariationalAutoencoder

__all__ = [
    "Posterior",
    "PretrainedEncoder",
    "QuantisedAutoencoder",
    "SphericalEmbeddings",
    "TransformerAutoencoder",
    "VariationalAutoencoder",
    "Whitening",
]

_MODULE_OF = {
    "Posterior": "variational",
    "PretrainedEncoder": "pretrained",
    "QuantisedAutoencoder": "quantised",
    "SphericalEmbeddings": "spherical",
    "VariationalAutoencoder": "variational",
}
__getattr__ = lazy_attributes(__name__, _MODULE_OF)

"""Text to continuous latents. A saved model loads the module of its own encoder only."""

from typing import TYPE_CHECKING

from fewstep.registry import lazy_attributes

if TYPE_CHECKING:
    from fewstep.autoencoders.pretrained import PretrainedEncoder
    from fewstep.autoencoders.spherical import SphericalEmbeddings
    from fewstep.autoencoders.transformer import TransformerAutoencoder, Whitening

_MODULE_OF = {
    "PretrainedEncoder": "pretrained",
    "SphericalEmbeddings": "spherical",
    "TransformerAutoencoder": "transformer",
    "Whitening": "transformer",
}

__all__ = [
    "PretrainedEncoder",
    "SphericalEmbeddings",
    "TransformerAutoencoder",
    "Whitening",
]

__getattr__ = lazy_attributes(__name__, _MODULE_OF)

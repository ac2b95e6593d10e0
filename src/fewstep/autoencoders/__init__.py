"""Text to continuous latents. A module of another encoder than ours is imported when it is asked for (PEP 562)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fewstep.autoencoders.transformer import TransformerAutoencoder, Whitening

if TYPE_CHECKING:
    from fewstep.autoencoders.pretrained import PretrainedEncoder
    from fewstep.autoencoders.quantised import QuantisedAutoencoder
    from fewstep.autoencoders.spherical import SphericalEmbeddings
    from fewstep.autoencoders.variational import Posterior, VariationalAutoencoder

_MODULE_OF = {
    "Posterior": "variational",
    "PretrainedEncoder": "pretrained",
    "QuantisedAutoencoder": "quantised",
    "SphericalEmbeddings": "spherical",
    "VariationalAutoencoder": "variational",
}

__all__ = [
    "Posterior",
    "PretrainedEncoder",
    "QuantisedAutoencoder",
    "SphericalEmbeddings",
    "TransformerAutoencoder",
    "VariationalAutoencoder",
    "Whitening",
]


def __getattr__(name: str) -> Any:
    """A class by name, so that a saved model loads the module of its own encoder only."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)

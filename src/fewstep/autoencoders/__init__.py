"""Text to continuous latents. Names are imported when they are first asked for (PEP 562): a model needs one encoder."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.autoencoders.quantised import QuantisedAutoencoder
    from fewstep.autoencoders.transformer import TransformerAutoencoder, Whitening
    from fewstep.autoencoders.variational import Posterior, VariationalAutoencoder

MODULES = {
    "Posterior": "variational",
    "QuantisedAutoencoder": "quantised",
    "TransformerAutoencoder": "transformer",
    "VariationalAutoencoder": "variational",
    "Whitening": "transformer",
}
"""The file of each public name."""

__all__ = [
    "Posterior",
    "QuantisedAutoencoder",
    "TransformerAutoencoder",
    "VariationalAutoencoder",
    "Whitening",
]


def __getattr__(name: str) -> Any:
    """A name of ``__all__`` from its file."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"fewstep.autoencoders.{MODULES[name]}"), name)

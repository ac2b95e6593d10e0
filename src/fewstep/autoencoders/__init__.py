"""Text to continuous latents."""

from fewstep.autoencoders.transformer import TransformerAutoencoder
from fewstep.autoencoders.whitening import Whitening

__all__ = ["TransformerAutoencoder", "Whitening"]

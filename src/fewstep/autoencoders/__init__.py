"""Text to continuous latents."""

from fewstep.autoencoders.transformer import TransformerAutoencoder, Whitening

__all__ = ["TransformerAutoencoder", "Whitening"]

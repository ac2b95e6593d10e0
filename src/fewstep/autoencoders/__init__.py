"""Text, or images, to continuous latents."""

from fewstep.autoencoders.images import ImageAutoencoder, from_positions, to_positions
from fewstep.autoencoders.transformer import TransformerAutoencoder, Whitening

__all__ = ["ImageAutoencoder", "TransformerAutoencoder", "Whitening", "from_positions", "to_positions"]

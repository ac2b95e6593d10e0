"""The image control: the same flows on the latents of images, whose decoder is continuous.

Training is in :mod:`.training`, which this does not import: reading a saved model needs no Lightning.
"""

from fewstep.lab.images.autoencoder import ImageAutoencoder, ImageReconstruction
from fewstep.lab.images.sources import Digits, DrawnShapes

__all__ = ["Digits", "DrawnShapes", "ImageAutoencoder", "ImageReconstruction"]

"""The image control: the same flows on the latents of images, whose decoder is continuous.

Training is in :mod:`.training`, which this does not import: reading a saved model needs no Lightning.
"""

from fewstep.lab.images.autoencoder import ImageAutoencoder, ImageReconstruction, from_positions, to_positions
from fewstep.lab.images.sources import Digits, DrawnShapes, ImageSource, image_source

__all__ = [
    "Digits",
    "DrawnShapes",
    "ImageAutoencoder",
    "ImageReconstruction",
    "ImageSource",
    "from_positions",
    "image_source",
    "to_positions",
]

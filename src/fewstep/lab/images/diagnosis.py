"""The subject of a diagnosis of an image model, apart because the command names it by a dotted path."""

import torch

from fewstep.evaluation.subject import Subject, check_numbers, positions_in
from fewstep.lab.images.generator import image_autoencoder, images_of
from fewstep.model import SavedModel


def image_subject(
    model: SavedModel, *, num_examples: int, seed: int, name: str = "the model", at_most: bool = False
) -> Subject:
    """An image model and the first ``num_examples`` held-out images, at least 2. Raises ``UserError``.

    ``at_most``: as many as there are, where there are fewer.
    """
    images, autoencoder = images_of(model).held_out(), image_autoencoder(model)
    num_examples = min(num_examples, len(images)) if at_most else num_examples
    check_numbers(num_examples, len(images), "the held-out images")
    images = images[:num_examples].to(next(autoencoder.parameters()).device)
    with torch.no_grad():
        z = autoencoder.encode(images)
    source = {"source": model.identity.source, **model.identity.source_config}
    return Subject(name, autoencoder.decode, z, images, positions_in(images, 0, seed), seed, model=model, source=source)

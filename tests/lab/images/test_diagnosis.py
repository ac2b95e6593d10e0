"""The image control: DABI of a decoder without tokens, against its own Jacobian."""

import json

import pytest
import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.evaluation.diagnosis import Diagnosis, diagnose
from fewstep.evaluation.subject import Subject
from fewstep.lab.images import ImageAutoencoder
from fewstep.lab.images.generator import image_subject
from fewstep.model import SavedModel
from tests.lab.images.models import tiny_image_flow, tiny_image_model

NUM = 12


def subject_of(seed: int = 0) -> Subject:
    return image_subject(tiny_image_model(), num_examples=NUM, seed=seed)


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return diagnose(subject_of())


@pytest.mark.parametrize(("name", "place"), [("dabi_segment", "midpoint"), ("dabi_data_segment", "data")])
def test_dabi_along_a_segment_is_that_of_the_jacobian(diagnosis: Diagnosis, name: str, place: str) -> None:
    subject = subject_of()
    z, other = subject.z, subject.z.roll(1, 0)

    def gram(at: Tensor) -> Tensor:
        """J'J of the decoder."""
        jacobian = torch.autograd.functional.jacobian(
            lambda flat: subject.decode(flat.reshape(1, 2, 2, 2)), at.flatten()
        )
        return jacobian.reshape(64, 8).double().T @ jacobian.reshape(64, 8).double()

    grams = torch.stack([gram(at) for at in ((z + other) / 2 if place == "midpoint" else z)])
    u = torch.nn.functional.normalize((z - other).flatten(1).double(), dim=1)
    share = torch.einsum("bi,bij,bj->b", u, grams, u).sum() / grams.diagonal(dim1=1, dim2=2).sum()
    assert diagnosis.results[name][f"{name}_pooled"].value == pytest.approx(8 * float(share), rel=0.1)


def test_a_seed_gives_the_same_figures_alone_and_under_inference_mode_and_another_seed_others(
    diagnosis: Diagnosis,
) -> None:
    whole = json.loads(diagnosis.to_json())
    assert (whole["protocol"]["examples"], whole["protocol"]["positions"]) == (NUM, None)
    with torch.inference_mode():
        alone = json.loads(diagnose(subject_of(), only=["dabi"]).to_json())["results"]
    assert alone and all(result == whole["results"][name] for name, result in alone.items())
    other = json.loads(diagnose(subject_of(seed=1), only=["dabi"]).to_json())
    assert other["results"]["dabi_segment"] != whole["results"]["dabi_segment"]


@pytest.mark.parametrize("num_examples", [1, 98])
def test_numbers_that_the_images_cannot_give_are_one_line(num_examples: int) -> None:
    with pytest.raises(UserError) as caught:
        image_subject(tiny_image_model(), num_examples=num_examples, seed=0)
    assert str(caught.value) == f"examples is {num_examples}: expected a number from 2 to 97, the held-out images"


class Pooling(ImageAutoencoder):
    """An encoder without weights."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def encode(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 4)


def test_an_encoder_without_weights_works_where_the_other_parts_are() -> None:
    flow = tiny_image_flow()
    model = SavedModel(None, flow.identity, Pooling(), denoiser=flow.denoiser)
    subject = image_subject(model, num_examples=3, seed=0)
    assert subject.z.shape == (3, 1, 2, 2)

"""The image control: DABI of a decoder without tokens, against its own Jacobian."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fewstep.diagnostics.dabi import RADII
from fewstep.errors import UserError
from fewstep.evaluation.diagnosis import Diagnosis, diagnose
from fewstep.evaluation.subject import Subject
from fewstep.lab.images.diagnosis import image_subject
from tests.evaluation.subjects import tiny_subject
from tests.lab.images.models import tiny_image_model

NUM = 12


def subject_of(seed: int = 0) -> Subject:
    return image_subject(tiny_image_model(), num_examples=NUM, seed=seed)


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return diagnose(subject_of())


@pytest.fixture(scope="module")
def grams() -> dict[str, Tensor]:
    """J'J (B, n, n) of the decoder half-way between images, and at them."""
    subject = subject_of()

    def gram(z: Tensor) -> Tensor:
        shape, n = z.shape, z.numel()

        def decode(flat: Tensor) -> Tensor:
            return subject.decode(flat.reshape(1, *shape)).flatten()

        jacobian = torch.autograd.functional.jacobian(decode, z.flatten()).double()
        assert jacobian.shape == (64, n)
        return jacobian.T @ jacobian

    places = {"midpoint": (subject.z + subject.z.roll(1, 0)) / 2, "data": subject.z}
    return {name: torch.stack([gram(z) for z in rows]) for name, rows in places.items()}


def along(grams: Tensor, directions: Tensor) -> Tensor:
    """u'J'Ju (B,) for unit vectors along ``directions`` (B, ...)."""
    u = torch.nn.functional.normalize(directions.flatten(1).double(), dim=1)
    return torch.einsum("bi,bij,bj->b", u, grams, u)


@pytest.mark.parametrize(("name", "place"), [("dabi_segment", "midpoint"), ("dabi_data_segment", "data")])
def test_dabi_along_a_segment_is_that_of_the_jacobian(
    diagnosis: Diagnosis, grams: dict[str, Tensor], name: str, place: str
) -> None:
    z = subject_of().z
    share = along(grams[place], z - z.roll(1, 0)).sum() / grams[place].diagonal(dim1=1, dim2=2).sum()
    assert diagnosis.estimate(f"{name}_pooled").value == pytest.approx(z[0].numel() * float(share), rel=0.1)


def test_the_worst_direction_is_the_leading_one_and_none_exceeds_it(
    diagnosis: Diagnosis, grams: dict[str, Tensor]
) -> None:
    at = grams["midpoint"]
    largest = torch.linalg.eigvalsh(at)[:, -1]
    share = largest.sum() / at.diagonal(dim1=1, dim2=2).sum()
    worst = diagnosis.estimate("dabi_worst_pooled").value
    assert worst == pytest.approx(at.shape[1] * float(share), rel=0.1)
    for name in ("dabi", "dabi_pooled", "dabi_median", "dabi_at_0.001"):
        segment, worst = (diagnosis.estimate(name.replace("dabi", kind, 1)) for kind in ("dabi_segment", "dabi_worst"))
        assert worst.value > segment.value


def test_a_seed_gives_the_same_figures_alone_and_under_inference_mode_and_another_seed_others(
    diagnosis: Diagnosis,
) -> None:
    whole, model = json.loads(diagnosis.to_json())["results"], tiny_image_model()
    for name, results in (("dabi", ["dabi_segment", "dabi_data_segment"]), ("dabi_worst", ["dabi_worst"])):
        with torch.inference_mode():
            subject = image_subject(model, num_examples=NUM, seed=0)
            alone = json.loads(diagnose(subject, only=[name]).to_json())["results"]
        assert alone == {key: whole[key] for key in results}
    other = json.loads(diagnose(subject_of(seed=1), only=["dabi"]).to_json())
    assert other["results"]["dabi_segment"] != whole["dabi_segment"]
    assert (other["seed"], other["n"], other["num_examples"]) == (1, 8, NUM)


def test_text_and_images_store_the_protocol_that_their_dabi_was_measured_by() -> None:
    data = {"source": "lines", "fingerprint": "abc"}
    text = diagnose(replace(tiny_subject(), source=data), only=["dabi"])
    images = diagnose(image_subject(tiny_image_model(), num_examples=5, seed=3), only=["dabi"])
    for diagnosis, expected in (
        (text, {"examples": 4, "positions": 2, "block_length": 8, "seed": 0, "data": data}),
        (images, {"examples": 5, "positions": None, "block_length": None, "seed": 3}),
    ):
        protocol = json.loads(diagnosis.to_json())["protocol"]
        assert {name: protocol[name] for name in expected} == expected
        assert protocol["response"] == "whole output"
        facts = next(iter(diagnosis.results.values())).facts
        assert protocol["radii"] == list(RADII) == list(facts["radii"])
        assert (protocol["num_isotropic"], protocol["num_probes"]) == (facts["num_isotropic"], facts["num_probes"])
        assert {"fewstep", "torch"} <= set(protocol["versions"])
    assert text.protocol["num_isotropic"] != images.protocol["num_isotropic"]


@pytest.mark.parametrize("num_examples", [1, 98])
def test_numbers_that_the_images_cannot_give_are_one_line(num_examples: int) -> None:
    with pytest.raises(UserError) as caught:
        image_subject(tiny_image_model(), num_examples=num_examples, seed=0)
    assert str(caught.value) == f"examples is {num_examples}: expected a number from 2 to 97, the held-out images"

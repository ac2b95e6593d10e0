"""A diagnosis tells what it was measured with and on, so that two can be held against each other."""

import json

from fewstep.diagnostics.dabi import RADII
from fewstep.evaluation import diagnose_images, diagnose_text, make_image_subject
from tests.evaluation.subjects import tiny_subject
from tests.images import tiny_image_model


def test_text_and_images_store_the_protocol_that_their_dabi_was_measured_by() -> None:
    data = {"source": "lines", "fingerprint": "abc"}
    text = diagnose_text(tiny_subject(), "a model", only=["dabi"], data=data)
    images = diagnose_images(make_image_subject(tiny_image_model(), num_examples=5, seed=3), "images")
    for found, expected in (
        (text, {"examples": 4, "positions": 2, "block_length": 8, "seed": 0, "data": data}),
        (images, {"examples": 5, "positions": None, "block_length": None, "seed": 3, "data": None}),
    ):
        protocol = json.loads(found.to_json())["protocol"]
        assert {name: protocol[name] for name in expected} == expected
        assert protocol["response"] == "whole output"
        first = found.results[0].to_dict()
        assert protocol["radii"] == list(RADII) == [one["c"] for one in first["at_radius"]]
        assert (protocol["num_isotropic"], protocol["num_probes"]) == (first["num_isotropic"], first["num_probes"])
        assert {"fewstep", "torch"} <= set(protocol["versions"])
    assert text.to_dict()["protocol"]["num_isotropic"] != images.to_dict()["protocol"]["num_isotropic"]

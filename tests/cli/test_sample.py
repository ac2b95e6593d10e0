"""`fewstep sample`: what it writes, and every refusal in one line and before any sampling."""

import json
from pathlib import Path
from typing import Any

import pytest

from fewstep.cli.main import main
from fewstep.cli.output import new_text_file
from fewstep.pipeline import TextGenerator
from fewstep.samplers.rules import by_position, linear
from tests.bundles import tiny_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "model"
    tiny_bundle().save_pretrained(folder)
    return str(folder)


DRAW = {"readout": "head", "temperature": 30.0, "top_k": 40, "stop": True}
NOISE = {"reuse_noise": True, "noise_temperature": 0.9, "noise_scale": 0.8}
SETTINGS: dict[str, dict[str, Any]] = {
    "--seed 7 --readout head --reinjection 0.5 --batch_size 2": {"seed": 7, "readout": "head", "reinjection": 0.5},
    "--snap confidence:0.3": {"snap": "confidence:0.3"},
    "--readout head_off": {"readout": "head_off"},
    "--readout head --temperature 30 --top_k 40 --stop": DRAW,
    "--reinjection linear:1,0.2": {"reinjection": linear(1.0, 0.2)},
    "--reinjection by_position:0.9 --noise reused --noise_temperature 0.9 --noise_scale 0.8": {
        "reinjection": by_position(0.9),
        **NOISE,
    },
}
USUAL = {"seed": 0, "readout": "parallel", "snap": None, "top_k": None, "stop": False}
USUAL |= {"noise_temperature": 1.0, "noise_scale": 1.0}


@pytest.mark.parametrize("options", SETTINGS)
def test_options_reach_their_place_and_rows_carry_the_texts_and_how_to_make_them_again(
    model: str, tmp_path: Path, options: str
) -> None:
    output, settings = tmp_path / "samples.jsonl", SETTINGS[options]
    base = ["sample", model, "--num_samples", "20", "--steps", "3", "--device", "cpu"]
    assert main([*base, *options.split(), "--output", str(output)]) == 0
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    expected = TextGenerator(tiny_bundle()).generate(20, 3, **settings)
    assert [row["text"] for row in rows] == list(expected.texts)
    assert [row["ids"] for row in rows] == expected.ids.tolist()
    assert [row["index"] for row in rows] == list(range(20))
    assert {name: rows[0][name] for name in USUAL} == {name: settings.get(name, USUAL[name]) for name in USUAL}
    assert rows[0]["noise"] == ("reused" if "reused" in options else "fresh")
    if "--reinjection" in options:
        assert str(rows[0]["reinjection"]) == options.split("--reinjection ")[1].split()[0]
    assert [item.name for item in tmp_path.iterdir()] == ["samples.jsonl"]


def test_without_output_the_texts_are_printed_numbered(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", model, "--num_samples", "2", "--device", "cpu", "--solver", "heun"]) == 0
    out, err = capsys.readouterr()
    texts = TextGenerator(tiny_bundle()).generate(2, solver="heun").texts
    assert out == "".join(f"[{index}] {text}\n\n" for index, text in enumerate(texts, 1))
    assert "7 network evaluations each" in err


def test_overwrite_replaces_and_a_failure_keeps_what_was_there(model: str, tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    output.write_text("mine")
    with pytest.raises(RuntimeError), new_text_file(output, overwrite=True):
        raise RuntimeError("sampling broke")
    assert output.read_text() == "mine"
    arguments = ["sample", model, "--num_samples", "1", "--device", "cpu", "--output", str(output), "--overwrite"]
    assert main(arguments) == 0
    assert json.loads(output.read_text())["index"] == 0
    assert [item.name for item in tmp_path.iterdir()] == ["a.jsonl"]

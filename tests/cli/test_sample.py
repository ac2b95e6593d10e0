"""`fewstep sample`: what it writes, and every refusal in one line and before any sampling."""

import json
from pathlib import Path

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


def test_rows_carry_the_texts_of_the_generator_and_how_to_make_them_again(model: str, tmp_path: Path) -> None:
    output = tmp_path / "samples.jsonl"
    options = "--num_samples 3 --steps 2 --seed 7 --readout head --reinjection 0.5 --batch_size 2 --device cpu"
    assert main(["sample", model, *options.split(), "--output", str(output)]) == 0
    expected = TextGenerator(tiny_bundle()).generate(3, 2, 7, readout="head", reinjection=0.5)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == list(expected.texts)
    assert [row["ids"] for row in rows] == expected.ids.tolist()
    assert [row["index"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert (row["steps"], row["seed"], row["readout"], row["reinjection"]) == (2, 7, "head", 0.5)
        assert (row["noise"], row["noise_temperature"], row["noise_scale"]) == ("fresh", 1.0, 1.0)
    assert [item.name for item in tmp_path.iterdir()] == ["samples.jsonl"]


def test_rules_and_controls_of_re_injection_reach_the_sampler(model: str, tmp_path: Path) -> None:
    output = tmp_path / "samples.jsonl"
    options = "--num_samples 3 --steps 3 --noise reused --noise_temperature 0.9 --noise_scale 0.8 --device cpu"
    generator = TextGenerator(tiny_bundle())
    for text, rule in (
        ("linear:1,0.2", linear(1.0, 0.2)),
        ("by_position:0.9", by_position(0.9)),
    ):
        arguments = ["sample", model, *options.split(), "--reinjection", text, "--output", str(output), "--overwrite"]
        assert main(arguments) == 0
        expected = generator.generate(3, 3, reinjection=rule, reuse_noise=True, noise_temperature=0.9, noise_scale=0.8)
        rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
        assert [row["ids"] for row in rows] == expected.ids.tolist()
        assert {row["reinjection"] for row in rows} == {text}
        assert {(row["noise"], row["noise_temperature"], row["noise_scale"]) for row in rows} == {("reused", 0.9, 0.8)}


def test_snap_and_the_head_and_the_draw_reach_their_place(model: str, tmp_path: Path) -> None:
    output, generator = tmp_path / "samples.jsonl", TextGenerator(tiny_bundle())
    cases = {
        "--snap every": {"snap": "every"},
        "--snap confidence:0.3": {"snap": "confidence:0.3"},
        "--snap last:1": {"snap": "last:1"},
        "--readout head --head_context off": {"readout": "head", "head_context": False},
        "--readout head --temperature 30 --top_k 40 --stop": {
            "readout": "head",
            "temperature": 30.0,
            "top_k": 40,
            "stop": True,
        },
    }
    for options, settings in cases.items():
        base = ["sample", model, "--num_samples", "20", "--steps", "3", "--device", "cpu", "--overwrite"]
        assert main([*base, *options.split(), "--output", str(output)]) == 0
        rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
        expected = generator.generate(20, 3, **settings)
        assert [row["ids"] for row in rows] == expected.ids.tolist(), options
        assert rows[0]["head_context"] == ("off" if "off" in options else "on")
        assert rows[0]["snap"] == settings.get("snap")
        assert (rows[0]["top_k"], rows[0]["stop"]) == (settings.get("top_k"), settings.get("stop", False))


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

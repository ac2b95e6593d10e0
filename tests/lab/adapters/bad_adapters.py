"""Bad input of ``fewstep diagnose --adapter``, case by case, as :mod:`tests.cli.bad_inputs` has it for our own models.

``{gpt2}`` is a whole tiny model of transformers. :func:`write_others` puts damaged ones, and images, into the current
folder.
"""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from tests.cli.bad_inputs import Case

FEW = "diagnose --examples 4 --positions 1 --device cpu --out out"
TEXT = f"{FEW} --text {{text}} --tokens 8 --cache_dir {{cache}} --adapter"
CAUSAL = f"{TEXT} causal-lm"
LINEAR = f"{TEXT} encoder-linear"
IMAGES = f"{FEW} --adapter autoencoder-kl"
CALLABLE = f"{FEW} --adapter callable"


def write_others(folder: Path, gpt2: Path) -> None:
    """The models and images that the cases name. A model has the config of ``gpt2``, changed, and its other files."""
    config: dict[str, Any] = json.loads((gpt2 / "config.json").read_text())
    changed: dict[str, bytes | dict[str, Any]] = {
        "torn_config": b"{",
        "own_code": {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Mine"}},
    }
    for name, content in changed.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_bytes(
            content if isinstance(content, bytes) else json.dumps(content).encode()
        )
        for item in gpt2.iterdir():
            if item.name != "config.json":
                (folder / name / item.name).symlink_to(item)
    weights = {
        "pickled": {"pytorch_model.bin": b"junk"},
        "junk_weights_of_others": {"model.safetensors": b"junk"},
    }
    for name, files in weights.items():
        (folder / name).mkdir()
        for file, content in {"config.json": json.dumps(config).encode(), **files}.items():
            (folder / name / file).write_bytes(content)
    (folder / "one_image").mkdir()
    Image.new("L", (8, 8)).save(folder / "one_image" / "one.png")


OPTIONS = [
    Case(f"{TEXT} gguf {{gpt2}}", "gguf", "adapter"),
    Case(f"{CAUSAL} {{gpt2}} --readout tied", "--readout", "it takes --text, --tokens"),
    Case(f"{LINEAR} {{gpt2}} --readout loose", "loose", "readout"),
    Case(f"{CAUSAL} {{gpt2}} --source sotu", "--source", "give the text by --text"),
    Case(f"{IMAGES} {{gpt2}} --tokens 8", "--tokens", "it takes --images, --image_size"),
    Case(f"{CALLABLE} math:pi --dtype float16", "--dtype", "none of these options"),
    Case("diagnose {model} --images digits", "--images", "pass --adapter too"),
    Case("diagnose {model} --whiten", "--whiten", "pass --adapter too"),
    Case("diagnose {model} --trust_remote_code", "--trust_remote_code", "pass --adapter too"),
    Case(f"{CAUSAL} {{gpt2}} --dtype int8", "int8", "dtype"),
    Case(f"{CAUSAL} {{gpt2}} --tokens 0", "0", "tokens"),
    Case(f"{CAUSAL} {{gpt2}} --tokens 70", "tokens is 70", "pass a smaller --tokens"),
    Case(f"{CAUSAL} {{gpt2}} --positions 9", "positions is 9", "from 1 to 8"),
    Case(f"{CAUSAL} {{gpt2}} --examples 1", "examples is 1", "expected a number from 2"),
    Case(f"{CAUSAL} {{gpt2}} --only dabi,sharpness", "sharpness", "expected one of token_accuracy"),
    Case(f"{IMAGES} {{gpt2}} --image_size half", "half", "image_size"),
    Case(f"{CAUSAL} {{gpt2}} --subfolder vae", "--subfolder", "it takes --text, --tokens"),
    Case(f"{IMAGES} {{gpt2}} --subfolder ../vae", "'../vae'", "such as vae"),
    Case(f"{IMAGES} {{gpt2}} --subfolder vae", "vae holds no config.json", "folder of an autoencoder"),
]
PLACES = [
    Case(f"{CAUSAL} nobody/nothing", "nobody/nothing", "HF_HUB_OFFLINE"),
    Case(f"{CAUSAL} 'no body'", "'no body'", "give a local file or folder"),
    Case(f"{CAUSAL} ./nowhere", "./nowhere", "give a folder written by save_pretrained"),
    Case(f"{CAUSAL} there.jsonl", "there.jsonl", "give a folder written by save_pretrained"),
    Case(f"{CAUSAL} ~nobody_is_called_so/gpt2", "~nobody_is_called_so/gpt2", "write the whole path"),
    Case(f"{CAUSAL} {{gpt2}} --text nowhere.txt", "nowhere.txt", "give a file"),
    Case(f"{CAUSAL} {{gpt2}} --out there.jsonl", "there.jsonl", "choose another folder"),
    Case(f"{CAUSAL} {{gpt2}} --out occupied", "diagnostics.json", "--overwrite"),
    Case(f"{IMAGES} {{gpt2}} --images circles", "circles", "expected digits or shapes"),
    Case(f"{IMAGES} {{gpt2}} --images no_model", "no_model: the folder holds 0", "expected at least 2"),
    Case(f"{IMAGES} {{gpt2}} --images one_image", "one_image: the folder holds 1", "expected at least 2"),
    Case(f"{CALLABLE} made", "'made'", "expected module:function"),
    Case(f"{CALLABLE} no_such_module:made", "no_such_module", "install it"),
    Case(f"{CALLABLE} math:pi", "pi", "no function"),
    Case(f"{CALLABLE} os:getcwd", "os:getcwd gives a str", "expected a fewstep.lab.adapters"),
]
MODELS = [
    Case(f"{CAUSAL} no_model", "no_model holds no config.json", "give a folder written by save_pretrained"),
    Case(f"{TEXT} masked-lm {{gpt2}}", "cannot be loaded as a masked language model", "give such a model"),
    Case(f"{CAUSAL} {{model}}", "of fewstep's own", "leave --adapter out"),
    Case(f"{CAUSAL} torn_config", "torn_config/config.json", "fetch or write it again"),
    Case(f"{CAUSAL} own_code", "own_code brings code of its own", "--trust_remote_code"),
    Case(f"{CAUSAL} pickled", "pytorch_model.bin", "--allow_pickle"),
    Case(f"{CAUSAL} junk_weights_of_others", "model.safetensors", "fetch it again"),
    Case(f"{IMAGES} {{gpt2}}", "None", "expected an autoencoder of diffusers"),
]
CASES = [*OPTIONS, *PLACES, *MODELS]

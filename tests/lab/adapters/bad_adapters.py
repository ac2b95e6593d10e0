"""Bad input of ``fewstep diagnose --adapter``, case by case, as :mod:`tests.cli.bad_inputs` has it for our own models.

``{gpt2}`` is a whole tiny model of transformers. :func:`write_others` puts a damaged one and an image into the current
folder.
"""

from pathlib import Path

from PIL import Image

from tests.cli.bad_inputs import Case

FEW = "diagnose --examples 4 --positions 1 --device cpu --out out"
TEXT = f"{FEW} --text {{text}} --tokens 8 --cache_dir {{cache}} --adapter"
CAUSAL = f"{TEXT} causal-lm"
IMAGES = f"{FEW} --adapter autoencoder-kl"
CALLABLE = f"{FEW} --adapter callable"


def write_others(folder: Path, gpt2: Path) -> None:
    """The model and the image that the cases name."""
    (folder / "torn_config").mkdir()
    for item in gpt2.iterdir():
        (folder / "torn_config" / item.name).write_bytes(b"{" if item.name == "config.json" else item.read_bytes())
    (folder / "one_image").mkdir()
    Image.new("L", (8, 8)).save(folder / "one_image" / "one.png")


CASES = [
    Case(f"{TEXT} gguf {{gpt2}}", "gguf", "adapter"),
    Case(f"{CAUSAL} {{gpt2}} --readout tied", "--readout", "it takes --text, --tokens"),
    Case(f"{CAUSAL} {{gpt2}} --source sotu", "--source", "give the text by --text"),
    Case(f"{IMAGES} {{gpt2}} --tokens 8", "--tokens", "it takes --images, --image_size"),
    Case(f"{CALLABLE} math:pi --dtype float16", "--dtype", "none of these options"),
    Case("diagnose {model} --images digits", "--images", "pass --adapter too"),
    Case("diagnose {model} --whiten", "--whiten", "pass --adapter too"),
    Case(f"{CAUSAL} {{gpt2}} --tokens 0", "0", "tokens"),
    Case(f"{CAUSAL} {{gpt2}} --tokens 70", "tokens is 70", "pass a smaller --tokens"),
    Case(f"{CAUSAL} {{gpt2}} --positions 9", "positions is 9", "from 1 to 8"),
    Case(f"{CAUSAL} {{gpt2}} --examples 1", "examples is 1", "expected a number from 2"),
    Case(f"{CAUSAL} {{gpt2}} --only dabi,sharpness", "sharpness", "expected one of token_accuracy"),
    Case(f"{IMAGES} {{gpt2}} --subfolder ../vae", "'../vae'", "such as vae"),
    Case(f"{IMAGES} {{gpt2}} --subfolder vae", "vae holds no config.json", "folder of an autoencoder"),
    Case(f"{CAUSAL} nobody/nothing", "nobody/nothing", "HF_HUB_OFFLINE"),
    Case(f"{CAUSAL} ./nowhere", "./nowhere", "written by save_pretrained"),
    Case(f"{CAUSAL} {{gpt2}} --text nowhere.txt", "nowhere.txt", "give a file"),
    Case(f"{CAUSAL} {{gpt2}} --out occupied", "diagnostics.json", "--overwrite"),
    Case(f"{IMAGES} {{gpt2}} --images circles", "circles", "expected digits or shapes"),
    Case(f"{IMAGES} {{gpt2}} --images one_image", "one_image: the folder holds 1", "expected at least 2"),
    Case(f"{CALLABLE} made", "'made'", "expected module:function"),
    Case(f"{CALLABLE} no_such_module:made", "no_such_module", "cannot be imported"),
    Case(f"{CALLABLE} math:pi", "pi", "not callable"),
    Case(f"{CALLABLE} os:getcwd", "os:getcwd gives a str", "expected a fewstep.lab.adapters"),
    Case(f"{CAUSAL} no_model", "no_model holds no config.json", "give a folder written by save_pretrained"),
    Case(f"{CAUSAL} {{model}}", "of fewstep's own", "leave --adapter out"),
    Case(f"{CAUSAL} torn_config", "torn_config/config.json", "fetch or write it again"),
    Case(f"{IMAGES} {{gpt2}}", "None", "expected an autoencoder of diffusers"),
]

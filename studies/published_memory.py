"""Peak memory of ``fewstep diagnose`` on published text latents: random weights of the released sizes.

python studies/published_memory.py                      # writes each model (up to 2.6 GB), measures, deletes it
python studies/published_memory.py --models calm elf-b  # some of them
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel

from fewstep.data.tokenizer import train_tokenizer
from fewstep.lab.adapters.calm import Calm
from fewstep.lab.adapters.cola import DEFAULTS, Cola
from fewstep.lab.adapters.elf import Elf
from fewstep.lab.adapters.langflow import LangFlow
from fewstep.lab.adapters.published import PublishedModel, Weights

Shapes = dict[str, tuple[int, ...]]
CALM = {"encoder.embed_tokens.weight": (128_257, 512), "encoder.encoder_layers.0.mlp.gate_proj.weight": (1280, 512)}
CALM |= {"decoder.latent_to_hidden.weight": (512, 128), "encoder.squeeze_layer.weight": (512, 4 * 512)}
LANGFLOW = {"backbone.vocab_embed.embedding": (50_257, 768), "backbone.sigma_map.mlp.0.weight": (128, 256)}
LANGFLOW |= {"backbone.blocks.0.mlp.0.weight": (3072, 768), "backbone.self_cond_proj.weight": ()}
COLA = {"decoder.final_layer.weight": (100_278, 1536), "decoder.in_layer.weight": (1536, 16)}
COLA |= {"encoder.blocks.0.ffn_proj.weight": (6144, 1536), "encoder.patch_embedder.weight": (1536, 1536, 1)}


def elf(width: int, num_heads: int) -> Shapes:
    """The weights whose shapes decide all others."""
    shapes: Shapes = {"unembed_kernel": (512, 32_128), "blocks.0.attn.q_norm.weight": (width // num_heads,)}
    shapes |= {"text_proj.proj2.weight": (width, 128), "blocks.0.mlp.w3.weight": (width, int(4 * width * 2 / 3))}
    shapes |= {f"{name}_embedder.mlp_0.weight": (width, 256) for name in ("t", "self_cond_cfg")}
    return shapes | dict.fromkeys(("t_emb_tokens", "self_cond_cfg_tokens", "mode_tokens"), (1, 4, width))


MODELS: dict[str, tuple[Callable[[Weights], PublishedModel], int, Shapes]] = {
    "calm": (lambda weights: Calm(weights, 1e-6), 2, CALM),
    "langflow": (lambda weights: LangFlow(weights, torch.ones(32), 0.0, 0), 12, LANGFLOW),
    "elf-b": (Elf, 12, elf(768, 12)),
    "elf-m": (Elf, 24, elf(1056, 16)),
    "elf-l": (Elf, 32, elf(1280, 16)),
    "cola": (lambda weights: Cola(weights, DEFAULTS), 4, COLA),
}
"""Kind, layers, and the shapes of the weights that decide all others."""


def shapes_of(kind: Callable[[Weights], PublishedModel], depth: int, known: Shapes) -> Shapes:
    """All weights of a model of ``depth`` layers, from the few that decide them: it is given whatever it asks for."""

    class Grown(Weights):
        def get(self, name: str, *shape: int | None) -> torch.Tensor:
            if None not in shape:
                self.tensors[name] = torch.empty(shape, device="meta")
            return super().get(name, *shape)

        def count(self, prefix: str) -> int:
            return depth

    weights = Grown("weights", {key: torch.empty(shape, device="meta") for key, shape in known.items()})
    kind(weights).read_all()
    return {key: tuple(value.shape) for key, value in weights.tensors.items()}


def write(name: str, folder: Path) -> int:
    """A model folder with random weights of the released size; returns how many numbers they are."""
    generator, shapes = torch.Generator().manual_seed(0), shapes_of(*MODELS[name])
    tensors = {key: 0.05 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    if name == "langflow":
        tensors |= {"proposal.loc": torch.tensor(4.723), "proposal.scale": torch.tensor(0.852)}
    (folder / "config.json").write_text(json.dumps(DEFAULTS))
    (folder / "config.yml").write_text("latent_std: 0.2")
    if name == "calm":
        torch.save(tensors, folder / "pytorch_model.bin")
    elif name.startswith("elf"):
        torch.save({"ema_params1": tensors}, folder / "checkpoint_1")
    else:
        save_file(tensors, folder / "model.safetensors")
    return sum(value.numel() for value in tensors.values())


def measure(name: str, folder: Path, options: list[str]) -> float:
    """The command's largest resident memory, in GiB; the files that it maps count."""
    given = ["--allow_pickle"] * (name == "calm" or name.startswith("elf"))
    given += ["--encoder" if name.startswith("elf") else "--tokenizer", str(folder / "reader")]
    command = [sys.executable, "-m", "fewstep", "diagnose", str(folder), "--adapter", name.partition("-")[0], *given]
    process = subprocess.Popen([*command, *options, "--out", str(folder / "out"), "--device", "cpu"])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name}: the command failed")
    return usage.ru_maxrss / 2**20


def main() -> None:
    """Print one row a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--examples", type=int, default=8)
    arguments = parser.parse_args()
    options = ["--only", "dabi", "--positions", "1", "--examples", str(arguments.examples), "--max_documents", "30"]
    rows = ["| model | numbers | peak memory (GiB) |", "|---|---|---|"]
    for name in arguments.models:
        with TemporaryDirectory() as given:
            folder = Path(given)
            if name.startswith("elf"):
                T5EncoderModel(T5Config()).save_pretrained(folder / "reader")
            train_tokenizer([Path(__file__).read_text()], 300).save_pretrained(folder / "reader")
            rows.append(f"| {name} | {write(name, folder) / 1e6:.0f}M | {measure(name, folder, options):.1f} |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()

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

from fewstep.data import train_tokenizer
from fewstep.lab.adapters.calm import calm_shapes
from fewstep.lab.adapters.cola import DEFAULTS, cola_shapes
from fewstep.lab.adapters.elf import elf_shapes
from fewstep.lab.adapters.langflow import langflow_shapes
from fewstep.lab.adapters.published import Shapes, Weights

CALM = {"encoder.embed_tokens.weight": (128_257, 512), "encoder.encoder_layers.0.mlp.gate_proj.weight": (1280, 512)}
CALM |= {"decoder.latent_to_hidden.weight": (512, 128)}
CALM |= {f"{part}.{part}_layers.1.x": () for part in ("encoder", "decoder")}
LANGFLOW = {"backbone.vocab_embed.embedding": (50_257, 768), "backbone.sigma_map.mlp.0.weight": (128, 256)}
LANGFLOW |= {"backbone.rotary_emb.inv_freq": (32,), "backbone.self_cond_proj.weight": ()}
LANGFLOW |= {"backbone.blocks.0.mlp.0.weight": (3072, 768), "backbone.blocks.11.x": ()}
COLA = {"decoder.final_layer.weight": (100_278, 1536), "decoder.in_layer.weight": (1536, 16)}
COLA |= {"encoder.blocks.0.ffn_proj.weight": (6144, 1536), "encoder.patch_embedder.weight": (1536, 1536, 1)}
COLA |= {f"{part}.blocks.3.x": () for part in ("encoder", "decoder")}


def elf(depth: int, width: int, num_heads: int) -> Shapes:
    """The weights whose shapes decide all others."""
    shapes: Shapes = {"unembed_kernel": (512, 32_128), "unembed_bias": (32_128,)}
    shapes |= {"text_proj.proj2.weight": (width, 128), "blocks.0.mlp.w3.weight": (width, int(4 * width * 2 / 3))}
    shapes |= {"blocks.0.attn.q_norm.weight": (width // num_heads,), f"blocks.{depth - 1}.x": ()}
    shapes |= {f"{name}_embedder.mlp_0.weight": (width, 256) for name in ("t", "self_cond_cfg")}
    return shapes | dict.fromkeys(("t_emb_tokens", "self_cond_cfg_tokens", "mode_tokens"), (1, 4, width))


MODELS: dict[str, tuple[Callable[[Weights], Shapes], Shapes]] = {
    "calm": (lambda weights: calm_shapes(weights, 4), CALM),
    "langflow": (langflow_shapes, LANGFLOW),
    "elf-b": (elf_shapes, elf(12, 768, 12)),
    "elf-m": (elf_shapes, elf(24, 1056, 16)),
    "elf-l": (elf_shapes, elf(32, 1280, 16)),
    "cola": (cola_shapes, COLA),
}


def released_shapes(name: str) -> Shapes:
    """All weights of a released size, from the few that decide them."""
    shapes_of, known = MODELS[name]
    return shapes_of(Weights(name, {key: torch.empty(shape, device="meta") for key, shape in known.items()}))


def write(name: str, folder: Path) -> int:
    """A model folder with random weights of the released size; returns how many numbers they are."""
    shapes = released_shapes(name)
    generator = torch.Generator().manual_seed(0)
    tensors = {key: 0.05 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    schedule = {"proposal.loc": torch.tensor(4.723), "proposal.scale": torch.tensor(0.852)}
    tensors |= {key: value for key, value in schedule.items() if key in shapes}
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

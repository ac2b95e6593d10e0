"""Published text latents as tiny random weights in their real format on disk."""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fewstep.lab.adapters.calm import Calm
from fewstep.lab.adapters.cola import Cola
from fewstep.lab.adapters.elf import Elf
from fewstep.lab.adapters.langflow import LangFlow
from studies.published_memory import shapes_of
from tests.lab.adapters.folders import byte_tokenizer

WIDTH, INNER, LATENT, STATE, NUM_HEADS = 12, 20, 5, 16, 3
VOCABULARY, ELF_VOCABULARY = len(byte_tokenizer()), 300
COLA = {"num_heads": NUM_HEADS, "block_size": 2, "rope_theta": 500, "layer_norm_eps": 1e-6}
COLA |= {"scaling_factor": 0.7, "shifting_factor": 0.2}
KINDS = {
    "calm": lambda weights: Calm(weights, 1e-6),
    "langflow": lambda weights: LangFlow(weights, torch.ones(2), 0.0, 0),
    "elf": Elf,
    "cola": lambda weights: Cola(weights, COLA),
}
DECIDING = {
    "calm": {
        "encoder.embed_tokens.weight": (VOCABULARY, WIDTH),
        "encoder.encoder_layers.0.mlp.gate_proj.weight": (INNER, WIDTH),
        "decoder.latent_to_hidden.weight": (WIDTH, LATENT),
        "encoder.squeeze_layer.weight": (WIDTH, 4 * WIDTH),
    },
    "langflow": {
        "backbone.vocab_embed.embedding": (VOCABULARY, WIDTH),
        "backbone.sigma_map.mlp.0.weight": (6, 256),
        "backbone.blocks.0.mlp.0.weight": (4 * WIDTH, WIDTH),
        "backbone.self_cond_proj.weight": (),
    },
    "elf": {
        "unembed_kernel": (STATE, ELF_VOCABULARY),
        "text_proj.proj2.weight": (WIDTH, 4),
        "blocks.0.mlp.w3.weight": (WIDTH, 32),
        "blocks.0.attn.q_norm.weight": (WIDTH // NUM_HEADS,),
        **dict.fromkeys(("t_embedder.mlp_0.weight", "self_cond_cfg_embedder.mlp_0.weight"), (WIDTH, 256)),
        **dict.fromkeys(("t_emb_tokens", "self_cond_cfg_tokens", "mode_tokens"), (1, 4, WIDTH)),
    },
    "cola": {
        "decoder.final_layer.weight": (VOCABULARY, WIDTH),
        "decoder.in_layer.weight": (WIDTH, LATENT),
        "encoder.blocks.0.ffn_proj.weight": (2 * INNER, WIDTH),
        "encoder.patch_embedder.weight": (WIDTH, WIDTH, 2),
    },
}
"""Shapes that decide all others."""


def weights_of(adapter: str) -> dict[str, Tensor]:
    """Random weights of two layers, each of an rms that keeps a layer's outputs of the order of 1."""
    noise, drawn = torch.Generator().manual_seed(0), {}
    for name, shape in shapes_of(KINDS[adapter], 2, DECIDING[adapter]).items():
        fan_in = shape[0] if "kernel" in name else math.prod(shape[1:])
        is_table = any(part in name for part in ("embed_tokens", "vocab_embed", "wte", "_tokens"))
        scale = 1.0 if is_table else 1.5 * fan_in**-0.5 if len(shape) > 1 else 0.3
        mean = 1.0 if len(shape) == 1 and name.endswith(".weight") else 0.0
        drawn[name] = mean + scale * torch.randn(shape, generator=noise)
    if adapter == "calm":
        drawn["decoder.lm_head_weight"] = drawn["encoder.embed_tokens.weight"]
    if adapter == "langflow":
        drawn["backbone.rotary_emb.inv_freq"] = 10_000 ** (-torch.arange(0, 4, 2) / 4)
        drawn |= {f"proposal.{name}": torch.tensor(value) for name, value in (("loc", 4.5), ("scale", 0.9))}
    return drawn


def write(adapter: str, folder: Path) -> Path:
    """The files of a model, those of Cola with its tokenizer; the settings of ELF and LangFlow are not the weights'."""
    folder.mkdir()
    weights = weights_of(adapter)
    if adapter == "calm":
        config = {"model_type": "autoencoder", "rms_norm_eps": 1e-6, "hidden_act": "silu"}
        torch.save(weights, folder / "pytorch_model.bin")
    elif adapter == "langflow":
        config = {"gumbel_loc": 4.723, "gumbel_scale": 0.852, "gumbel_cutoff": 1e-5, "use_bias": True}
        save_file(weights, folder / "model.safetensors")
    elif adapter == "elf":
        (folder / "config.yml").write_text("encoder_model_name: t5-small\nlatent_mean: 0.05\nlatent_std: 0.2\n")
        stored = {f"_orig_mod.{name}": value for name, value in weights.items()}
        wrong = {name: torch.zeros_like(value) for name, value in stored.items()}
        torch.save({"params": wrong, "ema_params1": stored, "step": 20}, folder / "checkpoint_20")
        torch.save({"params": wrong, "ema_params1": wrong, "step": 3}, folder / "checkpoint_3")
        return folder
    else:
        byte_tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
        inside, config = folder / "cola_dlm" / "cola_vae", {"model_type": "cola_text_vae", "post_norm": True, **COLA}
        inside.mkdir(parents=True)
        save_file(weights, inside / "model.safetensors")
        (inside / "config.json").write_text(json.dumps(config))
        return folder
    (folder / "config.json").write_text(json.dumps(config))
    return folder

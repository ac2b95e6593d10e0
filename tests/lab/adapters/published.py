"""Published text latents as tiny random weights in their real format on disk: names, shapes and files."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.lab.adapters.folders import byte_tokenizer

WIDTH, INNER, LATENT, CHUNK = 12, 20, 5, 4
CONDITION, NUM_HEADS = 6, 3
ELF_VOCABULARY, STATE, BOTTLENECK = 300, 16, 4
VOCABULARY = len(byte_tokenizer(False, False))


class Draw:
    """Random weights by name, each of an rms that keeps a layer's outputs of the order of 1."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.tensors: dict[str, Tensor] = {}

    def add(self, name: str, *shape: int, scale: float = 1.0, mean: float = 0.0) -> None:
        self.tensors[name] = mean + scale * torch.randn(shape, generator=self.generator)

    def linear(self, name: str, inputs: int, outputs: int, *, bias: bool = True) -> None:
        self.add(f"{name}.weight", outputs, inputs, scale=1.5 * inputs**-0.5)
        if bias:
            self.add(f"{name}.bias", outputs, scale=0.3)

    def norm(self, name: str, width: int, *, bias: bool = False) -> None:
        self.add(f"{name}.weight", width, scale=0.3, mean=1.0)
        if bias:
            self.add(f"{name}.bias", width, scale=0.3)


def calm_weights() -> dict[str, Tensor]:
    """Of CALM's autoencoder, the output tied to the embedding and stored with it."""
    draw = Draw()
    draw.add("encoder.embed_tokens.weight", VOCABULARY, WIDTH)
    draw.tensors["decoder.lm_head_weight"] = draw.tensors["encoder.embed_tokens.weight"]
    for part in ("encoder", "decoder"):
        for number in range(2):
            name = f"{part}.{part}_layers.{number}"
            draw.norm(f"{name}.layernorm", WIDTH)
            draw.linear(f"{name}.mlp.gate_proj", WIDTH, INNER, bias=False)
            draw.linear(f"{name}.mlp.up_proj", WIDTH, INNER, bias=False)
            draw.linear(f"{name}.mlp.down_proj", INNER, WIDTH, bias=False)
        draw.norm(f"{part}.norm", WIDTH)
    draw.linear("encoder.squeeze_layer", CHUNK * WIDTH, WIDTH)
    draw.linear("encoder.hidden_to_latent", WIDTH, 2 * LATENT)
    draw.linear("decoder.latent_to_hidden", LATENT, WIDTH)
    draw.linear("decoder.expand_layer", WIDTH, CHUNK * WIDTH)
    return draw.tensors


def write_calm(folder: Path) -> Path:
    """config.json and pytorch_model.bin; the tokenizer is elsewhere."""
    folder.mkdir()
    config = {"model_type": "autoencoder", "patch_size": CHUNK, "hidden_size": WIDTH, "rms_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "silu"}))
    torch.save(calm_weights(), folder / "pytorch_model.bin")
    return folder


def langflow_weights() -> dict[str, Tensor]:
    """Of LangFlow, its schedule learned to other numbers than those of its config."""
    draw = Draw()
    draw.add("backbone.vocab_embed.embedding", VOCABULARY, WIDTH)
    draw.linear("backbone.sigma_map.mlp.0", 256, CONDITION)
    draw.linear("backbone.sigma_map.mlp.2", CONDITION, CONDITION)
    head_dim = WIDTH // NUM_HEADS
    draw.tensors["backbone.rotary_emb.inv_freq"] = 10_000 ** (-torch.arange(0, head_dim, 2) / head_dim)
    for number in range(2):
        name = f"backbone.blocks.{number}"
        draw.norm(f"{name}.norm1", WIDTH)
        draw.linear(f"{name}.attn_qkv", WIDTH, 3 * WIDTH, bias=False)
        draw.linear(f"{name}.attn_out", WIDTH, WIDTH, bias=False)
        draw.norm(f"{name}.norm2", WIDTH)
        draw.linear(f"{name}.mlp.0", WIDTH, 4 * WIDTH)
        draw.linear(f"{name}.mlp.2", 4 * WIDTH, WIDTH)
        draw.linear(f"{name}.adaLN_modulation", CONDITION, 6 * WIDTH)
    draw.linear("backbone.self_cond_proj", 2 * WIDTH, WIDTH, bias=False)
    draw.norm("backbone.output_layer.norm_final", WIDTH)
    draw.linear("backbone.output_layer.linear", WIDTH, VOCABULARY)
    draw.linear("backbone.output_layer.adaLN_modulation", CONDITION, 2 * WIDTH)
    for name, value in (("loc", 4.5), ("scale", 0.9), ("entropy", 7.02)):
        draw.tensors[f"proposal.{name}"] = torch.tensor(value)
    return draw.tensors


def write_langflow(folder: Path) -> Path:
    """config.json and model.safetensors; the tokenizer is elsewhere."""
    folder.mkdir()
    config = {"gumbel_loc": 4.723, "gumbel_scale": 0.852, "gumbel_cutoff": 1e-5, "use_bias": True}
    config |= {"use_normalized_embedding": True, "self_conditioning": True, "hidden_size": WIDTH}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(langflow_weights(), folder / "model.safetensors")
    return folder


def elf_weights() -> dict[str, Tensor]:
    """Of ELF on states of 16 numbers, which tests.lab.adapters.folders.write gives its T5; kernels in JAX's layout."""
    draw = Draw()
    draw.linear("self_cond_proj", 2 * STATE, STATE)
    draw.linear("text_proj.proj1", STATE, BOTTLENECK, bias=False)
    draw.linear("text_proj.proj2", BOTTLENECK, WIDTH)
    for name in ("t_embedder", "self_cond_cfg_embedder"):
        draw.linear(f"{name}.mlp_0", 256, WIDTH)
        draw.linear(f"{name}.mlp_2", WIDTH, WIDTH)
    for name in ("t_emb_tokens", "self_cond_cfg_tokens", "mode_tokens"):
        draw.add(name, 1, 4, WIDTH)
    inner = int(4 * WIDTH * 2 / 3)
    for number in range(2):
        name = f"blocks.{number}"
        draw.norm(f"{name}.norm1", WIDTH)
        draw.norm(f"{name}.norm2", WIDTH)
        draw.linear(f"{name}.attn.qkv", WIDTH, 3 * WIDTH)
        draw.linear(f"{name}.attn.proj", WIDTH, WIDTH)
        draw.norm(f"{name}.attn.q_norm", WIDTH // NUM_HEADS)
        draw.norm(f"{name}.attn.k_norm", WIDTH // NUM_HEADS)
        draw.linear(f"{name}.mlp.w12", WIDTH, 2 * inner)
        draw.linear(f"{name}.mlp.w3", inner, WIDTH)
    draw.norm("final_layer.norm_final", WIDTH)
    draw.linear("final_layer.linear", WIDTH, STATE)
    draw.add("proj_kernel", WIDTH, STATE, scale=1.5 * WIDTH**-0.5)
    draw.add("proj_bias", STATE, scale=0.3)
    draw.add("unembed_kernel", STATE, ELF_VOCABULARY, scale=1.5 * STATE**-0.5)
    draw.add("unembed_bias", ELF_VOCABULARY, scale=0.3)
    return draw.tensors


def write_elf(folder: Path) -> Path:
    """config.yml and checkpoint_20, with other weights in its params and in an earlier checkpoint."""
    folder.mkdir()
    config = "model: ELF-B\nencoder_model_name: t5-small\nmax_length: 1024\nbottleneck_dim: 128\n"
    config += "num_time_tokens: 4\nlatent_mean: 0.05\nlatent_std: 0.2\ndenoiser_noise_scale: 2.0\n"
    (folder / "config.yml").write_text(config)
    weights = {f"_orig_mod.{name}": value for name, value in elf_weights().items()}
    wrong = {name: torch.zeros_like(value) for name, value in weights.items()}
    state = {"opt_state": {"state": {}, "param_groups": [{"lr": 0.1}]}, "lr_scheduler": None, "epoch": 3}
    torch.save({"params": wrong, "ema_params1": weights, "step": 20, **state}, folder / "checkpoint_20")
    torch.save({"params": wrong, "ema_params1": wrong, "step": 3, **state}, folder / "checkpoint_3")
    return folder


PATCH, BLOCK = 2, 2


def cola_weights() -> dict[str, Tensor]:
    """Of Cola's text autoencoder, with two tokens to a latent (the released one has one)."""
    draw = Draw()
    draw.add("encoder.wte.weight", VOCABULARY + 1, WIDTH)
    draw.add("encoder.patch_embedder.weight", WIDTH, WIDTH, PATCH, scale=(WIDTH * PATCH) ** -0.5)
    draw.add("encoder.patch_embedder.bias", WIDTH, scale=0.3)
    for part in ("encoder", "decoder"):
        for number in range(2):
            name = f"{part}.blocks.{number}"
            for norm in ("norm_attn", "q_norm", "k_norm", "norm_ffn"):
                draw.norm(f"{name}.{norm}", WIDTH, bias=True)
            draw.linear(f"{name}.qkv_proj", WIDTH, 3 * WIDTH, bias=False)
            draw.linear(f"{name}.attn_out_proj", WIDTH, WIDTH)
            draw.linear(f"{name}.ffn_proj", WIDTH, 2 * INNER)
            draw.linear(f"{name}.ffn_out", INNER, WIDTH)
    draw.linear("encoder.final_layer", WIDTH, 2 * LATENT)
    draw.linear("decoder.in_layer", LATENT, WIDTH)
    draw.linear("decoder.unpatch_layer", WIDTH, PATCH * WIDTH)
    draw.norm("decoder.final_norm", WIDTH, bias=True)
    draw.linear("decoder.final_layer", WIDTH, VOCABULARY)
    return draw.tensors


def write_cola(folder: Path) -> Path:
    """The whole repository: cola_dlm/cola_vae with config.json and model.safetensors, and tokenizer.json above."""
    inside = folder / "cola_dlm" / "cola_vae"
    inside.mkdir(parents=True)
    config = {"model_type": "cola_text_vae", "vocab_size": VOCABULARY, "dim": WIDTH, "num_heads": NUM_HEADS}
    config |= {"post_norm": True, "qk_norm": True, "block_causal": True, "block_size": BLOCK, "rope_theta": 500}
    config |= {"scaling_factor": 0.7, "shifting_factor": 0.2, "use_variation": True, "layer_norm_eps": 1e-6}
    (inside / "config.json").write_text(json.dumps(config))
    save_file(cola_weights(), inside / "model.safetensors")
    byte_tokenizer(False, False).backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder

"""Published text latents: encoder and decoder equal a plain rewrite, and files that are not theirs are refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5EncoderModel

from fewstep.cli.diagnose import check_adapter_options, load_subject
from fewstep.data.tokenizer import load_tokenizer
from fewstep.lab.adapters import Decoder, cola, elf
from studies.published_memory import MODELS, shapes_of
from tests.lab.adapters.folders import check_smooth, load, options_of, refusal
from tests.lab.adapters.published import ELF_VOCABULARY, LATENT, NUM_HEADS, WIDTH, weights_of, write

OPTIONS: dict[str, dict[str, Any]] = {
    "calm": {"allow_pickle": True, "tokenizer": "gpt2"},
    "langflow": {"tokenizer": "gpt2"},
    "elf": {"allow_pickle": True, "encoder": "t5"},
    "cola": {},
}
"""What each adapter has to be given; a tokenizer or an encoder is one of the shop."""
HALVES = [(0, 2), (1, 3)]
"""Planes of a head's rotation."""


def options(adapter: str, shop: Path, folder: Path, **changes: object) -> Any:
    given = {**OPTIONS[adapter], **changes}
    given |= {name: str(shop / given[name]) for name in ("tokenizer", "encoder") if given.get(name) is not None}
    return options_of(shop, folder, adapter=adapter, **given)


def written(adapter: str, shop: Path, folder: Path) -> tuple[Decoder, dict[str, Tensor]]:
    """The decoder of a new model in ``folder``, and its weights, in float64."""
    decoder = load(adapter, options(adapter, shop, write(adapter, folder), dtype="float64"))
    return decoder, {name: value.double() for name, value in weights_of(adapter).items()}


def close(ours: Tensor, expected: list[Tensor]) -> None:
    stacked = torch.stack(expected)
    assert float(stacked.std()) > 0.1  # random weights that say nothing would agree with anything
    torch.testing.assert_close(ours, stacked, rtol=1e-5, atol=1e-5)


class Plain:
    """Layers written out, by name."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", torch.zeros(()))

    def rms_norm(self, name: str, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.weights[f"{name}.weight"]

    def layer_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()
        return x * self.weights[f"{name}.weight"] + self.weights.get(f"{name}.bias", torch.zeros(()))

    def time(self, value: float, first: str, second: str) -> Tensor:
        angles = [value / 10_000 ** (number / 128) for number in range(128)]
        features = torch.tensor([*map(math.cos, angles), *map(math.sin, angles)], dtype=torch.float64)
        return self.linear(second, F.silu(self.linear(first, features)))


def heads(x: Tensor) -> list[Tensor]:
    return list(x.split(WIDTH // NUM_HEADS, -1))


def turned(x: Tensor, pairs: list[tuple[int, int]], base: float = 10_000) -> Tensor:
    """Row n of (N, d) turned by n radians over ``base`` ** (j / number of pairs) in the plane of pair j."""
    result = x.clone()
    for row in range(len(x)):
        for number, (a, b) in enumerate(pairs):
            angle = row / base ** (number / len(pairs))
            result[row, a] = math.cos(angle) * x[row, a] - math.sin(angle) * x[row, b]
            result[row, b] = math.sin(angle) * x[row, a] + math.cos(angle) * x[row, b]
    return result


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of one head and one example, (N, d)."""
    return (q @ k.T / math.sqrt(q.shape[-1])).softmax(-1) @ v


@torch.no_grad()
def test_calm_is_layers_of_gated_mlps_around_a_chunk(shop: Path, tmp_path: Path) -> None:
    decoder, weights = written("calm", shop, tmp_path / "calm")
    plain, table = Plain(weights), weights["encoder.embed_tokens.weight"]

    def layer(part: str, number: int, x: Tensor) -> Tensor:
        name = f"{part}.{part}_layers.{number}"
        h = plain.rms_norm(f"{name}.layernorm", x)
        gated = F.silu(plain.linear(f"{name}.mlp.gate_proj", h)) * plain.linear(f"{name}.mlp.up_proj", h)
        return x + plain.linear(f"{name}.mlp.down_proj", gated)

    means, logits = [], []
    for chunk in decoder.data.reshape(-1, 4):
        x = layer("encoder", 1, plain.linear("encoder.squeeze_layer", layer("encoder", 0, table[chunk]).flatten()))
        means.append(plain.linear("encoder.hidden_to_latent", plain.rms_norm("encoder.norm", x))[:LATENT])
        x = layer("decoder", 0, plain.linear("decoder.latent_to_hidden", means[-1]))
        x = layer("decoder", 1, plain.linear("decoder.expand_layer", x).reshape(4, -1))
        logits.append(plain.rms_norm("decoder.norm", x) @ table.T)
    close(decoder.z.flatten(0, 1), means)
    close(decoder.decode(decoder.z).reshape(len(logits), 4, -1), logits)


def langflow_logits(plain: Plain, z: Tensor, gamma: float) -> Tensor:
    """Of one example z (L, W): the network of LangFlow's paper, and the skip connection."""
    c = F.silu(plain.time(gamma, "backbone.sigma_map.mlp.0", "backbone.sigma_map.mlp.2"))
    x = z + z @ plain.weights["backbone.self_cond_proj.weight"][:, :WIDTH].T
    for number in range(2):
        name = f"backbone.blocks.{number}"
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = plain.linear(f"{name}.adaLN_modulation", c).chunk(6)
        h = plain.layer_norm(f"{name}.norm1", x, 1e-5) * (1 + scale_a) + shift_a
        q, k, v = (heads(part) for part in plain.linear(f"{name}.attn_qkv", h).chunk(3, -1))
        mixed = [attended(turned(a, HALVES), turned(b, HALVES), d) for a, b, d in zip(q, k, v, strict=True)]
        x = x + gate_a * plain.linear(f"{name}.attn_out", torch.cat(mixed, -1))
        h = plain.linear(f"{name}.mlp.0", plain.layer_norm(f"{name}.norm2", x, 1e-5) * (1 + scale_m) + shift_m)
        x = x + gate_m * plain.linear(f"{name}.mlp.2", F.gelu(h, approximate="tanh"))
    shift, scale = plain.linear("backbone.output_layer.adaLN_modulation", c).chunk(2)
    x = plain.layer_norm("backbone.output_layer.norm_final", x, 1e-5) * (1 + scale) + shift
    rows = plain.weights["backbone.vocab_embed.embedding"]
    table = rows / rows.norm(dim=-1, keepdim=True) * math.sqrt(WIDTH)
    skip = math.exp((math.log1p(math.exp(-gamma)) - gamma) / 2)
    return plain.linear("backbone.output_layer.linear", x) + skip * z @ table.T


@torch.no_grad()
def test_langflow_reads_noisy_embeddings_by_its_denoiser_at_the_end_of_its_schedule(shop: Path, tmp_path: Path) -> None:
    decoder, weights = written("langflow", shop, tmp_path / "langflow")
    gamma = 4.5 - 0.9 * math.log(-math.log(1e-5))  # the numbers of the weights, not those of the config
    close(decoder.decode(decoder.z), [langflow_logits(Plain(weights), z, gamma) for z in decoder.z])
    clean = F.normalize(weights["backbone.vocab_embed.embedding"], dim=-1)[decoder.data] * math.sqrt(WIDTH)
    noise = (decoder.z - clean * (1 + math.exp(gamma)) ** -0.5) * (1 + math.exp(-gamma)) ** 0.5
    assert float(noise.mean()) == pytest.approx(0, abs=4 / noise.numel() ** 0.5)
    assert float(noise.std()) == pytest.approx(1, abs=4 / (2 * noise.numel()) ** 0.5)
    again, other = (
        load("langflow", options("langflow", shop, tmp_path / "langflow", seed=seed, dtype="float64")).z
        for seed in (0, 1)
    )
    assert torch.equal(decoder.z, again) and not torch.equal(decoder.z, other)
    assert "0.302 x embedding + 0.953 x noise (seed 0)" in decoder.notes[0]


def elf_logits(plain: Plain, z: Tensor) -> Tensor:
    """Of one example z (L, D): twelve tokens and the block through the denoiser in its decode mode."""
    weights = plain.weights
    x = plain.linear("text_proj.proj1", plain.linear("self_cond_proj", F.pad(z, (0, z.shape[1]))))
    time = weights["t_emb_tokens"][0] + plain.time(1.0, "t_embedder.mlp_0", "t_embedder.mlp_2")
    guidance = plain.time(3.0, "self_cond_cfg_embedder.mlp_0", "self_cond_cfg_embedder.mlp_2")
    prefix = [time, weights["self_cond_cfg_tokens"][0] + guidance, weights["mode_tokens"][0]]
    x = torch.cat([*prefix, plain.linear("text_proj.proj2", x)])

    def rotated(name: str, x: Tensor) -> Tensor:
        x = plain.rms_norm(name, x)
        return torch.cat([x[:12], turned(x[12:], [(0, 1), (2, 3)])])

    for number in range(2):
        name = f"blocks.{number}"
        qkv = plain.linear(f"{name}.attn.qkv", plain.rms_norm(f"{name}.norm1", x))
        q, k, v = (heads(part) for part in qkv.chunk(3, -1))
        mixed = [
            attended(rotated(f"{name}.attn.q_norm", a), rotated(f"{name}.attn.k_norm", b), d)
            for a, b, d in zip(q, k, v, strict=True)
        ]
        x = x + plain.linear(f"{name}.attn.proj", torch.cat(mixed, -1))
        gate, up = plain.linear(f"{name}.mlp.w12", plain.rms_norm(f"{name}.norm2", x)).chunk(2, -1)
        x = x + plain.linear(f"{name}.mlp.w3", F.silu(gate) * up)
    hidden = F.gelu(x[12:] @ weights["proj_kernel"] + weights["proj_bias"], approximate="tanh")
    return hidden @ weights["unembed_kernel"] + weights["unembed_bias"]


@torch.no_grad()
def test_elf_reads_normalised_states_of_t5_by_its_averaged_denoiser(shop: Path, tmp_path: Path) -> None:
    decoder, weights = written("elf", shop, tmp_path / "elf")
    states = T5EncoderModel.from_pretrained(shop / "t5").eval()(decoder.data).last_hidden_state
    torch.testing.assert_close(decoder.z.float(), (states - 0.05) / 0.2, rtol=1e-4, atol=1e-4)
    close(decoder.decode(decoder.z), [elf_logits(Plain(weights), z) for z in decoder.z])
    assert decoder.decode(decoder.z).shape[-1] == ELF_VOCABULARY
    assert decoder.name == str(tmp_path / "elf")
    T5EncoderModel.from_pretrained(shop / "t5").save_pretrained(tmp_path / "alone")  # without the decoder's weights
    load_tokenizer(shop / "t5").save_pretrained(tmp_path / "alone")
    alone = load("elf", options("elf", shop, tmp_path / "elf", encoder=tmp_path / "alone", dtype="float64"))
    assert torch.equal(alone.z, decoder.z)


def cola_blocks(plain: Plain, part: str, x: Tensor) -> Tensor:
    """Of one example x (N, W), position by position: each attends to the latents up to the end of its block of two."""
    for number in range(2):
        name = f"{part}.blocks.{number}"
        q, k, v = plain.linear(f"{name}.qkv_proj", x).chunk(3, -1)
        q, k = plain.layer_norm(f"{name}.q_norm", q, 1e-6), plain.layer_norm(f"{name}.k_norm", k, 1e-6)
        rows = []
        for row in range(len(x)):
            end = (row // 2 + 1) * 2
            mixed = [
                attended(turned(a, HALVES, 500)[row : row + 1], turned(b, HALVES, 500)[:end], d[:end])
                for a, b, d in zip(heads(q), heads(k), heads(v), strict=True)
            ]
            rows.append(torch.cat(mixed, -1))
        mixed = plain.linear(f"{name}.attn_out_proj", torch.cat(rows))
        x = plain.layer_norm(f"{name}.norm_attn", x, 1e-6) + mixed
        up, gate = plain.linear(f"{name}.ffn_proj", x).chunk(2, -1)
        x = x + plain.layer_norm(f"{name}.norm_ffn", plain.linear(f"{name}.ffn_out", up * F.silu(gate)), 1e-6)
    return x


@torch.no_grad()
def test_cola_reads_scaled_means_block_by_block_and_also_from_its_own_folder(shop: Path, tmp_path: Path) -> None:
    decoder, weights = written("cola", shop, tmp_path / "cola")
    plain, means, logits = Plain(weights), [], []
    for ids in decoder.data:
        pairs = weights["encoder.wte.weight"][ids].reshape(-1, 2, WIDTH)
        x = torch.einsum("npi,oip->no", pairs, weights["encoder.patch_embedder.weight"])
        x = cola_blocks(plain, "encoder", x + weights["encoder.patch_embedder.bias"])
        x = F.layer_norm(plain.linear("encoder.final_layer", x)[:, :LATENT], (LATENT,), eps=1e-6)
        means.append((x - 0.2) * 0.7)
        x = cola_blocks(plain, "decoder", plain.linear("decoder.in_layer", means[-1]))
        x = plain.linear("decoder.unpatch_layer", x).reshape(len(x), WIDTH, 2).mT.reshape(-1, WIDTH)
        logits.append(plain.linear("decoder.final_layer", plain.layer_norm("decoder.final_norm", x, 1e-6)))
    close(decoder.z, means)
    close(decoder.decode(decoder.z), logits)
    inside = tmp_path / "cola" / "cola_dlm" / "cola_vae"
    (tmp_path / "cola" / "tokenizer.json").rename(inside / "tokenizer.json")
    assert torch.equal(decoder.z, load("cola", options("cola", shop, inside, dtype="float64")).z)


@pytest.mark.parametrize("adapter", OPTIONS)
def test_the_command_loads_a_published_latent_whose_decoder_has_a_forward_mode(
    shop: Path, tmp_path: Path, adapter: str
) -> None:
    given = options(adapter, shop, write(adapter, tmp_path / adapter))
    check_adapter_options(given)
    subject = load_subject(given)
    assert subject.notes[0].startswith(f"{adapter}: latent: ")
    assert float(subject.z.square().mean().sqrt()) == pytest.approx(1)
    check_smooth(subject.decode, subject.z)


def weight_file(folder: Path) -> Path:
    (file,) = (path for glob in ("*.safetensors", "*.bin", "checkpoint_20") for path in folder.rglob(glob))
    return file


def change_weights(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write the weights of a folder again after ``change``."""
    file = weight_file(folder)
    if file.suffix == ".safetensors":
        weights = load_file(file)
        change(weights)
        save_file(weights, file)
    else:
        values = torch.load(file, weights_only=True)
        change(values.get("ema_params1", values))
        torch.save(values, file)


@pytest.mark.parametrize(
    ("adapter", "name"),
    [
        ("calm", "decoder.norm.weight"),
        ("langflow", "backbone.blocks.1.norm2.weight"),
        ("elf", "blocks.1.attn.k_norm.weight"),
        ("elf", "final_layer.linear.bias"),
        ("cola", "decoder.blocks.1.ffn_out.bias"),
    ],
)
def test_weights_that_are_missing_unexpected_or_of_another_shape_are_named(
    shop: Path, tmp_path: Path, adapter: str, name: str
) -> None:
    folder = write(adapter, tmp_path / adapter)
    stored = f"_orig_mod.{name}" if adapter == "elf" else name
    for change, message in (
        (lambda weights: weights.pop(stored), f"lacks the weight {name}"),
        (lambda weights: weights.update({stored: torch.ones(3, 3)}), f"has the weight {name} of shape (3, 3)"),
        (
            lambda weights: weights.update({stored: weights_of(adapter)[name], "extra.weight": torch.ones(2)}),
            "has 1 unexpected weights, first extra.weight",
        ),
    ):
        change_weights(folder, change)
        assert message in refusal(adapter, options(adapter, shop, folder))


@pytest.mark.parametrize("adapter", ["calm", "elf"])
def test_a_pickle_is_read_only_when_asked_for_and_without_running_code(
    shop: Path, tmp_path: Path, adapter: str
) -> None:
    folder = write(adapter, tmp_path / adapter)
    refused = refusal(adapter, options(adapter, shop, folder, allow_pickle=False))
    assert "pass --allow_pickle if you trust it" in refused
    for content, message in (
        ({"ema_params1": Path("a class")}, "cannot be read as weights ("),
        ({"ema_params1": {"weight": 3}}, "holds no tensors by name"),
    ):
        torch.save(content, weight_file(folder))
        assert message in refusal(adapter, options(adapter, shop, folder))


def test_options_and_files_that_are_missing_or_of_another_variant_are_told(shop: Path, tmp_path: Path) -> None:
    folders = {adapter: write(adapter, tmp_path / adapter) for adapter in OPTIONS}
    inside = folders["cola"] / "cola_dlm" / "cola_vae"

    def told(adapter: str, message: str, **changes: object) -> None:
        assert message in refusal(adapter, options(adapter, shop, folders[adapter], **changes))

    told("calm", "--tokenizer meta-llama/Meta-Llama-3-8B", tokenizer=None)
    for adapter in ("calm", "cola"):
        told(adapter, "tokens is 6: expected a multiple of 4", tokens=6)
    config = json.loads((inside / "config.json").read_text())
    (inside / "config.json").write_text(json.dumps({**config, "post_norm": False}))
    told("cola", "has post_norm False: expected True")
    (inside / "config.json").write_text(json.dumps(config))
    (inside / "model.safetensors").unlink()
    told("cola", "holds no weights")
    change_weights(folders["calm"], lambda weights: weights.update({"decoder.lm_head_weight": torch.ones(3, 3)}))
    told("calm", "expected the tied model")
    told("elf", "reads the states of another model: name it, --encoder t5-small", encoder=None)
    (folders["elf"] / "config.yml").write_text("a list")
    told("elf", "holds no settings")
    (folders["elf"] / "config.yml").write_text("latent_std: 0.2")
    torch.save({"params": {}}, folders["elf"] / "checkpoint_20")
    told("elf", "cannot be read as weights (KeyError: 'ema_params1')")
    for file in folders["elf"].glob("checkpoint_*"):
        file.unlink()
    told("elf", "holds no file checkpoint_NNN")


def test_of_a_hub_name_only_the_files_that_are_read_are_fetched(tmp_path: Path) -> None:
    for adapter, patterns in (("elf", elf.PATTERNS), ("cola", cola.PATTERNS)):
        folder = write(adapter, tmp_path / adapter)
        files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        others = {"README.md", "model.bin", "cola_dlm/cola_dit/model.safetensors"}
        assert set(filter_repo_objects(files | others, allow_patterns=list(patterns))) == files


PUBLISHED_NUMBERS = {"calm": 75.8e6, "elf-b": 105e6, "elf-m": 342e6, "elf-l": 652e6, "cola": 500e6}


@pytest.mark.parametrize("name", PUBLISHED_NUMBERS)
def test_the_weights_that_are_asked_for_add_up_to_the_published_size(name: str) -> None:
    numbers = sum(map(math.prod, shapes_of(*MODELS[name]).values()))
    assert numbers == pytest.approx(PUBLISHED_NUMBERS[name], rel=0.005)

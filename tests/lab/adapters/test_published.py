"""Published text latents: encoder and decoder equal a plain rewrite, and files that are not theirs are refused."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5EncoderModel

from fewstep.cli.diagnose import load_subject
from fewstep.cli.main import main
from fewstep.data import load_tokenizer
from fewstep.errors import UserError
from fewstep.lab.adapters import Decoder
from fewstep.registry import import_attribute
from studies.published_memory import released_shapes
from tests.fake_hub import running_hub
from tests.lab.adapters import published
from tests.lab.adapters.folders import TOKENS, options_of
from tests.lab.adapters.test_text_models import check_smooth

OPTIONS: dict[str, dict[str, Any]] = {
    "calm": {"allow_pickle": True, "tokenizer": "gpt2"},
    "langflow": {"tokenizer": "gpt2"},
    "elf": {"allow_pickle": True, "encoder": "t5"},
    "cola": {},
}
"""What each adapter has to be given; a tokenizer is one of the shop."""


def load(adapter: str, shop: Path, folder: Path, **changes: object) -> Decoder:
    function = import_attribute(f"fewstep.lab.adapters.{adapter}.load_{adapter}", "adapter")
    return function(options(adapter, shop, folder, **changes))


def options(adapter: str, shop: Path, folder: Path, **changes: object) -> Any:
    given = {**OPTIONS[adapter], **changes}
    given |= {name: str(shop / given[name]) for name in ("tokenizer", "encoder") if given.get(name) is not None}
    return options_of(shop, folder, adapter=adapter, **given)


def close(ours: Tensor, expected: Tensor) -> None:
    assert float(expected.std()) > 0.1  # random weights that say nothing would agree with anything
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


@torch.no_grad()
def test_calm_is_layers_of_gated_mlps_around_a_chunk(shop: Path, tmp_path: Path) -> None:
    decoder = load("calm", shop, published.write_calm(tmp_path / "calm"))
    w = published.calm_weights()
    table = w["encoder.embed_tokens.weight"]

    def layer(x: Tensor, name: str) -> Tensor:
        h = normed(x, w[f"{name}.layernorm.weight"])
        gate = h @ w[f"{name}.mlp.gate_proj.weight"].T
        up = h @ w[f"{name}.mlp.up_proj.weight"].T
        return x + (gate / (1 + (-gate).exp()) * up) @ w[f"{name}.mlp.down_proj.weight"].T

    means, logits = [], []
    for chunk in decoder.data.reshape(-1, 4):
        x = layer(table[chunk], "encoder.encoder_layers.0").flatten()
        x = layer(w["encoder.squeeze_layer.weight"] @ x + w["encoder.squeeze_layer.bias"], "encoder.encoder_layers.1")
        x = normed(x, w["encoder.norm.weight"])
        mean = (w["encoder.hidden_to_latent.weight"] @ x + w["encoder.hidden_to_latent.bias"])[: published.LATENT]
        means.append(mean)
        x = w["decoder.latent_to_hidden.weight"] @ mean + w["decoder.latent_to_hidden.bias"]
        x = w["decoder.expand_layer.weight"] @ layer(x, "decoder.decoder_layers.0") + w["decoder.expand_layer.bias"]
        x = layer(x.reshape(4, -1), "decoder.decoder_layers.1")
        logits.append(normed(x, w["decoder.norm.weight"]) @ table.T)
    close(decoder.z, torch.stack(means).reshape(3, TOKENS // 4, published.LATENT))
    close(decoder.decode(decoder.z), torch.cat(logits).reshape(3, TOKENS, -1))


def heads(x: Tensor, count: int) -> list[Tensor]:
    return list(x.split(x.shape[-1] // count, -1))


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


def time_embedding(value: float, w: dict[str, Tensor], first: str, second: str) -> Tensor:
    angles = [value / 10_000 ** (number / 128) for number in range(128)]
    features = torch.tensor([*map(math.cos, angles), *map(math.sin, angles)])
    hidden = w[f"{first}.weight"] @ features + w[f"{first}.bias"]
    return w[f"{second}.weight"] @ F.silu(hidden) + w[f"{second}.bias"]


def langflow_logits(w: dict[str, Tensor], z: Tensor, gamma: float) -> Tensor:
    """Of one example z (L, W): the network of LangFlow's paper, and the skip connection."""
    linear = lambda name, x: x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))  # noqa: E731
    norm = lambda name, x: F.layer_norm(x, x.shape[-1:]) * w[f"{name}.weight"]  # noqa: E731
    half = published.WIDTH // published.NUM_HEADS // 2
    pairs = [(number, number + half) for number in range(half)]
    c = F.silu(time_embedding(gamma, w, "backbone.sigma_map.mlp.0", "backbone.sigma_map.mlp.2"))
    x = z + z @ w["backbone.self_cond_proj.weight"][:, : published.WIDTH].T
    for number in range(2):
        name = f"backbone.blocks.{number}"
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = linear(f"{name}.adaLN_modulation", c).chunk(6)
        qkv = linear(f"{name}.attn_qkv", norm(f"{name}.norm1", x) * (1 + scale_a) + shift_a)
        q, k, v = (heads(part, published.NUM_HEADS) for part in qkv.chunk(3, -1))
        mixed = [attended(turned(a, pairs), turned(b, pairs), d) for a, b, d in zip(q, k, v, strict=True)]
        x = x + gate_a * linear(f"{name}.attn_out", torch.cat(mixed, -1))
        h = linear(f"{name}.mlp.0", norm(f"{name}.norm2", x) * (1 + scale_m) + shift_m)
        x = x + gate_m * linear(f"{name}.mlp.2", F.gelu(h, approximate="tanh"))
    shift, scale = linear("backbone.output_layer.adaLN_modulation", c).chunk(2)
    x = norm("backbone.output_layer.norm_final", x) * (1 + scale) + shift
    rows = w["backbone.vocab_embed.embedding"]
    table = rows / rows.norm(dim=-1, keepdim=True) * math.sqrt(published.WIDTH)
    skip = math.exp((math.log1p(math.exp(-gamma)) - gamma) / 2)
    return linear("backbone.output_layer.linear", x) + skip * z @ table.T


@torch.no_grad()
def test_langflow_reads_noisy_embeddings_by_its_denoiser_at_the_end_of_its_schedule(shop: Path, tmp_path: Path) -> None:
    decoder = load("langflow", shop, published.write_langflow(tmp_path / "langflow"))
    w = published.langflow_weights()
    gamma = 4.5 - 0.9 * math.log(-math.log(1e-5))  # the numbers of the weights, not those of the config
    close(decoder.decode(decoder.z), torch.stack([langflow_logits(w, z, gamma) for z in decoder.z]))
    rows = w["backbone.vocab_embed.embedding"]
    clean = F.normalize(rows, dim=-1)[decoder.data] * math.sqrt(published.WIDTH)
    noise = (decoder.z - clean * (1 + math.exp(gamma)) ** -0.5) * (1 + math.exp(-gamma)) ** 0.5
    assert float(noise.mean()) == pytest.approx(0, abs=4 / noise.numel() ** 0.5)
    assert float(noise.std()) == pytest.approx(1, abs=4 / (2 * noise.numel()) ** 0.5)
    again, other = (load("langflow", shop, tmp_path / "langflow", seed=seed) for seed in (0, 1))
    assert torch.equal(decoder.z, again.z) and not torch.equal(decoder.z, other.z)
    assert "0.302 x embedding + 0.953 x noise (seed 0)" in decoder.notes[0]


def elf_logits(w: dict[str, Tensor], z: Tensor) -> Tensor:
    """Of one example z (L, D): twelve tokens and the block through the denoiser in its decode mode."""
    linear = lambda name, x: x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))  # noqa: E731
    head_dim = published.WIDTH // published.NUM_HEADS
    pairs = [(number, number + 1) for number in range(0, head_dim, 2)]
    x = linear("text_proj.proj2", linear("text_proj.proj1", linear("self_cond_proj", F.pad(z, (0, z.shape[1])))))
    time = time_embedding(1.0, w, "t_embedder.mlp_0", "t_embedder.mlp_2")
    guidance = time_embedding(3.0, w, "self_cond_cfg_embedder.mlp_0", "self_cond_cfg_embedder.mlp_2")
    x = torch.cat([w["t_emb_tokens"][0] + time, w["self_cond_cfg_tokens"][0] + guidance, w["mode_tokens"][0], x])

    def rotated(x: Tensor, weight: Tensor) -> Tensor:
        x = normed(x, weight)
        return torch.cat([x[:12], turned(x[12:], pairs)])

    for number in range(2):
        name = f"blocks.{number}"
        qkv = linear(f"{name}.attn.qkv", normed(x, w[f"{name}.norm1.weight"]))
        q, k, v = (heads(part, published.NUM_HEADS) for part in qkv.chunk(3, -1))
        q = [rotated(part, w[f"{name}.attn.q_norm.weight"]) for part in q]
        k = [rotated(part, w[f"{name}.attn.k_norm.weight"]) for part in k]
        x = x + linear(f"{name}.attn.proj", torch.cat([attended(*parts) for parts in zip(q, k, v, strict=True)], -1))
        gate, up = linear(f"{name}.mlp.w12", normed(x, w[f"{name}.norm2.weight"])).chunk(2, -1)
        x = x + linear(f"{name}.mlp.w3", F.silu(gate) * up)
    hidden = F.gelu(x[12:] @ w["proj_kernel"] + w["proj_bias"], approximate="tanh")
    return hidden @ w["unembed_kernel"] + w["unembed_bias"]


@torch.no_grad()
def test_elf_reads_normalised_states_of_t5_by_its_averaged_denoiser(shop: Path, tmp_path: Path) -> None:
    decoder = load("elf", shop, published.write_elf(tmp_path / "elf"))
    states = T5EncoderModel.from_pretrained(shop / "t5").eval()(decoder.data).last_hidden_state
    torch.testing.assert_close(decoder.z, (states - 0.05) / 0.2, rtol=1e-4, atol=1e-4)
    w = published.elf_weights()
    close(decoder.decode(decoder.z), torch.stack([elf_logits(w, z) for z in decoder.z]))
    assert decoder.decode(decoder.z).shape[-1] == published.ELF_VOCABULARY
    assert decoder.name == str(tmp_path / "elf")
    T5EncoderModel.from_pretrained(shop / "t5").save_pretrained(tmp_path / "alone")  # without the decoder's weights
    load_tokenizer(shop / "t5").save_pretrained(tmp_path / "alone")
    assert torch.equal(load("elf", shop, tmp_path / "elf", encoder=tmp_path / "alone").z, decoder.z)


def cola_blocks(w: dict[str, Tensor], part: str, x: Tensor) -> Tensor:
    """Of one example x (N, W), position by position: each attends to the latents up to the end of its block of two."""
    linear = lambda name, x: x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))  # noqa: E731
    norm = lambda name, x: F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)  # noqa: E731
    half = published.WIDTH // published.NUM_HEADS // 2
    pairs = [(number, number + half) for number in range(half)]
    for number in range(2):
        name = f"{part}.blocks.{number}"
        q, k, v = linear(f"{name}.qkv_proj", x).chunk(3, -1)
        q, k, v = (heads(y, published.NUM_HEADS) for y in (norm(f"{name}.q_norm", q), norm(f"{name}.k_norm", k), v))
        rows = []
        for row in range(len(x)):
            end = (row // 2 + 1) * 2
            mixed = [
                attended(turned(a, pairs, 500)[row : row + 1], turned(b, pairs, 500)[:end], d[:end])
                for a, b, d in zip(q, k, v, strict=True)
            ]
            rows.append(torch.cat(mixed, -1))
        x = norm(f"{name}.norm_attn", x) + linear(f"{name}.attn_out_proj", torch.cat(rows))
        up, gate = linear(f"{name}.ffn_proj", x).chunk(2, -1)
        x = x + norm(f"{name}.norm_ffn", linear(f"{name}.ffn_out", up * gate * gate.sigmoid()))
    return x


@torch.no_grad()
def test_cola_reads_scaled_means_block_by_block(shop: Path, tmp_path: Path) -> None:
    decoder = load("cola", shop, published.write_cola(tmp_path / "cola"))
    w = published.cola_weights()
    kernel = w["encoder.patch_embedder.weight"]
    means, logits = [], []
    for ids in decoder.data:
        pairs = w["encoder.wte.weight"][ids].reshape(-1, 2, published.WIDTH)
        x = torch.einsum("npi,oip->no", pairs, kernel) + w["encoder.patch_embedder.bias"]
        x = cola_blocks(w, "encoder", x) @ w["encoder.final_layer.weight"].T + w["encoder.final_layer.bias"]
        x = x[:, : published.LATENT]
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        means.append((x - 0.2) * 0.7)
        x = means[-1] @ w["decoder.in_layer.weight"].T + w["decoder.in_layer.bias"]
        x = cola_blocks(w, "decoder", x) @ w["decoder.unpatch_layer.weight"].T + w["decoder.unpatch_layer.bias"]
        x = x.reshape(len(x), published.WIDTH, 2).mT.reshape(-1, published.WIDTH)
        x = F.layer_norm(x, x.shape[-1:], w["decoder.final_norm.weight"], w["decoder.final_norm.bias"], 1e-6)
        logits.append(x @ w["decoder.final_layer.weight"].T + w["decoder.final_layer.bias"])
    close(decoder.z, torch.stack(means))
    close(decoder.decode(decoder.z), torch.stack(logits))
    later = decoder.z.clone()
    later[:, 2:] += 1
    assert torch.equal(decoder.decode(later)[:, :4], decoder.decode(decoder.z)[:, :4])


def test_cola_is_read_from_the_autoencoders_own_folder_and_refuses_another_variant(shop: Path, tmp_path: Path) -> None:
    folder = published.write_cola(tmp_path / "cola")
    whole, inside = load("cola", shop, folder), folder / "cola_dlm" / "cola_vae"
    (folder / "tokenizer.json").rename(inside / "tokenizer.json")
    alone = load("cola", shop, inside)
    assert torch.equal(whole.z, alone.z)
    assert "tokens is 6: expected a multiple of 4" in refusal("cola", shop, inside, tokens=6)
    config = json.loads((inside / "config.json").read_text())
    (inside / "config.json").write_text(json.dumps({**config, "post_norm": False}))
    assert "has post_norm False: expected True" in refusal("cola", shop, inside)
    (inside / "model.safetensors").unlink()
    (inside / "config.json").write_text(json.dumps(config))
    assert "holds no weights" in refusal("cola", shop, inside)


def write(adapter: str, folder: Path) -> Path:
    return getattr(published, f"write_{adapter}")(folder)


@pytest.mark.parametrize("adapter", OPTIONS)
def test_a_published_decoder_is_loaded_by_the_command_and_has_a_forward_mode(
    shop: Path, tmp_path: Path, adapter: str
) -> None:
    subject = load_subject(options(adapter, shop, write(adapter, tmp_path / adapter)))
    assert subject.notes[0].startswith(f"{adapter}: latent: ")
    assert float(subject.z.square().mean().sqrt()) == pytest.approx(1)
    check_smooth(subject.decode, subject.z)


@pytest.mark.parametrize("adapter", OPTIONS)
def test_the_command_measures_a_published_latent(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given_options, given = OPTIONS[adapter], options(adapter, shop, write(adapter, tmp_path / adapter))
    line = ["diagnose", adapter, "--adapter", adapter, "--only", "dabi", "--examples", "4", "--positions", "1"]
    line += ["--text", given.text, "--tokens", str(TOKENS), "--cache_dir", given.cache_dir, "--device", "cpu"]
    for name in sorted({"tokenizer", "encoder"} & given_options.keys()):
        line += [f"--{name}", getattr(given, name)]
    assert main([*line, *(["--allow_pickle"] if given.allow_pickle else [])]) == 0
    table = json.loads((tmp_path / f"diagnosis-{adapter}" / "diagnostics.json").read_text())["table"]
    assert table["dabi"]["value"] > 1


def refusal(adapter: str, shop: Path, folder: Path, **changes: object) -> str:
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        load(adapter, shop, folder, **changes)
    return str(caught.value)


def weight_files(folder: Path) -> list[Path]:
    return [path for glob in ("*.safetensors", "*.bin", "checkpoint_20") for path in folder.rglob(glob)]


def change_weights(adapter: str, folder: Path, change: Any) -> None:
    """Write the weights of a folder again after ``change`` of the dict."""
    (file,) = weight_files(folder)
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
        ("cola", "decoder.blocks.1.ffn_out.bias"),
    ],
)
def test_weights_that_are_missing_unexpected_or_of_another_shape_are_named(
    shop: Path, tmp_path: Path, adapter: str, name: str
) -> None:
    folder = write(adapter, tmp_path / adapter)
    kept: dict[str, Tensor] = {}
    stored = f"_orig_mod.{name}" if adapter == "elf" else name
    change_weights(adapter, folder, lambda weights: kept.update(gone=weights.pop(stored)))
    assert f"lacks weights {name} (1 of" in refusal(adapter, shop, folder)
    change_weights(
        adapter, folder, lambda weights: weights.update({stored: kept["gone"], "extra.weight": torch.ones(2)})
    )
    assert "has the unexpected weights extra.weight (1 of" in refusal(adapter, shop, folder)
    change_weights(adapter, folder, lambda weights: weights.pop("extra.weight"))
    change_weights(adapter, folder, lambda weights: weights.update({stored: torch.ones(3, 3)}))
    assert f"has other shapes of the weights {name} (1 of" in refusal(adapter, shop, folder)


@pytest.mark.parametrize("adapter", ["calm", "elf"])
def test_a_pickle_is_read_only_when_asked_for_and_without_running_code(
    shop: Path, tmp_path: Path, adapter: str
) -> None:
    folder = write(adapter, tmp_path / adapter)
    assert "pass --allow_pickle if you trust it" in refusal(adapter, shop, folder, allow_pickle=False)
    (file,) = weight_files(folder)
    torch.save({"ema_params1": Path("a class")}, file)
    assert "cannot be read as weights (" in refusal(adapter, shop, folder)
    torch.save({"ema_params1": {"weight": 3}}, file)
    assert "holds no tensors by name" in refusal(adapter, shop, folder)


def test_a_model_without_its_tokenizer_asks_for_one(shop: Path, tmp_path: Path) -> None:
    folder = published.write_calm(tmp_path / "calm")
    assert "--tokenizer meta-llama/Meta-Llama-3-8B" in refusal("calm", shop, folder, tokenizer=None)
    assert "tokens is 6: expected a multiple of 4" in refusal("calm", shop, folder, tokens=6)


def test_elf_asks_for_its_encoder_and_for_a_checkpoint(shop: Path, tmp_path: Path) -> None:
    folder = published.write_elf(tmp_path / "elf")
    assert "reads the states of another model: name it, --encoder t5-small" in refusal(
        "elf", shop, folder, encoder=None
    )
    (folder / "config.yml").write_text("a list")
    assert "holds no settings" in refusal("elf", shop, folder)
    (folder / "config.yml").write_text("latent_std: 0.2")
    torch.save({"params": {}}, folder / "checkpoint_20")
    assert "has no entry ema_params1" in refusal("elf", shop, folder)
    for file in folder.glob("checkpoint_*"):
        file.unlink()
    assert "holds no file checkpoint_NNN" in refusal("elf", shop, folder)


def test_of_a_hub_name_only_the_files_that_are_read_are_fetched(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from fewstep.data.hub import model_snapshot\n"
        "from fewstep.lab.adapters import cola, elf\n"
        "for name, patterns in (('owner/elf', elf.PATTERNS), ('owner/cola', cola.PATTERNS)):\n"
        "    folder = model_snapshot(name, patterns)\n"
        "    print(*sorted(str(file.relative_to(folder)) for file in folder.rglob('*') if file.is_file()))\n"
    )
    with running_hub() as hub:
        for name in ("elf", "cola"):
            folder = write(name, tmp_path / name)
            files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
            extra = {"README.md": b"", "model.bin": b"", "cola_dlm/cola_dit/model.safetensors": b"large"}
            hub.models[f"owner/{name}"] = {**files, **extra}
        own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
        environment = {**os.environ, **own, "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines() == [
        "checkpoint_20 checkpoint_3 config.yml",
        "cola_dlm/cola_vae/config.json cola_dlm/cola_vae/model.safetensors tokenizer.json",
    ], done.stderr


PUBLISHED_NUMBERS = {"calm": 75.8e6, "elf-b": 105e6, "elf-m": 342e6, "elf-l": 652e6, "cola": 500e6}


@pytest.mark.parametrize("name", PUBLISHED_NUMBERS)
def test_the_weights_that_are_asked_for_add_up_to_the_published_size(name: str) -> None:
    numbers = sum(map(math.prod, released_shapes(name).values()))
    assert numbers == pytest.approx(PUBLISHED_NUMBERS[name], rel=0.005)

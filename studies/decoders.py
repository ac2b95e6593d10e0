"""How sharp decoders are, ours and others', under one protocol of ``fewstep diagnose``: one Markdown table.

    python studies/decoders.py                                      # trains four small decoders, diagnoses them
    python studies/decoders.py --minilm FOLDER --causal FOLDER      # and two pretrained ones
    python studies/decoders.py --runs runs/quickstart runs/shapes   # and our own, diagnosed before
    python studies/decoders.py --train_steps 20 --examples 4        # a trial run

A T5 and a BART of width 128 learn to copy the built-in speeches, two AutoencoderKL of diffusers learn drawn shapes and
digits, each in minutes on one core. What is there already is not trained or diagnosed again.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from tokenizers import processors
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from fewstep.cli.main import main as fewstep
from fewstep.data.corpus import prepare_corpus
from fewstep.data.sources import CorpusSettings
from fewstep.lab.images import Digits, DrawnShapes

WIDTH, BATCH = 128, 32
ROWS = {
    "dabi": "boundary next to data, normal",
    "dabi_data": "data, normal",
    "dabi_segment": "boundary (images: middle) on a segment between data, along it",
    "dabi_worst": "the same points, worst direction",
    "dabi_data_segment": "data, towards another image",
    "dabi_generated": "boundary next to generated latents, normal",
    "dabi_head": "autoregressive readout, boundary next to data, normal",
}
"""Measurements of the table, and what they are called there."""
COLUMNS = ("decoder", "points, direction", "n", "DABI_0", "DABI_0 / n", "distance p50 (rms)", "token accuracy or error")


def copying_text(framed: bool) -> tuple[PreTrainedTokenizerFast, Tensor]:
    """A tokenizer with </s> after each block, and <s> before where ``framed``; the train blocks alike."""
    corpus = prepare_corpus(CorpusSettings())
    base = corpus.tokenizer
    base.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
    ends = [("<s>", base.bos_token_id), ("</s>", base.eos_token_id)]
    template = "<s> $A </s>" if framed else "$A </s>"
    backend = base.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    blocks = torch.from_numpy(corpus.train[:]["input_ids"].astype("int64"))
    starts = [torch.full((len(blocks), 1), base.bos_token_id)] if framed else []
    return tokenizer, torch.cat([*starts, blocks, torch.full((len(blocks), 1), base.eos_token_id)], 1)


def train_t5(folder: Path, num_steps: int) -> None:
    """Copies token after token."""
    tokenizer, blocks = copying_text(False)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=32,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    model = T5ForConditionalGeneration(config)
    fit(model, lambda rows, step: copying_loss(model, blocks[rows]), len(blocks), num_steps)
    save(model, tokenizer, folder)


def train_bart(folder: Path, num_steps: int) -> None:
    """Copies token after token and, every other step, in parallel: start tokens everywhere, as it is diagnosed."""
    tokenizer, blocks = copying_text(True)
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=2 * WIDTH,
        decoder_ffn_dim=2 * WIDTH,
        max_position_embeddings=64,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
    )
    model = BartForConditionalGeneration(config)

    def loss(rows: Tensor, step: int) -> Tensor:
        return copying_loss(model, blocks[rows], config.decoder_start_token_id if step % 2 else None)

    fit(model, loss, len(blocks), num_steps)
    save(model, tokenizer, folder)


def copying_loss(model: Any, ids: Tensor, start: int | None = None) -> Tensor:
    """Cross-entropy of a block against itself; with ``start`` that token precedes every position."""
    if start is None:
        return model(input_ids=ids, labels=ids).loss
    return model(input_ids=ids, labels=ids, decoder_input_ids=torch.full_like(ids, start)).loss


def train_shapes(folder: Path, num_steps: int) -> None:
    """Coloured shapes of 16 x 16 pixels, latents of 4 x 8 x 8 = 256 numbers."""
    train_kl(folder, DrawnShapes(num_train=2048, size=16).train(), num_steps)


def train_digits(folder: Path, num_steps: int) -> None:
    """Grey digits of 8 x 8 pixels, latents of 4 x 4 x 4 = 64 numbers."""
    train_kl(folder, Digits().train(), num_steps)


def train_kl(folder: Path, images: Tensor, num_steps: int) -> None:
    """Squared error and 1e-4 of the divergence from the normal distribution, on ``images`` (N, C, H, W) in [0, 1]."""
    torch.manual_seed(0)
    model = AutoencoderKL(
        in_channels=images.shape[1],
        out_channels=images.shape[1],
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=images.shape[-1],
    )
    images = images * 2 - 1

    def loss(rows: Tensor, step: int) -> Tensor:
        posterior = model.encode(images[rows]).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(step))
        decoded = model.decode(posterior.mean + posterior.std * noise).sample
        return (decoded - images[rows]).square().mean() + 1e-4 * posterior.kl().mean() / posterior.mean[0].numel()

    fit(model, loss, len(images), num_steps)
    model.save_pretrained(folder)


def fit(model: torch.nn.Module, loss_of: Callable[[Tensor, int], Tensor], count: int, num_steps: int) -> None:
    """AdamW with warm-up and a linear decay to 0; rows are drawn with replacement."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min((step + 1) / 100, 1 - step / num_steps)
        loss = loss_of(torch.randint(count, (BATCH,), generator=generator), step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step + 1 == num_steps:
            print(f"  step {step}, loss {loss.item():.3f}", flush=True)
    model.eval()


def save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A folder that transformers reads."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


SMALL: dict[str, tuple[Callable[[Path, int], None], int, tuple[str, ...]]] = {
    "t5": (train_t5, 1500, ("--adapter", "seq2seq")),
    "bart": (train_bart, 1500, ("--adapter", "seq2seq")),
    "kl-shapes": (train_shapes, 600, ("--adapter", "autoencoder-kl", "--images", "shapes")),
    "kl-digits": (train_digits, 600, ("--adapter", "autoencoder-kl", "--images", "digits")),
}
"""Training, its steps, and the options of the diagnosis."""


def diagnosed(folder: Path, model: Path, options: tuple[str, ...], examples: int) -> dict[str, Any]:
    """The diagnosis of ``model``, made where it is not there yet."""
    file = folder / "diagnostics.json"
    few = ("--examples", str(examples), "--positions", "2", "--seed", "0", "--out", str(folder))
    if not file.is_file() and fewstep(["diagnose", str(model), "--effort", "full", *options, *few]):
        raise SystemExit(f"{model} could not be diagnosed")
    return json.loads(file.read_text(encoding="utf-8"))


def lines(name: str, diagnosis: dict[str, Any]) -> list[str]:
    """Markdown lines of one decoder."""
    table = diagnosis["table"]
    shared = [shown(table, "boundary_distance_p50"), accuracy(table)]
    rows = []
    for key, what in ROWS.items():
        if (entry := table.get(key)) is None or entry["value"] is None:
            continue
        n = round(entry["value"] / table[f"{key}_fraction"]["value"])
        cells = (name, what, str(n), shown(table, key), shown(table, f"{key}_fraction"), *shared)
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def accuracy(table: dict[str, Any]) -> str:
    """Token accuracy, or the error of reconstruction."""
    keys = ("token_accuracy", "noise_accuracy_at_0", "reconstruction_error")
    return next((shown(table, key) for key in keys if key in table), "")


def shown(table: dict[str, Any], name: str) -> str:
    """A row's value with its interval, three digits."""
    entry = table.get(name)
    if entry is None or entry["value"] is None:
        return ""
    interval = entry.get("interval")
    return f"{entry['value']:.3g}" + (f" ({interval['low']:.3g} - {interval['high']:.3g})" if interval else "")


def main() -> None:
    """Train, diagnose and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/decoders"), help="folder of models and diagnoses")
    parser.add_argument("--minilm", type=Path, help="folder of an encoder such as all-MiniLM-L6-v2")
    parser.add_argument("--causal", type=Path, help="folder of a causal language model")
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="folders of our own runs, diagnosed before")
    parser.add_argument("--examples", type=int, default=16, help="blocks of text; four times as many images")
    parser.add_argument("--train_steps", type=int, help="training steps of the small ones; left out, 1,500 and 600")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for name, (train, num_steps, options) in SMALL.items():
        model = args.out / "models" / name
        if not (model / "config.json").is_file():
            print(f"training {name}", flush=True)
            train(model, args.train_steps or num_steps)
        examples = args.examples * (4 if "autoencoder-kl" in options else 1)
        table += lines(name, diagnosed(args.out / "diagnoses" / name, model, options, examples))
    large = [("smollm2", args.causal, ("--adapter", "causal-lm"))]
    large += [(f"minilm-{r}", args.minilm, ("--adapter", "encoder-linear", "--readout", r)) for r in ("fitted", "tied")]
    for name, model, options in large:
        if model is not None:
            table += lines(name, diagnosed(args.out / "diagnoses" / name, model, options, max(1, args.examples // 2)))
    for folder in args.runs:
        file = folder / "diagnosis" / "diagnostics.json"
        table += lines(f"ours, {folder.name}", json.loads(file.read_text(encoding="utf-8")))
    print("\n".join(table))


if __name__ == "__main__":
    main()

"""The small models of benchmarks/decoders.py: a T5 and a BART that copy, two AutoencoderKL."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from fewstep.data import CorpusSettings, prepare_corpus
from fewstep.lab.images import Digits, DrawnShapes

WIDTH = 128
COPY_STEPS = 1500
IMAGE_STEPS = 600
TEXT_BATCH, IMAGE_BATCH = 32, 32


def copying_text(before: bool) -> tuple[PreTrainedTokenizerFast, Tensor]:
    """A tokenizer of 2,048 tokens with </s> after, and <s> before where asked for, and the train blocks so framed."""
    corpus = prepare_corpus(CorpusSettings())
    made = corpus.tokenizer
    made.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
    ends = [("<s>", made.bos_token_id), ("</s>", made.eos_token_id)]
    template = "<s> $A </s>" if before else "$A </s>"
    backend = made.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    blocks = torch.from_numpy(corpus.train[:]["input_ids"].astype("int64"))
    columns = [torch.full((len(blocks), 1), made.bos_token_id)] if before else []
    columns += [blocks, torch.full((len(blocks), 1), made.eos_token_id)]
    return tokenizer, torch.cat(columns, 1)


def train_t5(folder: Path) -> None:
    """Copies token after token: its decoder knows places by the tokens before alone."""
    tokenizer, blocks = copying_text(False)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
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
    )
    fit(model, lambda rows, step: copying_loss(model, blocks[rows]), len(blocks), COPY_STEPS, TEXT_BATCH, 1e-3)
    save(model, tokenizer, folder)


def train_bart(folder: Path) -> None:
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

    fit(model, loss, len(blocks), COPY_STEPS, TEXT_BATCH, 1e-3)
    save(model, tokenizer, folder)


def copying_loss(model: Any, ids: Tensor, start: int | None = None) -> Tensor:
    """Cross-entropy of a block against itself; with ``start`` that token stands before every place."""
    if start is None:
        return model(input_ids=ids, labels=ids).loss
    return model(input_ids=ids, labels=ids, decoder_input_ids=torch.full_like(ids, start)).loss


def train_shapes(folder: Path) -> None:
    """Coloured shapes of 16 x 16 pixels, latents of 4 x 8 x 8 = 256 numbers."""
    train_kl(folder, DrawnShapes(num_train=2048, size=16).train(), (16, 32))


def train_digits(folder: Path) -> None:
    """Grey digits of 8 x 8 pixels, latents of 4 x 4 x 4 = 64 numbers."""
    train_kl(folder, Digits().train(), (16, 32))


def train_kl(folder: Path, images: Tensor, widths: tuple[int, ...]) -> None:
    """Squared error and 1e-4 of the divergence from the normal distribution, on ``images`` (N, C, H, W) in [0, 1]."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        in_channels=images.shape[1],
        out_channels=images.shape[1],
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=images.shape[-1],
    )
    images = images * 2 - 1

    def loss(rows: Tensor, step: int) -> Tensor:
        posterior = model.encode(images[rows]).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(step))
        found = model.decode(posterior.mean + posterior.std * noise).sample
        return (found - images[rows]).square().mean() + 1e-4 * posterior.kl().mean() / posterior.mean[0].numel()

    fit(model, loss, len(images), IMAGE_STEPS, IMAGE_BATCH, 1e-3)
    model.save_pretrained(folder)


def fit(
    model: torch.nn.Module,
    loss_of: Callable[[Tensor, int], Tensor],
    count: int,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
) -> None:
    """AdamW with warm-up and a linear decay to 0; rows are drawn with replacement."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min((step + 1) / 100, 1 - step / num_steps)
        loss = loss_of(torch.randint(count, (batch_size,), generator=generator), step)
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

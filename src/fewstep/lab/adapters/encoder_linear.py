"""Encoders with a linear readout, the way of text diffusion on the states of a frozen encoder (ELF)."""

from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.memory import read_header
from fewstep.evaluation.pretrained import Loading, load_transformers, model_folder
from fewstep.lab.adapters.decoders import TextDecoder
from fewstep.lab.adapters.linear import LinearReadout, ReadoutChoice, fit_linear, read_linear
from fewstep.lab.adapters.text import ModelText, TextSource, read_text
from fewstep.lab.adapters.trunk import embedding_rows, last_states, max_positions
from fewstep.shapes import example_generators

FIT_BLOCKS = 1024
"""Blocks of the train split that a readout is fitted on, at most."""
UNUSED = ("pooler", "decoder.")
"""Weights that may be missing: an encoder's token states do not come from them."""


def load_encoder_linear(
    path: str, source: TextSource, loading: Loading, choice: ReadoutChoice
) -> tuple[TextDecoder, ModelText]:
    """Any encoder of transformers (folder or hub name) with a linear readout of its token states, and its text.

    A block stands between the special tokens that the tokenizer writes; a latent is the last states (L, D) of the
    block's own tokens. The readout is fitted on the train split of the same text, starting from the input embeddings
    where they have the states' width; or tied to them; or read from a file, as ``choice`` says.
    Of an encoder-decoder model the encoder is taken. Raises ``UserError`` for whatever is wrong with model, tokenizer,
    text or readout.
    """
    if choice.file is not None:
        read_header(choice.file)  # what is no readout is told before the model is read
    folder = model_folder(path, loading)
    model, notes = load_transformers("AutoModel", folder, loading, purpose="an encoder", ignored=UNUSED)
    encoder = model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model
    rows = embedding_rows(model)
    text = read_text(folder, source, rows, length=source.tokens, max_positions=max_positions(model))
    z = token_states(encoder, text, text.blocks, loading.device)
    readout, told = _readout(encoder, text, z, rows, choice, path)
    note = f"encoder-linear: latent: the encoder's last state at each token; readout: linear, {told}"
    return TextDecoder(path, readout, z, text.blocks.to(loading.device), notes=(note, *notes)), text


def token_states(encoder: Any, text: ModelText, blocks: Tensor, device: str) -> Tensor:
    """The last states (N, L, D) of the tokens of ``blocks`` (N, L), special tokens standing around them."""
    return text.inner(last_states(encoder, text.framed(blocks), device)).contiguous()


def _readout(
    encoder: Any, text: ModelText, z: Tensor, rows: int, choice: ReadoutChoice, path: str
) -> tuple[LinearReadout, str]:
    if choice.file is not None:
        return read_linear(choice.file, z.shape[-1], int(text.blocks.max()) + 1, z), f"read from {choice.file.name}"
    table = encoder.get_input_embeddings().weight.detach()
    fits = table.shape[1] == z.shape[-1]
    if choice.kind == "tied" and not fits:
        raise UserError(
            f"{path} has embeddings of {table.shape[1]} numbers and states of {z.shape[-1]}: they cannot be tied, take "
            "--readout fitted"
        )
    nothing = torch.zeros(rows, dtype=z.dtype, device=z.device)
    start = LinearReadout(table if fits else nothing[:, None].expand(-1, z.shape[-1]).clone(), nothing)
    if choice.kind == "tied":
        return start, "tied to the input embeddings"
    blocks = text.train_blocks(FIT_BLOCKS)
    states = token_states(encoder, text, blocks, str(z.device))
    (generator,) = example_generators(choice.seed, 0, 1)
    flat, ids = states.flatten(0, 1), blocks.flatten().to(z.device)
    fitted = fit_linear(flat, ids, start, num_steps=choice.num_steps, generator=generator)
    return (
        fitted,
        f"fitted on {blocks.numel():,} tokens of the train split in {choice.num_steps} steps, seed {choice.seed}",
    )

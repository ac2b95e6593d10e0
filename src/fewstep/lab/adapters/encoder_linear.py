"""Encoders with a linear readout, as text diffusion on the states of a frozen encoder has it (ELF).

N states, D numbers of a state, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.errors import UserError
from fewstep.lab.adapters.decoder import Decoder
from fewstep.lab.adapters.text import blocks_of, load_text_model
from fewstep.shapes import example_generators

FIT_BLOCKS, FIT_STEPS = 1024, 400
"""Blocks of the train split that a readout is fitted on, at most, and steps of the fit."""
UNUSED = ("pooler", "decoder.")
"""Weights that may be missing: an encoder's token states do not come from them."""


def load_encoder_linear(options: DiagnoseOptions) -> Decoder:
    """Any encoder of transformers with a linear readout of its token states.

    A block stands between the special tokens that the tokenizer writes; a latent is the last states (L, D) of the
    block's own tokens. The readout is fitted on the train split of the same text, starting from the input embeddings
    where they have the states' width; or ``tied`` to them. Of an encoder-decoder model the encoder is taken. Raises
    ``UserError`` for whatever is wrong with model, tokenizer or text.
    """
    from transformers import AutoModel

    text = load_text_model(options, AutoModel, "an encoder", unused=UNUSED)
    model = text.model
    encoder = model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model
    z = text.inner(text.states(encoder, text.framed(text.blocks)))
    table = encoder.get_input_embeddings().weight.detach()
    bias = table.new_zeros(len(table))
    same_width = table.shape[1] == z.shape[-1]
    if options.readout == "tied":
        if not same_width:
            raise UserError(
                f"{options.model} has embeddings of {table.shape[1]} numbers and states of {z.shape[-1]}: they cannot "
                "be tied, take --readout fitted"
            )
        weight, how = table, "tied to the input embeddings"
    else:
        blocks = blocks_of(text.corpus.train, FIT_BLOCKS)
        states = text.inner(text.states(encoder, text.framed(blocks)))
        start = table if same_width else table.new_zeros(len(table), z.shape[-1])
        (generator,) = example_generators(options.seed, 0, 1)
        weight, bias = fit_linear(states.flatten(0, 1), blocks.flatten().to(z.device), start, generator)
        how = f"fitted on {blocks.numel():,} tokens of the train split in {FIT_STEPS} steps, seed {options.seed}"
    note = f"encoder-linear: latent: the encoder's last state at each token; readout: linear, {how}"
    return text.decoder(lambda z: linear(z, weight, bias), z, text.blocks, note)


def fit_linear(
    states: Tensor, ids: Tensor, start: Tensor, generator: torch.Generator, *, learning_rate: float = 2e-3
) -> tuple[Tensor, Tensor]:
    """Weight (V, D) and bias (V,) that read ``ids`` (N,) from ``states`` (N, D), from the weight ``start`` on.

    AdamW on cross-entropy with linear decay to 0, of batches of 256 drawn with replacement by ``generator``.
    """
    scale = states.double().square().mean().sqrt().to(states)
    with torch.inference_mode(False), torch.enable_grad():
        weight, bias = (start.clone() * scale).requires_grad_(), start.new_zeros(len(start)).requires_grad_()
        optimizer = torch.optim.AdamW([weight, bias], lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
        for step in range(FIT_STEPS):
            rows = torch.randint(len(ids), (256,), generator=generator, device=generator.device).to(ids.device)
            logits = linear(states[rows].clone() / scale, weight, bias)
            loss = cross_entropy(logits.float(), ids[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / FIT_STEPS)
            optimizer.step()
    return (weight / scale).detach(), bias.detach()

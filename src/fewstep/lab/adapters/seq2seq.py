"""Encoder-decoder models (T5, BART): the encoder's states, read in parallel and token after token.

B examples, L tokens of a block, K = L and the special tokens, D numbers of a state, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.errors import UserError
from fewstep.lab.adapters.decoder import Decoder
from fewstep.lab.adapters.text import load_text_model
from fewstep.readouts import draw_tokens
from fewstep.shapes import rand

NOTE = (
    "seq2seq: latent: the encoder's states, special tokens included; the text is to be copied, which a model need not "
    "have learnt: see the token accuracies. Parallel readout: one pass of the decoder with its start token everywhere, "
    "for which it was not trained either; rows of the head, and cci: the decoder as it is meant, token after token"
)
BLIND = (
    "the parallel readout says the same at every place: this decoder knows a place by the tokens before it only (T5's "
    "relative positions), and they are all alike here; read the rows of the head"
)


class Seq2SeqReadout:
    """The decoder of an encoder-decoder model at latents ``z`` (B, K, D), its encoder's states.

    ``before`` are the special tokens that stand before a block's own in what the model writes. As conditionals it
    draws and reads the L = ``length`` tokens of a block, each given the latents and the tokens before it.
    """

    def __init__(self, model: Any, before: tuple[int, ...], length: int) -> None:
        self.model = model
        self.length = length
        self.before = before
        self.start = int(model.config.decoder_start_token_id)

    def parallel(self, z: Tensor) -> Tensor:
        """Logits (B, L, V) in one pass, the start token standing at every place: no token depends on any other."""
        inputs = torch.full((len(z), len(self.before) + self.length), self.start, device=z.device)
        return self._logits(z, inputs)

    def logits(self, z: Tensor, ids: Tensor) -> Tensor:
        """Logits (B, L, V) of each of ``ids`` (B, L) given the latents and the ids before it."""
        first = torch.tensor([self.start, *self.before], device=z.device).expand(len(z), -1)
        return self._logits(z, torch.cat([first, ids[:, :-1].to(z.device)], 1))

    @torch.no_grad()
    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Tokens (B, L) at temperature 1, for latents ``z`` (B, K, D)."""
        u = rand((len(z), self.length), z, generator)
        inputs = torch.tensor([self.start, *self.before], device=z.device).expand(len(z), -1)
        cache, drawn = None, []
        for place in range(self.length):
            output = self.model(
                encoder_outputs=_encoded(z), decoder_input_ids=inputs, past_key_values=cache, use_cache=True
            )
            cache = output.past_key_values
            ids, _ = draw_tokens(output.logits[:, -1], u[:, place])
            inputs = ids[:, None]
            drawn.append(inputs)
        return torch.cat(drawn, 1)

    def _logits(self, z: Tensor, inputs: Tensor) -> Tensor:
        """What stands after the inputs (B, before + L) of the decoder, for the block's own tokens."""
        output = self.model(encoder_outputs=_encoded(z), decoder_input_ids=inputs, use_cache=False)
        return output.logits[:, len(self.before) :]


def load_seq2seq(options: DiagnoseOptions) -> Decoder:
    """An encoder-decoder model of transformers as a decoder of its own input.

    The encoder reads a block between the special tokens that the tokenizer writes (T5: an end after it; BART: one on
    either side), and a latent is all of its states (K, D). ``decode`` is the parallel readout, ``conditionals`` the
    autoregressive one; both give the block's L tokens. Raises ``UserError`` for whatever is wrong with model, tokenizer
    or text.
    """
    from transformers import AutoModelForSeq2SeqLM

    text = load_text_model(options, AutoModelForSeq2SeqLM, "an encoder-decoder model")
    if getattr(text.model.config, "decoder_start_token_id", None) is None:
        raise UserError(f"{options.model} has no decoder_start_token_id: give it in config.json")
    z = text.states(text.model.get_encoder(), text.framed(text.blocks))
    readout = Seq2SeqReadout(text.model, text.before, text.blocks.shape[1])
    notes = (NOTE, BLIND) if _is_blind(readout, z[:2]) else (NOTE,)
    return text.decoder(readout.parallel, z, text.blocks, *notes, conditionals=readout)


@torch.no_grad()
def _is_blind(readout: Seq2SeqReadout, z: Tensor) -> bool:
    """Whether the parallel readout says the same at every place."""
    logits = readout.parallel(z)
    return bool(torch.allclose(logits, logits[:, :1].expand_as(logits), rtol=1e-3, atol=1e-3))


def _encoded(z: Tensor) -> Any:
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=z)

"""Any causal language model of transformers as a scorer. N texts, L tokens, V vocabulary, H hidden width."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fewstep.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from fewstep.errors import UserError
from fewstep.evaluation.pretrained import DTYPES, from_pretrained
from fewstep.evaluation.scorers import DIGEST_DIGITS, ScoredText, Spans, weights_digest
from fewstep.metrics.text import sample_entropies_nats

POSITIONS_AT_ONCE = 256
"""Positions whose logits are held in float64 at once: a vocabulary of 50,000 takes 100 MB."""
PLACES = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
"""Entries of a model's config that do not change its numbers: its path, and what is recorded separately."""


class TransformersScorer:
    """Scores text under a causal language model of transformers, a local folder or a name on the hub.

    A text is tokenised by the model's own tokenizer. Its begin-of-text token, if it has one, stands in front, so that
    the first token is scored; else that token only conditions the others. A text counts up to its first end-of-text
    token, that included; a text longer than the model's positions is refused. Padding stands on the right and is not
    attended to. Logits are in ``dtype`` (one of :data:`~fewstep.evaluation.pretrained.DTYPES`), sums in float64.

    Raises ``UserError`` for a model that cannot be loaded, one that lacks weights, and a tokenizer that is not its.
    """

    def __init__(
        self,
        path_or_name: str | Path,
        *,
        dtype: str = "float32",
        batch_size: int = 8,
        device: str | torch.device = "cpu",
    ) -> None:
        from transformers import AutoModelForCausalLM

        name, folder = str(path_or_name), Path(path_or_name).expanduser()
        self.name = folder.resolve().name if folder.exists() else name
        self.dtype = dtype
        self.batch_size = batch_size
        self.tokenizer = load_tokenizer(name)
        model, _ = from_pretrained(
            AutoModelForCausalLM,
            folder if folder.exists() else name,
            purpose="a causal language model",
            name=f"scorer {name}",
            options={"dtype": DTYPES[dtype]},
        )
        self.model = model.to(device)
        self.vocab_size = self.model.get_input_embeddings().num_embeddings
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        # A tokenizer that has no end of text is given one when it is loaded, which the model does not know.
        self.begin = begin if begin is not None and begin < self.vocab_size else None
        self.end = end if end is not None and end < self.vocab_size else None
        self._backend = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())  # ours to change
        self._backend.no_padding()
        self._backend.no_truncation()

    def identity(self) -> dict[str, Any]:
        """Class, hashes of weights and config, dtype, tokenizer, the rules for both ends of a text.

        Not the name: the same model in another folder gives the same numbers.
        """
        config = {key: value for key, value in self.model.config.to_dict().items() if key not in PLACES}
        return {
            "class": type(self).__name__,
            "model": type(self.model).__name__,
            "weights": weights_digest(self.model),
            "config": hashlib.sha256(json.dumps(config, default=repr).encode()).hexdigest()[:DIGEST_DIGITS],
            "dtype": self.dtype,
            "tokenizer": tokenizer_fingerprint(self.tokenizer)[:DIGEST_DIGITS],
            "begin_of_text": "none: the first token is not scored" if self.begin is None else f"token {self.begin}",
            "end_of_text": f"token {self.end}: scored once, nothing after it" if self.end is not None else "none",
        }

    @torch.no_grad()
    def score(self, texts: Sequence[str], ids: Tensor, mask: Tensor, spans: Spans | None = None) -> ScoredText:
        """Score the strings: a token counts where it holds a character of its text's span.

        Raises ``UserError`` for a text that is longer than the model's positions.
        """
        rows = self.tokens(texts)
        counts = [torch.ones(len(row), dtype=torch.bool) for row in rows]
        if spans is not None:
            encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
            for row, encoding, (first, behind) in zip(counts, encodings, spans, strict=True):
                within = [end > first and start < behind for start, end in encoding.offsets]
                row &= torch.tensor(within, dtype=torch.bool)[: len(row)]
        skipped = int(self.begin is None)  # nothing predicts the first token
        places = [row[skipped:].nonzero()[:, 0] for row in counts]
        scored = [row[skipped:][place] for row, place in zip(rows, places, strict=True)]
        nats = torch.zeros(len(rows), dtype=torch.float64)
        for picked, inputs, attended in self._batches(rows):
            logits = self.model(input_ids=inputs, attention_mask=attended, use_cache=False).logits
            for place, index in enumerate(picked):
                nats[index] = _summed_nats(logits[place, places[index]], scored[index].to(logits.device))
        tokens = torch.tensor([float(len(row)) for row in scored], dtype=torch.float64)
        entropies = [sample_entropies_nats(row[None]) for row in scored]
        return ScoredText(nats, tokens, torch.cat([nats[:0], *entropies]))

    @torch.no_grad()
    def features(self, texts: Sequence[str], ids: Tensor, mask: Tensor) -> Tensor:
        """Last hidden state at the last token of each text (N, H) float32, on the CPU: what MAUVE compares.

        A text without a token, where the tokenizer has no begin-of-text token either, has the vector of zeros. Raises
        ``UserError`` for a text that is too long.
        """
        rows = self.tokens(texts)
        states: dict[int, Tensor] = {}
        for picked, inputs, attended in self._batches(rows):
            output = self.model(input_ids=inputs, attention_mask=attended, use_cache=False, output_hidden_states=True)
            last = attended.sum(-1) - 1
            at_last = output.hidden_states[-1][torch.arange(len(picked), device=last.device), last]
            states |= dict(zip(picked, at_last.float().cpu(), strict=True))
        nothing = torch.zeros_like(next(iter(states.values()), torch.zeros(1)))
        return torch.stack([states.get(index, nothing) for index in range(len(rows))])

    def tokens(self, texts: Sequence[str]) -> list[Tensor]:
        """The tokens of each text up to its first end-of-text, begin-of-text left out.

        Raises ``UserError`` for a text that is too long, and for a token that the model has no embedding of.
        """
        rows = []
        positions = getattr(self.model.config, "max_position_embeddings", None)
        room = math.inf if positions is None else positions - (self.begin is not None)
        for index, encoding in enumerate(self._backend.encode_batch_fast(list(texts), add_special_tokens=False)):
            row = encoding.ids
            row = row[: row.index(self.end) + 1] if self.end in row else row
            if len(row) > room:
                raise UserError(
                    f"text {index} has {len(row)} tokens under {self.name}, which takes {room}: use a scorer with more "
                    "positions, or sample shorter blocks"
                )
            if row and max(row) >= self.vocab_size:
                raise UserError(
                    f"text {index} has token {max(row)} under {self.name}, whose model knows {self.vocab_size}: "
                    "give a folder in which tokenizer and model belong together"
                )
            rows.append(torch.tensor(row, dtype=torch.long))
        return rows

    def _batches(self, rows: Sequence[Tensor]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Numbers of the texts of a batch, inputs (B, L) and attended (B, L); texts of like length stand together."""
        start = torch.tensor([] if self.begin is None else [self.begin], dtype=torch.long)
        texts = [torch.cat([start, row]) for row in rows]
        order = sorted((index for index, text in enumerate(texts) if len(text)), key=lambda index: -len(texts[index]))
        device = next(self.model.parameters()).device
        for first in range(0, len(order), self.batch_size):
            picked = order[first : first + self.batch_size]
            inputs = pad_sequence([texts[index] for index in picked], batch_first=True)  # padding: any token will do
            attended = pad_sequence([torch.ones_like(texts[index]) for index in picked], batch_first=True)
            yield picked, inputs.to(device), attended.to(device)


def _summed_nats(logits: Tensor, targets: Tensor) -> float:
    """-sum_l log p(targets_l), float64, of logits (L, V) and targets (L,)."""
    pairs = zip(logits.split(POSITIONS_AT_ONCE), targets.split(POSITIONS_AT_ONCE), strict=True)
    chosen = [part.double().log_softmax(-1).gather(-1, some[:, None]).sum() for part, some in pairs]
    return -float(torch.stack(chosen).sum()) if chosen else 0.0

"""Any causal language model of transformers as a scorer. N texts, L tokens, V vocabulary, H hidden width."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from fewstep.data import load_tokenizer, tokenizer_fingerprint
from fewstep.errors import UserError
from fewstep.evaluation.pretrained import DTYPES, from_pretrained
from fewstep.evaluation.scorers import DIGEST_DIGITS, ScoredText, weights_digest
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
        if dtype not in DTYPES:
            raise UserError(f"dtype of the scorer is {dtype!r}: expected one of {', '.join(DTYPES)}")
        if batch_size < 1:
            raise UserError(f"batch size of the scorer is {batch_size}: expected a whole number of at least 1")
        self.path_or_name = str(path_or_name)
        folder = Path(self.path_or_name).expanduser()
        self.name = folder.resolve().name if folder.exists() else self.path_or_name
        self.dtype = dtype
        self.batch_size = batch_size
        self.tokenizer = load_tokenizer(self.path_or_name)
        self.model = self._load_model(str(folder) if folder.exists() else self.path_or_name).to(device)
        self.max_tokens = getattr(self.model.config, "max_position_embeddings", None)
        rows = self.model.get_input_embeddings().num_embeddings
        self.begin = _within(self.tokenizer.bos_token_id, rows)
        self.end = _within(self.tokenizer.eos_token_id, rows)
        self._backend = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())  # ours to change
        self._backend.no_padding()
        self._backend.no_truncation()
        self._vocab_size = rows

    def _load_model(self, source: str) -> Any:
        from transformers import AutoModelForCausalLM

        name, options = f"scorer {self.path_or_name}", {"dtype": DTYPES[self.dtype]}
        purpose = "a causal language model"
        return from_pretrained(AutoModelForCausalLM, source, purpose=purpose, name=name, options=options)[0]

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
    def score(
        self, texts: Sequence[str], ids: Tensor, mask: Tensor, spans: Sequence[tuple[int, int]] | None = None
    ) -> ScoredText:
        """Score N ``texts``; ``ids`` and ``mask`` (N, L) are another tokenizer's and not used.

        A token counts where it holds a character of its text's span. Raises ``UserError`` for a text that is longer
        than the model's positions.
        """
        rows = self.tokens(texts)
        skipped = int(self.begin is None)  # nothing predicts the first token
        nats = torch.zeros(len(rows), dtype=torch.float64)
        counts = [torch.ones(len(row), dtype=torch.bool) for row in rows]
        if spans is not None:
            encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
            for row, encoding, (first, behind) in zip(counts, encodings, spans, strict=True):
                within = [end > first and start < behind for start, end in encoding.offsets]
                row &= torch.tensor(within, dtype=torch.bool)[: len(row)]
        for picked, inputs, attended in self._batches(rows):
            logits = self.model(input_ids=inputs, attention_mask=attended, use_cache=False).logits
            for place, index in enumerate(picked):
                targets = torch.tensor(rows[index][skipped:], dtype=torch.long)
                places = counts[index][skipped:].nonzero()[:, 0]
                nats[index] = _summed_nats(logits[place, places], targets[places].to(logits.device))
        scored = [
            torch.tensor(row, dtype=torch.long)[skipped:][seen[skipped:]]
            for row, seen in zip(rows, counts, strict=True)
        ]
        tokens = torch.tensor([float(len(row)) for row in scored], dtype=torch.float64)
        entropies = [sample_entropies_nats(row[None]) for row in scored]
        return ScoredText(nats, tokens, torch.cat(entropies) if entropies else nats)

    @torch.no_grad()
    def features(self, texts: Sequence[str], ids: Tensor, mask: Tensor) -> Tensor:
        """Last hidden state at the last token of each text (N, H) float32, on the CPU: what MAUVE compares.

        ``ids`` and ``mask`` (N, L) are not used. A text without a token, where the tokenizer has no begin-of-text
        token either, has the vector of zeros. Raises ``UserError`` for a text that is too long.
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

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text up to its first end-of-text, begin-of-text left out.

        Raises ``UserError`` for a text that is too long, and for a token that the model has no embedding of.
        """
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        rows = [self._to_end(encoding.ids) for encoding in encodings]
        room = None if self.max_tokens is None else self.max_tokens - (self.begin is not None)
        for index, row in enumerate(rows):
            if room is not None and len(row) > room:
                raise UserError(
                    f"text {index} has {len(row)} tokens under {self.name}, which takes {room}: use a scorer with more "
                    "positions, or sample shorter blocks"
                )
            if row and max(row) >= self._vocab_size:
                raise UserError(
                    f"text {index} has token {max(row)} under {self.name}, whose model knows {self._vocab_size}: "
                    "give a folder in which tokenizer and model belong together"
                )
        return rows

    def _to_end(self, row: list[int]) -> list[int]:
        return row[: row.index(self.end) + 1] if self.end in row else row

    def _batches(self, rows: list[list[int]]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Numbers of the texts of a batch, inputs (B, L) and attended (B, L); texts of like length stand together."""
        start = [] if self.begin is None else [self.begin]
        lengths = [len(start) + len(row) for row in rows]
        order = sorted((index for index in range(len(rows)) if lengths[index]), key=lengths.__getitem__, reverse=True)
        device = next(self.model.parameters()).device
        for first in range(0, len(order), self.batch_size):
            picked = order[first : first + self.batch_size]
            inputs = torch.zeros(len(picked), lengths[picked[0]], dtype=torch.long)  # padding: any token will do
            attended = torch.zeros_like(inputs)
            for place, index in enumerate(picked):
                inputs[place, : lengths[index]] = torch.tensor([*start, *rows[index]])
                attended[place, : lengths[index]] = 1
            yield picked, inputs.to(device), attended.to(device)


def _summed_nats(logits: Tensor, targets: Tensor) -> float:
    """-sum_l log p(targets_l), float64, of logits (L, V) and targets (L,)."""
    pairs = zip(logits.split(POSITIONS_AT_ONCE), targets.split(POSITIONS_AT_ONCE), strict=True)
    chosen = [part.double().log_softmax(-1).gather(-1, some[:, None]).sum() for part, some in pairs]
    return -float(torch.stack(chosen).sum()) if chosen else 0.0


def _within(token: int | None, rows: int) -> int | None:
    """The token where the model knows it: a tokenizer that has no end of text is given one when it is loaded."""
    return token if token is not None and token < rows else None

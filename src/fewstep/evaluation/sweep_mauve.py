"""MAUVE as a column of a sweep: how far samples are from real text. N texts, L tokens, H features."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.scorers import Scorer
from fewstep.evaluation.sweep_measures import texts_of
from fewstep.evaluation.sweep_row import HELD_OUT, Setting
from fewstep.metrics.text import MAUVE_SCALING, MAUVE_SEED, mauve_package_version, mauve_score
from fewstep.types import TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class MauveReference:
    """What texts are compared with: ``real`` held-out text (N, L), as much as there is of each setting.

    The held-out text of the table itself is compared with ``other`` blocks (N, L), as many; None where the text has no
    more. Features are the ``scorer``'s, of texts in the tokens of ``tokenizer``. Raises ``UserError`` for fewer than 2
    texts, and where the package is not installed.
    """

    def __init__(
        self, scorer: Scorer, tokenizer: "PreTrainedTokenizerFast", real: TokenBatch, other: TokenBatch | None
    ) -> None:
        if len(real.ids) < 2:
            raise UserError(f"MAUVE of {len(real.ids)} text: expected at least 2 (papers take thousands)")
        self.version = mauve_package_version()
        self.scorer = scorer
        self.tokenizer = tokenizer
        self.real = real
        self.other = other
        self._features: dict[str, Tensor] = {}

    def protocol(self) -> dict[str, Any]:
        """What values depend on beside scorer, samples and held-out text, as plain values for the protocol."""
        return {
            "mauve_features": "last hidden state of the scorer at the last token",
            "mauve_scaling": MAUVE_SCALING,
            "mauve_seed": MAUVE_SEED,
            "mauve_text": self.version,
        }

    def features(self, texts: list[str], ids: Tensor, mask: Tensor) -> Tensor:
        """(N, H) float32 of N texts; see :meth:`fewstep.evaluation.scorers.Scorer.features`."""
        return self.scorer.features(texts, ids, mask)

    def score(self, setting: Setting, features: Tensor) -> float | None:
        """MAUVE of the texts of ``setting`` by their ``features`` (N, H); None for held-out text without other such."""
        if setting.name == HELD_OUT:
            return None if self.other is None else mauve_score(self._of("other", self.other), features)
        return mauve_score(self._of("real", self.real), features)

    def _of(self, name: str, tokens: TokenBatch) -> Tensor:
        """Features (N, H), computed when they are first asked for."""
        if name not in self._features:
            texts = texts_of(self.tokenizer, tokens.ids, tokens.mask)
            self._features[name] = self.features(texts, tokens.ids, tokens.mask)
        return self._features[name]

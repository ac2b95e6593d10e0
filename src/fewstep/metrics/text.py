"""Metrics of sampled tokens. Legend: B samples of L tokens, V vocabulary, T tokens of train text.

``ids`` (B, L) are int64 and ``mask`` (B, L) bool is true at tokens that count (None: all). An n-gram counts where all
of its tokens do, and n-grams do not cross samples.
"""

from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError

MAUVE_SEED, MAUVE_SCALING = 25, 5.0
"""Defaults of mauve-text: the seed of its clusters, and the paper's constant c."""


def sample_entropies_nats(ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Entropy (B,) float64, in nats, of each sample's token histogram: H = -sum_v p_v ln p_v, at most ln L.

    So only samples of equal length compare. A sample without a token that counts has entropy 0.
    """
    counted = _counted(ids, mask)
    span = int(ids.max()) + 1 if ids.numel() else 1
    # A key for each (sample, token) pair counts all histograms at once without a (B, V) table.
    rows = torch.arange(len(ids), device=ids.device)[:, None]
    keys, counts = torch.unique((rows * span + ids)[counted], return_counts=True)
    row = keys // span
    share = counts.double() / counted.sum(-1).double()[row]
    return torch.zeros(len(ids), dtype=torch.float64, device=ids.device).index_add(0, row, -share * share.log())


def distinct_n(ids: Tensor, n: int, mask: Tensor | None = None) -> float | None:
    """Distinct n-grams over all n-grams of the samples together (arXiv:1510.03055), in (0, 1]; None without an n-gram.

    The value falls as samples are added: compare equal numbers of samples of equal length only.
    """
    grams, _ = _ngrams(ids, n, mask)
    return len(torch.unique(grams, dim=0)) / len(grams) if len(grams) else None


def repeated_ngrams(ids: Tensor, n: int = 4, mask: Tensor | None = None) -> float | None:
    """Share of a sample's n-grams that occurred in it before, mean over the samples that hold one; None if none does.

    One minus distinct n-grams over all n-grams of the sample: "seq-rep-n" of arXiv:1908.04319, section 3.2. It grows
    with the length of a sample: compare equal lengths only.
    """
    grams, rows = _ngrams(ids.cpu(), n, mask)
    # The number of its sample stands before an n-gram, so that all samples are counted at once.
    distinct = torch.unique(torch.cat([rows[:, None], grams], 1), dim=0)[:, 0]
    counts = [torch.bincount(each, minlength=len(ids)).double() for each in (distinct, rows)]
    return float((1 - counts[0] / counts[1]).nanmean()) if len(rows) else None


def match_lengths(stream: Tensor, ids: Tensor, mask: Tensor | None = None, *, max_length: int) -> Tensor:
    """Length of the longest piece of train text that starts at each token of ``ids``, (B, L) int64.

    ``stream`` (T,) int64 is the train text; a negative number in it is a border that matches nothing. A piece crosses
    neither masked tokens nor the end of its sample, and has at most ``max_length`` tokens. Exact: in round n every
    piece of n tokens of the samples has a number, equal for equal pieces, and a place of the train text stays in for
    as long as its piece is one of them. The cost is T searches in round 1 and falls fast after that.
    """
    text = stream.detach().cpu().numpy().astype(np.int64)
    tokens = torch.where(_counted(ids, mask), ids, -1).cpu().numpy().astype(np.int64)
    tokens = np.pad(tokens, ((0, 0), (0, 1)), constant_values=-1).reshape(-1)
    lengths = np.zeros(len(tokens), np.int64)
    starts, places = np.flatnonzero(tokens >= 0), np.arange(len(text))
    piece_of_start, piece_of_place = np.zeros_like(starts), np.zeros_like(places)
    span = int(tokens.max(initial=0)) + 2
    for n in range(max_length):
        inside = tokens[starts + n] >= 0  # every sample ends with a border
        starts, piece_of_start = starts[inside], piece_of_start[inside]
        if not len(starts):
            break
        pieces, piece_of_start = np.unique(piece_of_start * span + tokens[starts + n], return_inverse=True)
        inside = places + n < len(text)
        places, piece_of_place = places[inside], piece_of_place[inside]
        following = text[places + n]
        known = (following >= 0) & (following < span)
        places, longer = places[known], piece_of_place[known] * span + following[known]
        number = np.searchsorted(pieces, longer).clip(max=len(pieces) - 1)
        matches = pieces[number] == longer
        places, piece_of_place = places[matches], number[matches]
        seen = np.zeros(len(pieces), bool)
        seen[piece_of_place] = True
        starts, piece_of_start = starts[seen[piece_of_start]], piece_of_start[seen[piece_of_start]]
        lengths[starts] = n + 1
    return torch.from_numpy(lengths.reshape(len(ids), ids.shape[1] + 1)[:, :-1].copy())


def memorised_share(lengths: Tensor, n: int = 8, mask: Tensor | None = None) -> float | None:
    """Share of the samples' n-grams that occur in the train text, in [0, 1]; None without an n-gram.

    ``lengths`` (B, L) of :func:`match_lengths` with the same ``mask`` and a ``max_length`` of at least n.
    """
    starts = _starts(lengths, n, mask)
    return float((lengths[:, : starts.shape[1]][starts] >= n).double().mean()) if bool(starts.any()) else None


def mauve_score(real: Tensor, samples: Tensor) -> float:
    """MAUVE (arXiv:2102.01454) of features ``real`` (N, H) and ``samples`` (M, H), in (0, 1]; 1 for equal texts.

    Of min(N, M) / 10 clusters (at least 2). Values depend on N, M, the features' model and the length of the texts:
    compare equal ones only; papers take thousands of texts.
    """
    arrays = [features.detach().cpu().float().numpy() for features in (samples, real)]
    settings = {"seed": MAUVE_SEED, "mauve_scaling_factor": MAUVE_SCALING}
    return float(_mauve().compute_mauve(*arrays, **settings, verbose=False).mauve)


def mauve_package_version() -> str:
    """Version of mauve-text; ``UserError`` where it cannot be imported, so ask before any work."""
    _mauve()
    try:
        return version("mauve-text")
    except PackageNotFoundError:
        return "unknown"


def _mauve() -> ModuleType:
    try:
        import mauve
    except ImportError as error:
        raise UserError(
            f"MAUVE needs the package mauve-text ({error}): pip install 'fewstep[mauve]', or leave MAUVE out"
        ) from None
    return mauve


def _counted(ids: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool().to(ids.device)


def _starts(ids: Tensor, n: int, mask: Tensor | None) -> Tensor:
    """Where an n-gram that counts starts, (B, L - n + 1) bool; (B, 0) for shorter samples."""
    counted = _counted(ids, mask)
    return counted.unfold(1, n, 1).all(-1) if ids.shape[1] >= n else counted[:, :0]


def _ngrams(ids: Tensor, n: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """All n-grams that count (N, n), and the sample that each is of (N,)."""
    rows, places = _starts(ids, n, mask).nonzero(as_tuple=True)
    return ids[rows[:, None], places[:, None] + torch.arange(n, device=ids.device)], rows

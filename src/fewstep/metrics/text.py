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


def unigram_entropy_nats(ids: Tensor, mask: Tensor | None = None) -> float:
    """Mean of :func:`sample_entropies_nats` over samples, as papers on few-step sampling report it.

    Low entropy means repetition, which a language model scores as likely: read perplexity only beside this number.
    """
    if not len(ids):
        raise ValueError("no samples: the entropy needs at least 1")
    return float(sample_entropies_nats(ids, mask).mean())


def distinct_n(ids: Tensor, n: int, mask: Tensor | None = None) -> float:
    """Distinct n-grams over all n-grams of the samples together (arXiv:1510.03055), in (0, 1].

    The value falls as samples are added: compare equal numbers of samples of equal length only.
    """
    grams, _ = _ngrams(ids, n, mask)
    if not len(grams):
        raise ValueError(f"no sample holds a {n}-gram: pass longer samples or a smaller n")
    return len(torch.unique(grams, dim=0)) / len(grams)


def repetition_shares(ids: Tensor, n: int, mask: Tensor | None = None) -> Tensor:
    """Share of each sample's n-grams that occurred in it before, (B,) float64; NaN for a sample without an n-gram.

    One minus distinct n-grams over all n-grams of the sample: "seq-rep-n" of arXiv:1908.04319, section 3.2.
    """
    grams, rows = _ngrams(ids.cpu(), n, mask)
    # The number of its sample stands before an n-gram, so that all samples are counted at once.
    distinct = torch.unique(torch.cat([rows[:, None], grams], 1), dim=0)[:, 0]
    counts = [torch.bincount(found, minlength=len(ids)).double() for found in (distinct, rows)]
    return 1 - counts[0] / counts[1]


def repeated_ngrams(ids: Tensor, n: int = 4, mask: Tensor | None = None) -> float:
    """Mean of :func:`repetition_shares` over the samples that hold an n-gram, in [0, 1).

    It grows with the length of a sample: compare equal lengths only.
    """
    shares = repetition_shares(ids, n, mask)
    if bool(shares.isnan().all()):
        raise ValueError(f"no sample holds a {n}-gram: pass longer samples or a smaller n")
    return float(shares.nanmean())


def match_lengths(stream: Tensor, ids: Tensor, mask: Tensor | None = None, *, max_length: int) -> Tensor:
    """Length of the longest piece of train text that starts at each token of ``ids``, (B, L) int64.

    ``stream`` (T,) int64 is the train text; a negative number in it is a border that matches nothing. A piece crosses
    neither masked tokens nor the end of its sample, and has at most ``max_length`` tokens. Exact: in round n every
    piece of n tokens of the samples has a number, equal for equal pieces, and a place of the train text stays in for
    as long as its piece is one of them. The cost is T searches in round 1 and falls fast after that.
    """
    if stream.ndim != 1 or not len(stream) or max_length < 1:
        raise ValueError(
            f"train text of shape {tuple(stream.shape)}, max_length {max_length}: expected (T,) with at least one "
            "token, and at least 1"
        )
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
        pieces, piece_of_start = np.unique(piece_of_start * span + tokens[starts + n], return_inverse=True)
        inside = places + n < len(text)
        places, piece_of_place = places[inside], piece_of_place[inside]
        following = text[places + n]
        known = (following >= 0) & (following < span)
        places, longer = places[known], piece_of_place[known] * span + following[known]
        number = np.minimum(np.searchsorted(pieces, longer), max(0, len(pieces) - 1))
        matches = pieces[number] == longer if len(pieces) else np.zeros(len(longer), bool)
        places, piece_of_place = places[matches], number[matches]
        seen = np.zeros(len(pieces), bool)
        seen[piece_of_place] = True
        starts, piece_of_start = starts[seen[piece_of_start]], piece_of_start[seen[piece_of_start]]
        if not len(starts):
            break
        lengths[starts] = n + 1
    return torch.from_numpy(lengths.reshape(len(ids), ids.shape[1] + 1)[:, :-1].copy())


def longest_copies(lengths: Tensor) -> Tensor:
    """Length of the longest piece of train text in each sample, (B,) int64, from :func:`match_lengths`."""
    return lengths.amax(-1) if lengths.shape[1] else lengths.new_zeros(len(lengths))


def memorised_share(lengths: Tensor, n: int = 8, mask: Tensor | None = None) -> float:
    """Share of the samples' n-grams that occur in the train text, in [0, 1].

    ``lengths`` (B, L) of :func:`match_lengths` with the same ``mask`` and a ``max_length`` of at least n.
    """
    starts = _starts(lengths, n, mask)
    if not bool(starts.any()):
        raise ValueError(f"no sample holds a {n}-gram: pass longer samples or a smaller n")
    return float((lengths[:, : starts.shape[1]][starts] >= n).double().mean())


def mauve_score(real: Tensor, samples: Tensor, *, seed: int = MAUVE_SEED, scaling: float = MAUVE_SCALING) -> float:
    """MAUVE (arXiv:2102.01454) of features ``real`` (N, H) and ``samples`` (M, H), in (0, 1]; 1 for equal texts.

    ``seed`` draws the min(N, M) / 10 clusters (at least 2); ``scaling`` is the paper's constant c. Values depend on N,
    M, the features' model and the length of the texts: compare equal ones only; papers take thousands of texts.
    """
    if real.ndim != 2 or samples.ndim != 2 or real.shape[1] != samples.shape[1] or min(len(real), len(samples)) < 2:
        raise ValueError(
            f"features of shapes {tuple(real.shape)} and {tuple(samples.shape)}: expected (N, H) and (M, H) with the "
            "same H and at least 2 texts each"
        )
    arrays = [features.detach().cpu().to(torch.float32).numpy() for features in (samples, real)]
    return float(_mauve().compute_mauve(*arrays, seed=seed, mauve_scaling_factor=scaling, verbose=False).mauve)


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
    if n < 1:
        raise ValueError(f"n is {n}: an n-gram has at least 1 token")
    counted = _counted(ids, mask)
    return counted.unfold(1, n, 1).all(-1) if ids.shape[1] >= n else counted[:, :0]


def _ngrams(ids: Tensor, n: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """All n-grams that count (N, n), and the sample that each is of (N,)."""
    starts = _starts(ids, n, mask)
    rows = torch.arange(len(ids), device=ids.device)[:, None].expand_as(starts)[starts]
    if not starts.shape[1]:
        return ids.new_zeros(0, n), rows
    return ids.unfold(1, n, 1)[starts], rows

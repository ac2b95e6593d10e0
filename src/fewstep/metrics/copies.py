"""What samples copy from the train text, exactly. B samples, L tokens, T tokens of train text."""

import numpy as np
import torch
from torch import Tensor

POSITIONS_AT_ONCE = 2**18


class CopyIndex:
    """Finds the longest piece of train text that starts at each token of a sample.

    A suffix array by prefix doubling (Manber and Myers 1993), searched for all tokens at once. Level k numbers the
    pieces of 2^k tokens of the text in their order, each from the pairs of level k - 1, so that equal numbers are equal
    pieces: no hashes, no collisions. Building takes log2(``max_length``) sorts of T numbers.

    ``stream`` (T,) int64: the train text; a negative number is a border that matches nothing. Raises ``ValueError`` for
    an empty or not one-dimensional stream and for ``max_length`` < 1.
    """

    def __init__(self, stream: Tensor, max_length: int) -> None:
        if stream.ndim != 1 or not len(stream) or max_length < 1:
            raise ValueError(
                f"train text of shape {tuple(stream.shape)}, max_length {max_length}: expected at least one token in "
                "one dimension, and at least 1"
            )
        self.max_length = max_length
        text = stream.detach().cpu().numpy().astype(np.int64)
        text[text < 0] = -1
        keys, numbers = np.unique(text, return_inverse=True)
        self._keys = [keys]  # of level k > 0: the sorted pairs of numbers of level k - 1
        self._ranks = [_from_one(numbers)]  # of level k: (T,) int32, from 1 on; what lies beyond the end counts as 0
        for level in range(max_length.bit_length() - 1):
            keys, numbers = np.unique(_pairs(self._ranks[level], 2**level), return_inverse=True)
            self._keys.append(keys)
            self._ranks.append(_from_one(numbers))
        # Sorted by twice the longest piece, which no sum of pieces of different lengths exceeds.
        self._order = np.argsort(_pairs(self._ranks[-1], 2 ** (len(self._ranks) - 1)), kind="stable")

    def match_lengths(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens of the longest piece of train text that starts at each token, (B, L) int64, at most ``max_length``.

        ``ids`` (B, L) int64; ``mask`` (B, L) bool, true at tokens that count: a piece goes over none that does not,
        and not beyond its sample.
        """
        samples = ids.detach().cpu().numpy().astype(np.int64)
        if mask is not None:
            samples = np.where(mask.cpu().numpy(), samples, -1)
        rows = max(1, POSITIONS_AT_ONCE // max(1, samples.shape[1]))
        parts = [self._lengths(samples[first : first + rows]) for first in range(0, len(samples), rows)]
        return torch.from_numpy(np.concatenate(parts) if parts else np.zeros(samples.shape, np.int64))

    def _lengths(self, samples: np.ndarray) -> np.ndarray:
        """(b, L) for samples (b, L), tokens that do not count being negative."""
        num_rows, num_tokens = samples.shape
        bordered = np.concatenate([samples, np.full((num_rows, 1), -1)], axis=1).reshape(-1)
        # A border has the number 0, and so has a piece that holds one or that the train text does not have.
        numbers = [_places(self._keys[0], bordered, bordered >= 0)]
        for level, keys in enumerate(self._keys[1:]):
            whole = np.zeros(len(bordered), bool)
            whole[: -(2**level)] = (numbers[level][: -(2**level)] > 0) & (numbers[level][2**level :] > 0)
            numbers.append(_places(keys, _pairs(numbers[level], 2**level), whole))
        # Every token holds the range of suffixes that begin with what was matched so far; the pieces that it is
        # tried to grow by get shorter by half each time, so that their sum is the longest match.
        start = np.arange(len(bordered))
        low, high = np.zeros(len(bordered), np.int64), np.full(len(bordered), len(self._order))
        length = np.zeros(len(bordered), np.int64)
        for level in reversed(range(len(self._ranks))):
            at = start + length
            wanted = np.where(at < len(bordered), numbers[level][np.minimum(at, len(bordered) - 1)], 0)
            new_low = self._bound(low, high, length, level, wanted)
            new_high = self._bound(new_low, high, length, level, wanted + 1)
            grown = (new_low < new_high) & (wanted > 0)
            low, high = np.where(grown, new_low, low), np.where(grown, new_high, high)
            length += np.where(grown, 2**level, 0)
        return np.minimum(length, self.max_length).reshape(num_rows, num_tokens + 1)[:, :-1]

    def _bound(
        self, low: np.ndarray, high: np.ndarray, length: np.ndarray, level: int, wanted: np.ndarray
    ) -> np.ndarray:
        """First suffix in [low, high) whose piece after ``length`` tokens has a number >= ``wanted``; all (n,)."""
        ranks, low, high = self._ranks[level], low.copy(), high.copy()
        while bool((low < high).any()):
            middle = (low + high) // 2
            at = self._order[np.minimum(middle, len(self._order) - 1)] + length
            found = np.where(at < len(ranks), ranks[np.minimum(at, len(ranks) - 1)], 0)
            right = (low < high) & (found < wanted)
            low, high = np.where(right, middle + 1, low), np.where(right | (low >= high), high, middle)
        return low


def longest_copies(lengths: Tensor) -> Tensor:
    """Tokens of the longest piece of train text in each sample, (B,) int64, of :meth:`CopyIndex.match_lengths`
    (B, L)."""
    return lengths.amax(-1) if lengths.shape[1] else lengths.new_zeros(len(lengths))


def memorised_share(lengths: Tensor, n: int = 8, mask: Tensor | None = None) -> float:
    """Share of the samples' n-grams, all together, that occur in the train text, in [0, 1].

    ``lengths`` (B, L) of :meth:`CopyIndex.match_lengths`, taken with the same ``mask`` (B, L) and a ``max_length`` of
    at least n; an n-gram counts where all of its tokens do. Raises ``ValueError`` for n < 1 and where there is no
    n-gram.
    """
    if n < 1:
        raise ValueError(f"n is {n}: an n-gram has at least 1 token")
    seen = torch.ones_like(lengths, dtype=torch.bool) if mask is None else mask.bool().cpu()
    kept = seen.unfold(1, n, 1).all(-1) if lengths.shape[1] >= n else seen[:, :0]
    if not bool(kept.any()):
        raise ValueError(f"no sample holds a {n}-gram: pass longer samples or a smaller n")
    return float((lengths[:, : kept.shape[1]][kept] >= n).double().mean())


def _pairs(numbers: np.ndarray, distance: int) -> np.ndarray:
    """One number for each pair of pieces that lie ``distance`` apart, in the order of the pairs; 0 beyond the end."""
    pairs = numbers.astype(np.int64) << 32
    pairs[: max(0, len(numbers) - distance)] += numbers[distance:]
    return pairs


def _from_one(numbers: np.ndarray) -> np.ndarray:
    return (numbers.reshape(-1) + 1).astype(np.int32)


def _places(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Place of each value among the sorted ``keys``, from 1 on; 0 where it is none of them, or not ``wanted``."""
    place = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
    return np.where(wanted & (keys[place] == values), place + 1, 0)

"""Traces written by hand, so that a test knows every text, figure and change."""

from dataclasses import replace

from fewstep.lab.report.traces import Mode, SampleTrace, TracePath, Traces

WORDS = ("the", " old", " ship", " sank", "</script>", "\x0c", "\n", " café", "<|endoftext|>", "\ufffd")


def path(mode: Mode, reinjection: float, rows: tuple[tuple[int, ...], ...], settled: tuple[int, ...]) -> TracePath:
    """One mode whose two samples read ``rows``, the second one backwards; distances rise with step and token."""
    distances = tuple(
        tuple(round(0.05 * (1 + k) * (1 + 2 * column), 2) for column in range(4)) for k in range(len(rows))
    )
    samples = (
        SampleTrace(rows, distances, settled),
        SampleTrace(tuple(row[::-1] for row in rows), distances, settled[::-1]),
    )
    times = tuple(k / len(rows) for k in range(len(rows) + 1))
    return TracePath(mode, len(rows), reinjection, times, samples)


def wide() -> Traces:
    """The same with each row of tokens sixteen times over: 64 tokens."""

    def widened(sample: SampleTrace) -> SampleTrace:
        return SampleTrace(
            tuple(row * 16 for row in sample.tokens), tuple(row * 16 for row in sample.distances), sample.settled * 16
        )

    paths = (replace(one, samples=tuple(map(widened, one.samples))) for one in traces().paths)
    return replace(traces(), num_tokens=64, block_size=64, paths=tuple(paths))


def traces() -> Traces:
    """Two samples of four tokens; 1, 2 and 4 steps, of the head 1 and 4 only."""
    four = ((5, 9, 5, 4), (5, 1, 2, 4), (0, 1, 2, 4), (0, 1, 2, 3))
    paths = (
        path("deterministic", 0.0, four[:1], (1, 1, 1, 1)),
        path("deterministic", 0.0, four[:2], (1, 2, 2, 1)),
        path("deterministic", 0.0, four, (3, 2, 2, 4)),
        path("reinjection", 0.5, four[:1], (1, 1, 1, 1)),
        path("reinjection", 0.5, four[:2], (1, 2, 2, 1)),
        path("reinjection", 0.5, (*four[:3], (0, 7, 6, 8)), (3, 4, 4, 4)),
        path("head", 0.0, four[3:], (1, 1, 1, 1)),
        path("head", 0.0, four[3:] * 4, (1, 1, 1, 1)),
    )
    return Traces("0123456789ab", 0, 2, 4, 6, WORDS, tuple(range(10, 10 + len(WORDS))), paths)

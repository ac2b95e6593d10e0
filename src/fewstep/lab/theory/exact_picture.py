"""The study of the exact denoiser as a picture: wrong tokens over the number of steps."""

from collections.abc import Sequence

import torch

from fewstep.diagnostics.result import Picture, Series
from fewstep.lab.theory.exact_rows import ExactRow
from fewstep.metrics.intervals import bootstrap_interval

NUM_RESAMPLES = 2000


def exact_picture(rows: Sequence[ExactRow]) -> Picture | None:
    """Shares of wrong tokens with their intervals, for the largest width h among ``rows`` without a cap.

    One line a strength of re-injection, one for the matched-temperature control of strength 1, and the level of draws
    of the blurred law, which endless steps would reach. None where no row has steps.
    """
    plain = [row for row in rows if row.setting.cap is None]
    steps = [row for row in plain if row.setting.num_steps is not None]
    if not steps:
        return None
    h = max(row.setting.h for row in steps)
    wide = [row for row in steps if row.setting.h == h]
    flows = [row for row in wide if row.setting.kind == "flow"]
    lines = [
        _series(
            "deterministic" if gamma == 0 else f"re-injection {gamma:g}",
            [row for row in flows if row.setting.reinjection == gamma],
        )
        for gamma in sorted({row.setting.reinjection for row in flows})
    ]
    cooled = [row for row in wide if row.setting.kind == "noise" and row.setting.matches == 1 and row.matched]
    if cooled:
        lines.append(_series("deterministic, colder", cooled))
    draws = [row for row in plain if row.setting.kind == "draws" and row.setting.h == h]
    ends = [float(min(lines[0].x)), float(max(lines[0].x))] if lines else []
    lines += [Series("draws of the law itself", tuple(ends), (row.wrong_share,) * len(ends)) for row in draws[:1]]
    title = f"Exact denoiser over {flows[0].num_latents:,} latents, h = {h:g}"
    return Picture(title, "steps K", "share of wrong tokens", tuple(lines), log_x=True, log_y=True)


def _series(label: str, rows: Sequence[ExactRow]) -> Series:
    """A line over K; where none of the tokens was wrong there is no point, which a logarithmic axis could not show."""
    shown = sorted((row for row in rows if row.wrong_share > 0), key=lambda row: row.setting.num_steps or 0)
    intervals = [
        bootstrap_interval(
            torch.tensor(row.wrong_shares, dtype=torch.float64),
            lambda shares: shares.mean(-1),
            NUM_RESAMPLES,
            torch.Generator().manual_seed(0),
            batched=True,
        )
        for row in shown
    ]
    return Series(
        label,
        tuple(float(row.setting.num_steps or 0) for row in shown),
        tuple(row.wrong_share for row in shown),
        tuple(max(interval.low, 1e-4) for interval in intervals),
        tuple(interval.high for interval in intervals),
    )

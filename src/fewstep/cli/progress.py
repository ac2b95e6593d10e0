"""Progress of a library function, shown on a bar."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm


class ProgressBar:
    """A progress function, called as (done, of how many, label), and the bar that it moves.

    The bar appears with the first call, so that an error before it stands alone on its line. Where ``stream`` (stderr
    where it is None) is no terminal, a line is written for each call instead of a moving bar.
    """

    def __init__(self, title: str, unit: str, stream: TextIO | None = None) -> None:
        self.title = title
        self.unit = unit
        self.stream = stream
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, total: int, label: str) -> None:
        """Move the bar to ``done`` of ``total`` and show ``label`` behind it."""
        from tqdm import tqdm  # not for --help or a mistyped option

        if self._bar is None:
            stream = self.stream or sys.stderr
            self._bar = tqdm(total=total, desc=self.title, unit=self.unit, file=stream)
        self._bar.total, self._bar.n = total, done
        self._bar.set_postfix_str(label)

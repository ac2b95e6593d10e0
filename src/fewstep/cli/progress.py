"""Progress of a library function, shown on a bar."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def advance(bar: "tqdm[Any]") -> Callable[[int, int, str], None]:
    """A progress function, called as (done, of how many, label), that moves a tqdm bar."""

    def progress(done: int, total: int, label: str) -> None:
        bar.total, bar.n = total, done
        bar.set_postfix_str(label)

    return progress

"""What all figures share: colours and the way to a PNG file, without pyplot, so that nothing global changes."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fewstep.errors import UserError

# Okabe and Ito's palette, told apart with every common colour blindness; markers and dashes repeat what colour says.
SERIES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))


def write_png(figure: Figure, file: str | Path) -> None:
    """Draw ``figure`` into ``file``, whose folder is made. Raises ``UserError`` where it cannot be written."""
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(figure).print_png(str(file))
    except OSError as error:
        raise UserError(f"cannot write the figure {file}: {error.strerror or error}") from None

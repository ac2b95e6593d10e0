"""Old place of the palette and of the way to a PNG file."""

from fewstep.evaluation.pictures import SERIES as SERIES
from fewstep.evaluation.pictures import write_png as write_png

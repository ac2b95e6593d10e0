"""Old names of :mod:`fewstep.model`, until all rooms have moved."""

from fewstep.model import PART_TYPES, SavedModel
from fewstep.model import Identity as Identity

ModelBundle = SavedModel
COMPONENTS = tuple(PART_TYPES["text"])

"""Old names of :mod:`fewstep.model`, until all rooms have moved."""

from fewstep.model import Identity as Identity
from fewstep.model import SavedModel

ModelBundle = SavedModel

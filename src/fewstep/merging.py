"""Old names of :mod:`fewstep.model`, until all rooms have moved."""

from fewstep.model import check_same_autoencoder as check_same_autoencoder
from fewstep.model import merge_models as merge_bundles  # noqa: F401

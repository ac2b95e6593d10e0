"""Old names of :mod:`fewstep.storage`, until all rooms have moved."""

from fewstep.storage import file_digest, flush, load_checkpoint, load_strictly, read_safetensors  # noqa: F401
from fewstep.storage import state_dict_mismatch as misfit  # noqa: F401

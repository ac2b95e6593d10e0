"""What Lightning says that is no news here."""

import logging
import warnings

ON_PURPOSE = (
    ".*args parameter is intended.*",  # we parse on behalf of the caller
    ".*does not have many workers.*",  # blocks are memory-mapped: a worker would only copy them
    ".*your dataloader is not resumable.*",  # its order follows from the trainer's step: see TextDataModule
    ".*LeafSpec.*",
    ".*isinstance.treespec.*",
    ".*treespec, LeafSpec.*",
)


def silence() -> None:
    """Hide notes (log level INFO) and warnings about what is done on purpose; all other warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in ON_PURPOSE:
        warnings.filterwarnings("ignore", message)

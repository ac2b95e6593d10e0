"""Few-step continuous flows on text latents: train them, sample them, and see what each step does."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.pipeline import TextGenerator

try:
    __version__ = version("fewstep")
except PackageNotFoundError:  # src/ on the path of a checkout that was never installed
    __version__ = "0.0.0+source"

__all__ = ["TextGenerator", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the pipeline, and torch with it, only when it is asked for (PEP 562): ``import fewstep`` stays instant."""
    if name == "TextGenerator":
        from fewstep.pipeline import TextGenerator

        return TextGenerator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

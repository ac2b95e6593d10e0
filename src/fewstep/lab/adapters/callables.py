"""A decoder that a function of the user's makes."""

import importlib
import sys
from pathlib import Path

from fewstep.errors import UserError
from fewstep.lab.adapters.decoders import ImageDecoder, TextDecoder


def load_callable(name: str) -> TextDecoder | ImageDecoder:
    """What ``module:function`` gives, called without arguments.

    The module is looked for in the current folder first, then on ``sys.path``. Raises ``UserError`` where module or
    function is not there, where either fails, and where the result is no decoder.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise UserError(f"callable {name!r}: expected module:function, such as my_model:decoder")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"callable {name}: no module {error.name} in {here} or on Python's path; run in its folder or install it"
        ) from None
    except Exception as error:  # the user's own code: whatever it raises is told
        raise UserError(f"callable {name}: {module_name} fails ({type(error).__name__}: {error})") from error
    finally:
        sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"callable {name}: {module_name} has no function {function_name}")
    try:
        made = function()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"callable {name} fails ({type(error).__name__}: {error})") from error
    if not isinstance(made, TextDecoder | ImageDecoder):
        raise UserError(
            f"callable {name} gives a {type(made).__name__}: expected lab.adapters.TextDecoder or ImageDecoder"
        )
    return made

"""What the pages are made of: the templates, styles and scripts in the folder ``page``."""

from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup


def template(name: str) -> Template:
    """The template ``name``: what it is given is escaped, and a name that it is not given is an error."""
    return _environment().get_template(name)


def inlined(name: str) -> Markup:
    """A style or script, to stand in a page as it is."""
    return Markup((files("fewstep.lab.report") / "page" / name).read_text(encoding="utf-8"))


def code_sign(character: str) -> str:
    """What stands for a ``character`` that a page must not hold: its code point in hexadecimal."""
    return f"⟨{ord(character):02X}⟩"


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("fewstep.lab.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

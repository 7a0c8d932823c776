"""Reading the text templates that ship with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from string import Template


def read_template(name: str) -> Template:
    """The template `name`.tmpl: inside the installed package, or at the top of a checkout.

    Raises FileNotFoundError where neither has it, which means that the installation is damaged.
    """
    packaged = files("seghiero_core") / "templates" / f"{name}.tmpl"
    checkout = Path(__file__).resolve().parents[2] / "templates" / f"{name}.tmpl"
    return Template((packaged if packaged.is_file() else checkout).read_text(encoding="utf-8"))

"""Read the text templates that ship with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from string import Template


def read_template(name: str) -> Template:
    """Read a template from the installed package, or from the top of a source checkout.

    Args:
        name: File name without `.tmpl`.

    Returns:
        The template.

    Raises:
        FileNotFoundError: If the installation lacks it.
    """
    packaged = files("seghiero_core") / "templates" / f"{name}.tmpl"
    checkout = Path(__file__).resolve().parents[2] / "templates" / f"{name}.tmpl"
    return Template((packaged if packaged.is_file() else checkout).read_text(encoding="utf-8"))

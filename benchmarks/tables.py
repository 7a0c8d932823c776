"""Tables in Markdown, and the generated parts of a page: those between `<!-- NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Sequence
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from seghiero_core.benchmarking.machine import describe_machine

DOCS = Path(__file__).resolve().parents[1] / "docs"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def with_part(page: str, name: str, text: str) -> str:
    """Replace a generated part of a page's text.

    Raises:
        ValueError: When the page has no such part, or several.
    """
    pattern = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)"
    changed, count = re.subn(pattern, lambda found: f"{found[1]}\n{text.strip()}\n\n{found[2]}", page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"expected one part '{name}' (<!-- {name} --> to <!-- end -->), found {count}")
    return changed


def conditions(threads: int, clock: str) -> str:
    """Say when, how and on what was measured."""
    machine = describe_machine()
    text = (
        f"Measured on {date.today().isoformat()}, {clock} with {threads} thread{'s' if threads > 1 else ''}, on "
        f"{machine['cpu']} ({machine['instructions']}; {machine['cores']} cores), PyTorch {machine['torch']}."
    )
    return textwrap.fill(text, 120)

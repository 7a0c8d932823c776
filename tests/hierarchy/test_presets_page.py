"""docs/class-presets.md lists exactly the presets that there are, with their numbers."""

from __future__ import annotations

from seghiero_core.hierarchy.presets import preset_names
from seghiero_core.hierarchy.tree import Hierarchy
from support.processes import ROOT


def tables() -> list[list[list[str]]]:
    """The rows of each table of the page whose first cell is a preset."""
    found: list[list[list[str]]] = []
    previous = ""
    for line in (ROOT / "docs" / "class-presets.md").read_text().splitlines():
        if line.startswith("| `"):
            if previous.startswith("|---"):
                found.append([])
            found[-1].append([cell.strip() for cell in line.split("|")][1:-1])
        previous = line
    return found


def test_the_first_table_has_the_numbers_of_every_preset():
    expected = []
    for name in preset_names():
        hierarchy = Hierarchy.from_config({"preset": name})
        sizes = ", ".join(str(len(level.nodes)) for level in hierarchy.levels)
        smallest, largest = min(hierarchy.values), max(hierarchy.values)
        expected.append([f"`{name}`", sizes, str(hierarchy.ignore), f"{smallest} to {largest}"])
    written = [[*cells[:3], " ".join(cells[3].replace(",", "").split()[:3])] for cells in tables()[0]]
    assert written == expected


def test_the_second_table_has_the_source_of_every_preset():
    rows = tables()[1]
    assert [cells[0] for cells in rows] == [f"`{name}`" for name in preset_names()]
    assert all(len(cells) == 3 and all(cells) for cells in rows)

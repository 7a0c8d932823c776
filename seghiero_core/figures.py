"""Drawing masks in class colors, and grids of images with truth and prediction at every level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy

HATCH_DARK, HATCH_LIGHT = 46, 84  # gray values of ignored pixels
HATCH_PERIOD = 8  # px
INK, FAINT, PAPER, RULE, OUTLINE = (28, 30, 34), (120, 124, 132), (255, 255, 255), (205, 208, 214), (150, 154, 160)
MARGIN, GAP, GROUP_GAP = 18, 6, 18  # px; GROUP_GAP separates the levels
TEXT, LINE, CHIP = 14, 24, 14  # px: font size, line height, side of a legend's color square
CHIP_GAP, NAME_GAP = 6, 18  # px: after a color square, and after a name
LEGEND_LIMIT = 60  # classes that the legend of a level names

Legend = list[tuple[str, int | None]]
"""Names with their node index; `IGNORE_INDEX` for the hatch, None for text without a color."""

LegendLine = list[tuple[int, str, int | None]]
"""The entries of one line of a legend: left edge (px), name and node."""


def colorize(ids: np.ndarray, level: int, hierarchy: Hierarchy) -> np.ndarray:
    """Paint class numbers in the colors of their classes.

    Args:
        ids: H,W class numbers in the level's own numbering; negative ones become a dark hatch.
        level: The level.
        hierarchy: The class tree.

    Returns:
        H,W,3 uint8 RGB.
    """
    colors = hierarchy.colors[list(hierarchy.levels[level].nodes)]
    row, column = np.indices(ids.shape, sparse=True)
    stripe = (row + column) % HATCH_PERIOD < HATCH_PERIOD // 3
    hatch = np.where(stripe, HATCH_LIGHT, HATCH_DARK).astype(np.uint8)[..., None]
    return np.where((ids < 0)[..., None], hatch, colors[np.maximum(ids, 0)])


def truth_at_level(target: np.ndarray, level: int, hierarchy: Hierarchy) -> np.ndarray:
    """Convert a target to the class numbers of a level.

    Args:
        target: Labels or `IGNORE_INDEX`, any shape.
        level: The level.
        hierarchy: The class tree.

    Returns:
        Class numbers in the level's own numbering, in the target's shape (any shape); -1 where the target is ignored
        or labeled coarser than the level.
    """
    return np.where(target == IGNORE_INDEX, -1, hierarchy.label_to_level[level][np.maximum(target, 0)])


def prediction_grid(
    images: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    predictions: Sequence[Sequence[np.ndarray]] | None,
    hierarchy: Hierarchy,
    *,
    captions: Sequence[str] | None = None,
    cell_width: int = 220,
) -> Image.Image:
    """Draw one row per image (the image, then truth and prediction at every level) above a legend.

    Args:
        images: H,W,3 uint8 RGB each; their sizes may differ.
        targets: H,W node indices or `IGNORE_INDEX` each.
        predictions: For each image a list over levels, each H,W class numbers in the level's own numbering; None draws
            the truth only.
        hierarchy: The class tree.
        captions: A line of text below each row, such as the file name; its start is cut off where it is too long.
        cell_width: Width of an image, px; its height follows from its shape.

    Returns:
        The drawing.
    """
    levels = range(len(hierarchy.levels))
    rows = []
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        panels = [[truth_at_level(target, level, hierarchy)] for level in levels]
        if predictions is not None:
            for level in levels:
                panels[level].append(np.asarray(predictions[i][level]))
        rows.append(_Row(image, panels))
    columns = ("truth",) if predictions is None else ("truth", "prediction")
    layout = _Layout(cell_width, len(columns), len(levels))
    legends = []
    for level in levels:
        shown = _classes_shown([panel for row in rows for panel in row.panels[level]], level, hierarchy)
        legends.append(_flow(shown, layout.width - 2 * MARGIN))
    below_row = LINE if captions else GAP
    height = MARGIN + 2 * LINE + sum(layout.cell_height(row.image) + below_row for row in rows)
    height += GROUP_GAP + sum(LINE * (len(lines) + 1) + GAP for lines in legends) + MARGIN

    page = Image.new("RGB", (layout.width, height), PAPER)
    draw = ImageDraw.Draw(page)
    _draw_header(draw, layout, columns, hierarchy)
    top = MARGIN + 2 * LINE
    for i, row in enumerate(rows):
        _draw_row(page, layout, row, top, hierarchy)
        top += layout.cell_height(row.image)
        if captions:
            draw.text(
                (MARGIN, top + 3),
                fit_text(captions[i], layout.width - 2 * MARGIN),
                fill=FAINT,
                font=load_font(TEXT - 2),
            )
        top += below_row
    _draw_legends(draw, legends, top + GROUP_GAP, hierarchy)
    return page


@dataclass(frozen=True)
class _Row:
    image: np.ndarray
    panels: list[list[np.ndarray]]  # for each level the truth and, if there is one, the prediction


@dataclass(frozen=True)
class _Layout:
    """The columns of a grid, in px: the image, then `columns` of `cell_width` for each level."""

    cell_width: int
    columns: int
    levels: int

    @property
    def group(self) -> int:
        """Width of the columns of one level."""
        return self.columns * (self.cell_width + GAP) - GAP

    @property
    def width(self) -> int:
        """Width of the page."""
        return 2 * MARGIN + self.cell_width + self.levels * (GROUP_GAP + self.group)

    def left(self, level: int, column: int = 0) -> int:
        group_left = MARGIN + self.cell_width + GROUP_GAP + level * (self.group + GROUP_GAP)
        return group_left + column * (self.cell_width + GAP)

    def cell_height(self, image: np.ndarray) -> int:
        return max(1, round(self.cell_width * image.shape[0] / image.shape[1]))


def _draw_header(draw: ImageDraw.ImageDraw, layout: _Layout, columns: Sequence[str], hierarchy: Hierarchy) -> None:
    half = layout.cell_width / 2
    _centered(draw, MARGIN + half, MARGIN + LINE, "image")
    for level, entry in enumerate(hierarchy.levels):
        left, right = layout.left(level), layout.left(level) + layout.group
        _centered(draw, (left + right) / 2, MARGIN, entry.name, bold=True)
        draw.line((left, MARGIN + LINE - 4, right, MARGIN + LINE - 4), fill=RULE)
        for column, title in enumerate(columns):
            _centered(draw, layout.left(level, column) + half, MARGIN + LINE, title)


def _draw_row(page: Image.Image, layout: _Layout, row: _Row, top: int, hierarchy: Hierarchy) -> None:
    cell = (layout.cell_width, layout.cell_height(row.image))
    page.paste(Image.fromarray(row.image).resize(cell, Image.Resampling.LANCZOS), (MARGIN, top))
    for level, panels in enumerate(row.panels):
        for column, ids in enumerate(panels):
            panel = colorize(_resize(ids, cell), level, hierarchy)
            page.paste(Image.fromarray(panel), (layout.left(level, column), top))


def _draw_legends(draw: ImageDraw.ImageDraw, legends: list[list[LegendLine]], top: int, hierarchy: Hierarchy) -> None:
    for level, lines in enumerate(legends):
        draw.text((MARGIN, top), hierarchy.levels[level].name, fill=INK, font=load_font(TEXT, bold=True))
        top += LINE
        for line in lines:
            for left, name, node in line:
                _draw_chip(draw, MARGIN + left, top + 3, node, hierarchy)
                ink = FAINT if node is None else INK
                draw.text((MARGIN + left + CHIP + CHIP_GAP, top + 1), name, fill=ink, font=load_font(TEXT))
            top += LINE
        top += GAP


def _classes_shown(panels: Sequence[np.ndarray], level: int, hierarchy: Hierarchy) -> Legend:
    present = sorted({int(i) for panel in panels for i in np.unique(panel)})
    nodes = [hierarchy.levels[level].nodes[i] for i in present if i >= 0]
    legend: Legend = [(hierarchy.nodes[node], node) for node in nodes[:LEGEND_LIMIT]]
    if len(nodes) > LEGEND_LIMIT:
        legend.append((f"and {len(nodes) - LEGEND_LIMIT} more", None))
    if present and present[0] < 0:
        legend.append(("ignored or coarser", IGNORE_INDEX))
    return legend


def _flow(legend: Legend, width: int) -> list[LegendLine]:
    """Break a legend into lines that fit `width` px."""
    lines, left = [[]], 0
    for name, node in legend:
        needed = CHIP + CHIP_GAP + round(load_font(TEXT).getlength(name)) + NAME_GAP
        if lines[-1] and left + needed > width:
            lines.append([])
            left = 0
        lines[-1].append((left, name, node))
        left += needed
    return lines


def _draw_chip(draw: ImageDraw.ImageDraw, left: int, top: int, node: int | None, hierarchy: Hierarchy) -> None:
    if node is None:
        return
    if node == IGNORE_INDEX:
        draw.rectangle((left, top, left + CHIP, top + CHIP), fill=(HATCH_DARK,) * 3)
        for start in range(0, CHIP, HATCH_PERIOD // 2):
            draw.line((left + start, top, left, top + start), fill=(HATCH_LIGHT,) * 3)
            draw.line((left + start, top + CHIP, left + CHIP, top + start), fill=(HATCH_LIGHT,) * 3)
    else:
        draw.rectangle((left, top, left + CHIP, top + CHIP), fill=tuple(hierarchy.colors[node].tolist()))
    draw.rectangle((left, top, left + CHIP, top + CHIP), outline=OUTLINE)


def fit_text(caption: str, width: int) -> str:
    """Cut a caption off at its start.

    Args:
        caption: One line.
        width: How long it may be, px.

    Returns:
        Its end, after an ellipsis where something was cut off.
    """
    font, cut = load_font(TEXT - 2), caption
    while font.getlength(cut) > width:
        cut = f"…{cut[2:]}"
    return cut


def _centered(draw: ImageDraw.ImageDraw, x: float, top: int, text: str, *, bold: bool = False) -> None:
    draw.text((x, top), text, fill=INK, font=load_font(TEXT, bold=bold), anchor="ma")


def _resize(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize H,W class numbers of any integer type to `size` (width, height) by the nearest pixel."""
    rows = ((np.arange(size[1]) + 0.5) * ids.shape[0] / size[1]).astype(np.int64)
    columns = ((np.arange(size[0]) + 0.5) * ids.shape[1] / size[0]).astype(np.int64)
    return ids[rows[:, None], columns]


@lru_cache
def load_font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans, which comes with matplotlib and covers the letters of most languages.

    Args:
        size: px.
        bold: Whether to load its bold face.

    Returns:
        The font.
    """
    import matplotlib  # slow to import, and only text needs it

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)

"""Pictures for people: class colours, and the grid of images, truth and prediction at every level."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy

HATCH_DARK, HATCH_LIGHT = 46, 84  # gray values of ignored pixels
HATCH_PERIOD = 8  # px
INK, FAINT, PAPER = (28, 30, 34), (120, 124, 132), (255, 255, 255)
MARGIN, GAP, GROUP_GAP = 18, 6, 18  # px; GROUP_GAP parts the levels
TEXT, LINE, CHIP = 14, 24, 14  # px: font size, line height, side of a legend's colour square
LEGEND_LIMIT = 60  # classes of a level that its legend names


def colorize(ids: np.ndarray, level: int, hierarchy: Hierarchy) -> np.ndarray:
    """H,W class numbers of `level` (its own numbering) to H,W,3 uint8 RGB; negative ones become a dark hatch."""
    colors = hierarchy.colors[list(hierarchy.levels[level].nodes)]
    row, column = np.indices(ids.shape, sparse=True)
    stripe = (row + column) % HATCH_PERIOD < HATCH_PERIOD // 3
    hatch = np.where(stripe, HATCH_LIGHT, HATCH_DARK).astype(np.uint8)[..., None]
    return np.where((ids < 0)[..., None], hatch, colors[np.maximum(ids, 0)])


def truth_at_level(target: np.ndarray, level: int, hierarchy: Hierarchy) -> np.ndarray:
    """Node indices (any shape) to class numbers of `level`; -1 where ignored or labelled coarser than the level."""
    return np.where(target == IGNORE_INDEX, -1, hierarchy.node_to_level[level][np.maximum(target, 0)])


def prediction_grid(
    images: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    predictions: Sequence[Sequence[np.ndarray]] | None,
    hierarchy: Hierarchy,
    *,
    captions: Sequence[str] | None = None,
    cell_width: int = 220,
) -> Image.Image:
    """One row per image: the image, then truth and prediction at every level, and a legend of the classes shown.

    Args:
        images: each H,W,3 uint8 RGB; their sizes may differ.
        targets: each H,W node indices or IGNORE_INDEX.
        predictions: for each image a list over levels, each H,W class numbers in the level's own numbering; None leaves
            them out.
        captions: a line of text under each row, such as the file's name.
        cell_width: px; heights follow from each image's shape.
    """
    num_levels = len(hierarchy.levels)
    truths = [[truth_at_level(target, level, hierarchy) for level in range(num_levels)] for target in targets]
    shown = [
        _classes_shown([row[level] for row in (*truths, *(predictions or ()))], level, hierarchy)
        for level in range(num_levels)
    ]
    columns = ("truth",) if predictions is None else ("truth", "prediction")
    group = len(columns) * (cell_width + GAP) - GAP
    width = 2 * MARGIN + cell_width + num_levels * (GROUP_GAP + group)
    heights = [max(1, round(cell_width * image.shape[0] / image.shape[1])) for image in images]
    under = LINE if captions else GAP
    legends = [_flow(names, width - 2 * MARGIN) for names in shown]
    legend_height = sum(LINE * (len(lines) + 1) + GAP for lines in legends)
    top = MARGIN + 2 * LINE
    height = top + sum(heights) + len(heights) * under + GROUP_GAP + legend_height + MARGIN

    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    _centered(draw, MARGIN + cell_width / 2, MARGIN + LINE, "image", INK)
    for level in range(num_levels):
        left = MARGIN + cell_width + GROUP_GAP + level * (group + GROUP_GAP)
        _centered(draw, left + group / 2, MARGIN, hierarchy.levels[level].name, INK, bold=True)
        draw.line((left, MARGIN + LINE - 4, left + group, MARGIN + LINE - 4), fill=(205, 208, 214))
        for number, column in enumerate(columns):
            _centered(draw, left + number * (cell_width + GAP) + cell_width / 2, MARGIN + LINE, column, INK)

    for i, image in enumerate(images):
        cell = (cell_width, heights[i])
        page.paste(Image.fromarray(image).resize(cell, Image.Resampling.LANCZOS), (MARGIN, top))
        for level in range(num_levels):
            left = MARGIN + cell_width + GROUP_GAP + level * (group + GROUP_GAP)
            panels = [truths[i][level]] if predictions is None else [truths[i][level], predictions[i][level]]
            for column, ids in enumerate(panels):
                panel = colorize(_nearest(np.asarray(ids), cell), level, hierarchy)
                page.paste(Image.fromarray(panel), (left + column * (cell_width + GAP), top))
        top += heights[i]
        if captions:
            draw.text((MARGIN, top + 3), captions[i], fill=FAINT, font=_font(TEXT - 2))
        top += under

    top += GROUP_GAP
    for level, lines in enumerate(legends):
        draw.text((MARGIN, top), hierarchy.levels[level].name, fill=INK, font=_font(TEXT, bold=True))
        top += LINE
        for line in lines:
            for left, name, node in line:
                _chip(draw, MARGIN + left, top + 3, node, hierarchy)
                ink = INK if node is not None else FAINT
                draw.text((MARGIN + left + CHIP + 6, top + 1), name, fill=ink, font=_font(TEXT))
            top += LINE
        top += GAP
    return page


Legend = list[tuple[str, int | None]]
"""Names with their node index, IGNORE_INDEX for the hatch, None for text without a colour."""


def _classes_shown(panels: Sequence[np.ndarray], level: int, hierarchy: Hierarchy) -> Legend:
    present = sorted({int(i) for panel in panels for i in np.unique(panel)})
    nodes = [hierarchy.levels[level].nodes[i] for i in present if i >= 0]
    legend: Legend = [(hierarchy.nodes[node], node) for node in nodes[:LEGEND_LIMIT]]
    if len(nodes) > LEGEND_LIMIT:
        legend.append((f"and {len(nodes) - LEGEND_LIMIT} more", None))
    if present and present[0] < 0:
        legend.append(("ignored or coarser", IGNORE_INDEX))
    return legend


def _flow(legend: Legend, width: int) -> list[list[tuple[int, str, int | None]]]:
    """Break a legend into lines of (left, name, node) that fit `width` px."""
    lines, left = [[]], 0
    for name, node in legend:
        needed = CHIP + 6 + round(_font(TEXT).getlength(name)) + 18
        if lines[-1] and left + needed > width:
            lines.append([])
            left = 0
        lines[-1].append((left, name, node))
        left += needed
    return lines


def _chip(draw: ImageDraw.ImageDraw, left: int, top: int, node: int | None, hierarchy: Hierarchy) -> None:
    if node is None:
        return
    if node == IGNORE_INDEX:
        draw.rectangle((left, top, left + CHIP, top + CHIP), fill=(HATCH_DARK,) * 3)
        for start in range(0, CHIP, HATCH_PERIOD // 2):
            draw.line((left + start, top, left, top + start), fill=(HATCH_LIGHT,) * 3)
            draw.line((left + start, top + CHIP, left + CHIP, top + start), fill=(HATCH_LIGHT,) * 3)
    else:
        draw.rectangle((left, top, left + CHIP, top + CHIP), fill=tuple(hierarchy.colors[node].tolist()))
    draw.rectangle((left, top, left + CHIP, top + CHIP), outline=(150, 154, 160))


def _centered(draw: ImageDraw.ImageDraw, x: float, top: int, text: str, fill, *, bold: bool = False) -> None:
    draw.text((x, top), text, fill=fill, font=_font(TEXT, bold=bold), anchor="ma")


def _nearest(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize H,W class numbers of any integer type to `size` (width, height) by nearest pixel."""
    rows = ((np.arange(size[1]) + 0.5) * ids.shape[0] / size[1]).astype(np.int64)
    columns = ((np.arange(size[0]) + 0.5) * ids.shape[1] / size[0]).astype(np.int64)
    return ids[rows[:, None], columns]


@lru_cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows the letters of most languages."""
    import matplotlib  # here, because reading it takes longer than a picture that needs no text

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)

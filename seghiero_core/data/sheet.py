"""A contact sheet: samples of everything that a check found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from seghiero_core.config.schema import Config
from seghiero_core.data.check import Check
from seghiero_core.data.display import shown_as_rgb
from seghiero_core.data.faults import DataFinding
from seghiero_core.data.images import open_image, to_rgb
from seghiero_core.data.samples import Sample, caption, evenly_spaced
from seghiero_core.errors import DataError
from seghiero_core.figures import FAINT, GAP, INK, LINE, MARGIN, OUTLINE, PAPER, TEXT, fit_text, load_font
from seghiero_core.hierarchy.tree import Hierarchy

_PER_FINDING = 4  # samples
_CELL = 150  # px, the longest side of an image
_PAIR = 2 * _CELL + 3 * GAP
_WIDTH = 2 * MARGIN + _PER_FINDING * _PAIR
_UNKNOWN, _IGNORED, _SEVERAL, _BLANK = (255, 0, 255), (60, 60, 60), (160, 160, 160), (235, 235, 235)


@dataclass(frozen=True)
class _Row:
    """A finding of a split, its text in lines, and some samples that show it."""

    split: str
    finding: DataFinding
    lines: list[str]
    samples: list[Sample]

    @property
    def height(self) -> int:
        return LINE * (len(self.lines) + 2) + _CELL + 3 * GAP


def contact_sheet(config: Config, checked: Check) -> Image.Image | None:
    """Draw up to four samples of everything that a check found: the image, its mask, and their name.

    Masks have the colors of their classes; ignored pixels are dark gray, and values that aren't labels magenta.

    Args:
        config: The config that was checked.
        checked: What was found.

    Returns:
        The drawing; None where nothing was found in a sample.
    """
    rows = list(_rows(checked))
    if not rows:
        return None
    page = Image.new("RGB", (_WIDTH, 2 * MARGIN + sum(row.height for row in rows)), PAPER)
    draw = ImageDraw.Draw(page)
    top = MARGIN
    for row in rows:
        title = f"{row.split}: {row.finding.kind} ({row.finding.level})"
        draw.text((MARGIN, top), title, fill=INK, font=load_font(TEXT, bold=True))
        for number, line in enumerate(row.lines, start=1):
            draw.text((MARGIN, top + number * LINE), line, fill=INK, font=load_font(TEXT))
        below = top + LINE * (len(row.lines) + 1)
        for number, sample in enumerate(row.samples):
            left = MARGIN + number * _PAIR
            for column, picture in enumerate(_pictures(sample, config.hierarchy.of_source(sample.source))):
                _place(page, draw, picture, left + column * (_CELL + GAP), below)
            name = fit_text(caption(sample, config.dataset), _PAIR - 2 * GAP)
            draw.text((left, below + _CELL + 3), name, fill=FAINT, font=load_font(TEXT - 2))
        top += row.height
    return page


def _rows(checked: Check) -> Iterator[_Row]:
    by_file = {path: sample for found in checked.audits.values() for sample in found.samples for path in _files(sample)}
    for split, findings in checked.findings.items():
        for finding in findings:
            samples = [by_file[path] for path in evenly_spaced(finding.files, _PER_FINDING) if path in by_file]
            if samples:
                yield _Row(split, finding, _wrap(str(finding), _WIDTH - 2 * MARGIN), samples)


def _files(sample: Sample) -> tuple[Path, Path]:
    return sample.image, sample.mask


def _wrap(text: str, width: int) -> list[str]:
    """Break a text into lines of at most `width` px."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if load_font(TEXT).getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [fit_text(line, width) for line in lines]


def _pictures(sample: Sample, hierarchy: Hierarchy) -> list[Image.Image | None]:
    """The image and its mask, painted; None for what can't be decoded."""
    try:
        image, mask = sample.decode()
    except DataError:
        return [_decode(path) for path in _files(sample)]
    image = shown_as_rgb(image, sample.bands.rgb) if sample.bands else image
    return [Image.fromarray(image), Image.fromarray(_paint(mask, hierarchy))]


def _decode(path: Path) -> Image.Image | None:
    """A file as it is, such as a mask with colors."""
    if not path.is_file():
        return None
    try:
        with open_image(path) as image:
            return Image.fromarray(to_rgb(image))
    except DataError:
        return None


def _paint(mask: np.ndarray, hierarchy: Hierarchy) -> np.ndarray:
    """Colors of mask values: H,W label values to H,W,3 uint8 RGB."""
    values, inverse = np.unique(mask, return_inverse=True)
    return np.array([_color(value, hierarchy) for value in values.tolist()], np.uint8)[inverse.reshape(mask.shape)]


def _color(value: int, hierarchy: Hierarchy) -> tuple[int, ...]:
    label = hierarchy.values.get(value)
    if label is None:
        return _IGNORED if value == hierarchy.ignore else _UNKNOWN
    return tuple(hierarchy.colors[label].tolist()) if label < len(hierarchy) else _SEVERAL


def _place(page: Image.Image, draw: ImageDraw.ImageDraw, picture: Image.Image | None, left: int, top: int) -> None:
    """Paste a picture at the size of a cell."""
    if picture is None:
        draw.rectangle((left, top, left + _CELL, top + _CELL), fill=_BLANK, outline=OUTLINE)
        draw.text((left + GAP, top + GAP), "can't be read", fill=FAINT, font=load_font(TEXT - 2))
        return
    page.paste(ImageOps.contain(picture, (_CELL, _CELL), Image.Resampling.NEAREST), (left, top))

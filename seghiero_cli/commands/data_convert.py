"""`seghiero data convert`: data sets as they are published or exported become folders of images and masks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seghiero_cli import console
from seghiero_cli.progress import Progress
from seghiero_cli.tables import format_percent
from seghiero_core.errors import UsageError, nearest

if TYPE_CHECKING:
    from seghiero_core.config.schema import Config
    from seghiero_core.data.converters.driver import Converted

EXAMPLE = "Example: seghiero data convert coco instances.json streets --images photos"
_NAMES = "coco, labelme, cityscapes, camvid, ade20k, mapillary, voc, supervisely or colors"
_UNITS = {
    "objects": "objects",
    "holes": "holes",
    "crowd_regions": "crowd regions, ignored",
    "overlapping_pixels": "px in objects of several classes",
    "objects_without_label": "objects whose class has no label, ignored",
    "objects_without_mask": "objects with a box only, ignored",
    "objects_without_area": "points, lines and other shapes without an area, skipped",
    "masks_turned": "masks turned upright like their images",
}


def convert(
    kind: Annotated[str, typer.Argument(metavar="FORMAT", help=f"{_NAMES}.")],
    source: Annotated[Path, typer.Argument(metavar="IN", help="The annotation file, or the folder of the data set.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder for the converted data set.")],
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to search for the images. Default: below the folder of IN."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="CFG", help="Use the classes of this config; for coco, labelme, voc, supervisely, colors."
        ),
    ] = None,
    unlabeled: Annotated[
        str | None,
        typer.Option(metavar="CLASS", help="The class of pixels without an object, or 'ignore'. Default: background."),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="R,G,B", help="A color to map to the ignore value; repeatable.")
    ] = None,
    source_name: Annotated[
        str | None,
        typer.Option("--source", metavar="NAME", help="Use the mask values of this one of CFG's dataset.sources."),
    ] = None,
    val: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=0.999, help="Share of images to validate with, where IN doesn't say. Default: 0.2."
        ),
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the images instead of making hard links.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Convert a data set to {train,val}/{images,masks} with a config; `colors` without --images converts masks alone.

    A command that was stopped goes on when it is repeated. Nothing is overwritten.
    """
    from seghiero_core.data.converters.conversion import Options
    from seghiero_core.data.converters.driver import write_conversion
    from seghiero_core.data.converters.formats import FORMATS
    from seghiero_core.scaffold.converted import write_converted_config

    if kind not in FORMATS:
        raise UsageError(_unknown_format(kind, source, out, list(FORMATS)))
    given = {"--config": config, "--unlabeled": unlabeled, "--ignore": ignore, "--source": source_name}
    for option, value in given.items():
        if value is not None and option not in FORMATS[kind].options:
            takers = [name for name, each in FORMATS.items() if option in each.options]
            raise UsageError(f"{option} has no effect on the format {kind}; it is for {', '.join(takers)}.")
    if kind == "colors" and images is None and (val is not None or copy):
        raise UsageError("--val and --copy need images: add --images DIR, or leave them out.")
    if source_name is not None and images is not None:
        raise UsageError("--source writes masks alone; leave --images out.")
    if not source.exists():
        raise UsageError(f"{source} does not exist; give the annotation file, or the folder of the data set.")
    options = Options(
        out=out,
        images=images,
        classes=None if config is None else _classes(config, source_name),
        unlabeled=unlabeled,
        ignored_colors=tuple(_color(text) for text in ignore or []),
    )
    choices = {"format": kind, "input": str(source.resolve()), "unlabeled": unlabeled, "ignore": ignore or []}
    with Progress() as progress:
        progress.show(f"reading {source}")
        conversion = FORMATS[kind].read(source, options)
        done = write_conversion(
            conversion,
            out,
            choices,
            val=val,
            copy=copy,
            on_progress=lambda count, of: progress.show(f"{count}/{of} masks converted"),
        )
    cfg = None if "" in done.splits else write_converted_config(out, kind, done.classes, done.splits, done.size)
    if as_json:
        console.result_json(_document(done, out, cfg))
        return
    _print(done, out, cfg)


def _unknown_format(kind: str, source: Path, out: Path, known: list[str]) -> str:
    if Path(kind).suffix in (".yaml", ".yml"):  # before there were formats
        new = f"seghiero data convert colors {source} {out} --config {kind}"
        return f"'{kind}' is not a format; for masks in class colors, write: {new}"
    return f"unknown format '{kind}'.{nearest(kind, known)} Known: {', '.join(known)}."


def _document(done: Converted, out: Path, cfg: Path | None) -> dict[str, Any]:
    return {
        "out": str(out),
        "config": cfg and str(cfg),
        "masks": sum(done.splits.values()),
        "written": done.written,
        "splits": {split: count for split, count in done.splits.items() if split},
        "images": {kind: done.images[kind] for kind in ("linked", "copied")},
        "ignored": done.ignored,
        "counts": {key: done.counts[key] for key in _UNITS},
        "without_label": list(done.without_label),
        "skipped": dict(done.skipped),
    }


def _print(done: Converted, out: Path, cfg: Path | None) -> None:
    total = sum(done.splits.values())
    earlier = total - done.written
    before = f", {earlier} of them earlier" if earlier else ""
    console.result(f"{console.plural(total, 'mask')} -> {out}{before}")
    if cfg is None:
        return
    console.result(f"     {', '.join(f'{split}: {count}' for split, count in done.splits.items())}")
    images = [f"{done.images[kind]} {word}" for kind, word in (("linked", "hard links"), ("copied", "copies"))]
    console.result(f"     images: {', '.join(images)}")
    for key, text in _UNITS.items():
        if done.counts[key]:
            console.result(f"     {done.counts[key]} {text}")
    if done.without_label:
        console.result(f"     classes without a label: {', '.join(done.without_label)}")
    for reason, count in done.skipped.items():
        console.result(f"     skipped: {count} {reason}")
    console.result(f"     {format_percent(done.ignored, 1)} % of the pixels ignored")
    console.result(f"Next:\n  seghiero data check {cfg}\n  seghiero train {cfg}")


def _classes(path: Path, source: str | None) -> dict[str, Any]:
    """The `classes` section of a config as plain values, with the mask values of a source where one is named."""
    from seghiero_core.config.loading import load_config
    from seghiero_core.config.readers import REQUIRED_SPLITS

    config = load_config(path, required=REQUIRED_SPLITS)
    labels, ignore = _mask_values(config, source)
    section = config.classes.model_dump(exclude_none=True)
    return section | {"labels": dict(labels), "ignore": ignore}


def _mask_values(config: Config, source: str | None) -> tuple[dict[int, str | list[str]], int]:
    """The labels and the ignore value of a source; without a name, those of `classes`."""
    classes, sources = config.classes, {each.name: each for each in config.dataset.sources or ()}
    if source is None:
        if any(each.labels or each.ignore is not None for each in sources.values()):
            raise UsageError(
                f"dataset.sources have mask values of their own; add --source with {' or '.join(sources)}."
            )
        return classes.labels, classes.ignore
    if source not in sources:
        known = f"known: {', '.join(sources)}" if sources else "the config has no dataset.sources"
        raise UsageError(f"--source {source}: no such source; {known}.")
    found = sources[source]
    return found.labels or classes.labels, classes.ignore if found.ignore is None else found.ignore


def _color(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) < 256 for part in parts):
        raise UsageError(f"--ignore {text}: expected three whole numbers from 0 to 255, such as 0,0,0.")
    red, green, blue = (int(part) for part in parts)
    return red, green, blue

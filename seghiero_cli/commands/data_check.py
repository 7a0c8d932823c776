"""`seghiero data check`: what is wrong with a data set, or probably not meant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seghiero_cli import console
from seghiero_cli.progress import Progress
from seghiero_cli.tables import format_share
from seghiero_core.errors import DataError, UsageError, shorten

if TYPE_CHECKING:
    from seghiero_core.config.schema import Config
    from seghiero_core.data.check import Check

EXAMPLE = "Example: seghiero data check cfg.yaml --sheet offenders.png"


def check(
    cfg: Annotated[Path, typer.Argument(metavar="CFG", help="A config's YAML file.")],
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw samples of everything that was found into a new PNG."),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Decode everything, also what didn't change since it was checked.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Decode every image and mask of every split, and report all errors (exit code 3) and warnings together."""
    from seghiero_core.config.loading import load_config
    from seghiero_core.config.readers import REQUIRED_SPLITS
    from seghiero_core.data.statistics import split_stats

    config = load_config(cfg, required=REQUIRED_SPLITS)
    if sheet and sheet.suffix.lower() != ".png":
        raise UsageError(f"--sheet {sheet}: the name must end in .png.")
    if sheet and sheet.exists():
        raise UsageError(f"--sheet {sheet}: the file exists; choose another name.")
    checked = check_with_progress(config, cached=not no_cache)
    stats = split_stats(config, checked.audits)
    splits: dict[str, dict[str, Any]] = {
        split: (_facts(stats[split]) if split in stats else {"images": 0})
        | {"findings": [finding.to_dict() for finding in findings]}
        for split, findings in checked.findings.items()
    }
    if as_json:
        console.result_json(splits)
    else:
        _print(splits)
    if sheet:
        _draw(sheet, config, checked)
    levels = [finding.level for findings in checked.findings.values() for finding in findings]
    if "error" in levels:
        raise DataError(f"the data set has {console.plural(levels.count('error'), 'error')}; see above.")


def check_with_progress(config: Config, *, cached: bool = True) -> Check:
    """Check all splits of a data set.

    Args:
        config: A loaded config.
        cached: Whether to use the cache of earlier checks.

    Returns:
        What was found.
    """
    from seghiero_core.data.check import check_data

    with Progress() as progress:
        return check_data(
            config,
            on_progress=lambda split, done, of: progress.show(f"{split}: {done}/{of} images checked"),
            cached=cached,
        )


def summary(split: dict[str, Any]) -> str:
    """Describe a split, or a source of it, in a line.

    Args:
        split: Its entry of `data_stats`.

    Returns:
        The number of images, their sizes, and the share of ignored pixels.
    """
    images = console.plural(split["images"], "image")
    if not split.get("sizes"):
        return images
    sizes = [f"{size['height']}x{size['width']}" for size in split["sizes"]]
    if len(sizes) > 1:
        sizes = [f"{size} ({entry['images']})" for size, entry in zip(sizes, split["sizes"], strict=True)]
    return f"{images} of {shorten(sizes)} px (HxW), {format_share(split['ignored'])} % of the pixels ignored"


def _facts(split: dict[str, Any]) -> dict[str, Any]:
    """What the command says of a split or a source; of a split also of each of its sources."""
    pixels: dict[str, int] = {}
    for entry in split["labels"]:
        pixels[entry["name"]] = pixels.get(entry["name"], 0) + entry["pixels"]
    facts = {key: split[key] for key in ("images", "sizes", "ignored")}
    facts["absent"] = [name for name, count in pixels.items() if not count]
    if "sources" in split:
        facts["sources"] = {name: _facts(source) for name, source in split["sources"].items()}
    return facts


def _print(splits: dict[str, dict[str, Any]]) -> None:
    for name, split in splits.items():
        failed = any(finding["level"] == "error" for finding in split["findings"])
        console.result(f"{'FAIL' if failed else 'ok  '} {name}: {summary(split)}")
        if split.get("absent"):
            console.result(f"     classes without a pixel: {', '.join(split['absent'])}")
        for source, part in split.get("sources", {}).items():
            console.result(f"     {source}: {summary(part)}")
            if part["absent"]:
                console.result(f"     {' ' * len(source)}  classes without a pixel: {', '.join(part['absent'])}")
        for finding in split["findings"]:
            console.result(f"     {finding['level']}: {finding['text']}")
            if finding["fix"]:
                console.result(f"       -> {finding['fix']}")


def _draw(path: Path, config: Config, checked: Check) -> None:
    from seghiero_core.atomic import replacing
    from seghiero_core.data.sheet import contact_sheet

    picture = contact_sheet(config, checked)
    if picture is None:
        console.note(f"nothing to draw: {path} was not written.")
        return
    with replacing(path) as temporary:
        picture.save(temporary, "PNG")
    console.note(f"wrote {path}")

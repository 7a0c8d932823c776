"""`seghiero data split`: lists of images to train on and to validate with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seghiero_cli import console
from seghiero_cli.progress import Progress
from seghiero_cli.tables import format_percent
from seghiero_core.errors import UsageError

if TYPE_CHECKING:
    from seghiero_core.data.split import Division

EXAMPLE = "Example: seghiero data split cfg.yaml --val 0.2 --by-group '^(.*)_frame'"


def split(
    cfg: Annotated[Path, typer.Argument(metavar="CFG", help="A config's YAML file; it needs no dataset.val.")],
    val: Annotated[float, typer.Option(min=0.001, max=0.999, help="Share of images to validate with.")] = 0.2,
    test: Annotated[
        float | None, typer.Option(min=0.001, max=0.999, help="Share of images for a test set. Default: none.")
    ] = None,
    by_group: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Keep images together whose names agree in the first group of REGEX, such as frames of a video.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another choice.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write the lists. Default: the folder of CFG.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing lists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write train.txt and val.txt, which share out the images of `dataset.train`, and say how the config reads them.

    Each split gets its share of every class. No image is moved.
    """
    from seghiero_core.atomic import write_new_files
    from seghiero_core.config.loading import load_config
    from seghiero_core.data.split import divide, list_files

    shares = {"train": 1 - val - (test or 0), "val": val, **({"test": test} if test else {})}
    if shares["train"] < 1e-9:
        raise UsageError(f"--val {val} --test {test}: nothing is left to train on; together they must be below 1.")
    config = load_config(cfg, required=("train",))
    folder = out or cfg.parent
    with Progress() as progress:
        divisions = divide(
            config,
            shares,
            by_group=by_group,
            seed=seed,
            on_progress=lambda done, of: progress.show(f"{done}/{of} images checked"),
        )
    files = list_files(divisions, folder)
    write_new_files(files, force=force)
    if as_json:
        console.result_json([_document(division, folder) for division in divisions])
        return
    for division in divisions:
        _print(division, folder, config.dataset.sources is not None)


def _document(division: Division, folder: Path) -> dict[str, Any]:
    return {
        "source": division.source,
        "splits": {
            split: {
                "list": str(folder / division.file(split)),
                "images": len(names),
                "groups": division.groups[split],
                "pixels": division.pixels[split],
                "config": division.section(folder)[split],
            }
            for split, names in division.names.items()
        },
        "lacking": division.lacking(),
    }


def _print(division: Division, folder: Path, in_source: bool) -> None:
    import yaml

    splits = list(division.names)
    images = sum(map(len, division.names.values()))
    rows = [("images", *(_cell(len(names), images) for names in division.names.values()))]
    groups = sum(division.groups.values())
    if groups < images:
        rows.append(("groups", *(_cell(count, groups) for count in division.groups.values())))
    for name in division.pixels[splits[0]]:
        counts = [division.pixels[split][name] for split in splits]
        rows.append((name, *(format_percent(count / sum(counts)) for count in counts)))
    title = f"{division.source}: " if in_source else ""
    console.table(
        f"{title}share of the images, and of the pixels of each class, in %",
        ("", *splits),
        rows,
        right=range(1, len(splits) + 1),
    )
    for split, names in division.lacking().items():
        console.result(f"{split} has no pixel of: {', '.join(names)}")
    for split in splits:
        console.result(f"wrote {folder / division.file(split)}")
    section: Any = division.section(folder)
    where = f"In the entry of dataset.sources named {division.source}" if in_source else "In the config"
    console.result(f"\n{where}, write:\n")
    text = yaml.safe_dump(
        section if in_source else {"dataset": section}, default_flow_style=None, sort_keys=False, width=10_000
    )
    console.result(text)


def _cell(count: int, total: int) -> str:
    return f"{count} ({format_percent(count / total)})"

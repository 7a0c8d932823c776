"""`seghiero data`: inspect a data set before training, and convert color masks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seghiero_cli import console
from seghiero_cli.progress import Progress
from seghiero_cli.tables import format_percent
from seghiero_core.errors import UsageError, shorten

if TYPE_CHECKING:
    from seghiero_core.config.schema import Config
    from seghiero_core.hierarchy.tree import Hierarchy

CHECK_EXAMPLE = "Example: seghiero data check cfg.yaml"
STATS_EXAMPLE = "Example: seghiero data stats cfg.yaml --json"
PREVIEW_EXAMPLE = "Example: seghiero data preview cfg.yaml --augmented --out preview.png"
CONVERT_EXAMPLE = "Example: seghiero data convert cfg.yaml color_masks masks --ignore 0,0,0"

app = typer.Typer(
    no_args_is_help=True, help="Inspect a data set before training, and convert color masks.", epilog=CHECK_EXAMPLE
)

Cfg = Annotated[Path, typer.Argument(metavar="CFG", help="A config's YAML file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command("check", epilog=CHECK_EXAMPLE)
def check(cfg: Cfg, as_json: Json = False) -> None:
    """Decode every image and mask of every split, and report all faults together (exit code 3)."""
    _, stats, warnings = _stats(cfg)
    splits = {name: _check(split) | {"warnings": warnings[name]} for name, split in stats["splits"].items()}
    if as_json:
        console.result_json(splits)
        return
    for name, split in splits.items():
        console.result(f"ok   {name}: {_summary(split)}")
        if split["absent"]:
            console.result(f"     classes without a pixel: {', '.join(split['absent'])}")
        for source, part in split.get("sources", {}).items():
            console.result(f"     {source}: {_summary(part)}")
            if part["absent"]:
                console.result(f"     {' ' * len(source)}  classes without a pixel: {', '.join(part['absent'])}")
        for text in split["warnings"]:
            console.result(f"     warning: {text}")


@app.command("stats", epilog=STATS_EXAMPLE)
def stats(cfg: Cfg, as_json: Json = False) -> None:
    """Print each class's share of pixels in every split, and the class weights that `loss.class_weights` offers."""
    hierarchy, document, warnings = _stats(cfg)
    if as_json:
        console.result_json(document)
        return
    splits, weights = document["splits"], document["class_weights"]
    labeled = sorted({label for each in hierarchy.sources or [hierarchy] for label in each.values.values()})
    classes = list(_class_rows(hierarchy.tree, {hierarchy.label_name(label) for label in labeled}))
    sets = [hierarchy.label_name(label) for label in labeled if label >= len(hierarchy)]
    classes += [("", name, True) for name in sets]
    columns_of = {}  # each split, then each of its sources
    for split, found in splits.items():
        columns_of[split] = found
        columns_of |= {f"{split}: {source}": part for source, part in found.get("sources", {}).items()}
    rows = []
    for indent, name, is_rest in classes:
        shares = [_share(column, name, is_rest=is_rest) for column in columns_of.values()]
        factors = [f"{weight[name]:.2f}" if name in weight else "" for weight in weights.values()]
        text = f"only {name}" if is_rest and name not in sets else name
        rows.append([f"{indent}{text}", *map(_percent, shares), *factors])
    columns = [
        "class",
        *(f"{name} %" for name in columns_of),
        *(f"weight {scheme.replace('_', ' ')}" for scheme in weights),
    ]
    console.table("", columns, rows, right=range(1, len(columns)))
    console.result("%: of the labeled pixels. A class contains the classes indented below it.")
    if len(sets) < sum(is_rest for *_, is_rest in classes):
        console.result("only X: pixels labeled X itself, not one of its classes.")
    if sets:
        console.result("A or B: pixels that may be any of these; at levels where all share a class, they count for it.")
    console.result(f"weight: in the loss, with loss.class_weights: {' or '.join(weights)}.")
    for name, column in columns_of.items():
        console.result(f"{name}: {_summary(column)}")
    for name, texts in warnings.items():
        for text in texts:
            console.note(f"warning: {name}: {text}")


@app.command("preview", epilog=PREVIEW_EXAMPLE)
def preview(
    cfg: Cfg,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    count: Annotated[int, typer.Option(min=1, help="Number of samples, evenly spread over the split.")] = 8,
    augmented: Annotated[
        bool, typer.Option("--augmented", help="Show them as in training: scaled, cropped, flipped, jittered.")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The picture to write.")] = Path("preview.png"),
) -> None:
    """Draw samples with their labels at every level."""
    from seghiero_core.atomic import check_writable, make_folder
    from seghiero_core.config.loading import load_config
    from seghiero_core.data.overview import preview as draw

    picture = draw(load_config(cfg), split, count, augmented=augmented)
    make_folder(out.parent)
    check_writable(out.parent)
    picture.save(out)
    console.result(str(out))


@app.command("convert", epilog=CONVERT_EXAMPLE)
def convert(
    cfg: Cfg,
    masks: Annotated[Path, typer.Argument(metavar="MASKS", help="A folder of color masks.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder for the converted masks.")],
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="R,G,B", help="A color to map to the ignore value; repeatable.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="Use the mask values of this one of dataset.sources.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert color masks to label values, using the colors of `classes` (its preset's, or `classes.colors`)."""
    from seghiero_core.config.loading import load_config
    from seghiero_core.data.convert import convert_masks, values_of_colors

    config = load_config(cfg)
    labels, ignored_value = _mask_values(config, source)
    ignored = [_color(text) for text in ignore or []]
    values = values_of_colors(labels, config.classes.colors or {}, ignored, ignored_value)
    with Progress() as progress:
        written = convert_masks(
            masks, out, values, on_progress=lambda done, of: progress.show(f"{done}/{of} masks converted")
        )
    if as_json:
        console.result_json({"masks": len(written), "out": str(out), "colors": len(values)})
        return
    console.result(f"{console.plural(len(written), 'mask')} -> {out}")


def _check(split: dict[str, Any]) -> dict[str, Any]:
    """What `data check` says of a split or a source; of a split also of each of its sources."""
    pixels: dict[str, int] = {}
    for entry in split["labels"]:
        pixels[entry["name"]] = pixels.get(entry["name"], 0) + entry["pixels"]
    checked = {key: split[key] for key in ("images", "sizes", "ignored")}
    checked["absent"] = [name for name, count in pixels.items() if not count]
    if "sources" in split:
        checked["sources"] = {name: _check(source) for name, source in split["sources"].items()}
    return checked


def _stats(cfg: Path) -> tuple[Hierarchy, dict[str, Any], dict[str, list[str]]]:
    """The class tree, the document of `data_stats`, and the warnings of every split."""
    from seghiero_core.config.loading import load_config
    from seghiero_core.data.overview import check_data, data_stats
    from seghiero_core.data.plausibility import data_warnings

    config = load_config(cfg)
    with Progress() as progress:
        audits = check_data(config, lambda split, done, of: progress.show(f"{split}: {done}/{of} images decoded"))
    return config.hierarchy, data_stats(config, audits), data_warnings(config, audits)


def _class_rows(tree: Mapping[str, Any], labeled: Collection[str], indent: str = "") -> Iterator[tuple[str, str, bool]]:
    """The rows of the table: indent, name, and whether it counts only the pixels with the label of an inner node."""
    for name, children in tree.items():
        yield indent, name, False
        yield from _class_rows(children, labeled, f"{indent}  ")
        if children and name in labeled:
            yield f"{indent}  ", name, True


def _share(split: dict[str, Any], name: str, *, is_rest: bool) -> float:
    counted = [split["labels"]] if is_rest else [level["classes"] for level in split["levels"]]
    shares = [entry["share"] for classes in counted for entry in classes if entry["name"] == name]
    return sum(shares) if is_rest else shares[0]  # several mask values of a source may have one label


def _percent(share: float) -> str:
    """A share in per cent; of rare classes the first digit, so that they differ from classes without a pixel."""
    if share == 0 or share >= 1e-4:
        return "0" if share == 0 else format_percent(share, 2)
    return f"{100 * share:.1g}" if share >= 1e-6 else "<0.0001"


def _summary(split: dict[str, Any]) -> str:
    sizes = [f"{size['height']}x{size['width']}" for size in split["sizes"]]
    if len(sizes) > 1:
        sizes = [f"{size} ({entry['images']})" for size, entry in zip(sizes, split["sizes"], strict=True)]
    images = console.plural(split["images"], "image")
    return f"{images} of {shorten(sizes)} px (HxW), {_percent(split['ignored'])} % of the pixels ignored"


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

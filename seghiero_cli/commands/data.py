"""`seghiero data`: inspect a data set before training, or convert one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seghiero_cli import console
from seghiero_cli.commands import data_check, data_convert, data_pack, data_split
from seghiero_cli.progress import Progress
from seghiero_cli.tables import format_share

if TYPE_CHECKING:
    from seghiero_core.data.faults import DataFinding
    from seghiero_core.hierarchy.tree import Hierarchy

STATS_EXAMPLE = "Example: seghiero data stats cfg.yaml --json"
PREVIEW_EXAMPLE = "Example: seghiero data preview cfg.yaml --augmented --out preview.png"

app = typer.Typer(
    no_args_is_help=True, help="Inspect a data set before training, or convert one.", epilog=data_check.EXAMPLE
)

Cfg = Annotated[Path, typer.Argument(metavar="CFG", help="A config's YAML file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


app.command("check", epilog=data_check.EXAMPLE)(data_check.check)


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
        rows.append([f"{indent}{text}", *map(format_share, shares), *factors])
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
    if "mean" in document:
        console.result("Of each band of the training images, for the section `dataset`:")
        console.result(f"  mean: {_per_band(document['mean'])}\n  std: {_per_band(document['std'])}")
    console.result(f"weight: in the loss, with loss.class_weights: {' or '.join(weights)}.")
    for name, column in columns_of.items():
        console.result(f"{name}: {data_check.summary(column)}")
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
    from PIL import Image

    from seghiero_core.atomic import check_writable, make_folder
    from seghiero_core.config.loading import load_config
    from seghiero_core.config.readers import REQUIRED_SPLITS
    from seghiero_core.data.overview import preview as draw
    from seghiero_core.errors import UsageError

    if out.suffix.lower() not in Image.registered_extensions():
        raise UsageError(f"--out: {out} has no extension of an image format; try {out.stem}.png.")
    picture = draw(load_config(cfg, required=REQUIRED_SPLITS), split, count, augmented=augmented)
    make_folder(out.parent)
    check_writable(out.parent)
    picture.save(out)
    console.result(str(out))


app.command("pack", epilog=data_pack.EXAMPLE)(data_pack.pack)
app.command("split", epilog=data_split.EXAMPLE)(data_split.split)
app.command("convert", epilog=data_convert.EXAMPLE)(data_convert.convert)


def _stats(cfg: Path) -> tuple[Hierarchy, dict[str, Any], dict[str, list[DataFinding]]]:
    """The class tree, the document of `data_stats`, and the warnings of every split."""
    from seghiero_core.config.loading import load_config
    from seghiero_core.config.readers import REQUIRED_SPLITS
    from seghiero_core.data.overview import data_stats

    config = load_config(cfg, required=REQUIRED_SPLITS)
    checked = data_check.check_with_progress(config)
    checked.raise_errors()
    with Progress() as progress:
        document = data_stats(config, checked.audits, lambda done, of: progress.show(f"{done}/{of} images measured"))
    return config.hierarchy, document, checked.findings


def _per_band(values: Sequence[float]) -> str:
    """A list of numbers in YAML, with seven digits."""
    import yaml

    return yaml.safe_dump([float(f"{value:.7g}") for value in values], default_flow_style=True, width=10_000).strip()


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

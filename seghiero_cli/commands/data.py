"""`seghiero data`: inspect a data set before training, and convert color masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from seghiero_cli import console
from seghiero_cli.progress import Progress
from seghiero_cli.tables import format_percent
from seghiero_core.errors import UsageError, shorten

CHECK_EXAMPLE = "Example: seghiero data check cfg.yaml"
STATS_EXAMPLE = "Example: seghiero data stats cfg.yaml --json"
PREVIEW_EXAMPLE = "Example: seghiero data preview cfg.yaml --augmented --out preview.png"
CONVERT_EXAMPLE = "Example: seghiero data convert cfg.yaml LabeledApproved_full masks --ignore 0,0,0"

app = typer.Typer(
    no_args_is_help=True, help="Inspect a data set before training, and convert color masks.", epilog=CHECK_EXAMPLE
)

Cfg = Annotated[Path, typer.Argument(metavar="CFG", help="A config's YAML file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command("check", epilog=CHECK_EXAMPLE)
def check(cfg: Cfg, as_json: Json = False) -> None:
    """Decode every image and mask of every split, and report all faults together (exit code 3)."""
    stats = _stats(cfg)
    splits = stats["splits"]
    absent = {
        name: [entry["name"] for entry in split["levels"][0]["classes"] if not entry["pixels"]]
        for name, split in splits.items()
    }
    if as_json:
        keys = ("images", "sizes", "ignored")
        console.result_json(
            {name: {key: split[key] for key in keys} | {"absent": absent[name]} for name, split in splits.items()}
        )
        return
    for name, split in splits.items():
        console.result(f"ok   {name}: {_summary(split)}")
        if absent[name]:
            console.result(f"     classes without a pixel: {', '.join(absent[name])}")


@app.command("stats", epilog=STATS_EXAMPLE)
def stats(cfg: Cfg, as_json: Json = False) -> None:
    """Print each class's share of pixels in every split, level by level, and the class weights computed from them."""
    document = _stats(cfg)
    if as_json:
        console.result_json(document)
        return
    splits, weights = document["splits"], document["class_weights"]
    for number, level in enumerate(splits["train"]["levels"]):
        rows = []
        for i, entry in enumerate(level["classes"]):
            shares = [split["levels"][number]["classes"][i]["share"] for split in splits.values()]
            row = [entry["name"], *(format_percent(share, 2) for share in shares)]
            if number == 0:
                row += [f"{weight[entry['name']]:.2f}" for weight in weights.values()]
            rows.append(row)
        columns = ["class", *(f"{name} %" for name in splits)]
        if number == 0:
            columns += [f"weight, {method}" for method in weights]
        console.table(level["name"], columns, rows, right=range(1, len(columns)))
    for name, split in splits.items():
        console.result(f"{name}: {_summary(split)}")


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
    from seghiero_core.config.loading import load_config
    from seghiero_core.data.overview import preview as draw

    picture = draw(load_config(cfg), split, count, augmented=augmented)
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out)
    console.result(str(out))


@app.command("convert", epilog=CONVERT_EXAMPLE)
def convert(
    cfg: Cfg,
    source: Annotated[Path, typer.Argument(metavar="MASKS", help="A folder of color masks.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder for the converted masks.")],
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="R,G,B", help="A color to map to the ignore value; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert color masks to label values, using the colors of `classes` (its preset's, or `classes.colors`)."""
    from seghiero_core.config.loading import load_config
    from seghiero_core.data.convert import convert_masks, values_of_colors

    classes = load_config(cfg).classes
    ignored = [_color(text) for text in ignore or []]
    values = values_of_colors(classes.labels, classes.colors or {}, ignored, classes.ignore)
    with Progress() as progress:
        written = convert_masks(
            source, out, values, on_progress=lambda done, of: progress.show(f"{done}/{of} masks converted")
        )
    if as_json:
        console.result_json({"masks": len(written), "out": str(out), "colors": len(values)})
        return
    console.result(f"{console.plural(len(written), 'mask')} -> {out}")


def _stats(cfg: Path) -> dict[str, Any]:
    from seghiero_core.config.loading import load_config
    from seghiero_core.data.overview import check_data, data_stats

    config = load_config(cfg)
    with Progress() as progress:
        audits = check_data(config, lambda split, done, of: progress.show(f"{split}: {done}/{of} images decoded"))
    return data_stats(config, audits)


def _summary(split: dict[str, Any]) -> str:
    sizes = [f"{size['height']}x{size['width']}" for size in split["sizes"]]
    if len(sizes) > 1:
        sizes = [f"{size} ({entry['images']})" for size, entry in zip(sizes, split["sizes"], strict=True)]
    images = console.plural(split["images"], "image")
    return f"{images} of {shorten(sizes)} px (HxW), {format_percent(split['ignored'], 2)} % of the pixels ignored"


def _color(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) < 256 for part in parts):
        raise UsageError(f"--ignore {text}: expected three whole numbers from 0 to 255, such as 0,0,0.")
    red, green, blue = (int(part) for part in parts)
    return red, green, blue

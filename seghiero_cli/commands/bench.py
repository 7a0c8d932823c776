"""`seghiero bench`: how fast networks train and predict on this machine, and what they need."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seghiero_cli import console
from seghiero_cli.options import DEVICE_HELP
from seghiero_cli.progress import Progress
from seghiero_core.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from seghiero_core.config.schema import Config

EXAMPLE = "Example: seghiero bench --all --backbone resnet:50 --size 256x256 --batch 2"

_NO_CONFIG = "dataset: {}\nclasses: {preset: cityscapes}\n"
_COLUMNS = ("backbone", "head", "M params", "GFLOPs", "train/s", "MiB", "predict/s", "MiB", "p50 ms", "p95 ms")


def bench(
    cfg: Annotated[
        Path | None, typer.Argument(metavar="CFG", help="A config; its data needn't exist.", show_default=False)
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every backbone with every head; without CFG for Cityscapes' 19 classes.")
    ] = False,
    backbone: Annotated[
        list[str] | None, typer.Option(metavar="TYPE[:VARIANT]", help="With --all: only this backbone; repeatable.")
    ] = None,
    head: Annotated[
        list[str] | None, typer.Option(metavar="TYPE", help="With --all: only this head; repeatable.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the config; repeatable.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Size of the images, px. Default: transform.size.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images per batch. Default: training.batch_size.")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help=f"{DEVICE_HELP} Default: training.device.")] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="NAME", help="auto, fp32, bf16 or fp16. Default: training.precision.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Threads on the CPU. Default: PyTorch's choice.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(min=1, metavar="N", help="Measure N steps of each task.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0, metavar="S", help="Measure each task for S seconds. Default: 3.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure how fast a config's network, or each of all combinations, trains and predicts, and what it needs.

    Training is forward, loss, backward and update of a random batch; predicting is forward and decoding.

    The latencies p50 and p95 are of single images. A combination that fails is a row with its reason.
    """
    configs = _configs(
        cfg, every, backbone or [], head or [], _overrides(overrides or [], size, batch, device, precision)
    )
    if repeats is not None and seconds is not None:
        raise UsageError("bench: give either --repeats or --seconds, not both.")
    from seghiero_core.benchmarking.combination import Effort
    from seghiero_core.benchmarking.machine import describe_machine
    from seghiero_core.benchmarking.processes import measure_all
    from seghiero_core.devices import check_device

    check_device(configs[0].training.device)
    effort = Effort(3.0 if seconds is None else seconds, repeats, threads)
    rows: list[dict[str, Any]] = []
    stopped = False
    with Progress() as progress:
        try:
            for row in measure_all(configs, effort, lambda event: _show(progress, event)):
                rows.append(row)
        except KeyboardInterrupt:  # hours may have passed: what was measured is printed
            stopped = True
    if as_json:
        console.result_json({"machine": describe_machine(), "rows": rows})
    elif rows:
        _print(rows)
    if stopped:
        console.note(f"Interrupted after {len(rows)} of {console.plural(len(configs), 'combination')}.")
        raise typer.Exit(130)
    if failed := sum("error" in row for row in rows):
        raise CheckFailed(f"{failed} of {console.plural(len(rows), 'combination')} failed.")


def _overrides(
    given: list[str], size: str | None, batch: int | None, device: str | None, precision: str | None
) -> list[str]:
    """Return --set and the options that stand for keys of the config, as overrides."""
    words = list(given)
    if size is not None:
        sides = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", size)
        if sides is None:
            raise UsageError(f"--size {size}: expected height and width in px, such as 512x1024.")
        words.append(f"transform.size=[{sides[1]}, {sides[2]}]")
    options = {"batch_size": batch, "device": device, "precision": precision}
    return words + [f"training.{key}={value}" for key, value in options.items() if value is not None]


def _configs(
    cfg: Path | None, every: bool, backbones: list[str], heads: list[str], overrides: list[str]
) -> list[Config]:
    from seghiero_core.benchmarking.processes import all_combinations
    from seghiero_core.config.loading import load_config

    if cfg is None and not every:
        raise UsageError("bench: give a config, or --all for every backbone with every head.")
    if (backbones or heads) and not every:
        raise UsageError("bench: --backbone and --head choose among --all; for one config use --set backbone=...")
    if cfg is not None:
        config = load_config(cfg, overrides, required=())
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bench.yaml"
            path.write_text(_NO_CONFIG)
            config = load_config(path, overrides, required=())
    return all_combinations(config, backbones, heads) if every else [config]


def _show(progress: Progress, event: dict[str, Any]) -> None:
    progress.show(f"{event['number']} of {event['of']}: {event['backbone']} + {event['head']}: {event['stage']}")


def _print(rows: list[dict[str, Any]]) -> None:
    first = next((row for row in rows if "error" not in row), None)
    title = ""
    if first:
        height, width = first["size"]
        title = (
            f"{first['device']} in {first['precision']}, {console.plural(first['threads'], 'CPU thread')}, "
            f"batches of {first['batch']} at {height}x{width} px, {first['classes']} classes"
        )
    console.table(title, _COLUMNS, [_cells(row) for row in rows], range(2, len(_COLUMNS)))
    for row in rows:
        if "error" in row:
            console.result(f"failed: {row['backbone']} + {row['head']}: {row['error']}")
    if first:
        console.note(
            f"train/s and predict/s are images per second. MiB: {first['memory_is']}. GFLOPs: one image, forward, a "
            "multiplication with an addition counts as 2."
        )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    name = (row["backbone"], row["head"])
    if "error" in row:
        return (*name, "failed", *[""] * (len(_COLUMNS) - 3))
    training, prediction, single = row["training"], row["prediction"], row["single_image"]
    return (
        *name,
        f"{row['parameters'] / 1e6:.1f}",
        f"{row['flops'] / 1e9:.1f}",
        f"{training['images_per_second']:.1f}",
        f"{training['peak_mib']:.0f}",
        f"{prediction['images_per_second']:.1f}",
        f"{prediction['peak_mib']:.0f}",
        f"{single['p50_ms']:.1f}",
        f"{single['p95_ms']:.1f}",
    )

"""How time and memory grow with the size of the image, the batch, the number of leaves and the depth of the tree.

    OMP_NUM_THREADS=1 python benchmarks/growth.py [--quick] [--json growth.json] [--plot docs/growth.png]

Measured are every loss (forward and backward), every decoding, the metrics, and a whole training step of MiT-B0 with
the extremely_fast_segformer head. An exponent is the slope of time, or of peak memory, against pixels x nodes on
logarithmic scales, fitted to the last three values of an axis: 1 is linear. For the depth it is against pixels x
classes above the leaves. The time of a copy of the logits is measured, too: it grows faster than linearly where tensors
stop fitting into the caches, or into the memory that the process keeps. The program ends with exit code 1 if an
exponent is more than 0.15 above 1, or above that of the copy if it is larger. With one thread, time is that of the
processor, and each point is the fastest of its turns; memory is the peak that PyTorch allocates.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from tables import conditions, markdown, with_part
from torch.nn import functional as F

from seghiero_core.benchmarking.machine import describe_machine
from seghiero_core.benchmarking.memory import peak_allocated
from seghiero_core.benchmarking.timing import time_in_turns
from seghiero_core.decode import decode
from seghiero_core.decode_modes import MODES
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.catalog import LOSSES
from seghiero_core.losses.combine import build_loss
from seghiero_core.metrics.metrics import Metrics
from seghiero_core.model.factories import build_model

CPU = torch.device("cpu")
SLACK = 0.15
"""How far an exponent may be above 1, and above that of the copy."""
COPY = "copy of the logits"
SHOWN = (
    COPY,
    "training step",
    "loss marginal_cross_entropy",
    "loss tree_min",
    "decode leaf",
    "decode best_path",
    "metrics",
)
"""The parts in the plot."""


@dataclass(frozen=True)
class Setting:
    """A point on an axis.

    Attributes:
        size: Height and width, px.
        batch: Images.
        leaves: Leaves of the tree.
        depth: Levels of the tree.
    """

    size: int = 128
    batch: int = 1
    leaves: int = 64
    depth: int = 3


AXES: dict[str, tuple[int, ...]] = {
    "size": (64, 128, 256, 512),
    "batch": (1, 2, 4, 8),
    "leaves": (11, 30, 100, 300, 1000),
    "depth": (1, 2, 3, 5, 8),
}
QUICK: dict[str, tuple[int, ...]] = {
    "size": (64, 128),
    "batch": (1, 2),
    "leaves": (100, 300),
    "depth": (4, 8),
}


@cache
def make_tree(leaves: int, depth: int) -> Hierarchy:
    """Make a tree whose leaves are in groups of about four, and whose other levels have as many classes as groups.

    Its number of nodes grows linearly with the leaves and with the depth.
    """
    names = [f"leaf{i}" for i in range(leaves)]
    if depth == 1:
        return Hierarchy.from_config({"labels": names, "ignore": 65535})
    tree: dict[str, Any] = {}
    for number, start in enumerate(range(0, leaves, 4)):
        group: Any = dict.fromkeys(names[start : start + 4])
        for level in range(1, depth - 1):
            group = {f"level{level}_{number}": group}
        tree[f"level{depth - 1}_{number}"] = group
    return Hierarchy.from_config({"labels": names, "tree": tree, "ignore": 65535})


def parts(setting: Setting, only: str = "") -> dict[str, Callable[[], object]]:
    """Make the functions to measure, by name: those whose names contain a text."""
    torch.manual_seed(0)
    hierarchy = make_tree(setting.leaves, setting.depth)
    shape = (setting.batch, setting.size, setting.size)
    target = torch.randint(setting.leaves, shape)
    inputs = {
        "leaves": torch.randn(setting.batch, setting.leaves, *shape[1:]),
        "nodes": torch.randn(setting.batch, len(hierarchy), *shape[1:]),
        "embedding": F.normalize(torch.randn(setting.batch, 64, setting.size // 4, setting.size // 4)),
    }
    makers: dict[str, Callable[[], Callable[[], object]]] = {}
    for name, entry in LOSSES.items():
        makers[f"loss {name}"] = partial(_loss_step, name, inputs[entry.channels], target, hierarchy)
    makers[COPY] = partial(partial, torch.clone, inputs["leaves"])
    for mode in MODES:
        makers[f"decode {mode}"] = partial(partial, decode, inputs["leaves"], hierarchy, mode)
    makers["metrics"] = partial(_metrics, inputs["leaves"], target, hierarchy)
    makers["training step"] = partial(_training_step, setting, hierarchy, target)
    return {name: make() for name, make in makers.items() if only in name}


def _metrics(logits: torch.Tensor, target: torch.Tensor, hierarchy: Hierarchy) -> Callable[[], object]:
    decoded, metrics = decode(logits, hierarchy), Metrics(hierarchy)
    return partial(metrics.update, decoded, target)


def _loss_step(name: str, x: torch.Tensor, target: torch.Tensor, hierarchy: Hierarchy) -> Callable[[], None]:
    function = LOSSES[name].load(name)
    x = x.clone().requires_grad_()

    def run() -> None:
        function(x, target, hierarchy, validate=False).backward()
        x.grad = None

    return run


def _training_step(setting: Setting, hierarchy: Hierarchy, target: torch.Tensor) -> Callable[[], None]:
    loss = build_loss({"preset": "marginal"}, hierarchy, validate=False)
    config = {"backbone": {"type": "segformer", "variant": "mit-b0"}, "head": {"type": "extremely_fast_segformer"}}
    network = build_model(config, loss.num_channels).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    images = torch.randint(0, 256, (setting.batch, 3, setting.size, setting.size), dtype=torch.uint8)

    def run() -> None:
        output = network(images, upsample=False)
        loss(output.logits, target, stride=output.stride)[0].backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def amount(setting: Setting, axis: str) -> int:
    """Compute what the cost should be proportional to, at most."""
    nodes = len(make_tree(setting.leaves, setting.depth))
    return setting.batch * setting.size**2 * (nodes - setting.leaves if axis == "depth" else nodes)


def measure(axes: dict[str, tuple[int, ...]], rounds: int, base: Setting, only: str) -> Iterator[dict[str, Any]]:
    """Measure every part at every value of every axis, the others at their base."""
    for axis, values in axes.items():
        for value in values:
            setting = Setting(**{**asdict(base), axis: value})
            for name, run in parts(setting, only).items():
                seconds = time_in_turns({name: run}, rounds, CPU)[name]
                yield {
                    "part": name,
                    "axis": axis,
                    "value": value,
                    "amount": amount(setting, axis),
                    "ms": 1000 * min(seconds),
                    "mib": peak_allocated(run, CPU) / 2**20,
                }


def exponents(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fit the slopes of the last three values of each axis, of each part, by least squares."""
    found = []
    ordered = sorted(points, key=lambda point: (point["part"], point["axis"], point["value"]))
    for (part, axis), group in itertools.groupby(ordered, key=lambda point: (point["part"], point["axis"])):
        last = list(group)[-3:]
        amounts = [math.log(point["amount"]) for point in last]
        slopes = {
            key: statistics.linear_regression(amounts, [math.log(max(point[unit], 1e-9)) for point in last]).slope
            for key, unit in (("time", "ms"), ("memory", "mib"))
        }
        found.append({"part": part, "axis": axis, **slopes})
    return found


def table(found: Sequence[dict[str, Any]]) -> str:
    """Write the exponents as a table: for each part, time and memory along each axis."""
    by_part: dict[str, dict[str, dict[str, Any]]] = {}
    for each in found:
        by_part.setdefault(each["part"], {})[each["axis"]] = each
    rows = []
    for part, by_axis in by_part.items():
        cells = [f"{by_axis[axis]['time']:.2f}, {by_axis[axis]['memory']:.2f}" for axis in AXES if axis in by_axis]
        rows.append((part, *cells))
    columns = ("part", *(axis for axis in AXES if any(axis in by_axis for by_axis in by_part.values())))
    clock = "the processor's time"
    return f"{conditions(1, clock)}\n\n{markdown(columns, rows)}"


def plot(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw time and memory of the parts in `SHOWN` against each axis."""
    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator

    axes = list(dict.fromkeys(point["axis"] for point in points))
    figure, panels = pyplot.subplots(2, len(axes), figsize=(3.4 * len(axes), 6), layout="constrained", squeeze=False)
    labels = {"size": "side of the image, px", "batch": "images", "leaves": "leaves", "depth": "levels of the tree"}
    for column, axis in enumerate(axes):
        for row, (unit, title) in enumerate((("ms", "time, ms"), ("mib", "peak memory, MiB"))):
            panel = panels[row][column]
            for part in SHOWN:
                chosen = [point for point in points if (point["part"], point["axis"]) == (part, axis)]
                panel.plot([p["value"] for p in chosen], [p[unit] for p in chosen], marker="o", label=part)
            panel.set(xscale="log", yscale="log", xlabel=labels[axis], ylabel=title if column == 0 else "")
            panel.xaxis.set_major_locator(FixedLocator(sorted({p["value"] for p in points if p["axis"] == axis})))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.xaxis.set_major_formatter(FormatStrFormatter("%d"))
            panel.grid(alpha=0.3)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each point (default: 3)")
    parser.add_argument("--quick", action="store_true", help="two values per axis")
    parser.add_argument("--axis", choices=AXES, help="only this axis")
    parser.add_argument("--only", default="", metavar="TEXT", help="only parts whose names contain this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the points and exponents")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write the table of exponents into docs/benchmarks.md"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a plot")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    points = []
    axes = QUICK if options.quick else AXES
    axes = {options.axis: axes[options.axis]} if options.axis else axes
    for point in measure(axes, options.rounds, Setting(), options.only):
        points.append(point)
        print(f"{point['axis']} {point['value']}: {point['part']}: {point['ms']:.1f} ms, {point['mib']:.1f} MiB")
    found = exponents(points)
    print(f"\n{'part':34}{'axis':>8}{'time':>8}{'memory':>8}")
    copies = {each["axis"]: each["time"] for each in found if each["part"] == COPY}
    above = 0
    for each in found:
        is_above = each["time"] > max(1, copies.get(each["axis"], 1)) + SLACK or each["memory"] > 1 + SLACK
        above += is_above
        mark = "  above the limit" if is_above else ""
        print(f"{each['part']:34}{each['axis']:>8}{each['time']:8.2f}{each['memory']:8.2f}{mark}")
    if options.json:
        document = {"date": date.today().isoformat(), "machine": describe_machine(), "points": points}
        options.json.write_text(json.dumps({**document, "exponents": found}, indent=1))
    if options.page:
        options.page.write_text(with_part(options.page.read_text(), "growth", table(found)))
    if options.plot:
        plot(points, options.plot)
    sys.exit(1 if above else 0)


if __name__ == "__main__":
    main()

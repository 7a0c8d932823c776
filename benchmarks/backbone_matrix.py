"""Run the smallest model of every family of timm as a backbone, and write the table of docs/backbones.md.

A family is the first word of a model's name together with the file of timm that defines it. Each network has random
weights and runs on the CPU, in single precision, on one image of 97x131 px and one of 224x224 px:

    python benchmarks/backbone_matrix.py

Results are appended to benchmarks/backbone_matrix.jsonl, one line for each family; a second call continues after the
last line. The table is written whenever there is a result for every family, or at once with --table.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import timm
import torch

from seghiero_core.backbones.networks.timm_facts import TARGETS
from seghiero_core.backbones.networks.timm_lookup import timm_facts
from seghiero_core.model.factories import create_backbone

HERE = Path(__file__).parent
RESULTS = HERE / "backbone_matrix.jsonl"
PAGE = HERE.parent / "docs" / "backbones.md"
START, END = "<!-- matrix -->", "<!-- end of matrix -->"
SIZES = ((97, 131), (224, 224))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", action="store_true", help="write the table of the results so far, and run nothing")
    parser.add_argument("--most", type=float, default=2e9, help="run larger networks on the meta device (parameters)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if not options.table:
        for variant in smallest_models():
            if variant not in {row["variant"] for row in read_results()}:
                row = measure(variant, options.most)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{variant}: {row['refused'] or 'works'}", file=sys.stderr, flush=True)
                gc.collect()
    write_table(read_results())


def smallest_models() -> list[str]:
    """The model with the fewest parameters of each family, found on the meta device and kept in the results."""
    for row in read_results(kind="models"):
        if row["timm"] == timm.__version__:
            return row["models"]
    smallest: dict[tuple[str, str], tuple[int, str]] = {}
    for name in timm.list_models():
        with torch.device("meta"):
            parameters = sum(p.numel() for p in timm.create_model(name).parameters())
        family = (name.partition("_")[0], module_of(name))
        smallest[family] = min(smallest.get(family, (parameters, name)), (parameters, name))
    models = sorted(name for _, name in smallest.values())
    with RESULTS.open("a") as file:
        file.write(json.dumps({"timm": timm.__version__, "of": len(timm.list_models()), "models": models}) + "\n")
    return models


def module_of(variant: str) -> str:
    return timm.model_entrypoint(variant).__module__.rpartition(".")[2]


def read_results(kind: str = "variant") -> list[dict[str, Any]]:
    """The lines of the results that have a key."""
    if not RESULTS.exists():
        return []
    return [row for row in map(json.loads, RESULTS.read_text().splitlines()) if kind in row]


def measure(variant: str, most: float) -> dict[str, Any]:
    facts = timm_facts(variant)
    row: dict[str, Any] = {"variant": variant, "module": module_of(variant), "refused": facts.refused}
    if facts.refused:
        return row
    device = "cpu" if facts.parameters <= most else "meta"
    row |= {
        "strides": facts.own_strides,
        "channels": facts.channels,
        "unit": facts.unit,
        "inner": facts.inner,
        "windows": facts.windows,
        "plain": facts.plain,
        "parameters": facts.parameters,
        "device": device,
    }
    start = time.perf_counter()
    try:
        with torch.device(device), torch.inference_mode():
            torch.manual_seed(0)
            backbone = create_backbone({"backbone": {"type": "timm", "variant": variant}}).eval()
            for height, width in SIZES:
                maps = backbone(torch.randn(1, 3, height, width))
                expected = [
                    (1, c, -(-height // s), -(-width // s)) for c, s in zip(facts.channels, TARGETS, strict=True)
                ]
                found = [tuple(each.shape) for each in maps]
                if found != expected:
                    raise ValueError(f"at {height}x{width} px the maps are {found}")
                if device == "cpu" and not all(each.isfinite().all() for each in maps):
                    raise ValueError(f"at {height}x{width} px a map isn't finite")
    except Exception as error:  # of any class: it is a result
        row["refused"] = str(error).partition("\n")[0][:200] or type(error).__name__
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def write_table(rows: list[dict[str, Any]]) -> None:
    rows = sorted(rows, key=lambda row: row["variant"])
    works = [row for row in rows if not row["refused"]]
    models = read_results(kind="models")[-1]
    on_meta = [row["variant"] for row in works if row["device"] == "meta"]
    lines = [
        f"timm {models['timm']} has {models['of']} models in {len(models['models'])} families. Of {len(rows)} families "
        f"that were tried, {len(works)} work, {sum(row['windows'] for row in works)} of these in windows of one size, "
        f"and {len(rows) - len(works)} are refused. "
        + (f"On the meta device, without numbers, ran only: {', '.join(on_meta)}." if on_meta else "All really ran."),
        "",
        "| smallest model | in timm | strides | channels of C1 to C4 | takes | parameters | result |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        start = f"| `{row['variant']}` | {row['module']} |"
        if "strides" not in row:
            lines.append(f"{start} - | - | - | - | refused: {row['refused']} |")
            continue
        strides = ", ".join(f"{stride:g}" for stride in row["strides"])
        channels = ", ".join(map(str, row["channels"]))
        result = f"fails: {row['refused']}" if row["refused"] else "works"
        lines.append(
            f"{start} {strides} | {channels} | {describe_size(row)} | {row['parameters'] / 1e6:.1f} M | {result} |"
        )
    before, _, rest = PAGE.read_text().partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}\n\n" + "\n".join(lines) + f"\n\n{END}{after}")


def describe_size(row: dict[str, Any]) -> str:
    if row["windows"]:
        return f"windows of {row['inner']} px"
    if row["inner"] != row["unit"]:
        return f"any size, resized to {row['inner']}/{row['unit']}"
    return "any size" if row["unit"] == 32 else f"multiples of {row['unit']} px"


if __name__ == "__main__":
    main()

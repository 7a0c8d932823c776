"""Measure what the lighter heads of the SegFormer family cost in accuracy: train each with the same budget on CamVid.

    python benchmarks/light_heads.py CAMVID [--heads segformer ...] [--seeds 0 1 2]
    python benchmarks/light_heads.py --table        # print the tables of --out without training
    python benchmarks/light_heads.py --write        # the same, and write the first one into the documentation

CAMVID holds {train,val}/{images,masks}; images and masks are shrunk to 240x180 px first. Every network is MiT-B0 with
random weights and the head's own width, trained for 8 epochs of 128x160 px crops. Every run adds a line to --out: a
run that is in the file is not repeated, and an interrupted one is resumed, so the same command finishes the study. A
run takes two to three minutes on one CPU core: use OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from granularity import LEAVES, shrink
from study import CONFIG, measure, read_rows  # benchmarks/study.py, which also puts the checkout on the path
from tables import DOCS, markdown, with_part

from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.training.loop import train

HEADS = {"segformer": 0.0, "ultrafast_segformer": 2.0, "extremely_fast_segformer": 5.0}
"""The heads, and how many points of leaf mIoU each may lie below the first one."""
SHRINK = 2
SETTINGS = [
    "backbone={type: segformer, variant: mit-b0}",
    "transform={size: [128, 160], scale: [0.67, 1.25], color_jitter: 0.0}",
    "training.epochs=8",
    "training.workers=0",
]
COLUMNS = ("leaf", "level1", "level2")
ROWS = Path(__file__).with_suffix(".jsonl")
PAGES = (DOCS / "architectures.md", DOCS / "results.md")


def run(camvid: Path, head: str, seed: int, runs: Path) -> dict[str, Any]:
    """Train one head with one seed, resuming an interrupted run, and measure its last checkpoint."""
    small, name = runs / "camvid", f"{head}-{seed}"
    shrink(camvid, small, SHRINK)
    file = runs / f"{name}.yaml"
    file.write_text(CONFIG.format(camvid=json.dumps(str(small.resolve()))))
    own = [f"head={{type: {head}}}", f"training.seed={seed}", f"output={{dir: {runs.resolve()}, name: {name}}}"]
    config = load_config(file, [*SETTINGS, *own])
    start, used = time.time(), time.process_time()
    train(config, resume=True)
    seconds, cpu_seconds = round(time.time() - start), round(time.process_time() - used)  # of a resumed run, the rest
    return {
        "head": head,
        "seed": seed,
        "settings": SETTINGS,
        "steps": read_checkpoint(config.run_dir / "last").step,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "decodings": measure(config.run_dir / "last"),
    }


def scores(rows: list[dict[str, Any]], head: str, mode: str, column: str) -> dict[int, float]:
    """Return a head's mIoU in % by seed."""
    return {row["seed"]: 100 * row["decodings"][mode][column] for row in rows if row["head"] == head}


def mean_and_spread(values: list[float]) -> str:
    """Format the mean and the sample standard deviation."""
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def table(rows: list[dict[str, Any]], mode: str = "leaf") -> str:
    """List each head's mIoU, and how far its leaves are from the first head's, seed by seed."""
    lines = []
    full = scores(rows, next(iter(HEADS)), mode, COLUMNS[0])
    for head, allowed in HEADS.items():
        leaf = scores(rows, head, mode, COLUMNS[0])
        differences = [leaf[seed] - full[seed] for seed in sorted(leaf) if seed in full]
        if not differences:
            continue
        cells = [mean_and_spread(list(scores(rows, head, mode, column).values())) for column in COLUMNS]
        mean = statistics.mean(differences)
        compared = (
            f"{mean:+.1f} ({', '.join(f'{difference:+.1f}' for difference in differences)})",
            f"at most {allowed:g} below",
            "reached" if mean >= -allowed else "missed",
        )
        lines.append((f"`{head}`", len(leaf), *cells, *(compared if allowed else [""] * 3)))
    return markdown(("head", "seeds", *COLUMNS, "leaf, minus `segformer` (by seed)", "goal", ""), lines)


def class_table(rows: list[dict[str, Any]], mode: str = "leaf") -> str:
    """List the mean IoU of every leaf."""
    lines = []
    for head in HEADS:
        found = [row["decodings"][mode]["classes"] for row in rows if row["head"] == head]
        if found:
            cells = [f"{100 * statistics.mean(classes[name] for classes in found):.1f}" for name in LEAVES]
            lines.append((f"`{head}`", *cells))
    return markdown(("head", *LEAVES), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("camvid", type=Path, nargs="?")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/light_heads"))
    parser.add_argument("--out", type=Path, default=ROWS)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    only_tables = arguments.table or arguments.write
    if not only_tables and arguments.camvid is None:
        parser.error("give the CamVid folder, --table or --write")
    rows = read_rows(arguments.out)
    done = {(row["head"], row["seed"]) for row in rows}
    cells = [(head, seed) for seed in arguments.seeds for head in arguments.heads if (head, seed) not in done]
    for head, seed in [] if only_tables else cells:
        row = run(arguments.camvid, head, seed, arguments.runs)
        rows.append(row)
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        leaf = row["decodings"]["leaf"]
        print(f"{head}, seed {seed}: {leaf['leaf']:.3f} {leaf['level1']:.3f} ({row['cpu_seconds']} s)", flush=True)
    for mode in ("leaf", "top_down"):
        print(f"\n{mode} decoding\n\n{table(rows, mode)}\n\n{class_table(rows, mode)}")
    for page in PAGES if arguments.write else ():
        page.write_text(with_part(page.read_text(), "light heads", table(rows)))


if __name__ == "__main__":
    main()

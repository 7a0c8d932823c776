"""Compare losses and decodings: train each loss with the same backbone, budget and seeds on CamVid.

    python benchmarks/study.py CAMVID [--losses flat marginal ...] [--seeds 0 1 2] [--runs runs/study] [--set key=value]
    python benchmarks/study.py --table        # print the tables of --out without training

CAMVID holds {train,val}/{images,masks}. Every run adds a line to --out: the loss, the seed, the settings of --set, and
the metrics of each decoding on the validation images at full size. A run that is in the file is not repeated, and
an interrupted one is resumed, so the same command finishes the study. The default budget (crops of 160x224 px, 10
epochs) is for two CPU cores; they are used best by two of these commands at once, with different losses or seeds and
OMP_NUM_THREADS=1. With a GPU use a full budget, for example
`--set training.epochs=100 --set 'transform={size: [360, 480]}'`, and another --out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.data.loaders import batches, eval_loader
from seghiero_core.data.samples import split_samples
from seghiero_core.decode import decode
from seghiero_core.decode_modes import MODES
from seghiero_core.metrics.metrics import Metrics
from seghiero_core.model.trained import load_trained
from seghiero_core.training.loop import train

LOSSES = {
    "flat": "{preset: flat}",
    "marginal": "{terms: {marginal_cross_entropy: 1.0}}",
    "marginal, leaves first": "{terms: {marginal_cross_entropy: {level_weights: [1, 0.3, 0.1]}}}",
    "tree_min": "{terms: {tree_min: 1.0}}",
    "hssn": "{preset: hssn}",
    "flat, weighted": "{preset: flat, class_weights: auto}",
    "marginal, leaves first, weighted": (
        "{terms: {marginal_cross_entropy: {level_weights: [1, 0.3, 0.1]}}, class_weights: auto}"
    ),
    "marginal, leaves first, weighted, dice": (
        "{terms: {marginal_cross_entropy: {level_weights: [1, 0.3, 0.1]}, dice: 0.5}, class_weights: auto}"
    ),
}
CONFIG = """\
dataset:
  root: {camvid}
  train: {{images: train/images, masks: train/masks}}
  val: {{images: val/images, masks: val/masks}}
classes:
  labels: [sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist]
  tree:
    static: {{sky: , structure: [building, pole, sign, fence], ground: [road, pavement], tree: }}
    moving: {{car: , human: [pedestrian, bicyclist]}}
backbone: {{type: resnet, depth: 18, output_stride: 16}}
head: {{type: aspp, proj_dim: 128}}
transform: {{size: [160, 224], scale: [0.5, 1.0], color_jitter: 0.0}}
training: {{epochs: 10, batch_size: 8, ema: 0.99, validate_every: 1000, save_every: 1m}}
"""
COLUMNS = ("leaf", "level1", "level2", "accuracy", "distance", "consistency")


@torch.inference_mode()
def measure(folder: Path) -> dict[str, dict[str, float]]:
    """Return the metrics of a checkpoint on the validation images for each decoding, from one forward pass."""
    checkpoint, hierarchy, scores, model = load_trained(
        read_checkpoint(folder), "cuda" if torch.cuda.is_available() else "cpu"
    )
    device = next(model.parameters()).device
    samples = split_samples(checkpoint.config.dataset, "val")
    modes = [mode for mode in MODES if scores != "sigmoid" or mode != "expected_cost"]
    metrics = {mode: Metrics(hierarchy) for mode in modes}
    for batch in batches(eval_loader(samples, hierarchy, batch_size=8, workers=0, device_type=device.type)):
        logits = model(batch["image"].to(device)).logits.float()
        for mode in modes:
            metrics[mode].update(decode(logits, hierarchy, mode, scores=scores), batch["target"].to(device))
    measured = {}
    for mode, metric in metrics.items():
        values = metric.compute()
        measured[mode] = {level["name"]: level["miou"] for level in values["levels"]} | {
            "accuracy": values["levels"][0]["pixel_accuracy"],
            "distance": values["mean_tree_distance"],
            "consistency": values["consistency"],
            "classes": {entry["name"]: entry["iou"] for entry in values["levels"][0]["classes"]},
        }
    return measured


def run(camvid: Path, name: str, seed: int, runs: Path, settings: list[str]) -> dict:
    """Train one loss with one seed, resuming an interrupted run, and measure its last checkpoint."""
    runs.mkdir(parents=True, exist_ok=True)
    folder = f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    file = runs / f"{folder}.yaml"
    file.write_text(CONFIG.format(camvid=json.dumps(str(camvid.resolve()))))
    own = [f"loss={LOSSES[name]}", f"training.seed={seed}", f"output={{dir: {runs.resolve()}, name: {folder}}}"]
    config = load_config(file, [*own, *settings])
    start = time.time()
    train(config, resume=True)
    seconds = round(time.time() - start)  # of a resumed run, only the last part
    decodings = measure(config.run_dir / "last")
    return {"loss": name, "seed": seed, "settings": settings, "seconds": seconds, "decodings": decodings}


def table(rows: list[dict], mode: str) -> str:
    """Return a Markdown table with the mean and sample standard deviation over the seeds of every loss."""
    lines = [f"| loss ({mode} decoding) | seeds | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name in LOSSES:
        found = [row["decodings"][mode] for row in rows if row["loss"] == name and mode in row["decodings"]]
        if not found:
            continue
        cells = []
        for column in COLUMNS:
            scale = 1 if column == "distance" else 100
            values = [scale * decoding[column] for decoding in found]
            spread = f" ± {statistics.stdev(values):.{2 if scale == 1 else 1}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{3 if scale == 1 else 1}f}{spread}")
        lines.append(f"| {name} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the finished runs of a study, one per line; none if there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("camvid", type=Path, nargs="?")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/study"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for `seghiero train`")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    rows = read_rows(arguments.out)
    if not arguments.table:
        if arguments.camvid is None:
            parser.error("give the CamVid folder, or --table")
        done = {(row["loss"], row["seed"]) for row in rows}
        for seed in arguments.seeds:
            for name in arguments.losses:
                if (name, seed) in done:
                    continue
                row = run(arguments.camvid, name, seed, arguments.runs, arguments.set)
                rows.append(row)
                with arguments.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                leaf = row["decodings"]["leaf"]
                print(f"{name}, seed {seed}: {leaf['leaf']:.3f} {leaf['level1']:.3f} ({row['seconds']} s)", flush=True)
    for mode in MODES:
        print(f"\n{table(rows, mode)}")


if __name__ == "__main__":
    main()

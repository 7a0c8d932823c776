"""Compare what networks learn from masks of mixed granularity: train each condition with the same budget on CamVid.

    python benchmarks/granularity.py CAMVID [--studies coarse ...] [--conditions ours ...] [--seeds 0 1 2]
    python benchmarks/granularity.py --table        # print the tables of --out without training

CAMVID holds {train,val}/{images,masks}; images and masks are shrunk to 120x90 px first. Every run adds a line to --out:
a run that is in the file is not repeated, and an interrupted one is resumed, so the same command finishes the study. A
run takes two to four minutes on one CPU core: use OMP_NUM_THREADS=1 and, on two cores, two commands with other seeds.

The studies:
    coarse     Of a share of the training images (chosen per seed), the masks are coarsened to level 1. Half of the
               images drawn are fine. "90 row": the fine ones are one row of consecutive frames.
    sources    Half of the images (chosen per seed), or those of two drives, have the 11 labels. The others have labels
               that cut across the tree; the third drive is the one that the validation frames are from.
    pseudo     A tenth of the images have masks, the others pseudo-labels of a network that learned from the tenth.
    losses     Losses compared where every mask is fine.
    decodings  Decodings are compared: on the frames of a drive that was held out, and on the data of `seghiero init`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from study import measure, read_rows  # benchmarks/study.py, which also puts the checkout on the path

from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.decode_modes import MODES
from seghiero_core.scaffold.starter import CONFIG_NAME, write_starter
from seghiero_core.training.loop import train

LEAVES = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
COARSE = {20: "structure", 21: "ground", 22: "human"}
"""The mask values of the inner nodes of level 1."""
COARSE_LEAVES = {20: [1, 2, 6, 7], 21: [3, 4], 22: [9, 10]}
ACROSS = {
    0: "sky",
    1: ["building", "fence"],
    2: "ground",
    3: "tree",
    4: ["car", "sign"],
    5: ["pole", "pedestrian", "bicyclist"],
}
"""Labels that cut across the tree, by mask value."""
CONFIG = """\
classes:
  labels: [sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist]
  tree:
    static: {sky: , structure: [building, pole, sign, fence], ground: [road, pavement], tree: }
    moving: {car: , human: [pedestrian, bicyclist]}
backbone: {type: resnet, depth: 18}
head: {type: segformer, proj_dim: 64}
transform: {size: [96, 128], scale: [0.8, 1.6], color_jitter: 0.0}
training: {batch_size: 8, ema: 0.99, validate_every: 1000, save_every: 1m, workers: 0}
"""
STEPS, BATCH, SHRINK = 600, 8, 4
CONFIDENCE = 0.8  # of pseudo-labels
FLAT = "{terms: {leaf_cross_entropy: 1.0, dice: 0.5}, class_weights: auto}"
OURS = "{preset: marginal_dice}"
LOSSES = {
    "flat": FLAT,
    "flat, fine images only": FLAT,
    "flat, first source only": FLAT,
    "ours": OURS,
    "leaf-only pseudo-labels": OURS,
    "back-off pseudo-labels": OURS,
    "hssn": "{preset: hssn}",
    "hssn, weighted": "{preset: hssn, class_weights: auto}",
    "wasserstein, weighted": "{preset: wasserstein, class_weights: auto}",
}
SEQUENCES = ("0001TP", "0006R0", "0016E5")
STARTERS = {"synthetic": None, "synthetic, mixed labels": "mixed-labels"}
"""Settings whose data and config are those of `seghiero init`, and their recipes."""
STUDIES: dict[str, list[tuple[str, str]]] = {
    "coarse": [
        *(("0", name) for name in ("flat", "ours")),
        *((share, name) for share in ("75", "90", "90 row") for name in ("flat", "flat, fine images only", "ours")),
    ],
    "sources": [
        (setting, name) for setting in ("halves", "drives") for name in ("flat", "flat, first source only", "ours")
    ],
    "pseudo": [("90", name) for name in ("leaf-only pseudo-labels", "back-off pseudo-labels")],
    "losses": [("0", name) for name in ("hssn", "hssn, weighted", "wasserstein, weighted")],
    "decodings": [(setting, "ours") for setting in (*SEQUENCES, *STARTERS)],
}
"""Per study, its settings (the share of images without fine masks in percent, or what is held out) and conditions."""
COLUMNS = ("leaf", "level1", "level2")
Pairs = Iterable[tuple[str, str]]


def shrink(camvid: Path, out: Path, factor: int = SHRINK) -> None:
    """Write smaller images and masks, unless they are there."""
    for split in ("train", "val"):
        for kind, how in (("images", Image.Resampling.BOX), ("masks", Image.Resampling.NEAREST)):
            folder = out / split / kind
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted((camvid / split / kind).iterdir()):
                target = folder / f"{path.stem}.png"
                if not target.exists():
                    with Image.open(path) as image:
                        small = image.resize((image.width // factor, image.height // factor), how)
                    small.save(partial := target.with_suffix(f".{os.getpid()}"), format="PNG")
                    partial.replace(target)


def write_split(small: Path, pairs: Pairs, folder: Path, table: np.ndarray | None = None) -> str:
    """Link images and masks into a folder, or write the masks with other values; return its path."""
    for source, name in pairs:
        for kind in ("images", "masks"):
            target, original = folder / kind / f"{name}.png", small / source / kind / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            if kind == "masks" and table is not None:
                Image.fromarray(table[np.asarray(Image.open(original))]).save(target)
            elif not target.exists():
                target.symlink_to(original.resolve())
    return str(folder.resolve())


def make_data(small: Path, folder: Path, setting: str, condition: str, seed: int, runs: Path) -> dict[str, Any]:
    """Write the training and validation sets of one run, and return its `dataset` section."""
    train_names, val_names = (
        sorted(p.stem for p in (small / split / "images").iterdir()) for split in ("train", "val")
    )
    fine, val = [("train", name) for name in train_names], [("val", name) for name in val_names]
    if setting in SEQUENCES:
        held_out = [pair for pair in fine + val if pair[1].startswith(setting)]
        fine, val = [pair for pair in fine + val if pair not in held_out], held_out
    rest: Pairs = []
    if setting.endswith(" row"):
        count = round(len(train_names) * (1 - int(setting.removesuffix(" row")) / 100))
        start = int(np.random.default_rng((seed, 17)).integers(len(fine) - count + 1))
        fine, rest = fine[start : start + count], fine[:start] + fine[start + count :]
    elif setting == "drives":
        fine, rest = ([p for p in fine if p[1].startswith(SEQUENCES[2]) is last] for last in (False, True))
    elif setting.isdigit() or setting == "halves":
        percent = 50 if setting == "halves" else int(setting)
        count = round(len(train_names) * percent / 100)
        chosen = set(np.random.default_rng((seed, 17)).permutation(train_names)[:count].tolist())
        fine, rest = [p for p in fine if p[1] not in chosen], [p for p in fine if p[1] in chosen]
    first = {"name": "fine", "train": write_split(small, fine, folder / "fine")}
    dataset: dict[str, Any] = {"val": write_split(small, val, folder / "val"), "sources": [first]}
    if not rest or condition.endswith(" only"):
        return dataset
    table = np.arange(256, dtype=np.uint8)
    second: dict[str, Any] = {"name": setting, "val": None}
    if setting in ("halves", "drives"):
        second["labels"] = ACROSS
        for value, names in ACROSS.items():
            across = names if isinstance(names, list) else {"ground": ["road", "pavement"]}.get(names, [names])
            table[[LEAVES.index(name) for name in across]] = value
    elif condition.endswith("pseudo-labels"):
        table, second["labels"] = pseudo_labels(
            small, rest, folder, condition, runs.resolve() / f"coarse-90-{TEACHER}-{seed}"
        )
        small = folder / "pseudo"
    else:
        second["labels"] = dict(enumerate(LEAVES)) | COARSE
        for value, leaves in COARSE_LEAVES.items():
            table[leaves] = value
    if setting != "halves":  # half of the drawn images are finely labeled
        first["weight"], second["weight"] = len(rest) / len(fine) / 2, 0.5
    second["train"] = write_split(small, rest, folder / "rest", table)
    dataset["sources"].append(second)
    return dataset


TEACHER = "flat-fine-images-only"


def pseudo_labels(small: Path, pairs: Pairs, folder: Path, condition: str, teacher: Path) -> tuple[np.ndarray, Any]:
    """Predict masks into FOLDER/pseudo; return the table of the values to keep, and what they stand for."""
    if not (teacher / "last").exists():
        sys.exit(f"{teacher} is missing: run the study 'coarse' with the same seed and --runs first.")
    images = Path(write_split(small, pairs, folder / "pseudo" / "train")) / "images"
    masks = folder / "pseudo" / "train" / "masks"
    for mask in masks.iterdir():
        mask.unlink()  # the true ones
    options = ["--out", str(masks), "--confidence", str(CONFIDENCE), "--device", "cpu", "--json"]
    command = [sys.executable, "-m", "seghiero_cli", "pseudo-label", str(teacher / "last"), str(images), *options]
    subprocess.run(command, check=True, stdout=(folder / "coverage.json").open("w"), cwd=Path(__file__).parents[1])
    labels = yaml.safe_load((masks / "classes.yaml").read_text())["classes"]["labels"]
    table = np.arange(256, dtype=np.uint8)
    if condition.startswith("leaf-only"):
        table[[value for value, name in labels.items() if name not in LEAVES]] = 255
    return table, labels


def run(camvid: Path, study: str, setting: str, condition: str, seed: int, runs: Path) -> dict[str, Any]:
    """Train one network, resuming an interrupted run, and measure its last checkpoint."""
    name = "-".join([study, setting, condition, str(seed)]).replace(", ", "-").replace(" ", "-")
    own = [f"training.seed={seed}", f"output={{dir: {runs.resolve()}, name: {name}}}"]
    if setting in STARTERS:
        folder = runs / "data" / name
        file = folder / CONFIG_NAME if folder.exists() else write_starter(folder, STARTERS[setting])
        if setting == "synthetic":
            own += ["head={type: aspp}", "training.epochs=16"]  # which the starter had when the runs were made
    else:
        shrink(camvid, runs / "camvid")
        dataset = make_data(runs / "camvid", runs / "data" / name, setting, condition, seed, runs)
        file = runs / f"{name}.yaml"
        file.write_text(CONFIG + yaml.safe_dump({"dataset": dataset}, sort_keys=False))
        images = sum(
            len(list(Path(source["train"], "images").iterdir())) * source.get("weight", 1)
            for source in dataset["sources"]
        )
        epochs = round(STEPS / (int(images) // BATCH))
        own += [f"loss={LOSSES[condition]}", f"training.epochs={epochs}"]
    config = load_config(file, own)
    start = time.time()
    train(config, resume=True)
    seconds = round(time.time() - start)  # of a resumed run, only the last part
    return {
        "study": study,
        "setting": setting,
        "condition": condition,
        "seed": seed,
        "steps": read_checkpoint(config.run_dir / "last").step,
        "seconds": seconds,
        "decodings": measure(config.run_dir / "last"),
    }


def table(rows: list[dict[str, Any]], study: str, mode: str) -> str:
    """Return a Markdown table with the mean and sample standard deviation over the seeds of every condition."""
    lines = [f"| {study} ({mode} decoding) | | seeds | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 3) + "|"]
    for setting, condition in STUDIES[study]:
        found = [
            row["decodings"][mode]
            for row in rows
            if (row["study"], row["setting"], row["condition"]) == (study, setting, condition)
            and mode in row["decodings"]
        ]
        if found:
            cells = []
            for column in COLUMNS:
                values = [100 * decoding[column] for decoding in found]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}")
            lines.append(f"| {setting} | {condition} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("camvid", type=Path, nargs="?")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--settings", nargs="+", help="of the studies, by default all")
    parser.add_argument("--conditions", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/granularity"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()

    if not arguments.table and arguments.camvid is None:
        parser.error("give the CamVid folder, or --table")
    cells = [(study, *cell, seed) for seed in arguments.seeds for study in arguments.studies for cell in STUDIES[study]]
    for study, setting, condition, seed in [] if arguments.table else cells:
        wanted = condition in arguments.conditions and (not arguments.settings or setting in arguments.settings)
        done = {(row["study"], row["setting"], row["condition"], row["seed"]) for row in read_rows(arguments.out)}
        if wanted and (study, setting, condition, seed) not in done:
            row = run(arguments.camvid, study, setting, condition, seed, arguments.runs)
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            leaf = row["decodings"]["leaf"]
            print(study, setting, condition, seed, f"{leaf['leaf']:.3f} {leaf['level1']:.3f} ({row['seconds']} s)")
    if arguments.table:
        for study in arguments.studies:
            for mode in MODES:
                print(f"\n{table(read_rows(arguments.out), study, mode)}")


if __name__ == "__main__":
    main()

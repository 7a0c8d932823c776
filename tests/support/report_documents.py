"""Report documents whose figures are counted from made-up masks, for tests of the page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from seghiero_core.hierarchy.tree import Hierarchy

HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked=1">\' " & 🚗 ‮' + "long " * 30


def document(
    hierarchy: Hierarchy, images: int = 12, size: tuple[int, int] = (48, 64), runs: int = 1, **facts: Any
) -> dict:
    """A whole document: each run confuses classes near each other in the tree, each a little less than the one before.

    `facts` replaces keys of every run.
    """
    nodes = [
        {
            "name": name,
            "color": "#{:02x}{:02x}{:02x}".format(*hierarchy.colors[i]),
            "parent": None if hierarchy.parents[i] < 0 else int(hierarchy.parents[i]),
            "leaf": i < len(hierarchy.leaves),
        }
        for i, name in enumerate(hierarchy.nodes)
    ]
    tree = {
        "levels": [level.name for level in hierarchy.levels],
        "nodes": nodes,
        "classes": [list(level.nodes) for level in hierarchy.levels],
    }
    return {
        "title": "camvid-resnet50",
        "created": "2026-01-02T03:04:05+00:00",
        "seghiero": "1.0.0",
        "tree": tree,
        "runs": [{**run(hierarchy, images, size, number), **facts} for number in range(runs)],
    }


def run(hierarchy: Hierarchy, images: int, size: tuple[int, int], number: int) -> dict[str, Any]:
    """One run of a document."""
    levels, leaves = hierarchy.leaf_to_level, len(hierarchy.leaves)
    codes = [[int(level[leaf]) for level in levels] for leaf in range(leaves)] + [[-1] * len(levels)]
    matrices = [np.zeros((len(level.nodes),) * 2, np.int64) for level in hierarchy.levels]
    cells: list[dict[str, list]] = [{} for _ in levels]
    by_depth, distance, pixels = np.zeros(len(levels), np.int64), 0, 0
    entries = []
    for index in range(images):
        rng = np.random.default_rng(index)
        truth = _masks(rng, leaves, size)
        predicted = _mistaken(
            np.random.default_rng([index, number]), hierarchy, truth, 1.5 * rng.random() / (1 + number / 4)
        )
        valid = truth < leaves
        confusions, mious, accuracies = [], [], []
        for position, level in enumerate(levels):
            true, guess = level[truth[valid]], level[predicted[valid]]
            matrix = np.zeros_like(matrices[position])
            np.add.at(matrix, (true, guess), 1)
            matrices[position] += matrix
            mious.append(_mean(_ious(matrix)))
            accuracies.append(float((true == guess).mean()))
            wrong = matrix * ~np.eye(len(matrix), dtype=bool)
            for a, b in np.argwhere(matrix):
                cells[position].setdefault(f"{a},{b}", []).append([index, int(matrix[a, b])])
            order = np.argsort(-wrong, axis=None, kind="stable")[:20]
            found = [(*np.unravel_index(i, wrong.shape), wrong.flat[i]) for i in order if wrong.flat[i]]
            confusions.append([[int(value) for value in row] for row in found])
        depth = hierarchy.distance[truth[valid], predicted[valid]]
        common = ((hierarchy.depths[truth[valid]] + hierarchy.depths[predicted[valid]] - depth) // 2)[depth > 0]
        by_depth += np.bincount(common, minlength=len(levels))[: len(levels)]
        distance, pixels = distance + int(depth.sum()), pixels + int(valid.sum())
        entries.append(
            {
                "name": f"0016E5_{index:05d}.png",
                "height": size[0],
                "width": size[1],
                "miou": mious,
                "pixel_accuracy": accuracies,
                "confusion": confusions,
                "picture": _picture(rng, hierarchy, truth),
                "truth": code_picture(truth),
                "prediction": code_picture(predicted),
            }
        )
    for table in cells:
        for key, found in table.items():
            table[key] = sorted(found, key=lambda pair: -pair[1])[:6]
    path_right = float(np.trace(matrices[0]) / pixels)
    evaluation = {
        "split": "val",
        "decode": "consistent",
        "images": images,
        "levels": [_level(hierarchy, i, matrix, number) for i, matrix in enumerate(matrices)],
        "consistency": 1.0,
        "full_path_accuracy": path_right,
        "mean_tree_distance": distance / pixels,
        "mistakes_by_common_ancestor": [
            float(count / by_depth.sum()) if by_depth.sum() else None for count in by_depth
        ],
        "back_off_curve": _back_off(path_right),
        "back_off_area": 0.0312 - 0.004 * number,
    }
    lr = [0.01 * (1 - step / 2000) ** 0.9 for step in range(0, 2000, 10)]
    loss = [2.5 * np.exp(-i / (50 - 8 * number)) + 0.3 + 0.05 * np.sin(i * 1.7) for i in range(200)]
    miou = [
        [level["miou"] * (1 - np.exp(-(i + 1) / 2)) if level["miou"] is not None else None for i in range(10)]
        for level in evaluation["levels"]
    ]
    backbone = {0: "resnet", 1: "convnext", 2: "segformer"}[number % 3]
    return {
        "name": ("camvid-resnet50", "camvid-convnext-tiny", "camvid-segformer-b1")[number % 3],
        "folder": f"runs/{backbone}",
        "checkpoint": f"runs/{backbone}/best",
        "step": 2000,
        "status": "finished",
        "evaluation": evaluation,
        "images": entries,
        "codes": codes,
        "cells": cells,
        "curves": {
            "steps": [
                {
                    "step": 10 * i,
                    "loss": float(loss[i]),
                    "lr": lr[i],
                    "images_per_second": 40 + 4 * number + float(np.sin(i)),
                    "terms": {"cross_entropy": float(0.7 * loss[i]), "marginal": float(0.3 * loss[i])},
                }
                for i in range(200)
            ],
            "validations": [
                {"step": 200 * (i + 1), "epoch": i + 1, "miou": [level[i] for level in miou], "best": i == 9}
                for i in range(10)
            ],
        },
        "config": f"backbone:\n  type: {backbone}\n  depth: 50\ntraining: {{lr: {0.01 / (number + 1)}}}\n",
        "command": "seghiero train cfg.yaml --set training.epochs=10",
        "environment": {
            "python": "3.11.7",
            "torch": "2.11.0",
            "device": "cuda (NVIDIA H100)",
            "platform": "Linux x86_64",
        },
        "data": [
            ["Training images", 367],
            ["Validation images", images],
            ["Labeled pixels", pixels],
            ["Size", f"{size[1]}x{size[0]}"],
        ],
        "weights": [
            {
                "event": "weights",
                "source": f"timm/{backbone}",
                "layout": "timm",
                "coverage": 1.0,
                "loaded": ["stem.conv.weight", "stem.conv.bias"],
                "missing": [],
            }
        ],
    }


def code_picture(mask: np.ndarray) -> str:
    """A PNG whose pixels hold R + 256 G, as a data URI."""
    rgb = np.stack([mask % 256, mask // 256, 0 * mask], axis=-1).astype(np.uint8)
    return _data_uri(Image.fromarray(rgb), "png")


def _data_uri(image: Image.Image, kind: str) -> str:
    stream = io.BytesIO()
    image.save(stream, kind)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _masks(rng: np.random.Generator, leaves: int, size: tuple[int, int]) -> np.ndarray:
    """Bands and boxes of leaves; `leaves` is ignored."""
    height, width = size
    mask = np.full(size, rng.integers(leaves))
    for _ in range(14):
        top, left = rng.integers(0, height), rng.integers(0, width)
        box = np.s_[top : top + rng.integers(4, height // 2 + 5), left : left + rng.integers(4, width // 2 + 5)]
        mask[box] = rng.integers(leaves)
    mask[:, :2] = leaves
    return mask


def _mistaken(rng: np.random.Generator, hierarchy: Hierarchy, truth: np.ndarray, rate: float) -> np.ndarray:
    """A prediction that shifts contours, and takes some boxes for another leaf, more often for a near one."""
    predicted = np.roll(truth, (1, 2), axis=(0, 1))
    leaves = len(hierarchy.leaves)
    predicted[predicted == leaves] = truth[truth < leaves].flat[0]
    for leaf in np.unique(predicted):
        if leaves > 1 and rng.random() < rate:
            near = np.exp(-1.2 * hierarchy.distance[leaf, :leaves].astype(float))
            near[leaf] = 0
            other = rng.choice(leaves, p=near / near.sum())
            part = predicted == leaf
            part[rng.integers(0, len(truth)) :] = False
            predicted[part] = other
    return predicted


def _picture(rng: np.random.Generator, hierarchy: Hierarchy, truth: np.ndarray) -> str:
    """Something like a photograph: a shade of gray per leaf, light from above, and noise."""
    shade = np.append(
        np.random.default_rng(7).integers(50, 210, (len(hierarchy.leaves), 3)) * 0.4 + 70, [[20, 20, 20]], 0
    )
    light = np.linspace(60, -30, len(truth))[:, None, None]
    noise = rng.normal(0, 9, (*truth.shape, 1))
    return _data_uri(Image.fromarray((shade[truth] + light + noise).clip(0, 255).astype(np.uint8)), "webp")


def _ious(matrix: np.ndarray) -> list[float | None]:
    hits, union = np.diag(matrix), matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    return [float(hit / total) if total else None for hit, total in zip(hits, union, strict=True)]


def _mean(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def _level(hierarchy: Hierarchy, number: int, matrix: np.ndarray, run_number: int) -> dict[str, Any]:
    ious = _ious(matrix)
    accuracy = float(np.trace(matrix) / matrix.sum())
    centers = (np.arange(15) + 0.5) / 15
    bins = [
        {"confidence": c, "accuracy": max(0.0, c - 0.06 * np.sin(3 * c)), "pixels": int(1000 * 9**c)}
        if c > 0.2
        else {"confidence": None, "accuracy": None, "pixels": 0}
        for c in centers.tolist()
    ]
    classes = [
        {
            "name": name,
            "iou": iou,
            "boundary_iou": None if iou is None else 0.8 * iou,
            "ece": None if iou is None else 0.2 * (1 - iou),
            "pixels": int(count),
        }
        for name, iou, count in zip(hierarchy.level_names(number), ious, matrix.sum(1), strict=True)
    ]
    return {
        "name": hierarchy.levels[number].name,
        "miou": _mean(ious),
        "boundary_miou": _mean([one["boundary_iou"] for one in classes]),
        "pixel_accuracy": accuracy,
        "ece": 0.04 + 0.01 * run_number,
        "classes": classes,
        "confusion": [[int(a), int(b), int(matrix[a, b])] for a, b in np.argwhere(matrix)],
        "calibration": bins,
    }


def _back_off(accuracy: float) -> list[dict[str, float | None]]:
    return [
        {
            "threshold": t / 100,
            "coverage": 1 - 0.3 * (t / 100) ** 3,
            "specificity": 1 - 0.4 * (t / 100) ** 2,
            "information": 1 - 0.5 * (t / 100) ** 2,
            "accuracy": accuracy + (1 - accuracy) * (t / 100) ** 2,
        }
        for t in range(100)
    ]

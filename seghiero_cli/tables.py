"""The tables of measures that `train`, `eval` and `demo` print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seghiero_cli import console


def print_levels(metrics: dict[str, Any]) -> None:
    """A table per level: IoU and pixels of each class; a class that was nowhere has no IoU."""
    for level in metrics["levels"]:
        total = sum(entry["pixels"] for entry in level["classes"]) or 1
        rows = [
            (entry["name"], percent(entry["iou"]), f"{100 * entry['pixels'] / total:.2f}") for entry in level["classes"]
        ]
        title = f"{level['name']}: mIoU {percent(level['miou'])}, pixel accuracy {percent(level['pixel_accuracy'])}"
        if "miou_without_background" in level:
            title += f", mIoU without {metrics['background']} {percent(level['miou_without_background'])}"
        console.table(title, ("class", "IoU %", "pixels %"), rows, right=(1, 2))


def print_summary(metrics: dict[str, Any]) -> None:
    """What the levels say together, and what is taken for what most often."""
    rows = [
        ("mean mIoU of the levels, %", percent(metrics["mean_miou"])),
        ("pixels whose levels agree, %", percent(metrics["consistency"])),
        ("pixels right at every level, %", percent(metrics["full_path_accuracy"])),
        ("mean tree distance, edges", number(metrics["mean_tree_distance"])),
        ("mean tree distance of mistakes, edges", number(metrics["mean_tree_distance_of_mistakes"])),
        *((f"calibration error (ECE) at {level['name']}, %", percent(level["ece"])) for level in metrics["levels"]),
    ]
    console.table("", ("all levels", ""), rows, right=(1,))
    worst = metrics["levels"][0]["worst_confusions"][:5]
    if worst:
        rows = [(c["truth"], c["predicted"], str(c["pixels"]), percent(c["share"])) for c in worst]
        console.table("worst confusions", ("truth", "taken for", "pixels", "of the truth's, %"), rows, right=(2, 3))


def print_back_off(curve: Sequence[dict[str, float | None]], confidence: float) -> None:
    """What thresholds on the confidence do, among them the one that was asked for, to two decimals."""
    shown = {0, 50, 75, 90, 95, 99, min(99, round(100 * confidence))}
    rows = [
        (f"{row['threshold']:.2f}", percent(row["coverage"]), percent(row["specificity"]), percent(row["accuracy"]))
        for number, row in enumerate(curve)
        if number in shown
    ]
    columns = ("threshold", "pixels with a node %", "levels that they get %", "right %")
    console.table("back-off, over pixels labelled with a leaf", columns, rows, right=(0, 1, 2, 3))


def percent(fraction: float | None) -> str:
    """A fraction as per cent with one decimal, "-" where there is none."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def number(value: float | None) -> str:
    """A number with three decimals, "-" where there is none."""
    return "-" if value is None else f"{value:.3f}"

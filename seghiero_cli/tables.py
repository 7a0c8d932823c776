"""Tables of metrics, as `train`, `eval` and `demo` print them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seghiero_cli import console


def print_levels(metrics: dict[str, Any]) -> None:
    """Print one table per level with the IoU and the share of pixels of every class.

    Args:
        metrics: The document of `evaluate_checkpoint`, or a run's `metrics.json`. Classes that are neither in the
            masks nor predicted have no IoU and show "-".
    """
    for level in metrics["levels"]:
        total = sum(entry["pixels"] for entry in level["classes"]) or 1
        rows = [
            (entry["name"], format_percent(entry["iou"]), format_percent(entry["pixels"] / total, 2))
            for entry in level["classes"]
        ]
        title = (
            f"{level['name']}: mIoU {format_percent(level['miou'])}, "
            f"pixel accuracy {format_percent(level['pixel_accuracy'])}"
        )
        if "miou_without_background" in level:
            title += f", mIoU without {metrics['background']} {format_percent(level['miou_without_background'])}"
        console.table(title, ("class", "IoU %", "pixels %"), rows, right=(1, 2))


def print_sources(metrics: dict[str, Any], sources: dict[str, dict[str, Any]]) -> None:
    """Print the mIoU at every level, of each source and of all together; nothing for a data set without sources.

    Args:
        metrics: The measures of all sources together.
        sources: The measures of each source by its name.
    """
    if not sources:
        return
    levels = [level["name"] for level in metrics["levels"]]
    rows = [source_row(name, measured) for name, measured in [*sources.items(), ("all", metrics)]]
    console.table("mIoU % by source", ("source", *levels, "pixels"), rows, right=range(1, len(levels) + 2))


def source_row(name: str, metrics: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a source in a table: its name, its mIoU at every level, and its number of pixels.

    Args:
        name: The name of the source.
        metrics: Its measures.

    Returns:
        The cells.
    """
    return name, *(format_percent(level["miou"]) for level in metrics["levels"]), str(metrics["pixels"])


def print_summary(metrics: dict[str, Any]) -> None:
    """Print the metrics over all levels, and the most frequent confusions of leaves.

    Args:
        metrics: The document of `evaluate_checkpoint`.
    """
    rows = [
        ("mIoU, mean of the levels, %", format_percent(metrics["mean_miou"])),
        ("pixels whose levels agree, %", format_percent(metrics["consistency"])),
        ("pixels correct at every level, %", format_percent(metrics["full_path_accuracy"])),
        ("mean tree distance, edges", format_number(metrics["mean_tree_distance"])),
        ("mean tree distance of wrong pixels, edges", format_number(metrics["mean_tree_distance_of_mistakes"])),
    ]
    for level in metrics["levels"]:
        rows.append((f"calibration error (ECE) at {level['name']}, %", format_percent(level["ece"])))
    console.table("", ("all levels", ""), rows, right=(1,))
    worst = metrics["levels"][0]["worst_confusions"][:5]
    if worst:
        rows = [(c["truth"], c["predicted"], str(c["pixels"]), format_percent(c["share"])) for c in worst]
        columns = ("truth", "predicted as", "pixels", "% of the class")
        console.table("worst confusions", columns, rows, right=(2, 3))


def print_back_off(curve: Sequence[dict[str, float | None]], confidence: float) -> None:
    """Print what a few confidence thresholds do.

    Args:
        curve: `back_off_curve` of `evaluate_checkpoint`: thresholds 0.00, 0.01, ... 0.99.
        confidence: The threshold that was asked for, 0..1; shown to two decimals among the others.
    """
    shown = {0, 50, 75, 90, 95, 99, min(99, round(100 * confidence))}
    rows = [
        (
            f"{row['threshold']:.2f}",
            format_percent(row["coverage"]),
            format_percent(row["specificity"]),
            format_percent(row["accuracy"]),
        )
        for number, row in enumerate(curve)
        if number in shown
    ]
    columns = ("threshold", "with a class %", "levels decided %", "correct %")
    console.table("back-off by threshold, over pixels labeled with a leaf", columns, rows, right=(0, 1, 2, 3))
    console.result(
        "with a class: pixels whose confidence reaches the threshold at any level\n"
        "levels decided: how many of the levels these get a class at, on average\n"
        "correct: these pixels whose finest decided class is right"
    )


def format_percent(fraction: float | None, decimals: int = 1) -> str:
    """Format a fraction in per cent.

    Args:
        fraction: A number in 0..1, or None.
        decimals: Digits after the point.

    Returns:
        Text such as "43.5", or "-" for None.
    """
    return "-" if fraction is None else f"{100 * fraction:.{decimals}f}"


def format_share(share: float) -> str:
    """Format a share of pixels in per cent; of rare classes the first digit, to tell them from those without a pixel.

    Args:
        share: A number in 0..1.

    Returns:
        Text such as "43.50", "0.003" or "0".
    """
    if share == 0 or share >= 1e-4:
        return "0" if share == 0 else format_percent(share, 2)
    return f"{100 * share:.1g}" if share >= 1e-6 else "<0.0001"


def format_number(value: float | None) -> str:
    """Format a number with three decimals.

    Args:
        value: Any number, or None.

    Returns:
        Text such as "0.670", or "-" for None.
    """
    return "-" if value is None else f"{value:.3f}"

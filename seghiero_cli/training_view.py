"""Progress of a training run on stderr: one live view on a terminal, plain lines in a pipe or a log."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from seghiero_cli import console
from seghiero_cli.tables import format_percent, source_row
from seghiero_core.errors import shorten

BAR_WIDTH = 60
"""Length of the progress bar, characters."""


class TrainingView:
    """Shows the events of `train`; pass it as `notify` and use it as a context manager, which ends the live view.

    Attributes:
        live: The `rich` live view, or None if stderr isn't a terminal.
        start: The last "start" event.
        step_event: The last "step" event.
        storing: How far the storing of features is, before the first step.
        validating: How far the validation is; empty between validations.
        recent: Durations of the last 20 steps, s.
        columns, rows: The table of validations so far.
        sources: The measures of each source in the last validation.
        closing_line: Printed once the live view has ended.
    """

    def __init__(self) -> None:
        self.live: Any = None
        self.start: dict[str, Any] = {}
        self.step_event: dict[str, Any] = {}
        self.storing = ""
        self.validating = ""
        self.recent: deque[float] = deque(maxlen=20)
        self.columns: tuple[str, ...] = ()
        self.rows: list[tuple[str, ...]] = []
        self.sources: dict[str, dict[str, Any]] = {}
        self.closing_line = ""
        self._shown_at = 0.0

    def __enter__(self) -> TrainingView:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), refresh_per_second=4, get_renderable=self._render)
            self.live.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        if self.live:
            self.live.transient = not self.step_event  # an error before the first step leaves no trace of the view
            self.live.__exit__(*raised)
        if self.closing_line:
            console.note(self.closing_line)

    def __call__(self, event: dict[str, Any]) -> None:
        getattr(self, f"_on_{event['event']}")(event)

    def _print(self, text: str) -> None:
        if self.live:
            self.live.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            console.note(text)

    def _on_data(self, event: dict[str, Any]) -> None:
        sizes = [f"{height}x{width}" for height, width in sorted(event["sizes"])]
        images = console.plural(event["images"], "image")
        source = f" ({event['source']})" if "source" in event else ""
        self._print(f"{event['split']}{source}: {images} of {shorten(sizes)} px, masks checked")

    def _on_download(self, event: dict[str, Any]) -> None:
        size = f", {event['mib']} MiB" if event["mib"] else ""
        self._print(f"downloading {event['file']} from {event['repository']}{size}")

    def _on_weights(self, event: dict[str, Any]) -> None:
        counts = ", ".join(f"{len(event[what])} {what}" for what in ("loaded", "missing", "unexpected", "reshaped"))
        self._print(f"weights: {event['source']} ({event['layout']} layout): {counts}")
        if event["missing"]:
            self._print(f"  missing, initialized at random: {shorten(event['missing'], 5)}")
        if event["classes_dropped"]:
            self._print(f"  classes of the source not used: {shorten(event['classes_dropped'], 5)}")
        if event["classes_new"]:
            self._print(f"  new classes, initialized at random: {shorten(event['classes_new'], 5)}")

    def _on_start(self, event: dict[str, Any]) -> None:
        self.start = event
        backbone, head = event["backbone"], event["head"]
        size = backbone.get("depth", backbone.get("variant"))
        name = backbone["type"] if size is None else f"{backbone['type']} {size}"
        weights = "random weights"
        if event["step"]:
            weights = "resumed"
        elif backbone["pretrained"] or event["init_from"]:
            weights = "loaded weights"
        self._print(
            f"{name} ({weights}) + {head['type']}, {event['parameters'] / 1e6:.1f} M parameters, "
            f"on {event['device']} in {event['precision']}"
            + (f", {event['processes']} processes" if event["processes"] > 1 else "")
        )
        self._print(f"loss: {' + '.join(event['loss'])}; run folder: {console.display_path(event['folder'])}")
        if event["class_weights"]:
            self._print(f"class weights: {_class_weights(event['leaves'], event['class_weights'])}")
        if features := event.get("features"):
            maps = console.plural(len(features["maps"]), "feature map")
            size, folder = f"{features['mib']:.0f} MiB", console.display_path(features["folder"])
            self._print(f"features: {maps} of each of {features['samples']} augmented images, {size} in {folder}")
        if event["step"]:
            self._print(f"resumed at step {event['step']} of {self._total()}")

    def _on_features(self, event: dict[str, Any]) -> None:
        self.storing = f"storing features: {event['done']} of {event['samples']}"
        if not self.live and time.monotonic() - self._shown_at > 10:
            self._shown_at = time.monotonic()
            self._print(self.storing)

    def _on_step(self, event: dict[str, Any]) -> None:
        self.recent.append(event["seconds"])
        self.step_event = event
        if not self.live and (time.monotonic() - self._shown_at > 10 or event["step"] == self._total()):
            self._shown_at = time.monotonic()
            self._print("  ".join(self._progress_lines()))

    def _on_validating(self, event: dict[str, Any]) -> None:
        self.validating = f"validating: batch {event['batch']} of {event['batches']}"
        if not self.live and time.monotonic() - self._shown_at > 10:
            self._shown_at = time.monotonic()
            self._print(self.validating)

    def _on_validation(self, event: dict[str, Any]) -> None:
        metrics, self.validating = event["metrics"], ""
        names = [level["name"] for level in metrics["levels"]]
        self.columns = ("epoch", *(f"{name}\nmIoU" for name in names), "leaf\npixel acc.", "consistency", "")
        row = (
            f"{event['epoch']}",
            *(format_percent(level["miou"]) for level in metrics["levels"]),
            format_percent(metrics["levels"][0]["pixel_accuracy"]),
            format_percent(metrics["consistency"]),
            "best" if event["best"] else "",
        )
        self.rows.append(row)
        self.sources = event.get("sources", {})
        if not self.live:
            names = [column.replace("\n", " ") for column in self.columns[1:-1]]
            cells = [f"{name} {cell}" for name, cell in zip(names, row[1:-1], strict=True)]
            self._print(f"epoch {row[0]}/{self.start['epochs']}: {', '.join(cells)}{' (best)' if row[-1] else ''}")
            for name, measured in self.sources.items():
                values = [f"{level['name']} {format_percent(level['miou'])}" for level in measured["levels"]]
                self._print(f"  {name}: mIoU {', '.join(values)}")

    def _on_warning(self, event: dict[str, Any]) -> None:
        self._print(f"warning: {event['text']}")

    def _on_end(self, event: dict[str, Any]) -> None:
        best = "" if event["best"] is None else f" Best {event['monitor']}: {format_percent(event['best'])} %."
        done = "Done."
        if event["early_stopping"] is not None:
            done = (
                f"Stopped early after epoch {event['epoch']}: {event['monitor']} was not better in the last "
                f"{console.plural(event['early_stopping'], 'validation')}. To train on, raise training.early_stopping "
                "and pass --resume."
            )
        if features := event.get("features"):
            read = 1 - features["computed"] / features["samples"]
            self._print(f"features: {format_percent(read)} % of {features['samples']} were stored before this run")
        self.closing_line = f"{done}{best} What it gets wrong: {console.display_path(event['folder'] / 'report.html')}"

    def _total(self) -> int:
        return self.start["epochs"] * self.start["steps_per_epoch"]

    def _progress_lines(self) -> tuple[str, str]:
        event = self.step_event
        per_step = sum(self.recent) / len(self.recent)
        left = (self._total() - event["step"]) * per_step
        in_epoch = event["step"] - (event["epoch"] - 1) * self.start["steps_per_epoch"]
        terms = " ".join(f"{name} {value:.3f}" for name, value in event["terms"].items())
        return (
            f"epoch {event['epoch']}/{self.start['epochs']} step {in_epoch}/{self.start['steps_per_epoch']}  "
            f"left {format_duration(left)}  {event['images'] / per_step:.1f} images/s  {event['memory_mib']:.0f} MiB",
            f"loss {event['loss']:.3f} ({terms})  lr {event['lr']:.2e}",
        )

    def _render(self) -> Any:
        """Return the live view: the tables of validations, a bar over all steps, and the lines of the last step."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        if not self.step_event:
            return Text(self.storing or "reading and checking the data, building the network ...")
        done = round(BAR_WIDTH * self.step_event["step"] / self._total())
        bar = Text("━" * done, style="green") + Text("━" * (BAR_WIDTH - done), style="bright_black")
        parts: list[Any] = [bar, *map(Text, self._progress_lines())]
        if self.validating:
            parts.append(Text(self.validating))
        if self.rows:
            table, most = Table(*self.columns), 12  # rows of all tables, which a terminal has room for
            if self.sources:
                most = max(1, most - len(self.sources) - 4)  # 4 is what the second table has beside its rows
                levels = [level["name"] for level in next(iter(self.sources.values()))["levels"]]
                by_source = Table(f"mIoU in epoch {self.rows[-1][0]}", *levels, "pixels")
                for name, measured in self.sources.items():
                    by_source.add_row(*source_row(name, measured))
                parts.insert(0, by_source)
            for row in self.rows[-most:]:
                table.add_row(*row)
            parts.insert(0, table)
        return Group(*parts)


def _class_weights(names: Sequence[str], weights: Sequence[float]) -> str:
    """Return all weights where they fit on a line, else the extremes."""
    pairs = list(zip(names, weights, strict=True))
    text = ", ".join(f"{name} {weight:.2f}" for name, weight in pairs)
    if len(text) <= BAR_WIDTH:
        return text
    (lowest, least), (highest, most) = min(pairs, key=itemgetter(1)), max(pairs, key=itemgetter(1))
    return f"{least:.2f} ({lowest}) to {most:.2f} ({highest}); all in class_weights.json"


def format_duration(seconds: float) -> str:
    """Format a duration.

    Args:
        seconds: A duration, s.

    Returns:
        Text such as "1:05" (minutes and seconds), or "2:01:05" from one hour on.
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

"""What a person sees of a training: one live view on a terminal, plain lines in a pipe or a log. All on stderr."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any

from seghiero_cli import console
from seghiero_cli.tables import percent
from seghiero_core.errors import shorten

BAR_WIDTH = 60


class TrainingView:
    """Receives the events of `train`; a context, because the live view must be left in order."""

    def __init__(self) -> None:
        self.live: Any = None
        self.start: dict[str, Any] = {}
        self.recent: deque[float] = deque(maxlen=20)
        self.step_event: dict[str, Any] = {}
        self.rows: list[tuple[str, ...]] = []
        self.columns: tuple[str, ...] = ()
        self.said = 0.0
        self.last_words = ""

    def __enter__(self) -> TrainingView:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), refresh_per_second=4, get_renderable=self._picture)
            self.live.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        if self.live:
            self.live.__exit__(*raised)
        if self.last_words:
            console.note(self.last_words)

    def __call__(self, event: dict[str, Any]) -> None:
        getattr(self, f"_on_{event['event']}")(event)

    def _say(self, text: str) -> None:
        if self.live:
            self.live.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            console.note(text)

    def _on_data(self, event: dict[str, Any]) -> None:
        sizes = [f"{height}x{width}" for height, width in sorted(event["sizes"])]
        shown = ", ".join(sizes[:3]) + (", ..." if len(sizes) > 3 else "")
        self._say(f"{event['split']}: {event['images']} images of {shown} px, all masks checked")

    def _on_download(self, event: dict[str, Any]) -> None:
        size = f", {event['mib']} MiB" if event["mib"] else ""
        self._say(f"downloading {event['file']} of {event['repository']}{size}")

    def _on_weights(self, event: dict[str, Any]) -> None:
        counts = ", ".join(f"{len(event[what])} {what}" for what in ("loaded", "missing", "unexpected", "reshaped"))
        self._say(f"weights: {event['source']} ({event['layout']} layout): {counts}")
        if event["missing"]:
            self._say(f"  missing, so they start at random: {shorten(event['missing'], 5)}")
        if event["classes_dropped"]:
            self._say(f"  classes of the source that were left out: {shorten(event['classes_dropped'], 5)}")
        if event["classes_new"]:
            self._say(f"  new classes, which start at random: {shorten(event['classes_new'], 5)}")

    def _on_start(self, event: dict[str, Any]) -> None:
        self.start = event
        backbone, head = event["backbone"], event["head"]
        size = backbone.get("depth", backbone.get("variant", ""))
        weights = "loaded weights" if backbone["pretrained"] or event["init_from"] else "random weights"
        self._say(
            f"{backbone['type']} {size} ({weights}) + {head['type']}, {event['parameters'] / 1e6:.1f} M parameters, "
            f"on {event['device']} in {event['precision']}"
            + (f", {event['processes']} processes" if event["processes"] > 1 else "")
        )
        self._say(f"loss: {' + '.join(event['loss'])}; run folder: {console.shown(event['folder'])}")
        if event["class_weights"]:
            weighed = zip(event["leaves"], event["class_weights"], strict=True)
            self._say("class weights: " + ", ".join(f"{name} {weight:.2f}" for name, weight in weighed))
        if event["step"]:
            self._say(f"resumed at step {event['step']} of {self._total()}")

    def _on_step(self, event: dict[str, Any]) -> None:
        self.recent.append(event["seconds"])
        self.step_event = event
        if not self.live and (time.monotonic() - self.said > 10 or event["step"] == self._total()):
            self.said = time.monotonic()
            self._say("  ".join(self._progress_lines()))

    def _on_validation(self, event: dict[str, Any]) -> None:
        metrics = event["metrics"]
        names = [level["name"] for level in metrics["levels"]]
        self.columns = ("epoch", *(f"{name} mIoU" for name in names), "leaf pixel acc.", "consistency", "")
        row = (
            f"{event['epoch'] + 1}",
            *(percent(level["miou"]) for level in metrics["levels"]),
            percent(metrics["levels"][0]["pixel_accuracy"]),
            percent(metrics["consistency"]),
            "best" if event["best"] else "",
        )
        self.rows.append(row)
        if not self.live:
            cells = [f"{name} {cell}" for name, cell in zip(self.columns[1:-1], row[1:-1], strict=True)]
            self._say(f"epoch {row[0]}/{self.start['epochs']}: {', '.join(cells)}{' (best)' if row[-1] else ''}")

    def _on_warning(self, event: dict[str, Any]) -> None:
        self._say(f"warning: {event['text']}")

    def _on_end(self, event: dict[str, Any]) -> None:
        best = "" if event["best"] is None else f" Best {event['monitor']}: {percent(event['best'])}."
        self.last_words = f"done.{best} Pictures: {console.shown(event['folder'] / 'validation.png')}"

    def _total(self) -> int:
        return self.start["epochs"] * self.start["steps_per_epoch"]

    def _progress_lines(self) -> tuple[str, str]:
        event = self.step_event
        per_step = sum(self.recent) / len(self.recent)
        left = (self._total() - event["step"]) * per_step
        in_epoch = event["step"] - event["epoch"] * self.start["steps_per_epoch"]
        terms = " ".join(f"{name} {value:.3f}" for name, value in event["terms"].items())
        return (
            f"epoch {event['epoch'] + 1}/{self.start['epochs']} step {in_epoch}/{self.start['steps_per_epoch']}  "
            f"left {duration(left)}  {event['images'] / per_step:.1f} images/s  {event['memory_mib']:.0f} MiB",
            f"loss {event['loss']:.3f} ({terms})  lr {event['lr']:.2e}",
        )

    def _picture(self) -> Any:
        """The live view: a bar over all steps, the line of the step, and the table of validations."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        if not self.step_event:
            return Text("reading and checking the data, building the network ...")
        done = round(BAR_WIDTH * self.step_event["step"] / self._total())
        bar = Text("━" * done, style="green") + Text("━" * (BAR_WIDTH - done), style="bright_black")
        parts: list[Any] = [bar, *map(Text, self._progress_lines())]
        if self.rows:
            table = Table(*self.columns)
            for row in self.rows[-12:]:
                table.add_row(*row)
            parts.insert(0, table)
        return Group(*parts)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

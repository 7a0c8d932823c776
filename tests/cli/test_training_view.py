"""The live view of a training, on a terminal of 80 columns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from seghiero_cli.training_view import TrainingView
from seghiero_core.config.loading import load_config
from seghiero_core.run_files import recorded_files
from seghiero_core.training.loop import train

START = {
    "event": "start",
    "folder": Path("runs/a"),
    "device": "cpu",
    "precision": "fp32",
    "processes": 1,
    "parameters": 10**7,
    "backbone": {"type": "resnet", "depth": 18, "pretrained": False},
    "init_from": None,
    "head": {"type": "aspp"},
    "loss": ["dice"],
    "class_weights": None,
    "leaves": ("sky", "car"),
    "epochs": 3,
    "steps_per_epoch": 12,
    "step": 0,
}
STEP = {
    "event": "step",
    "step": 12,
    "epoch": 1,
    "loss": 1.5,
    "terms": {"dice": 1.5},
    "lr": 1e-3,
    "seconds": 0.5,
    "images": 8,
    "memory_mib": 100.0,
}


def rendered(view: TrainingView) -> list[str]:
    console = Console(width=80, height=24)
    with console.capture() as capture:
        console.print(view._render())
    return capture.get().splitlines()


@pytest.mark.parametrize("levels", [1, 3, 4])
def test_the_headers_of_the_table_are_whole_words(levels):
    view = TrainingView()
    view(START)
    view(STEP)
    names = ["leaf", "level1", "level2", "level3"][:levels]
    metrics = {
        "levels": [{"name": name, "miou": 0.5, "pixel_accuracy": 0.5} for name in names],
        "consistency": 1.0,
    }
    view({"event": "validation", "step": 12, "epoch": 1, "best": True, "metrics": metrics})
    lines = rendered(view)
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    header = " ".join(lines[1].split() + lines[2].split())
    assert all(word in header for word in ("epoch", "consistency", "pixel acc.", *names))


def validation(epoch, sources=(), levels=("leaf", "level1", "level2", "level3")):
    measures = [{"name": name, "miou": 0.5, "pixel_accuracy": 0.5} for name in levels]
    metrics = {"levels": measures, "consistency": 1.0, "pixels": 10**9}
    event = {"event": "validation", "step": 12 * epoch, "epoch": epoch, "best": True, "metrics": metrics}
    return event | ({"sources": dict.fromkeys(sources, metrics)} if sources else {})


def test_sources_have_a_table_of_their_own_that_fits_the_terminal():
    view = TrainingView()
    view(START)
    view(STEP)
    names = ("city", "a-highway-with-a-long-name", "park")
    for epoch in range(1, 14):
        view(validation(epoch, names))
    lines = rendered(view)
    assert max(map(len, lines)) <= 80 and len(lines) < 24 and not any("…" in line for line in lines)
    rows = [line.split() for line in lines if line.startswith("│")]
    assert [row[1] for row in rows] == ["9", "10", "11", "12", "13", *names]
    assert all(row[3:-2:2] == ["50.0"] * 4 for row in rows[-3:])


def test_a_log_has_a_line_for_each_source(capsys):
    view = TrainingView()
    view(START)
    view(validation(1, ("city", "park"), levels=("leaf", "level1")))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-3].startswith("epoch 1/3: leaf mIoU 50.0, level1 mIoU 50.0")
    assert lines[-2:] == ["  city: mIoU leaf 50.0, level1 50.0", "  park: mIoU leaf 50.0, level1 50.0"]


def test_each_source_has_a_line_for_its_data(capsys):
    view = TrainingView()
    view({"event": "data", "split": "val", "source": "city", "images": 2, "sizes": [(48, 64)]})
    assert capsys.readouterr().err == "val (city): 2 images of 48x64 px, masks checked\n"


def test_the_view_says_that_it_validates():
    view = TrainingView()
    view(START)
    view(STEP)
    view({"event": "validating", "step": 12, "batch": 3, "batches": 7})
    assert rendered(view)[-1] == "validating: batch 3 of 7"


def test_training_reports_the_batches_of_a_validation(small):
    events = []
    train(load_config(small, ["training.epochs=1", "training.val_batch_size=1"]), notify=events.append)
    kinds = [event["event"] for event in events]
    place = kinds.index("validating")
    assert kinds[place - 1] == "step" and kinds[place:].count("validating") == 2
    assert events[place] == {"event": "validating", "step": 2, "batch": 1, "batches": 2}
    assert kinds.index("validation") > place


def test_many_class_weights_are_shown_by_their_extremes(capsys):
    view = TrainingView()
    names = tuple(f"class{i}" for i in range(52))
    view(START | {"leaves": names, "class_weights": [1 + i / 10 for i in range(52)]})
    line = next(line for line in capsys.readouterr().err.splitlines() if "class weights" in line)
    assert line == "class weights: 1.00 (class0) to 6.10 (class51); all in class_weights.json"
    view(START | {"class_weights": [0.5, 1.5]})
    assert "class weights: sky 0.50, car 1.50\n" in capsys.readouterr().err


def test_the_class_weights_of_a_run_are_in_a_file(small):
    config = load_config(small, ["loss.preset=flat", "loss.class_weights=[1, 2, 3, 4]", "training.epochs=1"])
    train(config)
    file = config.run_dir / "class_weights.json"
    assert json.loads(file.read_text()) == {"sky": 1.0, "grass": 2.0, "disc": 3.0, "ring": 4.0}
    assert file in recorded_files(config.run_dir)

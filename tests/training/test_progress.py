"""The progress of a run as JSON: the keys of training.json stay, and files with fewer of them are read."""

from __future__ import annotations

import json

from seghiero_core.training.progress import BadStep, TrainingProgress

KEYS = """step epoch best best_step validated_step without_improvement first_loss diverged bad_steps first_bad
images_per_step steps_per_epoch"""


def test_progress_survives_json():
    for progress in (
        TrainingProgress(images_per_step=8, steps_per_epoch=3),
        TrainingProgress(8, 3, 4, 1, 0.5, 3, bad_steps=2, first_bad=BadStep(1, "the gradient is not finite")),
    ):
        document = json.loads(json.dumps(progress.to_json()))
        assert set(document) == set(KEYS.split())
        assert TrainingProgress.from_json(document) == progress


def test_a_file_of_an_older_version_is_read():
    old = {"step": 4, "epoch": 1, "best": 0.5, "images_per_step": 8, "steps_per_epoch": 3, "scaler": {"scale": 2.0}}
    progress = TrainingProgress.from_json(old)
    assert progress == TrainingProgress(images_per_step=8, steps_per_epoch=3, step=4, epoch=1, best=0.5)
    assert progress.bad_steps == 0 and progress.first_bad is None

"""The documents that the page is opened with in a browser."""

from __future__ import annotations

import functools
import json

from seghiero_core.hierarchy.tree import Hierarchy
from support.report_documents import HOSTILE, document
from support.trees import CAMVID


def null_measures(written: dict) -> dict:
    evaluation = written["runs"][0]["evaluation"]
    for key in ("full_path_accuracy", "consistency", "mean_tree_distance", "back_off_area"):
        evaluation[key] = None
    evaluation["mistakes_by_common_ancestor"] = [None] * len(evaluation["mistakes_by_common_ancestor"])
    for row in evaluation["back_off_curve"]:
        row |= dict.fromkeys(("coverage", "specificity", "information", "accuracy"))
    for level in evaluation["levels"]:
        level |= {"miou": None, "boundary_miou": None, "pixel_accuracy": None, "ece": None, "confusion": []}
        level["calibration"] = [{"confidence": None, "accuracy": None, "pixels": 0}] * 15
        level["classes"] = [
            {"name": c["name"], "iou": None, "boundary_iou": None, "ece": None, "pixels": 0} for c in level["classes"]
        ]
    for image in written["runs"][0]["images"]:
        image |= {"miou": [None] * 3, "pixel_accuracy": [None] * 3, "confusion": [[]] * 3}
    return written


def two_validations(written: dict) -> dict:
    curves = written["runs"][0]["curves"]
    curves["validations"], curves["steps"] = curves["validations"][:2], curves["steps"][:3]
    written["runs"][0]["status"] = "interrupted"
    return written


def not_evaluated(written: dict) -> dict:
    written["runs"][0] |= {
        "evaluation": None,
        "images": [],
        "codes": [],
        "cells": [],
        "status": "training",
        "command": None,
        "weights": None,
    }
    written["runs"][0]["curves"]["validations"] = []
    return written


def without_pictures(written: dict) -> dict:
    for image in written["runs"][0]["images"][1:]:
        del image["picture"], image["truth"], image["prediction"]
    return written


def undecided(written: dict) -> dict:
    """Predictions that back off: two codes are undecided at the finest levels."""
    run = written["runs"][0]
    run["codes"][0], run["codes"][3] = [-1, *run["codes"][0][1:]], [-1, -1, -1]
    level = run["evaluation"]["levels"][0]
    level["confusion"] = [
        [truth, -1 if predicted == 3 else predicted, pixels] for truth, predicted, pixels in level["confusion"]
    ]
    return written


@functools.cache
def tree(name: str) -> Hierarchy:
    names = [f"{i} {HOSTILE}" for i in range(11)]
    trees = {
        "camvid": CAMVID,
        "mapillary": {"preset": "mapillary-v2"},
        "one class": {"labels": ["everything"]},
        "hostile": {"labels": names, "tree": {HOSTILE + "a": names[:8], HOSTILE + "b": names[8:]}},
    }
    return Hierarchy.from_config(trees[name])


DOCUMENTS = {
    "camvid": lambda: document(tree("camvid"), images=8),
    "mapillary": lambda: document(tree("mapillary")),
    "comparison": lambda: document(tree("camvid"), images=4, runs=3),
    "hostile": lambda: document(
        tree("hostile"), images=2, name=HOSTILE, config=f"a: {json.dumps(HOSTILE)}", command=HOSTILE
    ),
    "one class": lambda: document(tree("one class"), images=1),
    "one image": lambda: document(tree("camvid"), images=1, size=(9, 7)),
    "null": lambda: null_measures(document(tree("camvid"), images=2)),
    "interrupted": lambda: two_validations(document(tree("camvid"), images=2)),
    "not evaluated": lambda: not_evaluated(document(tree("camvid"), images=1)),
    "without pictures": lambda: without_pictures(document(tree("camvid"), images=3)),
    "undecided": lambda: undecided(document(tree("camvid"), images=3)),
}


@functools.cache
def written(name: str) -> dict:
    return DOCUMENTS[name]()

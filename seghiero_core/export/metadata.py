"""What an exported file says about itself: written at export, read before it is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from seghiero_core.atomic import file_sha256
from seghiero_core.checkpoint import Checkpoint
from seghiero_core.decode_modes import undecided_id
from seghiero_core.errors import UsageError
from seghiero_core.export.graph import DecodedModel
from seghiero_core.export.options import ExportOptions
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.version import __version__


def set_metadata(model: onnx.ModelProto, values: Mapping[str, Any]) -> None:
    """Replace the file's metadata: one JSON document per key."""
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in values.items()})
    model.producer_name, model.producer_version = "seghiero", __version__


def class_metadata(hierarchy: Hierarchy) -> dict[str, Any]:
    """The part of the metadata that follows from the tree; see `onnx_file.METADATA_KEYS`."""
    return {
        "labels": {str(value): hierarchy.nodes[node] for value, node in hierarchy.values.items()},
        "tree": hierarchy.tree,
        "colors": {name: hierarchy.colors[i].tolist() for i, name in enumerate(hierarchy.nodes)},
        "ignore": hierarchy.ignore,
        "levels": [
            {
                "name": level.name,
                "ids": f"ids_{level.name}",
                "confidence": f"confidence_{level.name}",
                "classes": list(hierarchy.level_names(number)),
            }
            for number, level in enumerate(hierarchy.levels)
        ],
    }


METADATA_KEYS = (
    "labels",
    "tree",
    "colors",
    "ignore",
    "normalization",
    "levels",
    "decoding",
    "seghiero_version",
    "config_sha256",
)
"""Each holds one JSON document: `labels` {mask value: name}; `tree` nested {name: {children}}; `colors`
{name: [r, g, b]}; `ignore` the mask value of ignored pixels; `normalization` {"mean", "std"} of R, G, B in 0..1, done
inside; `levels` [{"name", "ids", "confidence", "classes": [name]}] finest first, the outputs' names and the classes by
number; `decoding` {"mode", "scores", "channels", "confidence", "undecided"}, the channels being those of the logits and
`undecided` what ids hold where a score below `confidence` made the prediction back off (both null without a
threshold); `seghiero_version`; `config_sha256` of the training's config."""


def read_metadata(model: onnx.ModelProto, path: Path) -> dict[str, Any]:
    """The values of METADATA_KEYS. Raises UsageError where one is missing."""
    found = {entry.key: entry.value for entry in model.metadata_props}
    if missing := [key for key in METADATA_KEYS if key not in found]:
        raise UsageError(f"{path} was not written by `seghiero export`: its metadata has no {', '.join(missing)}.")
    return {key: json.loads(found[key]) for key in METADATA_KEYS}


def export_metadata(
    model: DecodedModel, channels: int, checkpoint: Checkpoint, options: ExportOptions
) -> dict[str, Any]:
    """The values of `onnx_file.METADATA_KEYS`."""
    mean, std = (buffer.flatten() / 255 for buffer in (model.model.mean, model.model.std))
    return {
        **class_metadata(model.hierarchy),
        "normalization": {"mean": mean.tolist(), "std": std.tolist()},
        "decoding": {
            "mode": options.mode,
            "scores": model.scores,
            "channels": channels,
            "confidence": model.confidence,
            "undecided": None if model.confidence is None else undecided_id(model.hierarchy),
        },
        "seghiero_version": __version__,
        "config_sha256": file_sha256(checkpoint.folder / "config.yaml"),
    }

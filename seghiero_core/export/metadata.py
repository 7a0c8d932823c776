"""The metadata of an exported file: written at export, read before the file is run."""

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
"""The keys of the metadata. Each holds one JSON document:

- `labels`: {mask value: class name}.
- `tree`: the classes, nested as {name: {children}}.
- `colors`: {class name: [r, g, b]}.
- `ignore`: the mask value of ignored pixels.
- `normalization`: {"mean", "std"} of R, G, B in 0..1. The network applies it; the input is 0..255.
- `levels`: a list of {"name", "ids", "confidence", "classes"}, finest level first. "ids" and "confidence" are output
  names, "classes" are the class names in the order of the ids.
- `decoding`: {"mode", "scores", "channels", "confidence", "undecided"}. "channels" is the number of logits;
  "confidence" is the threshold below which predictions back off, and "undecided" the id of pixels that did (both null
  without a threshold).
- `seghiero_version`: the version that wrote the file.
- `config_sha256`: the SHA-256 of the training config.
"""


def export_metadata(
    model: DecodedModel, channels: int, checkpoint: Checkpoint, options: ExportOptions
) -> dict[str, Any]:
    """Collect the metadata of a file.

    Args:
        model: The network that is exported.
        channels: The number of channels of its logits.
        checkpoint: Where the network comes from.
        options: What is exported.

    Returns:
        A value for each of METADATA_KEYS.
    """
    hierarchy = model.hierarchy
    mean, std = (buffer.flatten() / 255 for buffer in (model.model.mean, model.model.std))
    return {
        "labels": {str(value): hierarchy.nodes[node] for value, node in hierarchy.values.items()},
        "tree": hierarchy.tree,
        "colors": {name: hierarchy.colors[i].tolist() for i, name in enumerate(hierarchy.nodes)},
        "ignore": hierarchy.ignore,
        "normalization": {"mean": mean.tolist(), "std": std.tolist()},
        "levels": [
            {
                "name": level.name,
                "ids": f"ids_{level.name}",
                "confidence": f"confidence_{level.name}",
                "classes": list(hierarchy.level_names(number)),
            }
            for number, level in enumerate(hierarchy.levels)
        ],
        "decoding": {
            "mode": options.mode,
            "scores": model.scores,
            "channels": channels,
            "confidence": model.confidence,
            "undecided": None if model.confidence is None else undecided_id(hierarchy),
        },
        "seghiero_version": __version__,
        "config_sha256": file_sha256(checkpoint.folder / "config.yaml"),
    }


def hierarchy_from_metadata(metadata: Mapping[str, Any]) -> Hierarchy:
    """Build the hierarchy that a file was exported with.

    Args:
        metadata: What `read_metadata` returned.

    Returns:
        The classes.
    """
    return Hierarchy.from_config(
        {
            "labels": {int(value): name for value, name in metadata["labels"].items()},
            "tree": metadata["tree"],
            "ignore": metadata["ignore"],
            "colors": metadata["colors"],
        }
    )


def set_metadata(model: onnx.ModelProto, values: Mapping[str, Any]) -> None:
    """Replace the metadata of an ONNX graph.

    Args:
        model: The graph, which is changed in place.
        values: Values that JSON can hold, one per key.
    """
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in values.items()})
    model.producer_name, model.producer_version = "seghiero", __version__


def read_metadata(model: onnx.ModelProto, path: Path) -> dict[str, Any]:
    """Read the metadata of an ONNX graph.

    Args:
        model: The graph.
        path: The file it came from, for the error message.

    Returns:
        A value for each of METADATA_KEYS.

    Raises:
        UsageError: A key is missing, so the file was not written by `seghiero export`.
    """
    found = {entry.key: entry.value for entry in model.metadata_props}
    if missing := [key for key in METADATA_KEYS if key not in found]:
        raise UsageError(f"{path} was not written by `seghiero export`: its metadata lacks {', '.join(missing)}.")
    return {key: json.loads(found[key]) for key in METADATA_KEYS}

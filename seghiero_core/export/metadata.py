"""The metadata of an exported file: written at export, read before the file is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import onnx
import torch

from seghiero_core.atomic import file_sha256
from seghiero_core.checkpoint import Checkpoint
from seghiero_core.decode import decode
from seghiero_core.decode_modes import undecided_id
from seghiero_core.errors import UsageError
from seghiero_core.export.graph import DecodedModel
from seghiero_core.export.options import ExportOptions
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.hierarchy.values import short_repr
from seghiero_core.readers import Bands
from seghiero_core.version import __version__

_TYPES: dict[str, Any] = {
    "description": str,
    "labels": dict,
    "tree": dict,
    "colors": dict,
    "ignore": int,
    "levels": list,
    "decoding": dict,
    "channels": int | None,
    "nodata": float | int | None,
    "rgb": list,
    "seghiero_version": str,
    "config_sha256": str,
}
_RGB = {"channels": None, "nodata": None, "rgb": []}  # files of earlier versions lack these keys
METADATA_KEYS = tuple(_TYPES)
"""The keys of the metadata. Each holds one JSON document:

- `description`: what the file takes and gives, as text.
- `labels`: {mask value: class name, or a list of leaves for "one of these"}.
- `tree`: the classes, nested as {name: {children}}.
- `colors`: {class name: [r, g, b]}.
- `ignore`: the mask value of ignored pixels.
- `levels`: a list of {"name", "ids", "confidence", "classes"}, finest level first. "ids" and "confidence" are output
  names, "classes" are the class names in the order of the ids.
- `decoding`: {"mode", "scores", "channels", "confidence", "undecided"}. "channels" is the number of logits;
  "confidence" is the threshold below which predictions back off, and "undecided" the id of pixels that did (both null
  without a threshold).
- `channels`: the number of bands of the images, in stored units; null for RGB.
- `nodata`: the value that all bands have where there is no data, to be replaced by NaN in the input; null if unset.
- `rgb`: the positions of the bands red, green and blue; empty for none, and for RGB.
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
    hierarchy, bands = model.hierarchy, checkpoint.config.dataset.bands
    return {
        "description": _describe(model, channels, options, bands),
        "labels": {str(value): _names(hierarchy, label) for value, label in hierarchy.values.items()},
        "tree": hierarchy.tree,
        "colors": {name: hierarchy.colors[i].tolist() for i, name in enumerate(hierarchy.nodes)},
        "ignore": hierarchy.ignore,
        "levels": _levels(hierarchy),
        "decoding": {
            "mode": options.mode,
            "scores": model.scores,
            "channels": channels,
            "confidence": model.confidence,
            "undecided": None if model.confidence is None else undecided_id(hierarchy),
        },
        "channels": bands and bands.channels,
        "nodata": bands and bands.nodata,
        "rgb": list(bands.rgb) if bands else [],
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
        values: A value for each of METADATA_KEYS.
    """
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in values.items()})
    model.producer_name, model.producer_version = "seghiero", __version__
    model.doc_string = values["description"]


def read_metadata(model: onnx.ModelProto, path: Path) -> dict[str, Any]:
    """Read and check the metadata of an ONNX graph.

    Args:
        model: The graph.
        path: The file it came from, for the error message.

    Returns:
        A value for each of METADATA_KEYS; files of earlier versions have no description.

    Raises:
        UsageError: A key is missing or its value is wrong, so the file was not written by `seghiero export`.
    """
    texts = {entry.key: entry.value for entry in model.metadata_props}
    if missing := [key for key in METADATA_KEYS if key not in texts and key not in ("description", *_RGB)]:
        raise UsageError(f"{path} was not written by `seghiero export`: its metadata lacks {', '.join(missing)}.")
    metadata = {**_RGB}
    for key, expected in _TYPES.items():
        if key in texts:
            try:
                metadata[key] = json.loads(texts[key])
                json.dumps(metadata[key], ensure_ascii=False).encode()  # fails for half of a surrogate pair
            except (ValueError, RecursionError) as error:
                raise _wrong(path, f"'{key}' is not valid JSON ({error})") from None
            if type(metadata[key]) not in (get_args(expected) or (expected,)):
                name = getattr(expected, "__name__", expected)
                raise _wrong(path, f"'{key}' is {short_repr(metadata[key])}, not of type {name}")
    try:
        hierarchy = hierarchy_from_metadata(metadata)
    except (UsageError, ValueError, RecursionError) as error:
        first = str(error).partition("\n")[0].rstrip(".")
        raise _wrong(path, f"'labels', 'tree', 'ignore' and 'colors' don't describe a class tree ({first})") from None
    if metadata["levels"] != _levels(hierarchy):
        raise _wrong(path, "'levels' are not those of 'labels' and 'tree'")
    try:
        _check_decoding(metadata["decoding"], hierarchy)
    except UsageError as error:
        raise _wrong(path, f"'decoding' can't be used ({str(error).rstrip('.')})") from None
    return metadata


def _names(hierarchy: Hierarchy, label: int) -> str | list[str]:
    if label < len(hierarchy):
        return hierarchy.nodes[label]
    return [hierarchy.nodes[leaf] for leaf in hierarchy.sets[label - len(hierarchy)]]


def _levels(hierarchy: Hierarchy) -> list[dict[str, Any]]:
    return [
        {
            "name": level.name,
            "ids": f"ids_{level.name}",
            "confidence": f"confidence_{level.name}",
            "classes": list(hierarchy.level_names(number)),
        }
        for number, level in enumerate(hierarchy.levels)
    ]


def _describe(model: DecodedModel, channels: int, options: ExportOptions, bands: Bands | None) -> str:
    """Say what the file takes and gives, for someone who has nothing but the file."""
    hierarchy = model.hierarchy
    names = ", ".join(level.name for level in hierarchy.levels)
    logits = f"`logits`, N,{channels},H,W float32."
    masks = (
        f"for each level of the class tree (finest first: {names}) `ids_LEVEL`, N,H,W int64, the class numbers, and "
        "`confidence_LEVEL`, N,H,W float32, 0 to 1. The metadata entry `levels` lists the classes by number."
    )
    if model.confidence is not None:
        masks += (
            f" The number {undecided_id(hierarchy)} means undecided: the confidence is below {model.confidence:g} at "
            "this level and at every finer one."
        )
    outputs = logits if options.outputs == "logits" else masks
    if options.format == "pt2" and options.outputs != "logits":
        outputs = f"{logits[:-1]}; and {masks}"
    if bands:
        image = f"N,{bands.channels},H,W float32, bands in the units that the images are stored in, any N, H and W. NaN"
        if bands.nodata is not None:
            image += f", which must replace pixels with {bands.nodata:g} in all bands,"
        return (
            f"Hierarchical semantic segmentation. Input: `image`, {image} means that there is no data. The network "
            f"normalizes the image itself: don't normalize it before. Outputs: {outputs}"
        )
    return (
        f"Hierarchical semantic segmentation. Input: `image`, N,3,H,W {options.input}, RGB with values from 0 to 255, "
        "any N, H and W. The network normalizes the image itself: don't normalize it before, and don't divide it by "
        f"255. Outputs: {outputs}"
    )


def _check_decoding(decoding: Mapping[str, Any], hierarchy: Hierarchy) -> None:
    """Check types, then decode one pixel, which checks the rest."""
    for key, expected in (("mode", str), ("scores", str), ("channels", int), ("confidence", float | int | None)):
        # files from before thresholds existed lack "confidence"
        if not isinstance(decoding.get(key), expected) or isinstance(decoding.get(key), bool):
            raise UsageError(f"{key} is {short_repr(decoding.get(key))}")
    if decoding["channels"] not in (len(hierarchy.leaves), len(hierarchy)):
        raise UsageError(f"channels is {short_repr(decoding['channels'])}")
    pixel = torch.zeros(1, decoding["channels"], 1, 1)
    decode(pixel, hierarchy, decoding["mode"], decoding.get("confidence"), scores=decoding["scores"])


def _wrong(path: Path, what: str) -> UsageError:
    return UsageError(
        f"{path}: its metadata is damaged or was not written by `seghiero export`: {what}. Export it again."
    )

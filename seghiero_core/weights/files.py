"""Read weights without running code: .safetensors files, pickled state dicts, hub folders, seghiero checkpoints."""

from __future__ import annotations

import json
import math
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.errors import WeightsError, nearest_path
from seghiero_core.registry import Statistics
from seghiero_core.runs import find_checkpoint
from seghiero_core.weights.hub import WEIGHT_FILES

if TYPE_CHECKING:
    from torch import Tensor

# Bits per value of each type in a safetensors header.
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16}
_BITS |= {"I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64}


def checkpoint_folder(path: Path) -> Path | None:
    """Find the checkpoint folder that a path refers to.

    Args:
        path: A run folder, a checkpoint folder or the `model.safetensors` in one; anything else is allowed.

    Returns:
        The checkpoint folder, or None if `path` is not part of a seghiero run.
    """
    if path.is_dir():
        candidates = [path, path / "best", path / "last"]
    elif path.name == "model.safetensors":
        candidates = [path.parent]
    else:
        return None
    if any((folder / "manifest.json").exists() for folder in candidates):
        return find_checkpoint(path)
    return None


def weights_file(path: Path) -> Path:
    """Return the weights file that a path refers to.

    Args:
        path: A file, or a folder laid out like a hub repository.

    Returns:
        The file itself, or the weights in the folder.

    Raises:
        WeightsError: If the folder has no weights.
    """
    if not path.is_dir():
        return path
    for name in WEIGHT_FILES:
        if (path / name).exists():
            return path / name
    raise WeightsError(f"{path}: the folder has no {' or '.join(WEIGHT_FILES)}; give the path of the file itself.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict without running code from the file.

    Args:
        path: A .safetensors or pickle file, a folder laid out like a hub repository, or a seghiero run or checkpoint.

    Returns:
        The tensors by key, on the CPU; only those of the backbone for a seghiero checkpoint.

    Raises:
        WeightsError: If the file is damaged, is not a state dict, or is a pickle that could run code.
        CheckpointError: If a seghiero checkpoint is damaged.
    """
    if folder := checkpoint_folder(path):
        tensors = read_checkpoint(folder).model_tensors()
        return {key: value for key, value in tensors.items() if key.startswith("backbone.")}
    path = weights_file(path)
    if not path.exists():
        raise WeightsError(f"{path}: no such file.{nearest_path(path)}")
    if path.is_file() and (fault := _foreign_content(path)):
        raise WeightsError(f"{path}: {fault}.")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def read_statistics(path: Path) -> Statistics | None:
    """Read the mean and standard deviation that weights expect their inputs to be normalized with.

    They come from a seghiero checkpoint, `preprocessor_config.json` (transformers) or `config.json` (timm).

    Args:
        path: A run, a checkpoint, a folder laid out like a hub repository, or the weights file in one.

    Returns:
        (mean, std), each three floats (R, G, B in 0..1), or None if nothing there has them.

    Raises:
        WeightsError: If the checkpoint or a JSON file can't be read.
    """
    if folder := checkpoint_folder(path):
        return _read_model_statistics(folder / "model.safetensors")
    if not path.is_dir() and path.name not in WEIGHT_FILES:
        return None
    folder = path if path.is_dir() else path.parent
    preprocessor = read_json(folder / "preprocessor_config.json")
    timm = read_json(folder / "config.json").get("pretrained_cfg") or {}
    for values, mean, std in ((preprocessor, "image_mean", "image_std"), (timm, "mean", "std")):
        if len(values.get(mean) or ()) == 3 and len(values.get(std) or ()) == 3:
            return tuple(values[mean]), tuple(values[std])
    return None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds a mapping.

    Args:
        path: The file, which may be missing.

    Returns:
        The mapping; empty if there is no file.

    Raises:
        WeightsError: If the file can't be read, is not JSON or holds something else.
    """
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: can't be read as JSON ({error}).") from None
    if not isinstance(document, dict):
        raise WeightsError(f"{path}: expected a mapping, found {type(document).__name__}.")
    return document


def _foreign_content(path: Path) -> str | None:
    """Recognize by its first bytes what can't be weights, or weights whose name says otherwise."""
    with path.open("rb") as file:
        start = file.read(64)
    is_safetensors = start[8:9] == b"{"  # after the length of the header, whose first byte may be any
    is_torch = not is_safetensors and start.startswith((b"PK\x03\x04", b"\x80"))  # a zip archive or a pickle
    if not start:
        return "the file is empty; get a new copy of it"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the weights; fetch them with `git lfs pull`"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not weights; download the file itself"
    if path.suffix == ".safetensors":
        return "a PyTorch file with the wrong ending; rename it to .pth" if is_torch else None
    if is_safetensors:
        return "a safetensors file with the wrong ending; rename it to .safetensors"
    return None if is_torch else "not a weights file; expected .safetensors or a state dict written by torch.save"


def _read_model_statistics(path: Path) -> Statistics:
    """Read the mean and std that a SegmentationModel keeps as buffers, scaled from 0..255 to 0..1."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            mean, std = (tuple((file.get_tensor(name).flatten() / 255).tolist()) for name in ("mean", "std"))
    except (SafetensorError, OSError) as error:
        raise _damaged_safetensors(path, error) from None
    return mean, std


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged_safetensors(path, error) from None


def _damaged_safetensors(path: Path, error: Exception) -> WeightsError:
    fault = (_header_fault(path) if path.is_file() else None) or str(error)
    return WeightsError(f"{path}: damaged or not a safetensors file ({fault}). Get a new copy of it.")


def _header_fault(path: Path) -> str | None:
    """Describe what is wrong in the header of a .safetensors file, or return None if the header can't be parsed."""
    with path.open("rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else math.inf
        available = path.stat().st_size - 8
        if size > available:
            return "its header is longer than the file"
        try:
            header = json.loads(file.read(size))
            entries = {key: value for key, value in header.items() if key != "__metadata__"}
            ranges = {key: tuple(value["data_offsets"]) for key, value in entries.items()}
            sizes = {key: math.prod(value["shape"]) * _BITS[value["dtype"]] // 8 for key, value in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
    expected = 0
    for key, (begin, end) in sorted(ranges.items(), key=lambda item: item[1]):
        if end - begin != sizes[key]:
            return f"'{key}' has {end - begin} bytes, but its shape and type need {sizes[key]}"
        if begin != expected:
            return f"'{key}' begins at byte {begin}, expected {expected}"
        if end > available - size:
            return f"'{key}' ends at byte {end}, but the file has only {available - size}"
        expected = end
    return None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about old pickle formats
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError) as error:
        text = re.sub(r"^\[.*?\] \. ", "", str(error))  # without the line of C++
        reason = re.split(r"\n|\. ", text)[0] or "it ends early"
        raise WeightsError(f"{path}: damaged or not a PyTorch file ({reason}). Get a new copy of it.") from None
    except Exception as error:  # weights_only raises several classes of errors for what could run code
        imported = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it imports {imported[1]}" if imported else "it is not a plain state dict"
        raise WeightsError(
            f"{path}: refused, because a pickle with more than tensors can run code ({reason}). No code was run. "
            "If you trust the file, save its state dict alone, preferably as .safetensors, and use that."
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path}: not a state dict (a mapping from names to tensors).")
    return dict(state)

"""Weight files from outside, read without running code: .safetensors, pickled state dicts, folders, checkpoints."""

from __future__ import annotations

import json
import math
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seghiero_core.checkpoint import find_checkpoint, read_checkpoint
from seghiero_core.errors import WeightsError
from seghiero_core.registry import Statistics
from seghiero_core.weights.hub import WEIGHT_FILES

if TYPE_CHECKING:
    from torch import Tensor

_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16}
_BITS |= {"I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64}


def checkpoint_folder(path: Path) -> Path | None:
    """The folder of the seghiero checkpoint that `path` means (a run, a checkpoint or its file), None if it is none."""
    if path.is_dir():
        places = [path, path / "best", path / "last"]
    else:
        places = [path.parent] if path.name == "model.safetensors" else []
    return find_checkpoint(path) if any((place / "manifest.json").exists() for place in places) else None


def weights_file(path: Path) -> Path:
    """`path`, or the weights in it if it is a folder in the hub's layout. Raises WeightsError."""
    if not path.is_dir():
        return path
    for name in WEIGHT_FILES:
        if (path / name).exists():
            return path / name
    raise WeightsError(f"{path}: holds no {' or '.join(WEIGHT_FILES)}; name the file itself.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, a folder in the hub's layout or a seghiero checkpoint (then of its backbone), on the CPU.

    Raises WeightsError for a file that is damaged, holds anything that could run code, or is no state dict;
    CheckpointError for a damaged checkpoint.
    """
    if folder := checkpoint_folder(path):
        tensors = read_checkpoint(folder).model_tensors()
        return {key: value for key, value in tensors.items() if key.startswith("backbone.")}
    path = weights_file(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def read_statistics(path: Path) -> Statistics | None:
    """Mean and standard deviation (R, G, B in 0..1) that go with the weights at `path`, None where nothing says them.

    Told by a checkpoint, by `preprocessor_config.json` (transformers) or by `config.json` (timm).
    """
    if folder := checkpoint_folder(path):
        from safetensors import safe_open

        with safe_open(folder / "model.safetensors", "numpy") as file:
            mean, std = (tuple((file.get_tensor(name).flatten() / 255).tolist()) for name in ("mean", "std"))
        return mean, std
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
    """The mapping in a JSON file, empty where there is no file. Raises WeightsError for anything else."""
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as JSON ({error}).") from None
    if not isinstance(document, dict):
        raise WeightsError(f"{path}: holds {type(document).__name__}, a mapping was expected.")
    return document


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        fault = _header_fault(path) or str(error)
        raise WeightsError(f"{path}: is damaged or no safetensors file ({fault}); get it anew.") from None


def _header_fault(path: Path) -> str | None:
    """What the header of a refused file says wrongly, by key, or None if that can't be told."""
    with path.open("rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else math.inf
        room = path.stat().st_size - 8
        if size > room:
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
            return f"'{key}' is said to have {end - begin} bytes, its shape and type need {sizes[key]}"
        if begin != expected:
            return f"'{key}' begins at byte {begin}, {expected} was expected"
        if end > room - size:
            return f"'{key}' ends at byte {end}, the file has only {room - size}"
        expected = end
    return None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the age of the pickle's format
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError) as error:
        raise WeightsError(f"{path}: cannot be read as weights ({str(error).partition(chr(10))[0]}).") from None
    except Exception as error:  # weights_only refuses what could run code with several classes of errors
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {asked[1]}" if asked else "it is no plain state dict"
        raise WeightsError(
            f"{path}: refused, because a pickle that holds more than tensors can run code ({what}). Nothing of it was "
            "run. If you trust it, save only its state dict, best as .safetensors, and give that file."
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path}: is no state dict (a mapping from names to tensors).")
    return dict(state)

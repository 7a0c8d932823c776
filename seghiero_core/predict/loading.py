"""Loading a Predictor from a run, a checkpoint or an exported ONNX file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seghiero_core.atomic import file_sha256
from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.decode_modes import DEFAULT_DECODING, Decoding, check_decoding
from seghiero_core.devices import check_device
from seghiero_core.errors import CheckpointError, SeghieroError, UsageError
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.model.folding import fold_batch_norms
from seghiero_core.model.measuring import whole_logits
from seghiero_core.model.tiling import ALIGNMENT, DEFAULT_OVERLAP, DEFAULT_TILE, CoarseForward, Forward, align_up
from seghiero_core.model.trained import load_trained
from seghiero_core.predict.predictor import Predictor
from seghiero_core.predict.tta import with_augmentation
from seghiero_core.readers import Bands
from seghiero_core.runs import find_checkpoint


def load(
    path: str | Path,
    *,
    device: str = "auto",
    mode: str | None = None,
    confidence: float | None = None,
    tile: int | None = None,
    overlap: int = DEFAULT_OVERLAP,
    tta: Sequence[str] = (),
    batch_size: int = 1,
) -> Predictor:
    """Load a trained network for prediction. Never uses the internet.

    Args:
        path: A run folder, a checkpoint folder, a .safetensors file, or an ONNX file written by `seghiero export`.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        mode: A decoding mode, one of `decode_modes.MODES`. Default: the mode an ONNX file was exported with, else
            `decode_modes.DEFAULT_DECODING`.
        confidence: The threshold in 0..1 below which predictions back off to a coarser level (see `decode`); 0 turns
            that off. Default: the threshold an ONNX file was exported with, else none.
        tile: Side of the tiles for large images, px; rounded up to a multiple of 32. Default: images up to 2048x2048 px
            are predicted in one piece, larger ones in tiles of 1024 px.
        overlap: What neighboring tiles share, px; rounded up to a multiple of 32. At most half a tile.
        tta: Test-time augmentations: any of "flip" and "scales".
        batch_size: Tiles, or images of one size, that go through the network together.

    Returns:
        A predictor to call with images.

    Raises:
        UsageError: There is no such file, or an option has an unknown value.
        CheckpointError: The file is damaged, or was written by another version.
        DeviceError: The machine doesn't have the device.

    Example:
        >>> predict = load("my-project/runs/demo", device="cpu")
        >>> masks = predict("street.jpg").ids
        >>> list(masks)
        ['leaf', 'level1', 'level2']
        >>> names = predict.hierarchy.level_names(0)
        >>> names[masks["leaf"][0, 0]] in names
        True
    """
    check_decoding(mode or DEFAULT_DECODING.mode, confidence)
    if tile is not None and tile < 1:
        raise UsageError(f"--tile: {tile} px; must be at least 1 px.")
    if batch_size < 1:
        raise UsageError(f"--batch-size: {batch_size}; must be at least 1.")
    tile = None if tile is None else align_up(tile)
    overlap = align_up(overlap)
    tile_side = DEFAULT_TILE if tile is None else tile
    if not ALIGNMENT <= overlap <= tile_side / 2:
        raise UsageError(
            f"--overlap: {overlap} px doesn't work with tiles of {tile_side} px; "
            f"it must be at least {ALIGNMENT} px and at most half a tile."
        )
    device = check_device(device)
    loaded = _load_onnx(Path(path), device) if Path(path).suffix == ".onnx" else _load_checkpoint(path, device)
    threshold = loaded.decoding.confidence if confidence is None else confidence
    return Predictor(
        hierarchy=loaded.hierarchy,
        forward=with_augmentation(loaded.forward, tta),
        scores=loaded.scores,
        mode=mode or loaded.decoding.mode,
        confidence=threshold or None,  # a threshold of 0 never backs off
        tile=tile,
        overlap=overlap,
        batch_size=batch_size,
        bands=loaded.bands,
        origin={**loaded.origin, "device": device, "tta": list(tta)},
        coarse_forward=None if tta else loaded.coarse_forward,
    )


class _Loaded(NamedTuple):
    """What a file holds; `decoding` is what it asks for, unless the caller says otherwise."""

    hierarchy: Hierarchy
    scores: str
    decoding: Decoding
    forward: Forward
    bands: Bands | None
    origin: dict[str, Any]
    coarse_forward: CoarseForward | None = None


def _load_checkpoint(path: str | Path, device: str) -> _Loaded:
    checkpoint, hierarchy, scores, model = load_trained(read_checkpoint(find_checkpoint(path)), device)
    fold_batch_norms(model)
    layout = torch.channels_last if checkpoint.config.training.channels_last else torch.contiguous_format

    @torch.inference_mode()
    def forward(images: Tensor) -> tuple[Tensor, int]:
        output = model(images.to(device).contiguous(memory_format=layout), upsample=False)
        return output.logits.float(), output.stride

    # the manifest has the hashes of the other files
    origin = {"checkpoint": file_sha256(checkpoint.folder / "manifest.json"), "plugins": list(checkpoint.changes)}
    bands = checkpoint.config.dataset.bands
    return _Loaded(hierarchy, scores, DEFAULT_DECODING, whole_logits(forward), bands, origin, forward)


def _load_onnx(path: Path, device: str) -> _Loaded:
    """Load a file for its logits; Predictor decodes them, because blending tiles needs logits."""
    # onnx takes a second to import, and checkpoints don't need it
    from seghiero_core.export.metadata import hierarchy_from_metadata
    from seghiero_core.export.runner import make_session, read_export, with_logits

    model, metadata = read_export(path)
    decoding = metadata["decoding"]
    with _onnxruntime_errors(path):
        session = make_session(with_logits(model, decoding["channels"], only=True).SerializeToString(), device)
    dtype = np.uint8 if session.get_inputs()[0].type == "tensor(uint8)" else np.float32

    def forward(images: Tensor) -> Tensor:
        with _onnxruntime_errors(path):
            (logits,) = session.run(["logits"], {"image": images.cpu().numpy().astype(dtype, copy=False)})
        expected = (len(images), decoding["channels"], *images.shape[2:])
        if logits.shape != expected:
            raise CheckpointError(f"{path}: its logits have the shape {logits.shape}, not {expected}. Export it again.")
        return torch.from_numpy(logits)

    return _Loaded(
        hierarchy_from_metadata(metadata),
        decoding["scores"],
        Decoding(decoding["mode"], decoding.get("confidence")),  # files from before thresholds existed lack the key
        forward,
        _bands(metadata),
        {"ONNX file": file_sha256(path)},
    )


def _bands(metadata: dict[str, Any]) -> Bands | None:
    if metadata.get("channels") is None:  # files from before there were other images than RGB lack the key
        return None
    return Bands(metadata["channels"], metadata["nodata"], tuple(metadata["rgb"]))


@contextmanager
def _onnxruntime_errors(path: Path) -> Iterator[None]:
    """Turn onnxruntime's exceptions, which have no common base class, into ours."""
    try:
        yield
    except (SeghieroError, MemoryError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        if "alloc" in reason or "out of memory" in reason:
            raise MemoryError(reason) from error
        raise CheckpointError(f"{path} can't be run by onnxruntime ({reason}). Export it again.") from error

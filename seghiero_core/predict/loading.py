"""From a run, a checkpoint or an exported file to a predictor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seghiero_core.checkpoint import find_checkpoint, read_checkpoint
from seghiero_core.decode_modes import Decoding, check_decoding
from seghiero_core.devices import check_device
from seghiero_core.errors import UsageError
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.model.trained import load_trained
from seghiero_core.predict.predictor import OVERLAP, TILE, Predictor
from seghiero_core.predict.tiling import ALIGNMENT, Forward
from seghiero_core.predict.tta import with_augmentation


def open_onnx(path: Path, device: str) -> tuple[Hierarchy, str, Decoding, Forward]:
    """(hierarchy, scores, decoding, forward: B,3,H,W uint8 -> logits B,C,H,W float32) of an exported file.

    The graph's own decoding is left aside: its inner value `logits` is made its only output. Raises UsageError for a
    file that isn't there or isn't from `seghiero export`, CheckpointError for a damaged one.
    """
    # onnx takes a second to import, which a checkpoint can do without
    from seghiero_core.export.metadata import read_metadata
    from seghiero_core.export.runner import make_session, read_onnx, with_logits

    model = read_onnx(path)
    metadata = read_metadata(model, path)
    decoding = metadata["decoding"]
    hierarchy = Hierarchy.from_config(
        {
            "labels": {int(value): name for value, name in metadata["labels"].items()},
            "tree": metadata["tree"],
            "ignore": metadata["ignore"],
            "colors": metadata["colors"],
        }
    )
    session = make_session(with_logits(model, decoding["channels"], only=True).SerializeToString(), device)
    dtype = np.uint8 if session.get_inputs()[0].type == "tensor(uint8)" else np.float32

    def forward(images: Tensor) -> Tensor:
        (logits,) = session.run(["logits"], {"image": images.cpu().numpy().astype(dtype, copy=False)})
        return torch.from_numpy(logits)

    # files of before there were thresholds have no such key
    return hierarchy, decoding["scores"], Decoding(decoding["mode"], decoding.get("confidence")), forward


def load(
    path: str | Path,
    *,
    device: str = "auto",
    mode: str | None = None,
    confidence: float | None = None,
    tile: int | None = None,
    overlap: int = OVERLAP,
    tta: Sequence[str] = (),
    batch_size: int = 1,
) -> Predictor:
    """The predictor of a run folder, a checkpoint, or an ONNX file of `seghiero export`. Never touches the network.

    Args:
        device: auto, cpu, cuda, cuda:N or mps.
        mode: a decoding of `decodings.MODES`; left out, "leaf", or what an ONNX file was exported with.
        confidence: a threshold in 0..1 to back off from (see `decode`), 0 for none; left out, none, or what an ONNX
            file was exported with.
        tile, overlap, batch_size: see Predictor; the sides are rounded up to multiples of 32 px.
        tta: any of "flip" and "scales".

    Raises UsageError where there is no such file, decoding, threshold or augmentation, or tiles don't go together;
    CheckpointError where the file is damaged or of another version; DeviceError for a device that isn't there.
    """
    check_decoding(mode or "leaf", confidence)
    overlap = -(-overlap // ALIGNMENT) * ALIGNMENT
    tile = None if tile is None else -(-tile // ALIGNMENT) * ALIGNMENT
    if overlap < ALIGNMENT or 2 * overlap > (tile or TILE):
        raise UsageError(
            f"--overlap: {overlap} px doesn't go with tiles of {tile or TILE} px; "
            f"it can be from {ALIGNMENT} px to half a tile."
        )
    if batch_size < 1:
        raise UsageError(f"--batch-size: {batch_size} is none; give 1 or more.")
    if Path(path).suffix == ".onnx":
        hierarchy, scores, exported, forward = open_onnx(Path(path), check_device(device))
    else:
        hierarchy, scores, exported, forward = _open_checkpoint(path, check_device(device))
    threshold = exported.confidence if confidence is None else confidence
    return Predictor(
        hierarchy=hierarchy,
        forward=with_augmentation(forward, tta),
        scores=scores,
        mode=mode or exported.mode,
        confidence=threshold or None,  # every score reaches 0
        tile=tile,
        overlap=overlap,
        batch_size=batch_size,
    )


def _open_checkpoint(path: str | Path, device: str) -> tuple[Hierarchy, str, Decoding, Forward]:
    checkpoint, hierarchy, scores, model = load_trained(read_checkpoint(find_checkpoint(path)), device)
    layout = torch.channels_last if checkpoint.config.training.channels_last else torch.contiguous_format

    @torch.inference_mode()
    def forward(images: Tensor) -> Tensor:
        return model(images.to(device).contiguous(memory_format=layout)).logits.float()

    return hierarchy, scores, Decoding(), forward

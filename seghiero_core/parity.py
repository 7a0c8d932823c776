"""Whether an exported file gives what the network gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from seghiero_core.export_graph import DecodedModel
from seghiero_core.onnx_file import make_session, read_metadata, read_onnx, with_logits

Run = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Images B,3,H,W -> the outputs of an exported file by name, `logits` among them."""
SIZES = ((97, 131), (256, 320), (512, 512))
LARGEST = 1024
BATCH_SIZES = (1, 2)


@dataclass
class Parity:
    """Over all images compared.

    Attributes:
        max_abs_error: of the logits.
        max_abs_logit: for scale.
        argmax_agreement: by level, the share of pixels (0..1) that get the same class.
    """

    max_abs_error: float = 0.0
    max_abs_logit: float = 0.0
    argmax_agreement: dict[str, float] = field(default_factory=dict)


def onnx_run(path: Path) -> Run:
    """The ONNX file at `path`, from arrays to arrays, giving its inner value `logits` too."""
    graph = read_onnx(path)
    channels = read_metadata(graph, path)["decoding"]["channels"]
    return session_run(make_session(with_logits(graph, channels, only=False).SerializeToString()))


def session_run(session: onnxruntime.InferenceSession) -> Run:
    """An onnxruntime session, from arrays to arrays."""
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"image": images}), strict=True))


@torch.inference_mode()
def measure_parity(
    run: Run,
    model: DecodedModel,
    images: Sequence[np.ndarray],
    dtype: str,
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> Parity:
    """Compare on `images` (H,W,3 uint8), cropped or mirrored to each of `sizes` (H, W), in batches of BATCH_SIZES.

    `run` takes images of `dtype` (uint8 or float32) and gives `logits`, and the ids of every level unless it has none.
    """
    parity = Parity()
    levels = [level.name for level in model.hierarchy.levels]
    same = dict.fromkeys(levels, 0)
    pixels = 0
    for size in sizes:
        for first, count in enumerate(BATCH_SIZES):
            batch = np.stack([fitted(images[(first + i) % len(images)], size) for i in range(count)])
            batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2)).astype(dtype)
            expected = model(torch.from_numpy(batch))
            found = run(batch)
            logits = expected[0].numpy()
            error = np.abs(found["logits"] - logits).max()
            parity.max_abs_error = max(parity.max_abs_error, float(error) if np.isfinite(error) else float("inf"))
            parity.max_abs_logit = max(parity.max_abs_logit, float(np.abs(logits).max()))
            pixels += logits[:, 0].size
            for level, ids in zip(levels, _ids(found, model), strict=True):
                same[level] += int((ids == expected[1 + levels.index(level)].numpy()).sum())
    parity.argmax_agreement = {level: count / pixels for level, count in same.items()}
    return parity


def _ids(found: dict[str, np.ndarray], model: DecodedModel) -> list[np.ndarray]:
    names = [f"ids_{level.name}" for level in model.hierarchy.levels]
    if names[0] in found:
        return [found[name] for name in names]
    return [ids.numpy() for ids in model.written(model.decode(torch.from_numpy(found["logits"])))]


def natural_sizes(image: np.ndarray) -> list[tuple[int, int]]:
    """Three sizes (H, W) about that of `image`: its own up to LARGEST px a side, an odd one, and half of it."""
    height, width = (min(side, LARGEST) for side in image.shape[:2])
    return [(height, width), (3 * height // 4 | 1, 3 * width // 4 | 1), (-(-height // 2), -(-width // 2))]


def fitted(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """H,W,3 uint8 cropped to `size` (H, W), or continued by its mirror image; not scaled, which no model is used to."""
    missing = [(0, max(0, wanted - have)) for wanted, have in zip(size, image.shape, strict=False)]
    return np.pad(image, [*missing, (0, 0)], mode="symmetric")[: size[0], : size[1]]

"""What is probably meant by masks with several channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seghiero_core.data.faults import DataFinding
from seghiero_core.data.hints import channels_fix

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (20, 20), dtype=np.uint8)
MASKS = {
    "gray": np.stack([GRAY] * 3, axis=2),
    "gray with alpha": np.stack([GRAY, GRAY, GRAY, np.full_like(GRAY, 255)], axis=2),
    "painted": np.array([[200, 0, 0], [0, 200, 0]], np.uint8)[GRAY % 2],
    "picture": RNG.integers(0, 256, (20, 20, 3), dtype=np.uint8),
}


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        (["gray"], "All channels are equal: save one of them"),
        (["gray with alpha", "gray"], "All channels are equal"),
        (["painted"], "`seghiero data convert colors {folder} OUT --config CFG`"),
        (["picture"], "old"),
        (["painted", "gray"], "old"),
        ([], "old"),
    ],
)
def test_the_fix_follows_from_what_masks_look_like(tmp_path, masks, words):
    files = [tmp_path / f"{number}.png" for number in range(len(masks))]
    for path, name in zip(files, masks, strict=True):
        Image.fromarray(MASKS[name]).save(path)
    finding = DataFinding("error", "mask_channels", "text", "old", (*files, Path("shard.tar/0")))
    assert words.format(folder=tmp_path) in channels_fix(finding).fix
    other = DataFinding("error", "unreadable", "text", "old", tuple(files))
    assert channels_fix(other) is other

"""Test-time augmentation, against direct computation."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from seghiero_core import load
from seghiero_core.predict.tta import SCALES, with_augmentation


def test_flip_is_the_mean_of_both_sides(tiny_run, photo):
    plain = load(tiny_run, device="cpu").forward
    images = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None]
    flipped = with_augmentation(plain, ["flip"])
    torch.testing.assert_close(flipped(images), (plain(images) + plain(images.flip(3)).flip(3)) / 2)
    torch.testing.assert_close(flipped(images.flip(3)).flip(3), flipped(images))


def test_scales_are_the_mean_over_scales(tiny_run, photo):
    plain = load(tiny_run, device="cpu").forward
    images = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None]
    size = images.shape[-2:]
    expected = 0
    for scale in SCALES:
        scaled_size = [round(side * scale) for side in size]
        scaled = F.interpolate(images.float(), scaled_size, mode="bilinear", antialias=True).round().to(torch.uint8)
        expected = expected + F.interpolate(plain(scaled), size, mode="bilinear") / len(SCALES)
    found = with_augmentation(plain, ["scales"])(images)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    both = with_augmentation(plain, ["flip", "scales"])(images[..., :1, :1])
    assert both.shape[-2:] == (1, 1) and both.isfinite().all()

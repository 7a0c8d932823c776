"""Counting images whose logits are upsampled band by band."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seghiero_core.decode import SCORES, decode
from seghiero_core.decode_modes import MODES, Decoding
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses import bands
from seghiero_core.metrics.metrics import Metrics
from seghiero_core.model.measuring import count_images, decode_in_bands, whole_logits
from support.trees import CAMVID, random_target

HIERARCHY = Hierarchy.from_config(CAMVID)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    stride=st.sampled_from([1, 2, 4, 8]),
    band=st.sampled_from([1, 2000, 10**9]),
    mode=st.sampled_from(MODES),
    scores=st.sampled_from(SCORES),
    channels_last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_decoding_in_bands_equals_decoding_the_whole(size, stride, band, mode, scores, channels_last, seed):
    if (mode, scores) == ("expected_cost", "sigmoid"):
        return
    generator = torch.Generator().manual_seed(seed)
    coarse = [-(-side // stride) + seed % 3 for side in size]  # the image is padded to a larger stride
    logits = 3 * torch.randn(2, len(HIERARCHY), *coarse, generator=generator)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    whole = decode(bands.upsample(logits, stride, *size), HIERARCHY, mode, scores=scores)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bands.BAND, "cpu", band)
        found = decode_in_bands(logits, stride, size, HIERARCHY, mode, scores=scores)
    for a, b in zip(found.ids, whole.ids, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(found.confidence, whole.confidence, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("decoding", [Decoding("leaf"), Decoding("top_down", 0.5)])
@pytest.mark.parametrize("tile", [None, 256])
def test_counts_equal_those_of_whole_logits(decoding, tile, monkeypatch):
    """All of them: confusions, boundaries, calibration and the curve of thresholds."""
    torch.manual_seed(0)
    size = (301, 275)
    mixing = torch.randn(len(HIERARCHY.leaves), 3) / 30
    images = torch.randint(0, 256, (1 if tile else 2, 3, *size), dtype=torch.uint8)
    target = random_target(HIERARCHY, len(images), *size)

    def coarse(batch):
        padded = torch.nn.functional.pad(batch.float(), (0, -batch.shape[3] % 32, 0, -batch.shape[2] % 32))
        return torch.einsum("kc,bchw->bkhw", mixing, torch.nn.functional.avg_pool2d(padded, 4)), 4

    whole, banded = Metrics(HIERARCHY), Metrics(HIERARCHY)
    count_images(
        lambda batch: (whole_logits(coarse)(batch), 1), images, target, [whole] * len(images), decoding, tile=tile
    )
    monkeypatch.setitem(bands.BAND, "cpu", 5000)
    count_images(coarse, images, target, [banded] * len(images), decoding, tile=tile)
    assert whole.compute()["pixels"] > 0
    for level in range(len(HIERARCHY.levels)):
        assert (whole.confusion(level) == banded.confusion(level)).all()
    difference = (whole.counts - banded.counts).abs()
    assert difference.max() <= 20 and (difference > 0).sum() < 20  # sums of confidences, in units of 2**-20


def test_whole_logits_are_never_stored(monkeypatch):
    monkeypatch.setitem(bands.BAND, "cpu", 2**13)
    logits = torch.randn(1, len(HIERARCHY.leaves), 64, 64)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            nonlocal largest
            found = function(*arguments, **(options or {}))
            if isinstance(found, torch.Tensor) and found is not logits:
                largest = max(largest, found.numel())
            return found

    with Watch():
        decode_in_bands(logits, 4, (256, 256), HIERARCHY)
    assert largest <= 256 * 256 and logits.numel() * 16 == 11 * 256 * 256  # one map of ids, and not eleven

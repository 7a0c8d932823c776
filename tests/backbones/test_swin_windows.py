"""Attention in shifted windows, against timm's own."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch

from seghiero_core.backbones.networks.swin_windows import make_windows_traceable


@pytest.mark.parametrize(
    "variant", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_ns_224"]
)
def test_the_features_are_timms(variant):
    torch.manual_seed(0)
    theirs = timm.create_model(variant, num_classes=0, strict_img_size=False, depths=(2, 2, 2, 2), embed_dim=24).eval()
    ours = copy.deepcopy(theirs)
    make_windows_traceable(ours)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = theirs.forward_intermediates(x, intermediates_only=True)
        for net in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            for a, b in zip(net.forward_intermediates(x, intermediates_only=True), expected, strict=True):
                torch.testing.assert_close(a, b)

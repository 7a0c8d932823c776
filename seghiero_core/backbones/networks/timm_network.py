"""Any model of timm without its classifier, returning feature maps at strides 4, 8, 16 and 32."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional as F

from seghiero_core.backbones.networks.checkpointing import CountedOnce
from seghiero_core.backbones.networks.pyramid import PyramidNeck
from seghiero_core.backbones.networks.swin_windows import make_windows_traceable
from seghiero_core.backbones.networks.timm_facts import TARGETS, TimmFacts


class TimmNetwork(nn.Module):
    """A model of timm, with timm's parameter names below `net.`, and the layers that make C1 to C4 of its feature maps.

    An image is padded at the bottom and right, by repeating its last row and column, to a multiple of `facts.unit` px.
    For a ViT with patches of 14 px it is then resized to 14/16, so that tokens have a stride of 16 px. A network that
    takes one size only sees windows of the image, one by one, and their feature maps are put together again.

    The feature maps of a plain network pass its final norm, as in DINOv2's evaluation on dense tasks. Parameters that
    no feature map depends on are buffers here: they don't learn, and published weights still load completely.

    Args:
        facts: How the model is run.
        output_stride: Stride of C4 in px: 8, 16 or 32.
        drop_path: Probability of dropping the deepest residual branch in training; 0 for a network that drops none.
        gradient_checkpointing: Whether to recompute parts of the network in the backward pass to save memory.

    Attributes:
        net: The model.
        neck: The layers that make C1 to C4; they are not part of the published weights.
    """

    def __init__(self, facts: TimmFacts, output_stride: int, drop_path: float, gradient_checkpointing: bool):
        super().__init__()
        options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
        if output_stride != 32:
            options["output_stride"] = output_stride
        self.net = create_timm_model(facts.variant, **(facts.arguments or {}), **options)
        make_windows_traceable(self.net)
        whole = set(self.net.state_dict())
        self.facts = facts
        self.strides = [min(stride, output_stride) for stride in facts.strides]
        self.targets = [min(target, output_stride) for target in TARGETS]
        self.indices = self.net.prune_intermediate_layers(list(facts.indices), prune_norm=not facts.plain)
        self._pruned = frozenset(whole - set(self.net.state_dict()))
        for name in facts.unused:
            parent, _, last = name.rpartition(".")
            module = self.net.get_submodule(parent)
            value = getattr(module, last).detach()
            delattr(module, last)
            module.register_buffer(last, value)
        self.checkpoints = CountedOnce(self.net) if gradient_checkpointing else None
        self.neck = PyramidNeck(facts.levels)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Compute the features of a batch of images.

        Args:
            x: B,3,H,W, normalized; H and W at least 1 px.

        Returns:
            [C1, C2, C3, C4], each B,c,h,w at stride 4, 8, 16, 32 (C3 and C4 at most `output_stride`); h and w are those
            of the image divided by the stride, rounded up.
        """
        return self.levels(self.maps(x), x.shape[-2:])

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Compute the feature maps that the neck makes C1 to C4 of.

        Args:
            x: B,3,H,W, as for `forward`.

        Returns:
            The maps, each B,c,h,w over the padded image.
        """
        height, width = x.shape[-2:]
        unit, inner = self.facts.unit, self.facts.inner
        # With whole units instead of remainders, tracing for any size takes a fraction of the time. No negative number
        # is divided: ONNX rounds to zero.
        rows, columns = (height + unit - 1) // unit, (width + unit - 1) // unit
        x = F.pad(x, (0, columns * unit - width, 0, rows * unit - height), mode="replicate")
        if inner != unit:
            x = F.interpolate(x, size=(rows * inner, columns * inner), mode="bilinear", align_corners=False)
        if self.facts.windows:
            x = to_windows(x, inner)
        if self.checkpoints:
            self.net.set_grad_checkpointing(self.training)
        with self.checkpoints or nullcontext():
            maps = self.net.forward_intermediates(
                x, indices=self.indices, norm=self.facts.plain, output_fmt="NCHW", intermediates_only=True
            )
        if self.facts.windows:
            maps = [
                from_windows(_resize(each, unit // s, unit // s), rows, columns)
                for each, s in zip(maps, self.strides, strict=True)
            ]
        elif not self.facts.exact:
            maps = [
                _resize(each, rows * unit // s, columns * unit // s) for each, s in zip(maps, self.strides, strict=True)
            ]
        return maps

    def levels(
        self, maps: Sequence[torch.Tensor], size: Sequence[int], unread: Collection[int] = ()
    ) -> list[torch.Tensor]:
        """Make C1 to C4 of the feature maps.

        Args:
            maps: What `maps` returned.
            size: (H, W) of its argument.
            unread: Positions of maps that nothing depends on. What would be made of them is zeros, and takes no time.

        Returns:
            [C1, C2, C3, C4], as of `forward`.
        """
        sizes = [tuple((side + target - 1) // target for side in size) for target in self.targets]
        return [
            maps[0].new_zeros(1).expand(len(maps[0]), planned.channels, height, width)
            if level is None
            else level[..., :height, :width]
            for level, planned, (height, width) in zip(self.neck(maps, unread), self.facts.levels, sizes, strict=True)
        ]

    def convert_weights(self, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Convert published weights to the layout of this network, with timm's own function for this model.

        Args:
            state: The tensors of a file, any shape.

        Returns:
            The tensors under timm's names, with position embeddings resized to those of this network.
        """
        module = sys.modules[timm.model_entrypoint(self.facts.variant).__module__]
        convert = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
        return convert(dict(state), self.net) if convert else state

    def foreign_layers(self, names: Iterable[str]) -> list[str]:
        """Find layers that the whole model of timm doesn't have, in the part of it that is used here.

        Args:
            names: Names of tensors, as timm would have them.

        Returns:
            The layers, such as "blocks.12" of a deeper network.
        """
        layers = {_numbered_layer(name) for name in (*self.net.state_dict(), *self._pruned)}
        stacks = {layer.rpartition(".")[0] for layer in layers if layer}
        found = dict.fromkeys(_numbered_layer(name) for name in names)
        return [layer for layer in found if layer not in layers and layer.rpartition(".")[0] in stacks]


def _numbered_layer(name: str) -> str:
    """The start of a name up to its first number, such as "blocks.3"; empty if it has none."""
    match = re.match(r"(?:[^.]+\.)*?\d+(?=\.)", name)
    return match[0] if match else ""


def create_timm_model(variant: str, **options: Any) -> nn.Module:
    """Build a model of timm without its classifier and with random weights.

    Args:
        variant: Its name.
        **options: Further arguments of its builder.

    Returns:
        The model.
    """
    return timm.create_model(variant, pretrained=False, num_classes=0, **options)


def to_windows(x: torch.Tensor, side: int) -> torch.Tensor:
    """Cut images into square windows.

    Args:
        x: B,C,H,W; H and W are multiples of `side`.
        side: Side of a window in px.

    Returns:
        N,C,side,side: the windows of each image, row by row.
    """
    x = x.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # B,C,rows,side,columns,side
    return x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def from_windows(x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Put the feature maps of windows together, which undoes `to_windows`.

    Args:
        x: N,C,h,w, a map for each window.
        rows, columns: Windows of an image.

    Returns:
        B,C,rows*h,columns*w.
    """
    x = x.unflatten(0, (-1, rows, columns))  # B,rows,columns,C,h,w
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def _resize(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)

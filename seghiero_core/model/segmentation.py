"""The assembled network: takes images and returns logits of the same size."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn import functional as F

from seghiero_core.heads.networks.layers import conv_norm_act, init_weights
from seghiero_core.registry import NECK


class SegmentationOutput(NamedTuple):
    """Output of a forward pass.

    Attributes:
        logits: B,num_classes,H,W at the input's size, without an activation; or with a `stride`, B,num_classes,h,w over
            the padded input.
        embedding: B,proj_dim,h,w with unit length along the channels, or None if the head has no embedding branch. Like
            the logits it covers the input without padding, but at the resolution that the head works at.
        auxiliary_logits: B,num_classes,H,W from the auxiliary head, or None in eval mode and without that head; with an
            `auxiliary_stride`, B,num_classes,h,w over the padded input.
        head_outputs: What else the head returned in training, for a loss of its own, or None. Its maps cover the padded
            input.
        stride: How many pixels a logit covers along each side; above 1, the logits have yet to be upsampled.
        auxiliary_stride: The same of the auxiliary logits.
    """

    logits: torch.Tensor
    embedding: torch.Tensor | None = None
    auxiliary_logits: torch.Tensor | None = None
    head_outputs: dict[str, torch.Tensor] | None = None
    stride: int = 1
    auxiliary_stride: int = 1


@runtime_checkable
class NeckedBackbone(Protocol):
    """A backbone with a neck (parameters whose names start with "neck.") that can be run in two steps."""

    def maps(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """Compute what the neck makes C1 to C4 of.

        Args:
            x: B,N,H,W as for `forward`.

        Returns:
            The maps, each B,c,h,w.
        """

    def levels(
        self, maps: Sequence[torch.Tensor], size: Sequence[int], unread: Collection[int] = ()
    ) -> Sequence[torch.Tensor]:
        """Make C1 to C4.

        Args:
            maps: What `maps` returned.
            size: (H, W) of its argument.
            unread: Positions of maps that no output depends on; what is made of them may be anything of its size.

        Returns:
            [C1, C2, C3, C4], each B,c,h,w.
        """


class AuxiliaryHead(nn.Sequential):
    """A small fully convolutional head on C3 for deep supervision.

    Maps B,in_channels,h,w to B,num_classes,h,w. Reference: Zhao et al. 2017, "Pyramid Scene Parsing Network",
    section 3.3.

    Args:
        in_channels: Channels of C3.
        num_classes: Channels of the logits.
        dropout: Probability of dropping a channel before the classifier in training.
    """

    def __init__(self, in_channels: int, num_classes: int, dropout: float = 0.1):
        width = max(in_channels // 4, 32)
        classifier = nn.Conv2d(width, num_classes, 1)
        super().__init__(conv_norm_act(in_channels, width, 3), nn.Dropout2d(dropout), classifier)
        init_weights(self, classifier)


class SegmentationModel(nn.Module):
    """Normalizes and pads images, runs backbone and head, and resizes the logits to the input's size.

    Accepts any H and W from 1 px. An image is padded at the bottom and right to a multiple of `stride` by repeating its
    last row and column: zeros would add an edge that no photograph has, and reflection needs an image larger than the
    padding. BatchNorm needs more than one value per channel in training, so a training batch of a single image must
    have a side longer than `stride`.

    Args:
        backbone: Maps B,N,H,W to [C1, C2, C3, C4]. If it has a neck, it should be a `NeckedBackbone`.
        head: Maps [C1, C2, C3, C4] to (logits at C1's size, embedding or None). In training it may also return
            a dict of tensors for a loss of its own.
        mean, std: Mean and standard deviation of each of the N channels: R, G, B in 0..1, of the data that the backbone
            was trained on; or with `stored_units`, of the images.
        stored_units: Whether the images have any N bands in the units of `mean` and `std`, and NaN where there is no
            data, which becomes 0 after normalization.
        stride: Stride of C4, in px.
        auxiliary: Head on C3 that is used only in training.

    Attributes:
        has_neck: Whether the backbone has a neck.
        unread: The positions of `features` that no output depends on, where that is known.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        stored_units: bool = False,
        stride: int,
        auxiliary: nn.Module | None = None,
    ):
        super().__init__()
        self.backbone, self.head, self.auxiliary = backbone, head, auxiliary
        self.has_neck = any(name.startswith(NECK) for name, _ in backbone.named_parameters())
        self.unread: Collection[int] = ()
        self.stride = stride
        self.stored_units = stored_units
        unit = 1 if stored_units else 255
        self.register_buffer("mean", unit * torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.register_buffer("std", unit * torch.tensor(std, dtype=torch.float32).reshape(1, -1, 1, 1))

    @property
    def is_divisible(self) -> bool:
        """Whether `features` can be computed: the neck that a backbone may have is a step of its own."""
        return not self.has_neck or isinstance(self.backbone, NeckedBackbone)

    def forward(
        self,
        images: torch.Tensor | None,
        features: Sequence[torch.Tensor] | None = None,
        size: Sequence[int] | None = None,
        *,
        upsample: bool = True,
    ) -> SegmentationOutput:
        """Segment a batch of images, or what the backbone has computed from them.

        Args:
            images: B,3,H,W, RGB in 0..255, uint8 or float; or B,N,H,W with `stored_units`. None where `features` are
                given.
            features: What `features` returned for the images, so that the backbone is not run again.
            size: (H, W) of the images, where `features` are given.
            upsample: Whether to upsample the logits to the input's size. If not, the loss does it, by the strides.

        Returns:
            The logits B,num_classes,H,W, the embedding and, in training, the auxiliary logits and further outputs of
            the head.
        """
        if features is None:
            x = self.normalize(images)
            features, size, padded = self.backbone(x), images.shape[-2:], x.shape[-2:]
        else:
            padded = [side + -side % self.stride for side in size]
            features = self.backbone.levels(features, padded, self.unread) if self.has_neck else features
        logits, embedding, *further = self.head(features)
        if embedding is not None:
            embedding = _crop_to_centers(embedding, size, padded)
        outputs = further[0] if further else None
        auxiliary, stride, auxiliary_stride = None, 1, 1
        if self.auxiliary is not None and self.training:
            auxiliary = self.auxiliary(features[2])
        if upsample:
            logits = _resize_and_crop(logits, size, padded)
            auxiliary = None if auxiliary is None else _resize_and_crop(auxiliary, size, padded)
        else:
            logits, stride = _with_stride(logits, padded)
            auxiliary, auxiliary_stride = (None, 1) if auxiliary is None else _with_stride(auxiliary, padded)
        return SegmentationOutput(logits, embedding, auxiliary, outputs, stride, auxiliary_stride)

    def features(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        """Run the backbone, without its neck.

        Args:
            images: B,N,H,W as for `forward`.

        Returns:
            [C1, C2, C3, C4], each B,c,h,w; of a backbone with a neck, the maps that it makes them of.
        """
        x = self.normalize(images)
        return self.backbone.maps(x) if self.has_neck else self.backbone(x)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the input of the backbone.

        Args:
            images: B,N,H,W as for `forward`.

        Returns:
            B,N,H,W normalized by `mean` and `std`, with H and W padded to multiples of `stride`.
        """
        height, width = images.shape[-2:]
        x = (images.to(self.mean.dtype) - self.mean) / self.std
        if self.stored_units:
            x = x.masked_fill(x.isnan(), 0.0)
        # Called even when nothing is padded: a branch on the size would fix the size in an exported graph.
        return F.pad(x, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")


def _resize_and_crop(logits: torch.Tensor, size: Sequence[int], padded: Sequence[int]) -> torch.Tensor:
    """Resize logits to the padded input and crop the padding away."""
    return F.interpolate(logits, size=padded, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]


def _with_stride(logits: torch.Tensor, padded: Sequence[int]) -> tuple[torch.Tensor, int]:
    """Return logits whose size divides that of the padded input, and how many times it is smaller."""
    stride = padded[0] // logits.shape[-2]
    if tuple(padded) != (stride * logits.shape[-2], stride * logits.shape[-1]):
        return F.interpolate(logits, size=tuple(padded), mode="bilinear", align_corners=False), 1
    return logits, stride


def _crop_to_centers(grid: torch.Tensor, size: Sequence[int], padded: Sequence[int]) -> torch.Tensor:
    """Crop a coarse grid over the padded input to the cells whose centers are in the image, but to at least one."""
    rows, columns = (
        max(1, (2 * cells * side + whole - 1) // (2 * whole))
        for cells, side, whole in zip(grid.shape[-2:], size, padded, strict=True)
    )
    return grid[..., :rows, :columns]

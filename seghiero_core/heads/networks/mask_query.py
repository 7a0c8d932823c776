"""Queries that each predict a class and a mask, combined into the scores of the classes at every pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from seghiero_core.heads.networks.layers import Embedding, conv_norm_act, resize, separable_conv_norm_act
from seghiero_core.heads.networks.query_decoder import QueryDecoder, log_sigmoid
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.mask_query import mask_query_losses


class PixelDecoder(nn.Module):
    """A feature pyramid: each stage is projected, and from coarse to fine added to the upsampled coarser one.

    Reference: Lin et al. 2017, "Feature Pyramid Networks for Object Detection"; with separable convolutions.

    Args:
        in_channels_list: Channels of C1 to C4.
        channels: Channels of the maps.
    """

    def __init__(self, in_channels_list: Sequence[int], channels: int):
        super().__init__()
        *finer, c4 = in_channels_list
        self.top = conv_norm_act(c4, channels)
        self.projections = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in finer)
        self.refine = nn.ModuleList(separable_conv_norm_act(channels, channels) for _ in finer)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the pyramid.

        Args:
            features: [C1, C2, C3, C4], each B,c,h,w.

        Returns:
            Four maps B,channels,h,w at the sizes of C4, C3, C2 and C1.
        """
        *finer, c4 = features
        maps = [self.top(c4)]
        for feature, project, refine in reversed(list(zip(finer, self.projections, self.refine, strict=True))):
            x = project(feature)
            maps.append(refine(x + resize(maps[-1], like=x)))
        return maps


class MaskQueryHead(nn.Module):
    """Predicts a set of masks with a class each, as Mask2Former does, and combines them into scores of the classes.

    The score of class k at a pixel is the sum over the queries of p(k) times the probability of the mask at the pixel,
    where p is the softmax over the classes and "no object", whose share is left out. It is how Mask2Former segments
    semantically. The logits are the log of the scores, so their softmax divides each score by the sum of all, and
    losses, decodings and metrics that read logits need not know about queries.

    In training it also returns the classes and masks of every decoder layer, for `loss`, which matches queries with the
    masks of the classes in each image.

    Reference: Cheng et al. 2022, "Masked-attention Mask Transformer for Universal Image Segmentation".

    Args:
        in_channels_list: Channels of C1 to C4.
        num_classes: Channels of the logits.
        proj_dim: Channels of the decoders and of the embedding, a multiple of 4.
        queries: Number of queries.
        layers: Number of layers of the transformer decoder.
        embedding: Whether to build the embedding branch.
        loss_weights: The weights of the terms of `loss`: "class", "mask" and "dice". Where all are 0, it has no loss of
            its own.
        no_object_weight: Weight of a query without a mask in the term "class".
    """

    def __init__(
        self,
        in_channels_list: Sequence[int],
        num_classes: int,
        proj_dim: int,
        queries: int,
        layers: int,
        embedding: bool,
        loss_weights: Mapping[str, float],
        no_object_weight: float,
    ):
        super().__init__()
        self.pixel_decoder = PixelDecoder(in_channels_list, proj_dim)
        self.pixels = nn.Conv2d(proj_dim, proj_dim, 1)
        self.decoder = QueryDecoder(proj_dim, queries, layers, 4 * proj_dim)
        # Two layers, so that `init_from` finds one row per class in `classifier`.
        self.classifier, self.no_object = nn.Linear(proj_dim, num_classes), nn.Linear(proj_dim, 1)
        self.embedding = Embedding(proj_dim, proj_dim) if embedding else None
        self.loss_weights, self.no_object_weight = dict(loss_weights), no_object_weight

    def forward(
        self, features: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None] | tuple[torch.Tensor, torch.Tensor | None, dict[str, torch.Tensor]]:
        """Compute logits and embedding from the four stages of a backbone.

        Args:
            features: [C1, C2, C3, C4], each B,c,h,w.

        Returns:
            The logits B,num_classes,h,w at C1's size, and the embedding B,proj_dim,h,w at C1's size with unit length
            along the channels, or None without the embedding branch. In training also, of the P predictions before the
            first decoder layer and after each, "class_logits" B,P,Q,num_classes+1 and "mask_logits" B,P,Q,h,w.
        """
        *maps, finest = self.pixel_decoder(features)
        pixels = self.pixels(finest)
        found = self.decoder(maps, pixels)
        supervised = self.training and any(self.loss_weights.values())
        queries = torch.stack(found if supervised else found[-1:], dim=1)
        class_logits = torch.cat([self.classifier(queries), self.no_object(queries)], dim=3)
        mask_logits = torch.einsum("bpqc,bchw->bpqhw", self.decoder.mask(queries), pixels)
        logits = combine(class_logits[:, -1], mask_logits[:, -1])
        embedding = None if self.embedding is None else self.embedding(finest)
        if not supervised:
            return logits, embedding
        return logits, embedding, {"class_logits": class_logits, "mask_logits": mask_logits}

    def loss(
        self,
        outputs: Mapping[str, torch.Tensor],
        target: torch.Tensor,
        hierarchy: Hierarchy,
        *,
        counts: torch.Tensor | None = None,
    ) -> dict[str, tuple[float, torch.Tensor]]:
        """Compare the queries of every decoder layer with the masks of the classes in each image.

        Args:
            outputs: The third value of `forward`.
            target: B,H,W of labels or the ignore index.
            hierarchy: The class tree.
            counts: The label counts of the whole step, see `mask_query_losses`. Default: this batch is the whole step.

        Returns:
            The weight and the value of "class", "mask" and "dice".
        """
        terms = mask_query_losses(
            outputs["class_logits"],
            outputs["mask_logits"],
            target,
            hierarchy,
            weights=self.loss_weights,
            no_object_weight=self.no_object_weight,
            counts=counts,
        )
        return {name: (self.loss_weights[name], value) for name, value in terms.items()}


def combine(class_logits: torch.Tensor, mask_logits: torch.Tensor) -> torch.Tensor:
    """Compute the log of the classes' scores from classes and masks of queries, in float32 also under autocast.

    The score of class k at a pixel is the sum over the queries of softmax(class_logits)_k * sigmoid(mask_logits).

    Args:
        class_logits: B,Q,C+1; the last class is "no object".
        mask_logits: B,Q,h,w.

    Returns:
        B,C,h,w, with the dtype of `mask_logits`.
    """
    device = mask_logits.device.type
    # The meta device, used to infer shapes, has no autocast to disable.
    with torch.autocast(device if torch.amp.is_autocast_available(device) else "cpu", enabled=False):
        log_p = class_logits.float().log_softmax(dim=2)[..., :-1]
        log_mask = log_sigmoid(mask_logits.float())
        # The largest factors are taken out, so that classes and pixels with small scores alone keep their precision.
        top_p, top_mask = log_p.detach().amax(dim=1), log_mask.detach().amax(dim=1)  # B,C and B,h,w
        p, mask = (log_p - top_p[:, None]).exp(), (log_mask - top_mask[:, None]).exp()
        score = torch.einsum("bqk,bqhw->bkhw", p, mask)
        log_score = score.clamp(min=torch.finfo(score.dtype).tiny).log()
        return (log_score + top_p[:, :, None, None] + top_mask[:, None]).to(mask_logits.dtype)

"""A classifier whose class boundaries are hyperplanes of hyperbolic space."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

_SMALLEST = 1e-6
"""Norms below it count as this, which keeps their gradients finite."""
_FARTHEST = 40.0
"""The largest 2 sqrt(c) |b_k|; beyond it float32 would overflow."""


class PoincareClassifier(nn.Module):
    """Multinomial logistic regression in a Poincaré ball, in place of a 1x1 convolution.

    A pixel's features x are cut to at most unit length and mapped into the ball of curvature -c by the exponential map
    at 0. The logit of class k is its signed distance from a hyperplane, whose normal is the weight z_k and which is
    b_k away from 0, times the length of the normal. With rho = sqrt(c) |x|,

        2 |z_k| / sqrt(c) asinh(sinh(2 rho) cos(x, z_k) cosh(2 sqrt(c) b_k) + cosh(2 rho) sinh(2 sqrt(c) b_k))

    For small c it approaches 4 (<x, z_k> + |z_k| b_k). All parameters are Euclidean, so any optimizer will do. It
    computes in float32 at least, also under autocast.

    References: Ganea et al. 2018, "Hyperbolic Neural Networks", eq. 25, in the form of Shimizu et al. 2021, "Hyperbolic
    Neural Networks++", eq. 6; Guo et al. 2022, "Clipped Hyperbolic Classifiers Are Super-Hyperbolic Classifiers", for
    the cut; Atigh et al. 2022, "Hyperbolic Image Segmentation", for its use per pixel.

    Args:
        linear: The 1x1 convolution from B,C,H,W to B,num_classes,H,W that it replaces, whose parameters it takes over.
        curvature: The curvature c, above 0.
    """

    def __init__(self, linear: nn.Conv2d, curvature: float):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.curvature = curvature

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the logits of each pixel.

        Args:
            x: B,C,H,W.

        Returns:
            B,num_classes,H,W, with the dtype of `x`.
        """
        dtype, device = torch.promote_types(x.dtype, torch.float32), x.device.type
        # The meta device, used to infer shapes, has no autocast to disable.
        with torch.autocast(device if torch.amp.is_autocast_available(device) else "cpu", enabled=False):
            return self._logits(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype)).to(x.dtype)

    def _logits(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        root = self.curvature**0.5
        length = x.square().sum(dim=1, keepdim=True).clamp(min=_SMALLEST**2).sqrt()
        normal = weight.square().sum(dim=(1, 2, 3)).clamp(min=_SMALLEST**2).sqrt()[:, None, None]
        offset = (2 * root * bias[:, None, None]).clamp(-_FARTHEST, _FARTHEST)
        twice_rho = 2 * root * length.clamp(max=1)
        along = F.conv2d(x, weight) * (twice_rho.sinh() / length)
        return 2 / root * normal * torch.asinh(along * (offset.cosh() / normal) + twice_rho.cosh() * offset.sinh())

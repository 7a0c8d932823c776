"""The transformer decoder of Mask2Former (Cheng et al. 2022), with masks that are soft."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from seghiero_core.heads.networks.layers import resize

_TEMPERATURE = 10000
"""The ratio of the longest to the shortest wavelength of the position encoding."""


def sine_positions(like: torch.Tensor) -> torch.Tensor:
    """Encode where the cells of a map are, by sines of their place relative to the map's height and width.

    Reference: Carion et al. 2020, "End-to-End Object Detection with Transformers" (DETR).

    Args:
        like: B,C,h,w, with C a multiple of 4.

    Returns:
        h*w,C float32: the first half of the channels encodes the row, the second the column.
    """
    channels, height, width = like.shape[1:]
    pairs = torch.arange(channels // 4, device=like.device)
    frequency = _TEMPERATURE ** (-4 * pairs / channels)
    halves = []
    for size in (height, width):
        place = torch.arange(1, size + 1, device=like.device, dtype=torch.float32)
        angle = (2 * math.pi * place / (place.amax(dim=0) + 1e-6))[:, None] * frequency
        halves.append(torch.stack((angle.sin(), angle.cos()), dim=2).flatten(1))
    rows, columns = halves
    grid = (rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1))
    return torch.cat(grid, dim=2).flatten(0, 1)


def log_sigmoid(x: torch.Tensor) -> torch.Tensor:
    """Compute the log of the sigmoid.

    onnxruntime's sigmoid ends at that of -18, so in an exported graph the log of it would, too.

    Args:
        x: Any shape.

    Returns:
        Values of any shape, at most 0.
    """
    return -F.softplus(-x)


class Attention(nn.Module):
    """Multi-head attention.

    Args:
        channels: Channels of queries, keys and values; a multiple of `heads`.
        heads: Number of heads.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Let each query collect values.

        Args:
            query: B,Q,C.
            key: B,N,C.
            value: B,N,C.
            bias: B,Q,N, added to the scores of all heads before the softmax.

        Returns:
            B,Q,C.
        """
        query, key, value = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        # Spelled out, because a graph traced with torch's own function can't be exported to ONNX.
        scores = query @ key.mT * query.shape[3] ** -0.5
        if bias is not None:
            scores = scores + bias[:, None]
        x = scores.softmax(dim=3).to(value.dtype) @ value
        return self.out(x.transpose(1, 2).flatten(2))


class QueryLayer(nn.Module):
    """Cross-attention to the cells of a map, self-attention between the queries, and an MLP, each with a norm after it.

    Args:
        channels: Channels of queries and maps.
        heads: Heads of both attentions.
        hidden: Channels in the MLP.
    """

    def __init__(self, channels: int, heads: int, hidden: int):
        super().__init__()
        self.cross, self.self_attention = Attention(channels, heads), Attention(channels, heads)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.cross_norm, self.self_norm, self.mlp_norm = (nn.LayerNorm(channels) for _ in range(3))

    def forward(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        cells: torch.Tensor,
        cell_positions: torch.Tensor,
        bias: torch.Tensor,
    ) -> torch.Tensor:
        """Update the queries.

        Args:
            x: B,Q,C, the queries.
            positions: Q,C, added to the queries where they are compared.
            cells: B,N,C, the cells of a map.
            cell_positions: N,C, added to the cells where they are compared.
            bias: B,Q,N, added to the scores of the cells.

        Returns:
            B,Q,C.
        """
        x = self.cross_norm(x + self.cross(x + positions, cells + cell_positions, cells, bias))
        placed = x + positions
        x = self.self_norm(x + self.self_attention(placed, placed, x))
        return self.mlp_norm(x + self.mlp(x))


class QueryDecoder(nn.Module):
    """Learned queries that look at three maps in turn, each where its current mask is.

    Each layer attends to one map, the coarsest first. Mask2Former hides the cells whose mask probability is below 1/2
    from a query. Here a cell's score gets the log of the probability added, so its weight is multiplied by it. That is
    continuous, so a rounding error can't hide or show a cell: an exported network gives what the network gives. Where
    all probabilities are 0 or 1 and no mask is empty, the two are equal. As there, no gradient flows through the masks
    that guide the attention.

    Reference: Cheng et al. 2022, "Masked-attention Mask Transformer for Universal Image Segmentation", section 3.2.

    Args:
        channels: Channels of queries and maps, a multiple of 4.
        queries: Number of queries.
        layers: Number of layers.
        hidden: Channels in the MLP of a layer.
    """

    def __init__(self, channels: int, queries: int, layers: int, hidden: int):
        super().__init__()
        self.features = nn.Parameter(torch.randn(queries, channels))
        self.positions = nn.Parameter(torch.randn(queries, channels))
        self.levels = nn.Parameter(torch.randn(3, channels))
        heads = math.gcd(channels, 8)
        self.layers = nn.ModuleList(QueryLayer(channels, heads, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(channels)
        self.mask = nn.Sequential(
            *(nn.Linear(channels, channels), nn.ReLU()),
            *(nn.Linear(channels, channels), nn.ReLU()),
            nn.Linear(channels, channels),
        )
        self._init_weights()

    def _init_weights(self) -> None:
        """Let every layer start as the identity, because the queries have to differ.

        Otherwise layers that mix the queries make them alike at the start. Matching them with masks drives them apart,
        but losses over the logits alone may not: all queries then learn the same.
        """
        for layer in self.layers:
            for last in (layer.cross.out, layer.self_attention.out, layer.mlp[2]):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def forward(self, maps: Sequence[torch.Tensor], pixels: torch.Tensor) -> list[torch.Tensor]:
        """Decode the queries of each image.

        Args:
            maps: Three maps B,C,h,w, the coarsest first.
            pixels: B,C,H,W; a query's mask is its product with the query's mask embedding, `mask(queries)`.

        Returns:
            The queries B,Q,C before the first layer and after each, normalized.
        """
        x = self.features.expand(pixels.shape[0], -1, -1)
        found = [self.norm(x)]
        used = maps[: len(self.layers)]
        cells = [(m.flatten(2).mT + level, sine_positions(m)) for m, level in zip(used, self.levels, strict=False)]
        # Resizing commutes with the product, so no mask is computed at full size only to be made smaller.
        small_pixels = [resize(pixels.detach(), like=m).flatten(2) for m in used]
        for i, layer in enumerate(self.layers):
            with torch.no_grad():
                bias = log_sigmoid((self.mask(found[-1]) @ small_pixels[i % 3]).float())
            x = layer(x, self.positions, *cells[i % 3], bias)
            found.append(self.norm(x))
        return found

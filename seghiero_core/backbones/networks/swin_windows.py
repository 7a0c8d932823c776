"""The attention of Swin Transformers in shifted windows, written so that it can be traced for any image size."""

from __future__ import annotations

from functools import partial

import torch
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from timm.models.swin_transformer_v2_cr import SwinTransformerV2CrBlock
from torch import nn
from torch.nn import functional as F

# The method of each block that attends within windows.
_METHODS = {
    SwinTransformerBlock: "_attn",
    SwinTransformerV2Block: "_attn",
    SwinTransformerV2CrBlock: "_shifted_window_attn",
}


def make_windows_traceable(net: nn.Module) -> None:
    """Replace the window attention of a Swin Transformer of timm by one that computes the same.

    timm finds the padding by remainders. For a free image size these nest in each stage, and simplifying them keeps the
    tracer busy for longer than ten minutes. With the number of windows instead, it takes seconds.

    Args:
        net: Any model of timm; other networks stay as they are. It is changed in place.
    """
    for block in net.modules():
        if method := _METHODS.get(type(block)):
            setattr(block, method, partial(_attend_in_windows, block))  # unlike a bound method, it can be pickled


def _attend_in_windows(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Map B,H,W,C to the same shape."""
    height, width = x.shape[1:3]
    (tall, wide), (down, right) = block.window_size, block.shift_size
    rows, columns = (height + tall - 1) // tall, (width + wide - 1) // wide
    shifted = down or right
    if shifted:
        x = torch.roll(x, (-down, -right), (1, 2))
    x = F.pad(x, (0, 0, 0, columns * wide - width, 0, rows * tall - height))
    mask = block.get_attn_mask(x) if getattr(block, "dynamic_mask", False) else block.attn_mask
    windows = x.unflatten(2, (columns, wide)).unflatten(1, (rows, tall))  # B,rows,tall,columns,wide,C
    windows = windows.transpose(2, 3).flatten(0, 2).flatten(1, 2)  # one row per window: N,tall*wide,C
    windows = block.attn(windows, mask=mask).unflatten(1, (tall, wide)).unflatten(0, (-1, rows, columns))
    x = windows.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :height, :width]
    return torch.roll(x, (down, right), (1, 2)) if shifted else x.contiguous()

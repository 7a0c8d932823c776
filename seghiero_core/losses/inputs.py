"""The checks that every public loss makes before it computes anything."""

from __future__ import annotations

import torch
from torch import Tensor

from seghiero_core.errors import shorten
from seghiero_core.hierarchy.tensors import tree_tensors
from seghiero_core.hierarchy.tree import Hierarchy


def check_inputs(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    channels: str,
    *,
    ignore_index: int,
    validate: bool,
    class_weight: Tensor | None = None,
    sets: bool = False,
) -> tuple[Tensor, Tensor]:
    """Check what a loss is given, and pick the channels that it reads.

    Shapes, channels and dtypes are always checked. The values of the target are checked only with `validate`, because
    reading them from a GPU waits for everything queued on it.

    Args:
        logits: B,C,H,W. C is N for a loss over nodes, and K or N for one over leaves. An embedding may have any number
            of channels and any height and width.
        target: B,H,W of labels, any integer dtype.
        hierarchy: The class tree, with K leaves and N nodes.
        channels: What the loss reads: "leaves", "nodes" or "embedding", as in `LossEntry.channels`.
        ignore_index: Target value of the pixels that do not count.
        validate: Whether to check the values of the target.
        class_weight: (K) weights of the leaves, if the loss takes any.
        sets: Whether the loss can use labels that are sets. If not, they are replaced by their lowest common ancestor,
            or ignored where that is the root.

    Returns:
        The logits, cut to their first K channels for a loss over leaves, and the target as int64.

    Raises:
        ValueError: When a shape, a dtype, the number of channels or a target value is wrong.
    """
    name = "embedding" if channels == "embedding" else "logits"
    if not isinstance(logits, Tensor):
        raise ValueError(f"{name}: expected a tensor, found {type(logits).__name__}; of a model's output take .{name}")
    if not isinstance(target, Tensor):
        raise ValueError(f"target: expected a tensor, found {type(target).__name__}; use torch.from_numpy(target)")
    if class_weight is not None and not isinstance(class_weight, Tensor):
        raise ValueError(f"class_weight: expected a tensor, found {type(class_weight).__name__}; use torch.tensor(...)")
    if logits.ndim != 4:
        raise ValueError(f"{name}: expected 4 dimensions (B,C,H,W), found shape {tuple(logits.shape)}")
    if target.ndim != 3:
        hint = {2: "; use target[None]", 4: "; use target.squeeze(1)"}.get(target.ndim, "")
        raise ValueError(f"target: expected 3 dimensions (B,H,W), found shape {tuple(target.shape)}{hint}")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise ValueError(
            f"target: expected integers (node indices), found {target.dtype}; hierarchy.to_target(mask) gives them"
        )
    if logits.shape[0] != target.shape[0]:
        raise ValueError(f"{name}: batch size {logits.shape[0]} differs from the target's {target.shape[0]}")
    if channels != "embedding":
        _check_size(logits, target)
        _check_channels(logits.shape[1], hierarchy, channels)
    leaves = len(hierarchy.leaves)
    if class_weight is not None and class_weight.shape != (leaves,):
        raise ValueError(f"class_weight: expected shape ({leaves},), one per leaf, found {tuple(class_weight.shape)}")
    target = target.long()
    if validate and not torch.compiler.is_compiling():
        _check_values(target, len(hierarchy.label_nodes), ignore_index)
    if hierarchy.sets and not sets:
        target = _without_sets(target, hierarchy, ignore_index)
    return (logits[:, :leaves] if channels == "leaves" else logits), target


def _check_size(logits: Tensor, target: Tensor) -> None:
    if logits.shape[2:] != target.shape[1:]:
        height, width = target.shape[1:]
        raise ValueError(
            f"logits: {logits.shape[2]} x {logits.shape[3]} px, but the target is {height} x {width} px; "
            "upsample the logits to the target's size first: "
            "F.interpolate(logits, size=target.shape[1:], mode='bilinear')"
        )


def _check_channels(found: int, hierarchy: Hierarchy, channels: str) -> None:
    leaves, nodes = len(hierarchy.leaves), len(hierarchy)
    if channels == "nodes" and found != nodes:
        raise ValueError(
            f"logits: expected {nodes} channels (one per node), found {found}; "
            "the last layer must have len(hierarchy.nodes) outputs"
        )
    if channels == "leaves" and found not in (leaves, nodes):
        raise ValueError(f"logits: expected {leaves} channels (one per leaf) or {nodes} (one per node), found {found}")


def _without_sets(target: Tensor, hierarchy: Hierarchy, ignore_index: int) -> Tensor:
    table = tree_tensors(hierarchy, target.device).label_node
    node = table[target.where(target != ignore_index, len(table) - 1)]
    return node.where(node < len(hierarchy), ignore_index)


def _check_values(target: Tensor, labels: int, ignore_index: int) -> None:
    if target.numel() == 0:
        return
    bounds = torch.stack(target.where(target != ignore_index, 0).aminmax())
    if all(0 <= value < labels for value in bounds.tolist()):  # one transfer for both
        return
    wrong = [value for value in target.unique().tolist() if not 0 <= value < labels and value != ignore_index]
    raise ValueError(
        f"target: {shorten(wrong, 5)} is neither a label (0 to {labels - 1}) nor the ignore index "
        f"({ignore_index}); turn a mask of label values into a target by hierarchy.to_target(mask)"
    )

"""Predictions and targets in the forms that a user may have, as the tensors that are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seghiero_core.decode import Decoded
from seghiero_core.errors import shorten
from seghiero_core.hierarchy.tensors import tree_tensors
from seghiero_core.hierarchy.tree import Hierarchy


def valid_pixels(
    prediction: Any, target: Any, hierarchy: Hierarchy, ignore_index: int
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Select the pixels that count, and check them.

    Args:
        prediction: As in `Metrics.update`.
        target: B,H,W labels or `ignore_index`, tensor or array.
        hierarchy: The class tree.
        ignore_index: What ignored pixels have in the target.

    Returns:
        L,P class numbers per level, L,P confidences (None if the prediction has none) and (P) node indices of the P
        valid pixels, and B,H,W bool, which pixels those are. All on the target's device. The node of a set is its
        lowest common ancestor; where that is the root, the pixel is not valid.

    Raises:
        ValueError: When the prediction doesn't fit the tree or the target.
    """
    target = _whole_numbers(target, "the target")
    table = tree_tensors(hierarchy, target.device).label_node
    valid = target != ignore_index
    if outside := _outside(target[valid], 0, len(table) - 1):
        raise ValueError(
            f"the target has values that are neither a label (0 to {len(table) - 2}) nor the ignore index "
            f"{ignore_index}: {outside}. `Hierarchy.to_target` makes targets from masks."
        )
    if hierarchy.sets:
        target = table[target.where(valid, len(table) - 1)]
        valid = target < len(hierarchy)
    label = target[valid]
    maps, scores = _maps_of(prediction, hierarchy)
    ids = []
    for label_map, level in zip(maps, hierarchy.levels, strict=False):
        label_map = _whole_numbers(label_map, f"the map of {level.name}").to(target.device)
        if label_map.shape != target.shape:
            raise ValueError(
                f"the map of {level.name} has the shape {tuple(label_map.shape)}, and the target has "
                f"{tuple(target.shape)}. Both must have the same size."
            )
        ids.append(label_map[valid])
        if outside := _outside(ids[-1], -1, len(level.nodes)):
            raise ValueError(
                f"the map of {level.name} has values that are neither a class (0 to {len(level.nodes) - 1}) nor -1 "
                f"(no class): {outside}."
            )
    if len(ids) == 1 and len(hierarchy.levels) > 1:
        tables = torch.stack(tree_tensors(hierarchy, target.device).leaf_to_level)
        return F.pad(tables, (0, 1), value=-1)[:, ids[0]], None, label, valid  # -1 indexes the padding
    confidence = None if scores is None else torch.stack([score.to(target.device)[valid] for score in scores])
    return torch.stack(ids), confidence, label, valid


def _maps_of(prediction: Any, hierarchy: Hierarchy) -> tuple[Sequence[Any], Sequence[Tensor] | None]:
    """The maps of all levels, or of the leaves alone, and their scores, if there are any."""
    if isinstance(prediction, Decoded):
        maps, scores = prediction
    elif isinstance(prediction, Mapping):
        names = [level.name for level in hierarchy.levels]
        if set(prediction) != set(names):
            raise ValueError(f"expected maps of the levels {', '.join(names)}; found {', '.join(map(str, prediction))}")
        maps, scores = [prediction[name] for name in names], None
    elif isinstance(prediction, list | tuple):
        maps, scores = prediction, None
    else:
        return [prediction], None
    if len(maps) != len(hierarchy.levels):
        raise ValueError(f"expected one map for each of the {len(hierarchy.levels)} levels, found {len(maps)}")
    return maps, scores


def _whole_numbers(values: Any, name: str) -> Tensor:
    tensor = torch.as_tensor(values)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(
            f"{name} has the type {tensor.dtype}; expected integers. `seghiero_core.decode.decode` makes class maps "
            "from logits."
        )
    return tensor.long()


def _outside(values: Tensor, low: int, high: int) -> str:
    """The values that aren't in low..high-1, as text; empty if all are."""
    if not values.numel() or (values.amin() >= low and values.amax() < high):
        return ""
    return shorten(values[(values < low) | (values >= high)].unique().tolist(), 10)

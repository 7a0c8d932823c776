"""Random trees and labels for property tests, and the facts of a tree, found by walking its config."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy

CAMVID = {
    "labels": [
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ],
    "tree": {
        "static": {
            "sky": None,
            "structure": ["building", "pole", "sign", "fence"],
            "ground": ["road", "pavement"],
            "tree": None,
        },
        "moving": {"car": None, "human": ["pedestrian", "bicyclist"]},
    },
}


def hierarchies_agree(a: Hierarchy, b: Hierarchy) -> bool:
    """Whether two trees are equal in everything but identity."""
    plain = ("nodes", "levels", "values", "ignore", "tree")
    arrays = ("parents", "leaf_to_level", "distance", "colors")
    return all(getattr(a, name) == getattr(b, name) for name in plain) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays
    )


@st.composite
def tree_configs(draw, max_leaves: int = 6, max_depth: int = 3, sets: bool = False) -> dict:
    """A `classes` section: a ragged tree, gaps between mask values, groups not contiguous, labels at inner nodes.

    With `sets`, some labels are lists of two or more leaves.
    """
    names = draw(st.permutations([f"leaf{i}" for i in range(draw(st.integers(2, max_leaves)))]))
    inner: list[str] = []

    def grow(members: list[str], depth: int) -> dict:
        if depth == max_depth:
            return dict.fromkeys(members)
        children: dict = {}
        rest = list(members)
        while rest:
            size = draw(st.integers(1, len(rest)))
            group, rest = rest[:size], rest[size:]
            if size == 1 and draw(st.booleans()):
                children[group[0]] = None
            else:
                name = f"inner{len(inner)}"
                inner.append(name)
                children[name] = grow(group, depth + 1)
        return children

    tree = grow(list(names), 1)
    labelled = draw(st.lists(st.sampled_from(inner), unique=True, max_size=2)) if inner else []
    order = draw(st.permutations([*names, *labelled]))
    values = draw(st.lists(st.integers(0, 254), min_size=len(order), max_size=len(order), unique=True))
    labels: dict = dict(zip(values, order, strict=True))
    if sets:
        groups = draw(st.lists(st.sets(st.sampled_from(names), min_size=2), max_size=4, unique_by=frozenset))
        equal = [frozenset(leaves_below(tree, name)) for name in labelled]  # a node's leaves are the node's label
        free = sorted(set(range(255)) - {*values})
        labels |= {free[i]: sorted(group) for i, group in enumerate(groups) if group not in equal}
    return {"labels": labels, "tree": tree}


def leaves_below(tree: dict, name: str) -> list[str]:
    """The leaves of a nested tree that are below a node, or the node itself where it is a leaf."""

    def leaves(name: str, children: dict | None) -> list[str]:
        return [leaf for child in (children or {}).items() for leaf in leaves(*child)] or [name]

    def find(children: dict) -> list[str] | None:
        for child, below in children.items():
            found = leaves(child, below) if child == name else find(below or {})
            if found:
                return found
        return None

    return find(tree) or []


def hierarchies(**limits) -> st.SearchStrategy[Hierarchy]:
    return tree_configs(**limits).map(Hierarchy.from_config)


def random_target(hierarchy: Hierarchy, *size: int, ignored: float = 0.2, inner: bool = True) -> Tensor:
    """Labels of the shape `size`: leaves, with `inner` also inner nodes and sets, and some IGNORE_INDEX."""
    target = torch.randint(0, len(hierarchy.label_nodes) if inner else len(hierarchy.leaves), size)
    return target.where(torch.rand(size) >= ignored, IGNORE_INDEX)


def paths(hierarchy: Hierarchy) -> list[list[int]]:
    """For each node, the node indices from the child of the root down to it, read off the nested config."""
    found: dict[str, list[str]] = {}

    def walk(tree, above: list[str]) -> None:
        for name, children in tree.items():
            found[name] = [*above, name]
            walk(children, found[name])

    walk(hierarchy.tree, [])
    return [[hierarchy.nodes.index(name) for name in found[node]] for node in hierarchy.nodes]


def classes_of_levels(hierarchy: Hierarchy) -> list[list[int | None]]:
    """For each level, finest first, the node that represents each label; None where the label is coarser."""
    path = paths(hierarchy)
    deepest = max(map(len, path))
    num_leaves = len(hierarchy.leaves)
    return [
        [p[depth - 1] if len(p) >= depth else (node if node < num_leaves else None) for node, p in enumerate(path)]
        for depth in range(deepest, 0, -1)
    ]

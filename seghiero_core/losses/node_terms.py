"""Value and gradient of the binary decisions of `nodes`, of one piece of the pixels.

Everything happens in one buffer, because memory costs more here than arithmetic does, and each node costs a single
exponential.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seghiero_core.hierarchy.tensors import TreeTensors
from seghiero_core.losses.reductions import look_up, max_into


def node_terms(
    z: Tensor,
    label: Tensor,
    with_grad: bool,
    *,
    tree: TreeTensors,
    chains: Tensor,
    coherent: bool,
    gamma: float,
    share: Tensor,
    unknown: bool,
) -> tuple[Tensor, Tensor | None]:
    """Sum softplus(a) sigmoid(a)^gamma share over nodes and pixels, with a = s at negatives and -s at positives.

    Args:
        z: b,N,p logits.
        label: b,p of indices from 0 to N.
        with_grad: Whether the gradient is wanted.
        tree: The tree as tensors, with N nodes.
        chains: D,N+1 nodes from the child of the root down to each label, preceded by N where there are fewer than D.
        coherent: Whether s is a minimum over ancestors or a maximum over descendants, or just z.
        gamma: Exponent of the focal form, at least 0.
        share: (M) weights of the M = N+1 labels.
        unknown: Whether a label may have nodes below it.

    Returns:
        The scalar sum and its gradient b,N,p, or None.
    """
    nodes = z.shape[1]
    chain = look_up(chains, label).transpose(0, 1)  # b,D,p
    share = look_up(share[None], label).transpose(0, 1)  # b,1,p
    # Rows 0 to N-1 are the nodes as negatives, row N is the missing node, and the others are the chain as positives.
    a = z.new_empty(z.shape[0], nodes + 1 + len(chains), z.shape[2])
    negative, positive = a[:, :nodes], a[:, nodes + 1 :]
    negative.copy_(z)
    a[:, nodes] = torch.inf  # as a positive it costs nothing, and no minimum chooses it
    torch.gather(a[:, : nodes + 1], 1, chain, out=positive)
    above_is_lower = []  # for each step of the chain but the first: 1 where the minimum is that of the step above
    if coherent:
        _raise_to_subtree_max(negative, z, tree)
        for step in range(1, len(chains)):
            above_is_lower.append(positive[:, step].clone().gt_(positive[:, step - 1]))
            torch.minimum(positive[:, step], positive[:, step - 1], out=positive[:, step])
    positive.neg_()
    a[:, nodes] = -torch.inf
    a.scatter_(1, chain, z.new_full((1, 1, 1), -torch.inf).expand(chain.shape))
    if unknown:  # nodes below an inner node's label
        negative.masked_fill_(tree.below[label].transpose(1, 2), -torch.inf)

    score = a.sigmoid()
    if gamma == 0:
        total = ((a.clamp(min=0).sum(dim=1, keepdim=True) + _sum_of_logs(_ratio(score))) * share).sum()
        grad = score
    else:
        loss, factor = _ratio(score).log1p_().add_(a.clamp(min=0)), score.pow(gamma)
        total = ((loss * factor).sum(dim=1, keepdim=True) * share).sum()
        grad = loss.mul_(1 - score).mul_(gamma).add_(score).mul_(factor)
    if not with_grad:
        return total, None
    grad *= share
    if coherent:
        _route_to_maxima(grad[:, :nodes], z, negative, tree)
    of_positive = grad[:, nodes + 1 :].neg_()
    for step, is_lower in reversed(list(enumerate(above_is_lower, start=1))):
        rising = is_lower.mul_(of_positive[:, step])
        of_positive[:, step - 1].add_(rising)
        of_positive[:, step].sub_(rising)
    return total, grad[:, : nodes + 1].scatter_add_(1, chain, of_positive)[:, :nodes]


def _ratio(score: Tensor) -> Tensor:
    """exp(-|a|) of score = sigmoid(a): the scores of the less likely outcome over those of the more likely one.

    With it log(1 + exp(a)) = max(a, 0) + log(1 + exp(-|a|)).
    """
    other = 1 - score
    return torch.minimum(score, other).div_(torch.maximum(score, other, out=other))


def _sum_of_logs(x: Tensor) -> Tensor:
    """b,1,p: the sum of log(1 + x) over the channels of x (b,C,p; 0..1), which it overwrites.

    The logs are those of products of up to 64 terms, which cannot overflow. A product is kept as 1 + x, so that a
    tiny x keeps its digits.
    """
    for _ in range(6):
        half = (x.shape[1] + 1) // 2
        first, second = x[:, : x.shape[1] - half], x[:, half:]
        first.add_(torch.addcmul(second, first, second))  # (1 + x) (1 + y) = 1 + (x + (y + x y))
        x = x[:, :half]
    return x.log1p().sum(dim=1, keepdim=True)


def _raise_to_subtree_max(a: Tensor, z: Tensor, tree: TreeTensors) -> None:
    """Raise every inner node of `a`, a copy of the logits `z`, to the maximum over the node and its descendants."""
    max_into(a, tree.leaf_parent, z[:, : tree.level_sizes[0]])
    for nodes, parents in tree.inner_by_depth:
        max_into(a, parents, a.index_select(1, nodes))


def _route_to_maxima(grad: Tensor, z: Tensor, a: Tensor, tree: TreeTensors) -> None:
    """Turn gradients of subtree maxima `a` into gradients of the logits `z`, in place; ties share equally."""
    leaves = tree.level_sizes[0]
    if z.shape[1] == leaves:
        return
    parent = (tree.leaf_parent - leaves).clamp(min=0)
    is_max = a.index_select(1, tree.leaf_parent).eq_(z[:, :leaves])
    is_max.index_fill_(1, tree.root_leaves, 0)
    own = a[:, leaves:].clone().eq_(z[:, leaves:])
    ties = own.index_add(1, parent, is_max)
    inner_is_max = []
    for nodes, parents in tree.inner_by_depth:
        inner_is_max.append(a.index_select(1, nodes).eq_(a.index_select(1, parents)))
        ties.index_add_(1, parents - leaves, inner_is_max[-1])
    ties.clamp_(min=1)  # 0 where the label or a node below it has replaced the maxima
    inner = grad[:, leaves:]
    for (nodes, parents), equal in zip(reversed(tree.inner_by_depth), reversed(inner_is_max), strict=True):
        arriving = (inner.index_select(1, parents - leaves) / ties.index_select(1, parents - leaves)).mul_(equal)
        inner.index_add_(1, nodes - leaves, arriving)
    inner /= ties
    grad[:, :leaves].addcmul_(is_max, inner.index_select(1, parent))
    inner *= own

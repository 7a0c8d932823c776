"""The loss of a config: several losses, weighed and added."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seghiero_core.errors import ConfigError
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.catalog import LOSSES, Term, check_loss_section, expand_loss_section, terms_of
from seghiero_core.losses.class_weights import class_weights


class HierarchicalLoss:
    """A weighted sum of losses over one hierarchy. A plain callable without parameters.

    Attributes:
        num_channels: the channels that the logits must have: the nodes where a loss reads them, else the leaves.
        uses_embedding: whether a loss reads the embedding.
        scores: what training makes of the logits, for `decode(..., scores=)`.
        class_weights: the weights of the leaves in use (K floats), or None.
        auxiliary: the weight of an auxiliary head, for the model and the loop; 0 where there is none.
    """

    def __init__(self, terms: Mapping[str, Term], hierarchy: Hierarchy, weights: np.ndarray | None, auxiliary: float):
        self.terms = dict(terms)
        self.hierarchy = hierarchy
        self.class_weights = weights
        self.auxiliary = auxiliary
        self.functions: dict[str, Callable[..., Tensor]] = {}
        for name, term in self.terms.items():
            options: dict[str, Any] = dict(term.options)
            if LOSSES[name].class_weight and weights is not None:
                options["class_weight"] = torch.tensor(weights, dtype=torch.float32)
            self.functions[name] = functools.partial(LOSSES[name].load(name), ignore_index=IGNORE_INDEX, **options)
        reads = {LOSSES[name].channels for name in self.terms}
        self.num_channels = len(hierarchy) if "nodes" in reads else len(hierarchy.leaves)
        self.uses_embedding = "embedding" in reads
        self.scores = next((LOSSES[name].scores for name in self.terms if LOSSES[name].scores), "softmax")

    def __call__(
        self,
        logits: Tensor,
        embedding: Tensor | None,
        target: Tensor,
        fraction: float,
        auxiliary_logits: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and every loss by itself, unweighted and detached.

        `logits` B,num_channels,H,W; `embedding` B,D,h,w of unit length along D, or None where `uses_embedding` is
        false; `target` B,H,W of node indices or IGNORE_INDEX; `fraction` (0..1) of the run's steps that is done.
        `auxiliary_logits`, of the auxiliary head, go through the losses that read logits, times `auxiliary`.
        Raises ValueError where logits or the embedding do not fit.
        """
        if logits.shape[1] != self.num_channels:
            raise ValueError(f"the loss needs logits of {self.num_channels} channels, found {logits.shape[1]}")
        if self.uses_embedding and embedding is None:
            raise ValueError("the loss reads the embedding, and the model gave none")
        leaves = len(self.hierarchy.leaves)
        read = {"nodes": logits, "leaves": logits[:, :leaves], "embedding": embedding}
        total, parts = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32)), {}
        for name, function in self.functions.items():
            value = function(read[LOSSES[name].channels], target, self.hierarchy)
            total = total + self.terms[name].weight_at(fraction) * value
            parts[name] = value.detach()
        if auxiliary_logits is not None:
            read = {"nodes": auxiliary_logits, "leaves": auxiliary_logits[:, :leaves]}
            for name, function in self.functions.items():
                if LOSSES[name].channels in read:
                    value = function(read[LOSSES[name].channels], target, self.hierarchy)
                    total = total + self.auxiliary * self.terms[name].weight_at(fraction) * value
                    parts[f"auxiliary_{name}"] = value.detach()
        return total, parts


def build_loss(
    section: Mapping[str, Any], hierarchy: Hierarchy, *, counts: np.ndarray | None = None
) -> HierarchicalLoss:
    """The loss of a `loss:` section; `counts` (K) are the pixels of each leaf in the training set.

    Raises ConfigError with every fault of the section, and where `class_weights` needs counts and there are none.
    """
    if faults := check_loss_section(section, hierarchy):
        raise ConfigError("\n".join(faults))
    section = expand_loss_section(section)
    how = section.get("class_weights")
    if isinstance(how, str) and counts is None:
        raise ConfigError(
            f"loss.class_weights: '{how}' needs the label counts of the training set, and none were given; "
            "give a list of weights instead."
        )
    weights = None if how is None else class_weights(counts, how)
    return HierarchicalLoss(terms_of(section), hierarchy, weights, float(section.get("auxiliary", 0.0)))

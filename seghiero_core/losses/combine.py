"""The loss of a config: a weighted sum of several losses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seghiero_core.errors import ConfigError
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.bands import BandLoss, loss_over_bands, upsample
from seghiero_core.losses.catalog import LOSSES, Term, check_loss_section, expand_loss_section, terms_of
from seghiero_core.losses.class_weights import class_weights
from seghiero_core.losses.reductions import label_counts

HeadLoss = Callable[..., Mapping[str, tuple[float, Tensor]]]
"""`loss(outputs, target, hierarchy, *, counts)` of a head: the weight and the value of each term, by name."""


class HierarchicalLoss:
    """A weighted sum of losses over one hierarchy, called once per training step. It has no parameters.

    Attributes:
        terms: The weight, ramp and options of each loss, by its name.
        hierarchy: The class tree, with K leaves.
        class_weights: (K) weights of the leaves, or None.
        auxiliary: Weight of the auxiliary head's losses; 0 if there is no auxiliary head.
        head_loss: The head's own loss of its further outputs, or None.
        functions: The loss functions by name, with their options filled in.
        num_channels: Channels that the logits must have: one per node if a loss reads nodes, else one per leaf.
        uses_embedding: Whether a loss reads the embedding.
        scores: How the losses interpret the logits, for `decode(..., scores=)`.
    """

    def __init__(
        self,
        terms: Mapping[str, Term],
        hierarchy: Hierarchy,
        leaf_weights: np.ndarray | None,
        auxiliary: float,
        *,
        head_loss: HeadLoss | None = None,
        validate: bool = True,
    ) -> None:
        self.terms = dict(terms)
        self.hierarchy = hierarchy
        self.class_weights = leaf_weights
        self.auxiliary = auxiliary
        self.head_loss = head_loss
        self.functions: dict[str, Callable[..., Tensor]] = {}
        for name, term in self.terms.items():
            options: dict[str, Any] = dict(term.options)
            if LOSSES[name].class_weight and leaf_weights is not None:
                options["class_weight"] = torch.tensor(leaf_weights, dtype=torch.float32)
            self.functions[name] = functools.partial(
                LOSSES[name].load(name), ignore_index=IGNORE_INDEX, validate=validate, **options
            )
        reads = {LOSSES[name].channels for name in self.terms}
        self.num_channels = len(hierarchy) if "nodes" in reads else len(hierarchy.leaves)
        self.uses_embedding = "embedding" in reads
        self.scores = next((LOSSES[name].scores for name in self.terms if LOSSES[name].scores), "softmax")

    def __call__(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        stride: int = 1,
        embedding: Tensor | None = None,
        fraction: float = 1.0,
        auxiliary_logits: Tensor | None = None,
        auxiliary_stride: int = 1,
        head_outputs: Mapping[str, Tensor] | None = None,
        counts: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the weighted sum, and each loss on its own.

        Args:
            logits: B,num_channels,H,W; with a stride, B,num_channels,h,w over the padded image.
            target: B,H,W of node indices or IGNORE_INDEX.
            stride: How many pixels of the image a logit covers along each side. Above 1 the logits are upsampled
                bilinearly; where every loss allows it, a few rows at a time, so that they are never stored whole.
            embedding: B,D,h,w of unit length along D; needed if `uses_embedding` is true.
            fraction: Share (0..1) of the training steps that are done; weights with a ramp depend on it.
            auxiliary_logits: B,num_channels,H,W of the auxiliary head, if there is one. Every loss that reads logits
                is also computed on them and added with its weight times `auxiliary`.
            auxiliary_stride: Their stride.
            head_outputs: What the head returned for its own loss, which is added.
            counts: I,N+S+1 pixels of each label in each of the I images of the optimizer step, over all processes and
                accumulated batches; the last column counts ignored pixels (see `label_counts`). The results are then
                this batch's share of the step's. Default: this batch is the whole step.

        Returns:
            The scalar sum, and each loss by name, unweighted and detached; those of the auxiliary head are named
            "auxiliary_NAME", and the terms of the head's own loss "head_NAME".

        Raises:
            ValueError: When the shape of an input does not fit, or the embedding or the head's own loss is missing.
        """
        if not isinstance(logits, Tensor):
            raise ValueError(
                f"logits: expected a tensor, found {type(logits).__name__}; of a model's output take .logits"
            )
        if logits.shape[1] != self.num_channels:
            raise ValueError(f"the loss needs logits with {self.num_channels} channels, found {logits.shape[1]}")
        if self.uses_embedding and embedding is None:
            raise ValueError("the loss reads the embedding, but the model returned none")
        total, parts = self._of_logits(logits, stride, target, fraction, counts)
        for name, function in self.functions.items():
            if LOSSES[name].channels == "embedding":
                value = function(embedding, target, self.hierarchy, counts=counts)
                total = total + self.terms[name].weight_at(fraction) * value
                parts[name] = value.detach()
        parts = {name: parts[name] for name in self.terms}
        if auxiliary_logits is not None:
            value, values = self._of_logits(auxiliary_logits, auxiliary_stride, target, fraction, counts)
            total = total + self.auxiliary * value
            parts |= {f"auxiliary_{name}": value for name, value in values.items()}
        if head_outputs is not None:
            if self.head_loss is None:
                raise ValueError("the head has further outputs, but its loss is unknown; build_loss(..., head_loss=)")
            found = self.head_loss(head_outputs, target, self.hierarchy, counts=counts)
            for name, (weight, value) in found.items():
                total = total + weight * value
                parts[f"head_{name}"] = value.detach()
        return total, parts

    def _of_logits(
        self, logits: Tensor, stride: int, target: Tensor, fraction: float, counts: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the losses that read logits, and each of them, unweighted and detached."""
        weights = {
            name: term.weight_at(fraction) for name, term in self.terms.items() if LOSSES[name].channels != "embedding"
        }
        if stride > 1 and all(LOSSES[name].bands for name in weights):
            counts = label_counts(target, self.hierarchy) if counts is None else counts
            losses = {name: self._band_loss(name, weight, counts) for name, weight in weights.items()}
            return loss_over_bands(logits, stride, target, losses)
        logits = upsample(logits, stride, *target.shape[1:])
        values = {name: self.functions[name](logits, target, self.hierarchy, counts=counts) for name in weights}
        total = torch.stack([weights[name] * value for name, value in values.items()]).sum()
        return total, {name: value.detach() for name, value in values.items()}

    def _band_loss(self, name: str, weight: float, counts: Tensor) -> BandLoss:
        function, hierarchy = self.functions[name], self.hierarchy
        if LOSSES[name].bands == "pixels":
            return BandLoss(weight, lambda logits, target: (function(logits, target, hierarchy, counts=counts),))
        sums, value = (LOSSES[name].load(f"{name}_{part}") for part in ("sums", "of_sums"))
        options = dict(function.keywords)
        of_sums = functools.partial(value, hierarchy=hierarchy, counts=counts, **self.terms[name].options)
        for option in self.terms[name].options:
            del options[option]
        return BandLoss(weight, lambda logits, target: sums(logits, target, hierarchy, **options), of_sums)


def build_loss(
    section: Mapping[str, Any],
    hierarchy: Hierarchy,
    *,
    counts: np.ndarray | None = None,
    head_loss: HeadLoss | None = None,
    validate: bool = True,
) -> HierarchicalLoss:
    """Build the loss of a config's `loss:` section.

    Args:
        section: The section as written in the YAML file.
        hierarchy: The class tree, with K leaves.
        counts: (K) pixels of each leaf in the training set, for `class_weights: auto` and `median_frequency`.
        head_loss: The method `loss` of a head that has one, which is added.
        validate: Whether every call checks the values of the target; on a GPU this synchronizes.

    Returns:
        The weighted sum of the section's losses.

    Raises:
        ConfigError: With every fault of the section, or when `class_weights` needs `counts` and they are missing.
    """
    if faults := check_loss_section(section, hierarchy):
        raise ConfigError("\n".join(faults))
    section = expand_loss_section(section)
    how = section.get("class_weights")
    if isinstance(how, str) and counts is None:
        raise ConfigError(
            f"loss.class_weights: '{how}' needs the label counts of the training set, and none were given; "
            "pass counts=..., or give a list of weights instead."
        )
    leaf_weights = None if how is None else class_weights(counts, how)
    if leaf_weights is not None and len(leaf_weights) != len(hierarchy.leaves):
        raise ConfigError(
            f"loss.class_weights: expected {len(hierarchy.leaves)} weights, one per leaf, found {len(leaf_weights)}."
        )
    auxiliary = float(section.get("auxiliary", 0.0))
    terms = terms_of(section)
    return HierarchicalLoss(terms, hierarchy, leaf_weights, auxiliary, head_loss=head_loss, validate=validate)

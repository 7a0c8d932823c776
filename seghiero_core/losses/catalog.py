"""The losses by name, with what they read and their options, and the checks of a `loss:` section; free of torch."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from seghiero_core.errors import ConfigError, nearest
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.class_weights import CLASS_WEIGHTS


@dataclass(frozen=True)
class LossEntry:
    """A loss before it is imported.

    Attributes:
        module: The module of `seghiero_core.losses` with the function, which has the loss's name.
        channels: What the loss reads: logits over "leaves" or over "nodes", or the "embedding".
        scores: How the loss interprets logits over nodes (see `seghiero_core.decode`); None if it does not read them.
        options: Its YAML keys with their defaults. A default of None means a list of numbers, one per level, or a
            single ratio of each level's number to that of the next finer level.
        class_weight: Whether it takes weights of the leaves.
        sets: Whether it can use labels that are sets of leaves.
        bands: How it is computed band by band (see `losses.bands`): "pixels" if it is a sum over pixels, "sums" if it
            follows from sums over pixels, by the functions NAME_sums and NAME_of_sums; None if it needs whole logits.
    """

    module: str
    channels: str
    scores: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    class_weight: bool = False
    sets: bool = False
    bands: str | None = None

    def load(self, name: str) -> Callable[..., Any]:
        """Import the function, and torch with it.

        Args:
            name: The loss's key in `LOSSES`, or the name of another function of its module.

        Returns:
            The function.
        """
        return getattr(importlib.import_module(f"seghiero_core.losses.{self.module}"), name)


LOSSES: dict[str, LossEntry] = {
    "leaf_cross_entropy": LossEntry("cross_entropy", "leaves", class_weight=True, bands="pixels"),
    "level_cross_entropy": LossEntry(
        "cross_entropy", "nodes", "levels", {"level_weights": None}, class_weight=True, bands="pixels"
    ),
    "marginal_cross_entropy": LossEntry(
        "marginal", "leaves", None, {"level_weights": None}, class_weight=True, sets=True, bands="pixels"
    ),
    "tree_wasserstein": LossEntry("wasserstein", "leaves", class_weight=True, sets=True, bands="pixels"),
    "conditional_cross_entropy": LossEntry("cross_entropy", "nodes", "siblings", class_weight=True, bands="pixels"),
    "node_bce": LossEntry("nodes", "nodes", "sigmoid", class_weight=True, bands="pixels"),
    "tree_min": LossEntry("nodes", "nodes", "sigmoid", class_weight=True, bands="pixels"),
    "focal_tree_min": LossEntry("nodes", "nodes", "sigmoid", {"gamma": 2.0}, class_weight=True, bands="pixels"),
    "tree_rules": LossEntry("rules", "nodes", "sigmoid", {"q": 5.0}, class_weight=True),
    "tree_triplet": LossEntry("triplet", "embedding", None, {"margin": 0.1, "scale": 1.0, "samples": 512}),
    "dice": LossEntry("regions", "leaves", None, {"smooth": 1.0}, bands="sums"),
    "lovasz": LossEntry("regions", "leaves"),
    "focal": LossEntry("regions", "leaves", None, {"gamma": 2.0}, class_weight=True, bands="pixels"),
    "region_mutual_information": LossEntry("mutual_information", "leaves", None, {"pool": 4, "radius": 3}),
}

PRESETS: dict[str, dict[str, Any]] = {
    "marginal": {"terms": {"marginal_cross_entropy": 1.0}},
    # Most weight on the leaves, more on rare classes, and an overlap term: see benchmarks/study.py.
    "marginal_dice": {
        "terms": {"marginal_cross_entropy": {"level_weights": 0.3}, "dice": 0.5},
        "class_weights": "auto",
    },
    "flat": {"terms": {"leaf_cross_entropy": 1.0}},
    # Li et al., CVPR 2022: the focal form is from the paper, the leaf cross-entropy and the weights from their code.
    "hssn": {"terms": {"focal_tree_min": 5.0, "leaf_cross_entropy": 1.0, "tree_triplet": {"weight": 0.5, "ramp": 1.0}}},
    # Li et al., ICCV 2023, section 3.2: the rules have weight 0.2 next to the binary cross-entropy of the nodes.
    "logicseg": {"terms": {"node_bce": 1.0, "tree_rules": 0.2}},
    # Wang et al. 2025, arXiv 2506.21150, add the two; the weights are ours.
    "wasserstein": {"terms": {"leaf_cross_entropy": 1.0, "tree_wasserstein": 1.0}},
}
"""`loss:` sections by name; keys given next to `preset` override its own."""
DEFAULT_PRESET = "marginal_dice"


@dataclass(frozen=True)
class Term:
    """One loss of a weighted sum.

    Attributes:
        weight: Its weight in the sum.
        ramp: Share (0..1) of the run's steps over which the weight rises from 0, along a half cosine.
        options: Keyword arguments of the loss function.
    """

    weight: float
    ramp: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def weight_at(self, fraction: float) -> float:
        """Compute the weight at a point of the run.

        Args:
            fraction: Share (0..1) of the run's steps that are done.

        Returns:
            The weight, from 0 to `weight`.
        """
        if fraction >= self.ramp:
            return self.weight
        return self.weight * 0.5 * (1 - math.cos(math.pi * fraction / self.ramp))


def check_loss_section(section: Mapping[str, Any], hierarchy: Hierarchy | None = None) -> list[str]:
    """Find the faults of a `loss:` section.

    Args:
        section: The section as written in the YAML file.
        hierarchy: The class tree; without it the lengths of lists are not checked.

    Returns:
        One message per fault; an empty list for a valid section.
    """
    if not isinstance(section, Mapping):
        return [f"loss: expected a mapping, found {section!r}.{loss_hint(str(section))}"]
    keys = ("preset", "terms", "class_weights", "auxiliary")
    faults = [
        f"loss.{key}: unknown key.{nearest(key, keys) or loss_hint(str(key))}" for key in section if key not in keys
    ]
    preset, terms = section.get("preset"), section.get("terms")
    if preset is not None and terms is not None:
        faults.append("loss: give either a preset or terms, not both.")
    if preset is not None and not isinstance(preset, str):
        faults.append(f"loss.preset: expected a name, found {preset!r}. Known: {', '.join(PRESETS)}.")
    elif preset is not None and preset not in PRESETS:
        near = nearest(preset, PRESETS)
        hint = f"{near} Known: {', '.join(PRESETS)}." if near else loss_hint(str(preset))
        faults.append(f"loss.preset: unknown preset '{preset}'.{hint}")
    if terms is not None:
        if not isinstance(terms, Mapping) or not terms:
            faults.append(f"loss.terms: expected a mapping from losses to weights, found {terms!r}.")
        else:
            levels = len(hierarchy.levels) if hierarchy is not None else None
            for name, value in terms.items():
                faults += _term_faults(name, value, levels)
            faults += _mixed_scores([name for name in terms if name in LOSSES])
            if all(name in LOSSES and LOSSES[name].channels == "embedding" for name in terms):
                faults.append(
                    f"loss.terms: {', '.join(terms)} only reads the embedding; add a loss that reads the logits."
                )
    auxiliary = section.get("auxiliary", 0.0)
    if not _is_number(auxiliary) or auxiliary < 0:
        faults.append(f"loss.auxiliary: expected a weight of at least 0, found {auxiliary!r}.")
    faults += _class_weight_faults(section.get("class_weights"), hierarchy)
    if not faults and section.get("class_weights") is not None:
        names = expand_loss_section(section)["terms"]
        if not any(LOSSES[name].class_weight for name in names):
            known = ", ".join(name for name, entry in LOSSES.items() if entry.class_weight)
            faults.append(f"loss.class_weights: {', '.join(names)} cannot use class weights; losses that can: {known}.")
    return faults


def loss_hint(*names: str) -> str:
    """Say how a loss, or the sum of several, is written in a config.

    Args:
        names: What the user calls them, such as "cross_entropy".

    Returns:
        Sentences with a leading space: what to write for it, and what there is.
    """
    plain = [name.lower().replace("-", "_").removesuffix("_loss").removesuffix("loss").rstrip("_") for name in names]
    plain = ["leaf_cross_entropy" if p in ("cross_entropy", "crossentropy", "ce", "softmax") else p for p in plain]
    if len(plain) == 1 and plain[0] in PRESETS:
        meant = f"{{preset: {plain[0]}}}"
    elif plain == ["leaf_cross_entropy"]:
        meant = "{preset: flat}"
    elif plain and all(name in LOSSES for name in plain):
        meant = f"{{terms: {{{', '.join(f'{name}: 1' for name in plain)}}}}}"
    else:
        known = f"presets: {', '.join(PRESETS)}; losses for `terms`: {', '.join(LOSSES)}"
        return f" Write, for example, `loss: {{preset: {DEFAULT_PRESET}}}`; {known}."
    return f" Write `loss: {meant}`. Presets: {', '.join(PRESETS)}."


def expand_loss_section(section: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the keys of a section's preset.

    Args:
        section: A `loss:` section without faults.

    Returns:
        A section with `terms`: its own, or its preset's (the default preset's if it names neither).
    """
    if section.get("terms") is not None:
        return dict(section)
    own = {key: value for key, value in section.items() if key not in ("preset", "terms")}
    return PRESETS[section.get("preset") or DEFAULT_PRESET] | own


def terms_of(section: Mapping[str, Any]) -> dict[str, Term]:
    """Read the terms of a `loss:` section, whether it spells them out or names a preset.

    Args:
        section: The section as written in the YAML file.

    Returns:
        The terms by the name of their loss.

    Raises:
        ConfigError: With every fault of the section.
    """
    if faults := check_loss_section(section):
        raise ConfigError("\n".join(faults))
    terms = {}
    for name, value in expand_loss_section(section)["terms"].items():
        options = dict(value) if isinstance(value, Mapping) else {"weight": value}
        terms[name] = Term(float(options.pop("weight", 1.0)), float(options.pop("ramp", 0.0)), options)
    return terms


def _term_faults(name: str, value: Any, levels: int | None) -> list[str]:
    where = f"loss.terms.{name}"
    if name not in LOSSES:
        return [f"{where}: unknown loss.{nearest(name, LOSSES)} Known: {', '.join(LOSSES)}."]
    if not isinstance(value, Mapping):
        ok = _is_number(value) and value >= 0
        return [] if ok else [f"{where}: expected a weight of at least 0 or a mapping of options, found {value!r}."]
    known = {"weight": 1.0, "ramp": 0.0, **LOSSES[name].options}
    faults = []
    for key, given in value.items():
        if key not in known:
            faults.append(f"{where}.{key}: unknown option.{nearest(key, known)} Known: {', '.join(known)}.")
        elif fault := _option_fault(key, given, known[key], levels):
            faults.append(f"{where}.{key}: {fault}, found {given!r}.")
    return faults


def _option_fault(key: str, given: Any, default: Any, levels: int | None) -> str | None:
    if default is None:
        if _is_number(given) and given >= 0:
            return None
        numbers = isinstance(given, Sequence) and not isinstance(given, str) and all(map(_is_number, given))
        if given is not None and (not numbers or min(given, default=-1) < 0):
            return "expected a list of weights, one per level (finest first), or one ratio between successive levels"
        if given is not None and not any(given):
            return "expected at least one weight above 0"
        if given is not None and levels is not None and len(given) != levels:
            return f"expected {levels} weights, one per level"
    elif isinstance(default, int):
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            return "expected a whole number of at least 1"
    elif not _is_number(given) or given < 0:
        return "expected a number of at least 0"
    elif key == "ramp" and given > 1:
        return "expected a share of the run from 0 to 1"
    elif key == "q" and given < 1:
        return "expected a number of at least 1"
    return None


def _mixed_scores(names: Sequence[str]) -> list[str]:
    """Losses that interpret the node logits differently cannot be added."""
    readers: dict[str, list[str]] = {}
    for name in names:
        if scores := LOSSES[name].scores:
            readers.setdefault(scores, []).append(name)
    if len(readers) < 2:
        return []
    groups = "; ".join(f"{', '.join(losses)} ({scores})" for scores, losses in readers.items())
    return [f"loss.terms: these losses interpret the same logits differently; keep one group: {groups}."]


def _class_weight_faults(given: Any, hierarchy: Hierarchy | None) -> list[str]:
    if given is None or (isinstance(given, str) and given in CLASS_WEIGHTS):
        return []
    expected = f"expected {', '.join(CLASS_WEIGHTS)} or a list of numbers above 0, one per label"
    if isinstance(given, str) or not isinstance(given, Sequence):
        return [f"loss.class_weights: {expected}, found {given!r}.{nearest(given, CLASS_WEIGHTS)}"]
    if not all(_is_number(weight) and weight > 0 for weight in given):
        return [f"loss.class_weights: {expected}, found {list(given)!r}."]
    if hierarchy is not None and len(given) != len(hierarchy.leaves):
        return [f"loss.class_weights: expected {len(hierarchy.leaves)} weights, one per leaf, found {len(given)}."]
    return []


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

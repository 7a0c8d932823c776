"""What is known of losses without torch: names, logits they read, options, presets and class weights."""

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

    `module` holds a function of the loss's name. `channels` is what it reads: logits over "leaves" or over "nodes", or
    the "embedding". `scores` says what it makes of logits over nodes (see `seghiero_core.decode`), None where it does
    not read them. `options` are its YAML keys with their defaults; a default of None stands for a list of numbers, one
    per level, or the ratio of each to the next finer one's. `class_weight` tells whether it takes weights of leaves.
    """

    module: str
    channels: str
    scores: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    class_weight: bool = False

    def load(self, name: str) -> Callable[..., Any]:
        """Import the function; this imports torch."""
        return getattr(importlib.import_module(f"seghiero_core.losses.{self.module}"), name)


LOSSES: dict[str, LossEntry] = {
    "leaf_cross_entropy": LossEntry("cross_entropy", "leaves", class_weight=True),
    "level_cross_entropy": LossEntry("cross_entropy", "nodes", "levels", {"level_weights": None}, class_weight=True),
    "marginal_cross_entropy": LossEntry("marginal", "leaves", None, {"level_weights": None}, class_weight=True),
    "conditional_cross_entropy": LossEntry("cross_entropy", "nodes", "siblings", class_weight=True),
    "node_bce": LossEntry("nodes", "nodes", "sigmoid"),
    "tree_min": LossEntry("nodes", "nodes", "sigmoid"),
    "focal_tree_min": LossEntry("nodes", "nodes", "sigmoid", {"gamma": 2.0}),
    "tree_rules": LossEntry("rules", "nodes", "sigmoid", {"q": 5.0}),
    "tree_triplet": LossEntry("triplet", "embedding", None, {"margin": 0.1, "scale": 1.0, "samples": 512}),
    "dice": LossEntry("regions", "leaves", None, {"smooth": 1.0}),
    "lovasz": LossEntry("regions", "leaves"),
    "focal": LossEntry("regions", "leaves", None, {"gamma": 2.0}, class_weight=True),
    "region_mutual_information": LossEntry("mutual_information", "leaves", None, {"pool": 4, "radius": 3}),
}

PRESETS: dict[str, dict[str, Any]] = {
    "marginal": {"terms": {"marginal_cross_entropy": 1.0}},
    # The leaves first, rare classes heard, and each class's overlap: see benchmarks/study.py.
    "marginal_dice": {
        "terms": {"marginal_cross_entropy": {"level_weights": 0.3}, "dice": 0.5},
        "class_weights": "auto",
    },
    "flat": {"terms": {"leaf_cross_entropy": 1.0}},
    # Li et al., CVPR 2022: focal as in the paper; the leaf cross-entropy and the three weights as in their public code.
    "hssn": {"terms": {"focal_tree_min": 5.0, "leaf_cross_entropy": 1.0, "tree_triplet": {"weight": 0.5, "ramp": 1.0}}},
    # Li et al., ICCV 2023, section 3.2: the rules weigh 0.2 beside the node-wise binary cross-entropy.
    "logicseg": {"terms": {"node_bce": 1.0, "tree_rules": 0.2}},
}
"""Sections of `loss:`; what is given beside `preset` wins."""
DEFAULT_PRESET = "marginal_dice"


@dataclass(frozen=True)
class Term:
    """One loss of a sum. Its weight rises along a half cosine over the first `ramp` (0..1) of the run's own steps."""

    weight: float
    ramp: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def weight_at(self, fraction: float) -> float:
        """The weight when `fraction` (0..1) of the run's steps is done."""
        if fraction >= self.ramp:
            return self.weight
        return self.weight * 0.5 * (1 - math.cos(math.pi * fraction / self.ramp))


def check_loss_section(section: Mapping[str, Any], hierarchy: Hierarchy | None = None) -> list[str]:
    """Every fault of a `loss:` section, one message each; lengths are checked where a hierarchy is given."""
    keys = ("preset", "terms", "class_weights", "auxiliary")
    faults = [f"loss.{key}: unknown key.{nearest(key, keys)}" for key in section if key not in keys]
    preset, terms = section.get("preset"), section.get("terms")
    if preset is not None and terms is not None:
        faults.append("loss: give either a preset or terms, not both.")
    if preset is not None and preset not in PRESETS:
        hint = f" It is a term: terms: {{{preset}: 1}}." if preset in LOSSES else nearest(preset, PRESETS)
        faults.append(f"loss.preset: there is no preset '{preset}'.{hint} Known: {', '.join(PRESETS)}.")
    if terms is not None:
        if not isinstance(terms, Mapping) or not terms:
            faults.append(f"loss.terms: expected a mapping from losses to weights, found {terms!r}.")
        else:
            levels = len(hierarchy.levels) if hierarchy is not None else None
            for name, value in terms.items():
                faults += _term_faults(name, value, levels)
            faults += _mixed_scores([name for name in terms if name in LOSSES])
            if all(name in LOSSES and LOSSES[name].channels == "embedding" for name in terms):
                faults.append(f"loss.terms: {', '.join(terms)} reads the embedding only; add a loss that reads logits.")
    auxiliary = section.get("auxiliary", 0.0)
    if not _is_number(auxiliary) or auxiliary < 0:
        faults.append(f"loss.auxiliary: expected a weight of at least 0, found {auxiliary!r}.")
    faults += _class_weight_faults(section.get("class_weights"), hierarchy)
    if not faults and section.get("class_weights") is not None:
        named = expand_loss_section(section)["terms"]
        if not any(LOSSES[name].class_weight for name in named):
            known = ", ".join(name for name, entry in LOSSES.items() if entry.class_weight)
            faults.append(f"loss.class_weights: none of {', '.join(named)} takes weights; those that do: {known}.")
    return faults


def expand_loss_section(section: Mapping[str, Any]) -> dict[str, Any]:
    """A checked section with its preset's keys beneath its own; the default preset where it names no losses at all."""
    if section.get("terms") is not None:
        return dict(section)
    own = {key: value for key, value in section.items() if key not in ("preset", "terms")}
    return PRESETS[section.get("preset") or DEFAULT_PRESET] | own


def terms_of(section: Mapping[str, Any]) -> dict[str, Term]:
    """The terms of a `loss:` section, preset or spelled out. Raises ConfigError with all faults."""
    if faults := check_loss_section(section):
        raise ConfigError("\n".join(faults))
    resolved = {}
    for name, value in expand_loss_section(section)["terms"].items():
        options = dict(value) if isinstance(value, Mapping) else {"weight": value}
        resolved[name] = Term(float(options.pop("weight", 1.0)), float(options.pop("ramp", 0.0)), options)
    return resolved


def _term_faults(name: str, value: Any, levels: int | None) -> list[str]:
    where = f"loss.terms.{name}"
    if name not in LOSSES:
        return [f"{where}: there is no such loss.{nearest(name, LOSSES)} Known: {', '.join(LOSSES)}."]
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
        if given is not None and (not numbers or min(given, default=-1) < 0 or sum(given) <= 0):
            return (
                "expected a list of weights, one per level, finest first, or one ratio of each to the next finer one's"
            )
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
    """Losses that read one node logit as two different things can't be added."""
    readers: dict[str, list[str]] = {}
    for name in names:
        if scores := LOSSES[name].scores:
            readers.setdefault(scores, []).append(name)
    if len(readers) < 2:
        return []
    groups = "; ".join(f"{', '.join(of)} ({scores})" for scores, of in readers.items())
    return [f"loss.terms: these read the same logits in different ways, keep one way: {groups}."]


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

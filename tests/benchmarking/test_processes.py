"""Which combinations there are, and how the end of a process becomes a reason."""

from __future__ import annotations

import pytest

from seghiero_core.benchmarking.combination import Effort
from seghiero_core.benchmarking.processes import all_combinations, combination_name, measure_all
from seghiero_core.config.loading import load_config
from seghiero_core.errors import UsageError
from seghiero_core.registry import BACKBONES, HEADS


def names(configs):
    return [combination_name(config) for config in configs]


def test_all_combinations_are_every_variant_with_every_head(small):
    config = load_config(small)
    found = all_combinations(config)
    variants = sum(len(BACKBONES.get(name).variants) for name in BACKBONES.names())
    assert len(set(names(found))) == len(found) == variants * len(HEADS.names())
    assert all(each.transform == config.transform and each.classes == config.classes for each in found)


def test_filters_choose_types_and_variants(small):
    config = load_config(small)
    assert names(all_combinations(config, ["resnet:50", "resnet:50", "convnext"], ["aspp"])) == [
        ("resnet 50", "aspp"),
        *((f"convnext {size}", "aspp") for size in ("tiny", "small", "base", "large", "xlarge")),
    ]
    for backbones, heads, part in (
        (["resnet:51"], [], "resnet has no depth '51'"),
        (["resent"], [], "Did you mean 'resnet'?"),
        ([], ["asp"], "Did you mean 'aspp'?"),
        (["timm"], [], "such as timm:vit_small"),
    ):
        with pytest.raises(UsageError, match=part.replace("?", r"\?")):
            all_combinations(config, backbones, heads)


def test_an_automatic_batch_size_is_refused_before_anything_starts(small):
    config = load_config(small, ["training.batch_size=auto"])
    with pytest.raises(UsageError, match="--batch"):
        next(measure_all([config], Effort()))

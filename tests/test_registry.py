"""The registry: options come from the builder's signature, and faults are reported when a component is registered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest

from seghiero_core.errors import UsageError
from seghiero_core.registry import BACKBONES, HEADS, Rate, register_backbone, register_head


@pytest.fixture
def unregister():
    """Takes out again what a test registers under these names."""
    yield
    for registry in (BACKBONES, HEADS):
        registry.entries.pop("new", None)


def test_options_are_the_keywords_with_their_types(unregister):
    @register_backbone("new", variants={"a": (1, 2, 3, 4)})
    def build(variant: str, *, output_stride: Literal[8, 16, 32] = 32, drop: Rate = 0.1, free=None) -> Any: ...

    options = BACKBONES.get("new").options
    assert list(options) == ["output_stride", "drop", "free"]
    assert [option.default for option in options.values()] == [32, 0.1, None]
    assert options["output_stride"].annotation == Literal[8, 16, 32]
    assert options["drop"].annotation == Rate


def test_what_the_model_sets_is_no_option_of_a_head(unregister):
    @register_head("new")
    def build(
        in_channels_list: Sequence[int], num_classes: int, proj_dim: int, *, embedding: bool = True, drop: Rate = 0.1
    ) -> Any:
        """Summed up in one line.

        And more.
        """

    entry = HEADS.get("new")
    assert (list(entry.options), entry.receives) == (["drop"], ("embedding",))
    assert entry.summary == "Summed up in one line."
    assert set(HEADS.get("aspp").receives) <= {"output_stride", "embedding"}


def test_an_annotation_that_does_not_exist_is_refused(unregister):
    def build(variant, *, size: Size = 1): ...  # noqa: F821

    with pytest.raises(UsageError, match=r"backbone 'new': an annotation of build\(\) can't be resolved .*'Size'"):
        register_backbone("new", channels=(1, 2, 3, 4))(build)
    assert "new" not in BACKBONES.names()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give either variants"),
        ({"channels": (1, 2, 3, 4), "variants": {"a": (1, 2, 3, 4)}}, "give either variants"),
        ({"variants": {"a": (1, 2, 3)}}, "expected the channels of 4 stages, found 3"),
    ],
)
def test_channels_are_checked(given, message):
    with pytest.raises(UsageError, match=message):
        register_backbone("new", **given)

"""The stages of the parameters of the built-in backbones."""

from __future__ import annotations


def expected_stage(name: str) -> int:
    """The stage by name; the code under test looks at the graph and knows no names."""
    if name.startswith(("conv1", "bn1", "stem")):
        return 1
    kind, number = name.replace("layer", "layer.").split(".")[:2]
    return int(number) + (kind == "stages")

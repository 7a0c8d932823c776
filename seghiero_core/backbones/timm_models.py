"""Registration of all models of timm that can give a feature pyramid, plain ViTs included.

There are too many for a table: what is known about a model is looked up when it is named. This module isn't called
`timm`, so that no way of running a file next to it can import it in timm's place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from seghiero_core.backbones.networks.timm_lookup import timm_facts
from seghiero_core.errors import UsageError
from seghiero_core.registry import BACKBONES, IMAGENET, BackboneEntry, Channels, Rate, Statistics, keyword_options


class _LookedUp(Mapping[str, Any]):
    """A table whose values are looked up by name. It lists none.

    Args:
        look_up: Returns a name's value.
    """

    def __init__(self, look_up: Callable[[str], Any]):
        self.look_up = look_up

    def __getitem__(self, name: str) -> Any:
        return self.look_up(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def timm_channels(variant: str) -> Channels:
    """Look up the channels of C1 to C4 of a model of timm.

    Args:
        variant: Its name.

    Returns:
        (c1, c2, c3, c4).

    Raises:
        UsageError: When timm has no such model, or it can't be a backbone.
    """
    facts = timm_facts(variant)
    if facts.refused:
        raise UsageError(f"timm's {variant} can't be a backbone: {facts.refused}. Choose another variant.")
    return facts.channels


def timm_tags(variant: str) -> tuple[str, ...]:
    """List the published weights of a model of timm.

    Args:
        variant: Its name.

    Returns:
        Their tags with the model's name, default first. Those that timm doesn't keep on the hub are left out.
    """
    import timm

    configs = timm.models.get_arch_pretrained_cfgs(variant)
    return tuple(tag for tag, config in configs.items() if config.hf_hub_id == f"timm/{tag}")


def timm_statistics(tag: str) -> Statistics:
    """Look up the statistics that published weights of timm were trained with.

    Args:
        tag: Their tag with the model's name.

    Returns:
        (mean, std), each three floats (R, G, B in 0..1).
    """
    import timm

    config = timm.get_pretrained_cfg(tag)
    return tuple(config.mean), tuple(config.std)


def _build(
    variant: str,
    *,
    output_stride: Literal[8, 16, 32] = 32,
    drop_path: Rate = 0.0,
    gradient_checkpointing: bool = False,
) -> Any:
    """Any model of timm. An `output_stride` of 8 or 16 dilates the last stages, where the model can."""
    from seghiero_core.backbones.networks.timm_options import build_network

    return build_network(timm_facts(variant), output_stride, drop_path, gradient_checkpointing)


BACKBONES.add(
    BackboneEntry(
        name="timm",
        build=_build,
        variants=_LookedUp(timm_channels),
        selector="variant",
        default="vit_small_patch14_reg4_dinov2",
        source="timm",
        weights=_LookedUp(timm_tags),
        statistics=IMAGENET,
        tag_statistics=_LookedUp(timm_statistics),
        options=keyword_options("backbone 'timm'", _build),
    )
)

"""Where backbones and heads are known by name. Nothing here imports torch, so that listing stays fast.

A component is one decorated builder function. What the decorator is told (channels, strides, variants) is known
without building anything; the builder imports its network when it is called. Its keyword-only parameters, with
their annotations and defaults, are the options that the YAML section accepts.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Annotated, Any

from annotated_types import Ge, Lt

from seghiero_core.errors import UsageError, nearest

Channels = tuple[int, int, int, int]
Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of the R, G, B values (0..1) of ImageNet."""

Rate = Annotated[float, Ge(0), Lt(1)]
"""An option that is a probability of dropping something."""

GIVEN_BY_MODEL = ("output_stride", "embedding")
"""Keywords of a head builder that the assembled model fills in; they are no options of the YAML."""


NOT_LOADED: dict[str, str] = {}
"""Plugins that are missing, and why, each in one line: told to whoever asks for a name that isn't there."""

_pending: list[Callable[[], object]] = []


def before_lookup(load: Callable[[], object]) -> None:
    """Have `load` called once, as soon as a registry is asked for more than its built-ins.

    So plugins, which may be slow to import or broken, are only touched when something needs them.
    """
    _pending.append(load)


def _load_pending() -> None:
    while _pending:
        _pending.pop(0)()


@dataclass(frozen=True)
class BackboneEntry:
    """What is known of a backbone family before it is built.

    `selector` is the YAML key that chooses among `variants` ("depth" or "variant"); `variants` gives the channels
    (c1, c2, c3, c4) of each, finest stage first. `weights` lists the published tags of each variant, default first;
    a tag with a slash is a hub repository, any other a model of timm. `statistics` is the mean and standard deviation
    (R, G, B in 0..1) that inputs are normalised with, and `tag_statistics` those of tags that were trained with others.
    """

    name: str
    build: Callable[..., Any]
    variants: Mapping[str, Channels]
    selector: str
    default: str
    source: str
    weights: Mapping[str, tuple[str, ...]]
    statistics: Statistics = IMAGENET
    tag_statistics: Mapping[str, Statistics] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The options of its YAML section, by name."""
        return keyword_options(self.build)

    def check_variant(self, variant: object) -> str:
        """`variant` as the tables write it. Raises UsageError with the nearest one where there is none."""
        if str(variant) not in self.variants:
            raise UsageError(
                f"{self.name} has no {self.selector} '{variant}'.{nearest(variant, self.variants)} "
                f"Known: {', '.join(self.variants)}."
            )
        return str(variant)

    def strides(self, output_stride: int = 32) -> tuple[int, int, int, int]:
        """Strides of C1..C4, px of the input per px of the map, where C4's is `output_stride`."""
        return (4, 8, min(16, output_stride), output_stride)


@dataclass(frozen=True)
class HeadEntry:
    """What is known of a head before it is built; `proj_dim` is its default projection width."""

    name: str
    build: Callable[..., Any]
    proj_dim: int
    summary: str

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The options of its YAML section, by name."""
        return {k: p for k, p in keyword_options(self.build).items() if k not in GIVEN_BY_MODEL}


@dataclass
class Registry:
    """Entries of one kind, by name; those of `package` are registered by importing every module in it."""

    kind: str
    package: str
    entries: dict[str, Any] = field(default_factory=dict)
    loaded: bool = False

    def add(self, entry: BackboneEntry | HeadEntry) -> None:
        known = self.entries.get(entry.name)
        if known and known.build.__module__ != entry.build.__module__:
            raise UsageError(
                f"{self.kind} '{entry.name}' of {entry.build.__module__} is already registered by "
                f"{known.build.__module__}; give it another name."
            )
        self.entries[entry.name] = entry

    def names(self) -> list[str]:
        self.load_built_ins()
        _load_pending()
        return sorted(self.entries)

    def get(self, name: str) -> Any:
        """The entry of `name`. Raises UsageError that also tells which plugins are missing, and why."""
        self.load_built_ins()
        if name not in self.entries:
            _load_pending()
        if name not in self.entries:
            missing = "".join(f"\nNot loaded: {plugin} ({reason})." for plugin, reason in NOT_LOADED.items())
            raise UsageError(
                f"there is no {self.kind} '{name}'.{nearest(name, self.entries)} "
                f"Known: {', '.join(self.names())}. Your own come from ./seghiero_plugins, from what `plugins:` of the "
                f"config lists, and from --plugin.{missing}"
            )
        return self.entries[name]

    def load_built_ins(self) -> None:
        """Import the built-ins if that hasn't been done; plugins stay untouched."""
        if not self.loaded:
            self.loaded = True
            import_modules_of(importlib.import_module(self.package))


def import_modules_of(package: ModuleType) -> None:
    """Import every module directly in `package` (not its sub-packages), so that their decorators run."""
    for module in pkgutil.iter_modules(package.__path__):
        if not module.ispkg:
            importlib.import_module(f"{package.__name__}.{module.name}")


def keyword_options(build: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a builder: the options its YAML section accepts."""
    options = {}
    for name, option in inspect.signature(build).parameters.items():
        if option.kind is inspect.Parameter.KEYWORD_ONLY:
            annotation = option.annotation
            if isinstance(annotation, str):  # only these are evaluated: others may name types of torch
                annotation = eval(annotation, build.__globals__)
            options[name] = option.replace(annotation=annotation)
    return options


BACKBONES = Registry("backbone", "seghiero_core.backbones")
HEADS = Registry("head", "seghiero_core.heads")


def register_backbone(
    name: str,
    *,
    variants: Mapping[Any, Channels] | None = None,
    channels: Channels | None = None,
    selector: str = "variant",
    default: object = None,
    source: str = "",
    weights: Mapping[Any, tuple[str, ...]] | None = None,
    statistics: Statistics = IMAGENET,
    tag_statistics: Mapping[str, Statistics] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register `build(variant, *, options...) -> nn.Module` under `name`.

    Give `variants` (a table from variant to its four channels), or `channels` for a network of one size.
    """
    if (variants is None) == (channels is None):
        raise UsageError(f"backbone '{name}': give either variants={{...}} or channels=(c1, c2, c3, c4).")
    table = {str(k): tuple(v) for k, v in (variants or {"default": channels}).items()}
    for variant, widths in table.items():
        if len(widths) != 4:
            raise UsageError(f"backbone '{name}', {variant}: {len(widths)} channels given, four stages needed.")

    def decorate(build: Callable[..., Any]) -> Callable[..., Any]:
        BACKBONES.add(
            BackboneEntry(
                name=name,
                build=build,
                variants=table,
                selector=selector,
                default=str(default) if default is not None else next(iter(table)),
                source=source or build.__module__,
                weights={str(k): tuple(v) for k, v in (weights or {}).items()},
                statistics=statistics,
                tag_statistics=dict(tag_statistics or {}),
            )
        )
        return build

    return decorate


def register_head(name: str, *, proj_dim: int = 256) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register `build(in_channels_list, num_classes, proj_dim, *, options...) -> nn.Module` under `name`.

    A builder that has a keyword `output_stride` is given C4's real stride, and one that has a keyword `embedding` is
    told whether to build the embedding; neither is a YAML option of the head.
    """

    def decorate(build: Callable[..., Any]) -> Callable[..., Any]:
        summary = (inspect.getdoc(build) or "").partition("\n")[0]
        HEADS.add(HeadEntry(name=name, build=build, proj_dim=proj_dim, summary=summary))
        return build

    return decorate

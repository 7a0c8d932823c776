"""Where backbones and heads are known by name. Nothing here imports torch, so that listing them stays fast.

A component is one decorated builder function. What the decorator receives is known without building anything; the
builder imports its network when it is called. Its keyword-only parameters are the options of its YAML section.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Lt

from seghiero_core.errors import UsageError, nearest

Channels = tuple[int, int, int, int]  # of C1, C2, C3, C4
Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]  # mean and std of R, G, B in 0..1
Rate = Annotated[float, Ge(0), Lt(1)]  # an option that is a probability of dropping something

NECK = "neck."  # layers that a backbone adds to its published network: they always learn, at the rate of the head
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_GIVEN_BY_MODEL = ("output_stride", "embedding")  # keywords of a head's builder that are not options of the YAML


@dataclass(frozen=True)
class BackboneEntry:
    """What is known about a backbone family without building it.

    Attributes:
        name: Its type in the YAML.
        build: The builder, `build(variant, **options) -> nn.Module`.
        variants: The channels of each variant. Tables that look names up (timm's) list none.
        selector: The YAML key that chooses a variant: "depth" or "variant".
        default: The variant that is built if the YAML names none.
        source: Where the implementation comes from.
        weights: The published tags of each variant, default first; a tag with a slash is a hub repository, others are
            timm models.
        statistics: The statistics that inputs are normalized with.
        tag_statistics: The statistics of tags that were trained with others.
        options: The options of its YAML section, by name.
    """

    name: str
    build: Callable[..., Any]
    variants: Mapping[str, Channels]
    selector: str
    default: str
    source: str
    weights: Mapping[str, tuple[str, ...]]
    statistics: Statistics
    tag_statistics: Mapping[str, Statistics]
    options: Mapping[str, inspect.Parameter]

    def check_variant(self, variant: object) -> str:
        """Check a variant that a user gave.

        Args:
            variant: The value from the YAML or the command line, such as 50 or "tiny".

        Returns:
            The variant as a key of `variants`.

        Raises:
            UsageError: When there is no such variant.
        """
        if str(variant) not in self.variants:
            raise UsageError(
                f"{self.name} has no {self.selector} '{variant}'.{nearest(variant, self.variants)} "
                f"Known: {', '.join(self.variants)}."
            )
        return str(variant)

    def strides(self, output_stride: int = 32) -> tuple[int, int, int, int]:
        """Return the strides of C1 to C4.

        Args:
            output_stride: C4's stride: 8, 16 or 32 px of the input.

        Returns:
            The four strides, in px of the input.
        """
        return (4, 8, min(16, output_stride), output_stride)


@dataclass(frozen=True)
class HeadEntry:
    """What is known about a head without building it.

    Attributes:
        name: Its type in the YAML.
        build: The builder, `build(in_channels_list, num_classes, proj_dim, **options) -> nn.Module`.
        proj_dim: Its default projection width, in channels.
        summary: One line that says what it is.
        options: The options of its YAML section, by name.
        receives: Which of "output_stride" and "embedding" the assembled model passes to its builder.
    """

    name: str
    build: Callable[..., Any]
    proj_dim: int
    summary: str
    options: Mapping[str, inspect.Parameter]
    receives: tuple[str, ...]


@dataclass
class Registry:
    """The backbones, heads or readers, by name.

    Attributes:
        kind: "backbone", "head" or "reader".
        package: The package of the built-ins; importing its modules registers them.
        entries: What is registered so far.
        loaded: Whether the built-ins were imported.
        plugins: The plugin loader, whose `load_postponed` loads other components, and whose `not_loaded` says why some
            are missing; it sets itself.
    """

    kind: str
    package: str
    entries: dict[str, Any] = field(default_factory=dict)
    loaded: bool = False
    plugins: Any = None

    def add(self, entry: Any) -> None:
        """Register a component; a module that is imported again replaces its own.

        Args:
            entry: What is known about it.

        Raises:
            UsageError: When another module has registered the name.
        """
        known = self.entries.get(entry.name)
        if known and known.build.__module__ != entry.build.__module__:
            own, other = entry.build.__module__, known.build.__module__
            raise UsageError(f"{self.kind} '{entry.name}' in {own} is already registered by {other}; rename it.")
        self.entries[entry.name] = entry

    def names(self) -> list[str]:
        """List all components, those of plugins included.

        Returns:
            Their names, sorted.
        """
        self.load_built_ins()
        if self.plugins:
            self.plugins.load_postponed()
        return sorted(self.entries)

    def get(self, name: str) -> Any:
        """Look up a component; plugins are loaded only if no built-in has the name.

        Args:
            name: The type from the YAML or the command line.

        Returns:
            Its `BackboneEntry`, `HeadEntry` or `ReaderEntry`.

        Raises:
            UsageError: When the name is unknown; the message says which plugins are not loaded, and why.
        """
        self.load_built_ins()
        if name not in self.entries and name not in self.names():  # which loads the plugins
            reasons = self.plugins.not_loaded if self.plugins else {}
            missing = "".join(f"\nNot loaded: {what} ({reason})." for what, reason in reasons.items())
            raise UsageError(
                f"unknown {self.kind} '{name}'.{nearest(name, self.entries)} Known: {', '.join(self.names())}. "
                "Plugins are loaded from ./seghiero_plugins, `plugins:` in the config, and --plugin; in Python, by "
                f"seghiero_core.plugins.load_found_plugins().{missing}"
            )
        return self.entries[name]

    def load_built_ins(self) -> None:
        """Import the built-ins unless that is done already. Plugins are not touched."""
        if self.loaded:
            return
        self.loaded = True
        for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__, f"{self.package}."):
            if not module.ispkg:
                importlib.import_module(module.name)


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
    """Register `build(variant, *, options...) -> nn.Module` as a backbone.

    Args:
        name: Its type in the YAML.
        variants: A table from variant to channels; or give `channels`.
        channels: The channels of a network of one size.
        selector: The YAML key that chooses a variant.
        default: The variant that is built if the YAML names none. Default: the first one.
        source: Where the implementation comes from. Default: the builder's module.
        weights, statistics, tag_statistics: See `BackboneEntry`.

    Returns:
        The decorator; it returns the builder unchanged and raises UsageError when the name is taken.

    Raises:
        UsageError: When channels are given twice, not at all, or not for four stages.
    """
    if (variants is None) == (channels is None):
        raise UsageError(f"backbone '{name}': give either variants={{...}} or channels=(c1, c2, c3, c4).")
    table = {str(k): tuple(v) for k, v in (variants or {"default": channels}).items()}
    for variant, widths in table.items():
        if len(widths) != 4:
            raise UsageError(f"backbone '{name}', {variant}: expected the channels of 4 stages, found {len(widths)}.")

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
                options=keyword_options(f"backbone '{name}'", build),
            )
        )
        return build

    return decorate


def register_head(name: str, *, proj_dim: int = 256) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register `build(in_channels_list, num_classes, proj_dim, *, options...) -> nn.Module` as a head.

    A builder with a keyword `output_stride` receives C4's actual stride, and one with a keyword `embedding` whether to
    build the embedding. Neither is an option of the YAML.

    Args:
        name: Its type in the YAML.
        proj_dim: The default width of its projections and of the embedding, in channels.

    Returns:
        The decorator; it returns the builder unchanged and raises UsageError when the name is taken.
    """

    def decorate(build: Callable[..., Any]) -> Callable[..., Any]:
        keywords = keyword_options(f"head '{name}'", build)
        HEADS.add(
            HeadEntry(
                name=name,
                build=build,
                proj_dim=proj_dim,
                summary=(inspect.getdoc(build) or "").partition("\n")[0],
                options={key: option for key, option in keywords.items() if key not in _GIVEN_BY_MODEL},
                receives=tuple(key for key in _GIVEN_BY_MODEL if key in keywords),
            )
        )
        return build

    return decorate


def keyword_options(component: str, build: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of a builder, with their annotations as types.

    Args:
        component: What is built, for messages.
        build: The builder.

    Returns:
        The parameters by name.

    Raises:
        UsageError: When an annotation can't be resolved.
    """
    try:
        parameters = inspect.signature(build, eval_str=True).parameters.values()
    except NameError as error:
        text = f"{component}: an annotation of {build.__name__}() can't be resolved ({error}); import that name"
        raise UsageError(f"{text} not only `if TYPE_CHECKING`, or use Any.") from None
    return {option.name: option for option in parameters if option.kind is option.KEYWORD_ONLY}

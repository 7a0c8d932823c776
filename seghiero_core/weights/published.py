"""Find the published weights that a name or a config refers to, in the cache or by downloading them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seghiero_core.config.loading import load_config
from seghiero_core.errors import UsageError, WeightsError, nearest
from seghiero_core.events import Notify
from seghiero_core.registry import BACKBONES, BackboneEntry
from seghiero_core.weights.hub import (
    WEIGHT_FILES,
    cache_folder,
    fetch_file,
    find_cached,
    hub_repository,
    is_hub_name,
    is_known_missing,
)
from seghiero_core.weights.pretrained import resolve_tag

_OPTIONAL = ("preprocessor_config.json",)
BACKBONE_FILES = (WEIGHT_FILES,)
"""The files of a repository that a backbone needs: one of each tuple."""
WHOLE_MODEL_FILES = (("config.json",), _OPTIONAL, WEIGHT_FILES)
"""The files of a repository that a whole model needs: one of each tuple."""


@dataclass(frozen=True)
class PublishedWeights:
    """Weights on the hub.

    Attributes:
        title: What they are for, as shown to users.
        repository: `owner/name`.
        files: The needed files, one of each tuple.
    """

    title: str
    repository: str
    files: tuple[tuple[str, ...], ...] = BACKBONE_FILES

    @property
    def folder(self) -> Path:
        """The repository's folder in the cache, which may not exist yet."""
        return cache_folder(self.repository)

    @property
    def path(self) -> Path | None:
        """The weights file in the cache, or None if it or another needed file is not cached."""
        if any(find_cached(self.repository, names) is None for names in self.files if names != _OPTIONAL):
            return None
        return find_cached(self.repository, WEIGHT_FILES)


def fetch_weights(weights: PublishedWeights, *, notify: Notify, replace_damaged: bool = False) -> Path:
    """Return the folder with the files of some weights, downloading those that are not cached.

    Args:
        weights: The weights.
        notify: Receives a "download" event for each downloaded file.
        replace_damaged: Whether to download cached files again if their content has changed.

    Returns:
        The folder in the cache that holds the files.

    Raises:
        WeightsError: If a file can't be downloaded or is damaged.
    """
    path = None
    for names in weights.files:
        if names == _OPTIONAL and is_known_missing(weights.repository, *names):
            continue
        try:
            path = fetch_file(weights.repository, names, notify=notify, replace_damaged=replace_damaged)
        except WeightsError:
            if names != _OPTIONAL or not is_known_missing(weights.repository, *names):
                raise
    return path.parent


def select_weights(names: Sequence[str]) -> list[PublishedWeights]:
    """Find the weights that some names refer to.

    Args:
        names: Each a type ("resnet"), a type and variant ("resnet:50"), with a tag ("resnet:50.a1_in1k"), a published
            tag, a hub name ("owner/name", taken as a whole model unless it is a tag) or the path of a config. Empty:
            the default weights of every backbone that lists its variants.

    Returns:
        The weights, without duplicates.

    Raises:
        UsageError: If a name is none of these.
    """
    families = [name for name in BACKBONES.names() if BACKBONES.get(name).variants]  # timm's are too many to list
    found = [weights for name in names or families for weights in _weights_of_name(name)]
    return list(dict.fromkeys(found))


def _weights_of_name(name: str) -> list[PublishedWeights]:
    if Path(name).is_file():
        return _weights_of_config(Path(name))
    entries = [BACKBONES.get(each) for each in BACKBONES.names()]
    for entry in entries:
        for variant, tags in entry.weights.items():
            for tag in tags:
                if name in (tag, hub_repository(tag)):
                    return [_weights_of_variant(entry, variant, tag)]
    if is_hub_name(name):
        return [PublishedWeights(f"init_from {name}", name, WHOLE_MODEL_FILES)]
    kind, colon, variant = name.partition(":")
    if kind not in {entry.name for entry in entries}:
        tags = [tag for entry in entries for tags in entry.weights.values() for tag in tags]
        raise UsageError(
            f"'{name}' is not a backbone, a published tag or a config file."
            f"{nearest(name, [*BACKBONES.names(), *tags])} Known backbones: {', '.join(BACKBONES.names())}. "
            "`seghiero list-backbones --json` lists their tags."
        )
    entry = BACKBONES.get(kind)
    if colon:
        variant, _, tag = variant.partition(".")
        return [_weights_of_variant(entry, entry.check_variant(variant), tag or True)]
    if not entry.variants:
        raise UsageError(f"'{name}' has many {entry.selector}s; name one, such as {name}:{entry.default}.")
    return [_weights_of_variant(entry, each, True) for each in entry.variants if entry.weights.get(each)]


def _weights_of_variant(entry: BackboneEntry, variant: str, pretrained: bool | str) -> PublishedWeights:
    tag = resolve_tag(entry, variant, pretrained)
    return PublishedWeights(f"{entry.name} {variant}: {tag}", hub_repository(str(tag)))


def _weights_of_config(path: Path) -> list[PublishedWeights]:
    config = load_config(path)
    if config.init_from and not Path(config.init_from).exists():
        return [PublishedWeights(f"init_from {config.init_from}", config.init_from, WHOLE_MODEL_FILES)]
    backbone = config.backbone
    entry = BACKBONES.get(backbone.type)
    variant = entry.check_variant(getattr(backbone, entry.selector, entry.default))
    if resolve_tag(entry, variant, backbone.pretrained) is None:
        return []
    return [_weights_of_variant(entry, variant, backbone.pretrained)]

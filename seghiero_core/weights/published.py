"""Which published weights a name or a config stands for, where the cache has them, and fetching them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seghiero_core.config.loading import load_config
from seghiero_core.errors import UsageError, WeightsError, nearest
from seghiero_core.events import Notify
from seghiero_core.registry import BACKBONES, BackboneEntry
from seghiero_core.weights.hub import WEIGHT_FILES, cache_folder, cached, fetch, hub_repository, is_absent, is_hub_name
from seghiero_core.weights.pretrained import resolve_tag

BACKBONE_FILES = (WEIGHT_FILES,)
WHOLE_MODEL_FILES = (("config.json",), ("preprocessor_config.json",), WEIGHT_FILES)
"""What of a repository is needed; of each tuple one file."""
OPTIONAL = ("preprocessor_config.json",)


@dataclass(frozen=True)
class PublishedWeights:
    """Weights of the hub: what they are for, their repository, and the files that are needed, of each tuple one."""

    title: str
    repository: str
    files: tuple[tuple[str, ...], ...] = BACKBONE_FILES

    @property
    def folder(self) -> Path:
        """The repository's folder in the cache, whether it is there or not."""
        return cache_folder(self.repository)

    @property
    def path(self) -> Path | None:
        """The weights in the cache, None if they, or another file that is needed, are not there."""
        if any(cached(self.repository, names) is None for names in self.files if names != OPTIONAL):
            return None
        return cached(self.repository, WEIGHT_FILES)


def fetch_weights(weights: PublishedWeights, *, notify: Notify, replace_damaged: bool = False) -> Path:
    """The folder that holds the files of `weights`, downloaded where they are not in the cache. Raises WeightsError."""
    path = None
    for names in weights.files:
        if names == OPTIONAL and is_absent(weights.repository, *names):
            continue
        try:
            path = fetch(weights.repository, names, notify=notify, replace_damaged=replace_damaged)
        except WeightsError:
            if names != OPTIONAL or not is_absent(weights.repository, *names):
                raise
    return path.parent


def select_weights(names: Sequence[str]) -> list[PublishedWeights]:
    """What `names` stand for, each once; all defaults if there are none.

    A name is a type ("resnet"), a type and a variant ("resnet:50"), a published tag, a hub name ("owner/name", taken
    for a whole model unless it is a tag) or the path of a config. Raises UsageError for anything else.
    """
    found = [weights for name in names or BACKBONES.names() for weights in _of_name(name)]
    return list(dict.fromkeys(found))


def _of_name(name: str) -> list[PublishedWeights]:
    if Path(name).is_file():
        return _of_config(Path(name))
    entries = [BACKBONES.get(each) for each in BACKBONES.names()]
    for entry in entries:
        for variant, tags in entry.weights.items():
            for tag in tags:
                if name in (tag, hub_repository(tag)):
                    return [_of_variant(entry, variant, tag)]
    if is_hub_name(name):
        return [PublishedWeights(f"init_from {name}", name, WHOLE_MODEL_FILES)]
    kind, colon, variant = name.partition(":")
    if kind not in {entry.name for entry in entries}:
        tags = [tag for entry in entries for tags in entry.weights.values() for tag in tags]
        raise UsageError(
            f"'{name}' is no backbone, published tag or config file.{nearest(name, [*BACKBONES.names(), *tags])} "
            f"Known backbones: {', '.join(BACKBONES.names())}; their tags: seghiero list-backbones --json."
        )
    entry = BACKBONES.get(kind)
    variants = [entry.check_variant(variant)] if colon else [v for v in entry.variants if entry.weights.get(v)]
    return [_of_variant(entry, each, True) for each in variants]


def _of_variant(entry: BackboneEntry, variant: str, pretrained: bool | str) -> PublishedWeights:
    tag = resolve_tag(entry, variant, pretrained)
    return PublishedWeights(f"{entry.name} {variant}: {tag}", hub_repository(str(tag)))


def _of_config(path: Path) -> list[PublishedWeights]:
    config = load_config(path)
    if config.init_from and not Path(config.init_from).exists():
        return [PublishedWeights(f"init_from {config.init_from}", config.init_from, WHOLE_MODEL_FILES)]
    backbone = config.backbone
    entry = BACKBONES.get(backbone.type)
    variant = entry.check_variant(getattr(backbone, entry.selector, entry.default))
    if resolve_tag(entry, variant, backbone.pretrained) is None:
        return []
    return [_of_variant(entry, variant, backbone.pretrained)]

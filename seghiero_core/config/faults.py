"""Finding what is wrong with a config. The checks return their faults, so that all can be reported together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from seghiero_core.config.component_faults import COMPONENT_REGISTRIES, component_hint
from seghiero_core.config.messages import Fault, expectation, fault_at
from seghiero_core.config.readers import BANDS_KEYS, SPLITS, complete_source, reader_faults
from seghiero_core.config.schema import ClassesConfig, Config, DatasetConfig, SourceConfig
from seghiero_core.config.suggestions import unknown_key
from seghiero_core.errors import nearest
from seghiero_core.hierarchy.presets import preset_names
from seghiero_core.hierarchy.section import ClassesError
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.hierarchy.yaml_reader import Key
from seghiero_core.losses.catalog import check_loss_section, loss_hint

_INHERITED = (*SPLITS, "type")  # what an entry of `dataset.sources` may leave out


def validate_schema(data: Mapping[str, Any]) -> tuple[Config | None, list[Fault]]:
    """Validate the sections, keys and values of a config, except for the options of components and losses.

    Args:
        data: The config as plain values, its preset expanded.

    Returns:
        The config, None where it has faults, and the faults.
    """
    try:
        return Config.model_validate(data), []
    except ValidationError as error:
        details = error.errors(include_url=False)
        return None, [_schema_fault(each) for each in details if not _is_inherited(each["loc"], data)]


def build_hierarchy(config: Config | None, data: Mapping[str, Any]) -> tuple[Hierarchy | None, list[Fault]]:
    """Build the class tree, if need be from a config that has faults in other sections.

    Args:
        config: The config, None where it has faults.
        data: The same as plain values, its preset expanded.

    Returns:
        The tree, None where `classes` or the labels of a source have faults, and those that `validate_schema` has not
        found.
    """
    try:
        if config is not None:
            return config.hierarchy, []
        classes = ClassesConfig.model_validate(data.get("classes"))
        sources = [SourceConfig.model_validate(_mask_values(source)) for source in _sources(data.get("dataset"))]
        return Hierarchy.from_config({"classes": classes, "dataset": {"sources": sources}}), []
    except ValidationError:
        return None, []
    except ClassesError as error:
        return None, [fault_at(key, text) for key, text in error.faults]


def dataset_faults(dataset: Any, required: Sequence[str]) -> Iterator[Fault]:
    """Check that there are images to train on and to validate with, and the names and keys of the sources.

    Args:
        dataset: The `dataset` section as plain values.
        required: The splits that it must have; other names are left to `bands_faults`.

    Yields:
        The faults.
    """
    if not isinstance(dataset, Mapping):
        return  # `validate_schema` reports it
    sources = {i: each for i, each in enumerate(_sources(dataset)) if isinstance(each, Mapping)}
    if dataset.get("sources") is not None and not sources:
        return
    known = {"dataset": DatasetConfig.model_fields, "source": SourceConfig.model_fields}
    yield from reader_faults(dataset, known, unknown_key)
    parts = [complete_source(dataset, source) for source in sources.values()] or [dataset]
    for split in (name for name in required if name in SPLITS):
        if not any(part.get(split) for part in parts):
            missing = "this key is required."
            if sources:
                missing = "no source has this split; set it here, or in one of dataset.sources."
            elif split == "val" and dataset.get("train") and dataset.get("type", "folder") == "folder":
                missing += " `seghiero data split` divides the images of dataset.train."
            yield fault_at(("dataset", split), missing)
    first: dict[str, int] = {}
    for (i, source), part in zip(sources.items(), parts, strict=False):
        name = source.get("name")
        if isinstance(name, str) and first.setdefault(name, i) != i:
            text = f"'{name}' is also the name of dataset.sources.{first[name]}; give each source its own name."
            yield fault_at(("dataset", "sources", i, "name"), text)
        if not any(part.get(split) for split in SPLITS):
            yield fault_at(("dataset", "sources", i), f"has no images: add {', '.join(SPLITS[:-1])} or {SPLITS[-1]}.")
        elif source.get("weight", 1) != 1 and not part.get("train") and any(other.get("train") for other in parts):
            text = "this source has no images to train on, so its weight has no effect; remove this key."
            yield fault_at(("dataset", "sources", i, "weight"), text)
    for split in SPLITS:
        if sources and dataset.get(split) and all(split in source for source in sources.values()):
            text = f"each of dataset.sources has its own; set dataset.sources.N.{split}, or remove this key."
            yield fault_at(("dataset", split), text)


def bands_faults(dataset: DatasetConfig, required: Sequence[str]) -> Iterator[Fault]:
    """Check the keys of images that aren't 8-bit RGB.

    Args:
        dataset: A valid `dataset` section.
        required: Which of `mean` and `std` it must have where `channels` is set.

    Yields:
        The faults.
    """
    channels = dataset.channels
    for name in BANDS_KEYS[1:]:
        value, key = getattr(dataset, name), ("dataset", name)
        if channels is None:
            if value is not None:
                yield fault_at(key, "needs dataset.channels, the number of bands; set it, or remove this key.")
        elif name == "rgb" and max(value or [0]) >= channels:
            yield fault_at(key, f"expected positions from 0 to {channels - 1}, found {max(value)}.")
        elif value is None and name in required:
            text = (
                "this key is required with dataset.channels; `seghiero data stats CFG` measures it and prints the line."
            )
            yield fault_at(key, text)
        elif name in ("mean", "std") and value is not None and len(value) != channels:
            yield fault_at(key, f"expected a number for each of {channels} bands, found {len(value)}.")


def loss_faults(loss: Any, hierarchy: Hierarchy) -> list[Fault]:
    """Check the `loss` section.

    Args:
        loss: The section as plain values.
        hierarchy: The class tree.

    Returns:
        The faults.
    """
    if not isinstance(loss, Mapping):
        return []  # `validate_schema` reports it
    return [_fault_from_line(line) for line in check_loss_section(loss, hierarchy)]


def monitor_faults(config: Config, hierarchy: Hierarchy) -> list[Fault]:
    """Check that `training.monitor` is a level of the tree, or the mean over all.

    Args:
        config: A valid config.
        hierarchy: Its class tree.

    Returns:
        The faults.
    """
    monitor, known = config.training.monitor, ["mean_miou", *(level.name for level in hierarchy.levels)]
    if monitor in known:
        return []
    hint = f"{nearest(monitor, known)} Known: {', '.join(known)}."
    return [fault_at(("training", "monitor"), f"unknown metric '{monitor}'.{hint}")]


def init_from_faults(config: Config) -> list[Fault]:
    """Check that only one of `init_from` and `backbone.pretrained` loads weights.

    Args:
        config: A valid config.

    Returns:
        The faults.
    """
    if config.init_from and config.backbone.pretrained:
        text = "loads the backbone's weights, too; set backbone.pretrained to false, or remove init_from."
        return [fault_at(("init_from",), text)]
    return []


def _fault_from_line(line: str) -> Fault:
    """The fault that a message describes; the message begins with its key, such as "classes.tree: ..."."""
    return tuple(line.partition(":")[0].split(".")), line


def _schema_fault(error: Any) -> Fault:
    """Turn pydantic's description of an error into a fault."""
    key = error["loc"]
    if error["type"] == "missing":
        return fault_at(key, "this key is required.")
    if error["type"] == "extra_forbidden":
        return fault_at(key, f"unknown key.{unknown_key(key, _known_keys(key[:-1]))}")
    inside = getattr(error.get("ctx", {}).get("error"), "key", ())  # where a validator found it
    if error["type"] == "invalid_key":  # not a string
        key = (*key[:-1], error["input"])
        return fault_at(key, f"unknown key.{unknown_key(key, _known_keys(key[:-1]))}")
    hint = ""
    if len(key) == 1 and error["type"] in ("dict_type", "model_type"):
        hint = _section_hint(key[0], error["input"])
    return fault_at((*key, *inside), expectation(error) + hint)


def _section_hint(section: Any, value: Any) -> str:
    """What to write in place of a value that isn't a mapping."""
    if value is None:
        return " Add keys below it."
    if section == "loss":
        return loss_hint(*map(str, value if isinstance(value, list) else [value]))
    if not isinstance(value, str):
        return ""
    if section in COMPONENT_REGISTRIES:
        return component_hint(section, value)
    if section == "classes" and value in preset_names():
        return f" Write `classes: {{preset: {value}}}`."
    return " Write 'key: value', with a space after the colon." if ":" in value or " " in value else ""


def _sources(dataset: Any) -> list[Any]:
    """The entries of `dataset.sources` of plain values; none where it isn't a list."""
    sources = dataset.get("sources") if isinstance(dataset, Mapping) else None
    return sources if isinstance(sources, list) else []


def _mask_values(source: Any) -> Any:
    """The keys of a source that matter to the class tree, as an entry of their own."""
    if not isinstance(source, Mapping):
        return source
    return {"name": "any", **{key: source[key] for key in ("labels", "ignore") if key in source}}


def _is_inherited(key: Key, data: Mapping[str, Any]) -> bool:
    """Whether a fault of a source is one of `dataset`, whose value the source got."""
    if key[:2] != ("dataset", "sources") or len(key) < 4 or key[3] not in _INHERITED:
        return False
    return key[3] not in data["dataset"]["sources"][key[2]]


def _known_keys(section: Key) -> list[str]:
    """The keys of a section of the schema; the empty key stands for the whole config."""
    model: type[BaseModel] = Config
    for name in section:
        if isinstance(name, str):
            annotation = model.model_fields[name].annotation
            while arguments := getattr(annotation, "__args__", ()):  # of `SplitConfig | None` or `list[SourceConfig]`
                annotation = arguments[0]
            model = annotation
    return list(model.model_fields)

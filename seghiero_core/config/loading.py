"""Loading a config: reading the YAML file, applying overrides, reporting all faults together, resolving paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from seghiero_core.config.component_faults import component_faults
from seghiero_core.config.faults import (
    bands_faults,
    build_hierarchy,
    dataset_faults,
    init_from_faults,
    loss_faults,
    monitor_faults,
    validate_schema,
)
from seghiero_core.config.messages import Fault
from seghiero_core.config.readers import DEFAULT_TYPE, REQUIRED, SPLITS, expand_split, relocate
from seghiero_core.config.schema import Config, DatasetConfig, OutputConfig, SourceConfig
from seghiero_core.config.suggestions import find_keys
from seghiero_core.errors import ConfigError, UsageError
from seghiero_core.hierarchy.presets import expand_preset
from seghiero_core.hierarchy.values import short_repr
from seghiero_core.hierarchy.yaml_reader import Key, place, read_yaml, read_yaml_file
from seghiero_core.plugins.loading import current_loader, load_plugins
from seghiero_core.readers import HUB_OR_PATH

_Part = TypeVar("_Part", DatasetConfig, SourceConfig)


def load_config(path: str | Path, overrides: Sequence[str] = (), *, required: Sequence[str] = REQUIRED) -> Config:
    """Read a config file, apply overrides, and validate it.

    The plugins that it lists are loaded, unless the file belongs to a run: then they are a record.

    Args:
        path: A YAML file.
        overrides: Strings "section.key=value" with values in YAML; a mapping replaces the old one whole.
        required: The splits that the data set must have, and "mean" and "std" if it must have them with `channels`.

    Returns:
        The validated config, with absolute paths.

    Raises:
        ConfigError: When anything is wrong; it lists every fault with its line, its key, what was expected, and the
            most similar known word.
        UsageError: When an override is malformed.
    """
    path = Path(path)
    data, lines = read_yaml_file(path)
    if data is None:
        raise ConfigError(f"{path}: the file is empty. `seghiero init DIR` writes a config to start from.")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected sections (dataset:, classes:, ...), found {short_repr(data)}.")
    places: dict[Key, str] = {key: f"{path}, line {line}" for key, line in lines.items()}
    for override in overrides:
        _apply_override(data, places, override)
    return parse_config(data, path, places, load=not _belongs_to_run(path), required=required)


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """Change keys of a validated config. A new `dataset.root`, or root of a source, moves the folders below the old.

    Args:
        config: The config, with absolute paths.
        overrides: As for `load_config`; relative paths are relative to the current folder.

    Returns:
        The changed config.

    Raises:
        ConfigError: When a value is wrong.
        UsageError: When an override is malformed.
    """
    data = yaml.safe_load(config.to_yaml())
    dataset = data["dataset"]
    for part in _parts(dataset):
        within = partial(_relative, root=part["root"])
        for values in (part, *(part[split] for split in SPLITS if part[split])):
            values |= relocate(part["type"], values, within)
        if part is not dataset:
            part["root"] = _relative(part["root"], root=dataset["root"])
    places: dict[Key, str] = {}
    for override in overrides:
        _apply_override(data, places, override)
    for key in [key for key in places if key[0] == "dataset" and key != ("dataset", "root")]:
        _start_at_current_folder(data, key)
    return parse_config(data, Path("config.yaml"), places)


def parse_config(
    data: Mapping[str, Any],
    path: Path,
    places: Mapping[Key, str] | None = None,
    *,
    load: bool = False,
    required: Sequence[str] = REQUIRED,
) -> Config:
    """Validate a config given as plain values.

    Args:
        data: The document.
        path: The file that it comes from: relative paths are relative to its folder, and messages name it.
        places: Where each key is written, such as "cfg.yaml, line 3", for messages.
        load: Whether to load the plugins that it lists. Only for files that the user wrote and named.
        required: As for `load_config`.

    Returns:
        The validated config, with absolute paths.

    Raises:
        ConfigError: When anything is wrong; it lists every fault.
    """
    faults: list[Fault] = _load_plugins(data.get("plugins"), path) if load else []
    if not load:
        _skip_plugins(data.get("plugins"), path)
    fields = Config.model_fields
    # A section whose keys are all commented out has its defaults.
    data = {key: v for key, v in data.items() if v is not None or key not in fields or fields[key].is_required()}
    data, preset_fault = _expand_classes(data)
    config, schema_faults = validate_schema(data)
    if preset_fault:
        faults.append(preset_fault)
        if "labels" not in data["classes"]:  # because of the preset
            schema_faults = [fault for fault in schema_faults if fault[0] != ("classes", "labels")]
    faults += schema_faults
    faults += dataset_faults(data.get("dataset", {}), required)
    faults += component_faults(data)
    hierarchy, class_faults = build_hierarchy(config, data)
    faults += class_faults
    if hierarchy:
        faults += loss_faults(data.get("loss", {}), hierarchy)
    if hierarchy and config:
        faults += monitor_faults(config, hierarchy)
    if config:
        faults += init_from_faults(config)
        faults += bands_faults(config.dataset, required)

    if faults or config is None:
        raise ConfigError("\n".join(f"{place(key, places or {}, path)}: {text}" for key, text in faults))
    return _resolve_paths(config, path)


def _apply_override(data: dict[str, Any], places: dict[Key, str], override: str) -> None:
    name, equals, text = override.partition("=")
    keys: list[Any] = name.split(".")
    if not equals or not all(keys):
        raise UsageError(f"--set {override}: expected section.key=value, for example --set training.lr=0.01.")
    if keys[0] not in Config.model_fields and (found := find_keys(keys[-1])):
        meant = " or ".join(f"--set {key}={text}" for key in found)
        raise UsageError(f"--set {override}: unknown key '{name}'. Did you mean {meant}?")
    value, _ = read_yaml(text, f"--set {name}")
    target: Any = data
    for depth, key in enumerate(keys[:-1]):
        keys[depth] = key = _position(target, key, override)
        if not isinstance(target, list) and target.get(key) is None:
            places[tuple(keys[: depth + 1])] = f"--set {override}"
            target[key] = {}
        target = target[key]
        if not isinstance(target, dict | list):
            raise UsageError(f"--set {override}: '{key}' is a single value and has no key '{keys[depth + 1]}'.")
    keys[-1] = _position(target, keys[-1], override)
    target[keys[-1]] = value
    for key in [key for key in places if key[: len(keys)] == tuple(keys)]:
        del places[key]
    places[tuple(keys)] = f"--set {override}"


def _position(target: Any, key: str, override: str) -> Any:
    """The key itself, or as a number where it is the position of a list's item."""
    if isinstance(target, dict):
        return key
    if key.isdecimal() and int(key) < len(target):
        return int(key)
    raise UsageError(f"--set {override}: '{key}' is not the position of an item: 0 to {len(target) - 1}.")


def _belongs_to_run(path: Path) -> bool:
    """Whether a run wrote this config."""
    return path.with_name("manifest.json").exists() or path.with_name("checkpoints").is_dir()


def _load_plugins(plugins: Any, path: Path) -> list[Fault]:
    faults = []
    for position, name in enumerate(plugins if isinstance(plugins, list) else []):
        if isinstance(name, str):
            try:
                load_plugins([name], base=path.parent)
            except UsageError as error:
                faults.append((("plugins", position), f"plugins.{position}: {error}"))
    return faults


def _skip_plugins(plugins: Any, path: Path) -> None:
    """Record that these plugins are not loaded, for the message about a component that is then missing."""
    for name in plugins if isinstance(plugins, list) else []:
        if isinstance(name, str):
            reason = f"the config of a run loads no plugins; if you trust it, pass --plugin {name}"
            current_loader().skip(f"'{name}' in {path}", reason)


def _expand_classes(data: Mapping[str, Any]) -> tuple[Mapping[str, Any], Fault | None]:
    """Replace `classes.preset` by the keys that it stands for; an unknown preset is removed and is a fault."""
    if "classes" not in data:
        return data, None
    classes = data["classes"]
    try:
        return {**data, "classes": expand_preset(classes)}, None
    except UsageError as error:
        rest = {key: value for key, value in classes.items() if key != "preset"}
        return {**data, "classes": rest}, (("classes", "preset"), f"classes.preset: {error}")


def _resolve_paths(config: Config, path: Path) -> Config:
    """Make relative paths absolute, and name the run after the file unless it has a name."""
    folder = path.resolve().parent
    dataset = _resolve_folders(config.dataset, folder)
    if dataset.sources:
        sources = [_resolve_folders(source, dataset.root) for source in dataset.sources]
        dataset = dataset.model_copy(update={"sources": sources, **dict.fromkeys(SPLITS)})
    backbone = config.backbone
    if isinstance(backbone.pretrained, str):
        backbone = backbone.model_copy(update={"pretrained": _absolute(folder, backbone.pretrained)})
    return config.model_copy(
        update={
            "backbone": backbone,
            "init_from": config.init_from and _absolute(folder, config.init_from),
            "dataset": dataset,
            "output": OutputConfig(dir=folder / config.output.dir.expanduser(), name=config.output.name or path.stem),
            "plugins": [_absolute(folder, name) for name in config.plugins],
        }
    )


def _resolve_folders(part: _Part, folder: Path) -> _Part:
    """Make the root of a data set or source absolute, and its paths, which are relative to its root."""
    root = folder / part.root.expanduser()
    below = partial(_below, root)
    splits = {
        name: split.model_copy(update=relocate(part.type, split.model_extra, below))
        for name in SPLITS
        if (split := getattr(part, name))
    }
    return part.model_copy(update={"root": root, **relocate(part.type, part.model_extra, below), **splits})


def _below(folder: Path, path: str, kind: Any = Path) -> Any:
    """An option of a reader, which is a path of this kind, from the folder that it is relative to."""
    if kind == HUB_OR_PATH:
        return _absolute(folder, path)
    absolute = folder / Path(path).expanduser()
    return absolute if kind is Path else str(absolute)


def _parts(dataset: dict[str, Any]) -> list[dict[str, Any]]:
    """The data set and its sources, as plain values."""
    return [dataset, *(dataset["sources"] or ())]


def _relative(path: str, kind: Any = Path, *, root: str) -> str:
    """The path from the root where it lies below, else the path itself."""
    return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path


def _start_at_current_folder(data: dict[str, Any], key: Key) -> None:
    """Make absolute the folders that an override set at this key."""
    *above, last = key
    within = data
    for name in above:
        within = within[name]
    if "sources" in key[-2:]:
        for source in within[last] if isinstance(within[last], list) else [within[last]]:
            if isinstance(source, dict):
                source["root"] = str(_below(Path.cwd(), source.get("root", ".")))
        return
    dataset = data["dataset"]
    part = dataset["sources"][key[2]] if key[1] == "sources" else dataset
    type_ = part.get("type", DEFAULT_TYPE)
    if last == "root" and isinstance(within[last], str):
        within[last] = str(_below(Path.cwd(), within[last]))
    elif last in SPLITS:
        with suppress(ValueError):  # the faults are found later
            within[last] = expand_split(type_, within[last])
        if isinstance(within[last], dict):
            within[last] |= relocate(type_, within[last], partial(_below, Path.cwd()))
    else:
        within |= relocate(type_, {last: within[last]}, partial(_below, Path.cwd()))


def _absolute(folder: Path, name: str) -> str:
    """The absolute path where `name` is a file or folder, relative to `folder`; else the name itself."""
    path = folder / Path(name).expanduser()
    return str(path) if path.exists() else name

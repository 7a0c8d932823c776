"""Loading a config: reading the YAML file, applying overrides, reporting all faults together, resolving paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from seghiero_core.config.faults import (
    Fault,
    build_hierarchy,
    component_faults,
    init_from_faults,
    loss_faults,
    monitor_faults,
    validate_schema,
)
from seghiero_core.config.schema import Config, OutputConfig, SplitConfig
from seghiero_core.config.suggestions import find_keys
from seghiero_core.errors import ConfigError, UsageError
from seghiero_core.hierarchy.presets import expand_preset
from seghiero_core.hierarchy.values import short_repr
from seghiero_core.hierarchy.yaml_reader import Key, place, read_yaml, read_yaml_file
from seghiero_core.plugins.loading import current_loader, load_plugins


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file, apply overrides, and validate it.

    The plugins that it lists are loaded, unless the file belongs to a run: then they are a record.

    Args:
        path: A YAML file.
        overrides: Strings "section.key=value" with values in YAML; a mapping replaces the old one whole.

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
    return parse_config(data, path, places, load=not _belongs_to_run(path))


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """Change keys of a validated config. A new `dataset.root` moves the folders of the splits that lie below the old.

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
    dataset, root = data["dataset"], config.dataset.root
    for split in (dataset[name] for name in ("train", "val", "test") if dataset[name]):
        for kind, folder in split.items():
            if Path(folder).is_relative_to(root):
                split[kind] = str(Path(folder).relative_to(root))
    places: dict[Key, str] = {}
    for override in overrides:
        _apply_override(data, places, override)
    for split in ("train", "val", "test"):
        if ("dataset", split) in places:
            dataset[split] = _from_current_folder(dataset[split])
        for kind in ("images", "masks"):
            if ("dataset", split, kind) in places:
                dataset[split][kind] = _from_current_folder(dataset[split][kind])
    return parse_config(data, Path("config.yaml"), places)


def parse_config(
    data: Mapping[str, Any], path: Path, places: Mapping[Key, str] | None = None, *, load: bool = False
) -> Config:
    """Validate a config given as plain values.

    Args:
        data: The document.
        path: The file that it comes from: relative paths are relative to its folder, and messages name it.
        places: Where each key is written, such as "cfg.yaml, line 3", for messages.
        load: Whether to load the plugins that it lists. Only for files that the user wrote and named.

    Returns:
        The validated config, with absolute paths.

    Raises:
        ConfigError: When anything is wrong; it lists every fault.
    """
    faults: list[Fault] = []
    if load:
        faults += _load_plugins(data.get("plugins"), path)
    else:
        _skip_plugins(data.get("plugins"), path)

    fields = Config.model_fields
    # A section whose keys are all commented out has its defaults.
    data = {key: v for key, v in data.items() if v is not None or key not in fields or fields[key].is_required()}
    data, preset_fault = _expand_classes(data)
    config, schema_faults = validate_schema(data)
    if preset_fault:
        faults.append(preset_fault)
        if "labels" not in data["classes"]:  # they are missing because of the preset
            schema_faults = [fault for fault in schema_faults if fault[0] != ("classes", "labels")]
    faults += schema_faults
    faults += component_faults(data)
    hierarchy, class_faults = build_hierarchy(config, data.get("classes"))
    faults += class_faults
    if hierarchy:
        faults += loss_faults(data.get("loss", {}), hierarchy)
    if hierarchy and config:
        faults += monitor_faults(config, hierarchy)
    if config:
        faults += init_from_faults(config)

    if faults or config is None:
        raise ConfigError("\n".join(f"{place(key, places or {}, path)}: {text}" for key, text in faults))
    return _resolve_paths(config, path)


def _apply_override(data: dict[str, Any], places: dict[Key, str], override: str) -> None:
    name, equals, text = override.partition("=")
    keys = name.split(".")
    if not equals or not all(keys):
        raise UsageError(f"--set {override}: expected section.key=value, for example --set training.lr=0.01.")
    if keys[0] not in Config.model_fields and (found := find_keys(keys[-1])):
        meant = " or ".join(f"--set {key}={text}" for key in found)
        raise UsageError(f"--set {override}: unknown key '{name}'. Did you mean {meant}?")
    value, _ = read_yaml(text, f"--set {name}")
    target = data
    for depth, key in enumerate(keys[:-1]):
        if target.get(key) is None:
            places[tuple(keys[: depth + 1])] = f"--set {override}"
            target[key] = {}
        target = target[key]
        if not isinstance(target, dict):
            raise UsageError(f"--set {override}: '{key}' is a single value and has no key '{keys[-1]}'.")
    target[keys[-1]] = value
    for key in [key for key in places if key[: len(keys)] == tuple(keys)]:
        del places[key]
    places[tuple(keys)] = f"--set {override}"


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
    root = folder / config.dataset.root.expanduser()
    splits = {
        name: SplitConfig(images=root / split.images.expanduser(), masks=root / split.masks.expanduser())
        for name in ("train", "val", "test")
        if (split := getattr(config.dataset, name))
    }
    backbone = config.backbone
    if isinstance(backbone.pretrained, str):
        backbone = backbone.model_copy(update={"pretrained": _absolute(folder, backbone.pretrained)})
    return config.model_copy(
        update={
            "backbone": backbone,
            "init_from": config.init_from and _absolute(folder, config.init_from),
            "dataset": config.dataset.model_copy(update={"root": root, **splits}),
            "output": OutputConfig(dir=folder / config.output.dir.expanduser(), name=config.output.name or path.stem),
            "plugins": [_absolute(folder, name) for name in config.plugins],
        }
    )


def _from_current_folder(folders: Any) -> Any:
    """A split's folders, or one of them, as absolute paths."""
    if isinstance(folders, dict):
        return {key: _from_current_folder(value) for key, value in folders.items()}
    return str(Path.cwd() / Path(folders).expanduser()) if isinstance(folders, str) and folders else folders


def _absolute(folder: Path, name: str) -> str:
    """The absolute path where `name` is a file or folder, relative to `folder`; else the name itself."""
    path = folder / Path(name).expanduser()
    return str(path) if path.exists() else name

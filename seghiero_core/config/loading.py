"""Reading the YAML file: overrides, validation, and everything that is wrong with it in one message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from seghiero_core.config.schema import ClassesConfig, Config, OutputConfig, SplitConfig
from seghiero_core.config.yaml_reader import Key, read_yaml, read_yaml_file
from seghiero_core.errors import ConfigError, UsageError, nearest
from seghiero_core.hierarchy.presets import expand_preset
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.plugins.loading import load_plugins
from seghiero_core.registry import BACKBONES, HEADS, NOT_LOADED, BackboneEntry, HeadEntry


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read, override (`section.key=value`, values in YAML) and validate a config file.

    Raises ConfigError that lists every fault, each with its line, its key, what was expected and the nearest word.
    """
    path = Path(path)
    data, lines = read_yaml_file(path)
    if data is None:
        raise ConfigError(f"{path}: the file is empty. `seghiero init DIR` writes a config to start from.")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected sections (dataset:, classes:, ...), found {_shown(data)}.")
    places: dict[Key, str] = {key: f"{path}, line {line}" for key, line in lines.items()}
    for override in overrides:
        _override(data, places, override)
    return parse_config(data, path, places, load=not _is_saved(path))


def parse_config(
    data: Mapping[str, Any], path: Path, places: Mapping[Key, str] | None = None, *, load: bool = False
) -> Config:
    """Validate a config given as plain data; relative paths are relative to the folder of `path`.

    Its `plugins` are loaded only with `load`, which is for files that the user wrote and named.
    """

    def place(key: Key) -> str:
        while key and key not in (places or {}):
            key = key[:-1]
        return (places or {}).get(key, str(path)) if key else str(path)

    faults = [f"{place(key)}: {text}" for key, text in _plugin_faults(data.get("plugins"), path, load)]
    data, unknown_preset = _expanded(data)
    if unknown_preset:
        faults.append(f"{place(('classes', 'preset'))}: classes.preset: {unknown_preset}")
    config = None
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        of_preset = {("missing", ("classes", "labels"))} if unknown_preset else set()
        wrong = [fault for fault in error.errors(include_url=False) if (fault["type"], fault["loc"]) not in of_preset]
        faults += [f"{place(key)}: {text}" for key, text in map(_fault, wrong)]
    for section, registry in (("backbone", BACKBONES), ("head", HEADS)):
        given = data.get(section, {})
        if isinstance(given, Mapping):
            faults += [f"{place((section, key))}: {text}" for key, text in _component_faults(section, registry, given)]
    hierarchy = None
    try:
        classes = ClassesConfig.model_validate(data.get("classes"))
        hierarchy = config.hierarchy if config else Hierarchy.from_config(classes)
    except ConfigError as error:
        faults += [f"{place(tuple(line.partition(':')[0].split('.')))}: {line}" for line in str(error).splitlines()]
    except ValidationError:
        pass  # already reported with the whole config
    if hierarchy and isinstance(data.get("loss", {}), Mapping):
        from seghiero_core.losses.catalog import check_loss_section

        faults += [f"{place(('loss',))}: {text}" for text in check_loss_section(data.get("loss") or {}, hierarchy)]
    if hierarchy and config:
        known, monitor = ("mean_miou", *(level.name for level in hierarchy.levels)), config.training.monitor
        if monitor not in known:
            text = f"there is no '{monitor}'.{nearest(monitor, known)} Known: {', '.join(known)}."
            faults.append(f"{place(('training', 'monitor'))}: training.monitor: {text}")
    if config and config.init_from and config.backbone.pretrained:
        text = "brings the backbone's weights with it; set backbone.pretrained: false, or leave init_from out."
        faults.append(f"{place(('init_from',))}: init_from: {text}")
    if faults or config is None:
        raise ConfigError("\n".join(faults))
    return _resolved(config, path)


def _expanded(data: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """`data` with what `classes.preset` stands for in its place, and what is wrong with that name, if anything."""
    if "classes" not in data:
        return data, ""
    try:
        return {**data, "classes": expand_preset(data["classes"])}, ""
    except UsageError as error:
        return {**data, "classes": {k: v for k, v in data["classes"].items() if k != "preset"}}, str(error)


def _resolved(config: Config, path: Path) -> Config:
    folder = path.resolve().parent
    root = folder / config.dataset.root
    splits = {
        name: SplitConfig(images=root / split.images, masks=root / split.masks)
        for name in ("train", "val", "test")
        if (split := getattr(config.dataset, name))
    }
    backbone = config.backbone
    if isinstance(backbone.pretrained, str):
        backbone = backbone.model_copy(update={"pretrained": _located(folder, backbone.pretrained)})
    return config.model_copy(
        update={
            "backbone": backbone,
            "init_from": config.init_from and _located(folder, config.init_from),
            "dataset": config.dataset.model_copy(update={"root": root, **splits}),
            "output": OutputConfig(dir=folder / config.output.dir, name=config.output.name or path.stem),
            "plugins": [_located(folder, name) for name in config.plugins],
        }
    )


def _located(folder: Path, name: str) -> str:
    """The absolute path where `name` is a file or folder (a relative one starts at `folder`), else the name."""
    path = folder / Path(name).expanduser()
    return str(path) if path.exists() else name


def _is_saved(path: Path) -> bool:
    """Whether `path` was written by a run: then its `plugins` are a record of what was, not a wish."""
    return path.with_name("manifest.json").exists() or path.with_name("checkpoints").is_dir()


def _plugin_faults(plugins: Any, path: Path, load: bool):
    """Load what `plugins` lists, and give (key, text) of each that isn't there."""
    if not isinstance(plugins, list):
        return  # left out, or not valid and reported with the whole config
    for i, name in enumerate(plugins):
        if isinstance(name, str) and load:
            try:
                load_plugins([name], base=path.parent)
            except UsageError as error:
                yield ("plugins", i), f"plugins.{i}: {error}"
        elif isinstance(name, str):
            NOT_LOADED[f"'{name}' of {path}"] = f"a saved config loads nothing; if you trust it, give --plugin {name}"


def _component_faults(section: str, registry: Any, given: Mapping[str, Any]):
    """(key, text) of each fault among the options of a backbone or head section."""
    name = given.get("type", Config.model_fields[section].default.type)
    try:
        entry: BackboneEntry | HeadEntry = registry.get(str(name))
    except UsageError as error:
        yield "type", f"{section}.type: {error}"
        return
    fixed = {"type", "pretrained"} if section == "backbone" else {"type", "proj_dim"}
    known = {*fixed, *_keys(entry)}
    if isinstance(entry, BackboneEntry):
        try:
            entry.check_variant(given.get(entry.selector, entry.default))
        except UsageError as error:
            yield entry.selector, f"{section}.{entry.selector}: {error}"
    for key, value in given.items():
        if key not in known:
            others = [other for other in registry.names() if key in _keys(registry.get(other))]
            hint = nearest(key, known)
            if others:
                whole = f"{section}={{type: {name}}}"
                hint = f" It is of {', '.join(others)}: take it out, or set the section whole ({whole})."
            yield key, f"{section}.{key}: unknown key for {name}.{hint} Known: {', '.join(sorted(known))}."
        elif key in entry.options:
            try:
                TypeAdapter(entry.options[key].annotation).validate_python(value)
            except ValidationError as error:
                yield key, f"{section}.{key}: {_expected(error.errors()[0])}"


def _keys(entry: BackboneEntry | HeadEntry) -> set[str]:
    """The keys that this component has and not every one."""
    return {*entry.options} | ({entry.selector} if isinstance(entry, BackboneEntry) else set())


def _override(data: dict[str, Any], places: dict[Key, str], override: str) -> None:
    name, equals, text = override.partition("=")
    keys = name.split(".")
    if not equals or not all(keys):
        raise UsageError(f"--set {override}: expected section.key=value, for example --set training.lr=0.01.")
    value, _ = read_yaml(text, f"--set {name}")
    target = data
    for key in keys[:-1]:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise UsageError(f"--set {override}: '{key}' is a single value, it has no '{keys[-1]}'.")
    target[keys[-1]] = value
    for key in [key for key in places if key[: len(keys)] == tuple(keys)]:
        del places[key]
    places[tuple(keys)] = f"--set {override}"


def _fault(error: Any) -> tuple[Key, str]:
    key = tuple(part for part in error["loc"] if not (isinstance(part, str) and part.startswith(("function-", "bool"))))
    dotted = ".".join(str(part) for part in key)
    if error["type"] == "extra_forbidden":
        siblings = _fields(key[:-1])
        return key, f"{dotted}: unknown key.{nearest(key[-1], siblings)} Known: {', '.join(siblings)}."
    if error["type"] == "missing":
        return key, f"{dotted}: is required and missing."
    return key, f"{dotted}: {_expected(error)}"


def _expected(error: Any) -> str:
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("should be", "expected", 1)
    if error["type"] == "model_type":
        message = "expected a mapping of keys"
    return f"{message}, found {_shown(error['input'])}."


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fields(key: Key) -> list[str]:
    model: Any = Config
    for part in key:
        annotation = model.model_fields[part].annotation
        options = getattr(annotation, "__args__", None) or (annotation,)
        model = next(t for t in options if isinstance(t, type) and issubclass(t, BaseModel))
    return list(model.model_fields)

"""What the YAML file may say: its sections, their keys, types and defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt

from seghiero_core.hierarchy.tree import Hierarchy

Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A mapping of the YAML: frozen, and a key that it doesn't know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Component(BaseModel):
    """A section whose further keys are the options of the component that `type` names."""

    model_config = ConfigDict(extra="allow", frozen=True)


def _labels(value: Any) -> dict[int, str]:
    if not isinstance(value, Mapping | Sequence) or isinstance(value, str) or not value:
        raise ValueError("should be a list of names, or a mapping from mask value to name")
    pairs = dict(value) if isinstance(value, Mapping) else dict(enumerate(value))
    for number, name in pairs.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 65535:
            raise ValueError(f"should have mask values from 0 to 65535, not {number!r}")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"should hold names; {name!r} is none (put it in quotes if it is meant)")
    return pairs


def _tree(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise ValueError(f"should hold names; {name!r} is none (put it in quotes if it is meant)")
        return {name: _tree(children) for name, children in value.items()}
    if isinstance(value, Sequence):
        return [_tree(item) for item in value]
    raise ValueError(f"should hold names; {value!r} is none (put it in quotes if it is meant)")


def _auto_or_count(least: int):
    def check(value: Any) -> Any:
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
            return value
        raise ValueError(f"should be 'auto' or a whole number from {least}")

    return BeforeValidator(check)


def _device(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda|cuda:\d+|mps", value):
        return value
    raise ValueError("should be auto, cpu, cuda, cuda:N or mps")


def _save_every(value: Any) -> Any:
    """Steps as a number, or a time such as 90s, 10m, 2h."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    if isinstance(value, str) and re.fullmatch(r"[1-9]\d*[smh]", value):
        return value
    raise ValueError("should be a number of steps, or a time such as 90s, 10m or 2h")


def _freeze(value: Any) -> Any:
    if value == "backbone" or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 4):
        return value
    raise ValueError("should be 'backbone', or how many of its 4 stages to freeze")


def _pretrained(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, str) and value):
        return value
    raise ValueError("should be true, false, a published tag or a path")


def _range(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError("should be [smallest, largest], both above 0")
    return value


class SplitConfig(Section):
    images: Path
    masks: Path


class DatasetConfig(Section):
    root: Path = Path()
    train: SplitConfig
    val: SplitConfig
    test: SplitConfig | None = None
    image_suffix: str = ""
    mask_suffix: str = ""
    check: Literal["full", "fast"] = "full"


class ClassesConfig(Section):
    """`preset` is replaced by what it stands for before validation: a valid section says everything itself."""

    preset: Annotated[None, Field(exclude=True)] = None
    labels: Annotated[dict[int, str], BeforeValidator(_labels)]
    tree: Annotated[Any, BeforeValidator(_tree)] = None
    ignore: Annotated[int, Field(ge=0, le=65535)] = 255
    colors: dict[str, list[int]] | None = None


class BackboneConfig(Component):
    type: str = "resnet"
    pretrained: Annotated[bool | str, BeforeValidator(_pretrained)] = False


class HeadConfig(Component):
    type: str = "aspp"
    proj_dim: PositiveInt | None = None


class TransformConfig(Section):
    size: tuple[PositiveInt, PositiveInt] = (512, 512)
    scale: Annotated[tuple[float, float], AfterValidator(_range)] = (0.5, 2.0)
    flip: Fraction = 0.5
    color_jitter: Fraction = 0.3


class TrainingConfig(Section):
    device: Annotated[str, BeforeValidator(_device)] = "auto"
    epochs: PositiveInt = 100
    batch_size: Annotated[Any, _auto_or_count(1)] = 8
    lr: Annotated[float, Field(gt=0)] = 1e-3
    backbone_lr: Annotated[float, Field(gt=0)] | None = None
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    freeze: Annotated[Any, BeforeValidator(_freeze)] = 0
    freeze_norm: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup: Fraction = 0.05
    power: Annotated[float, Field(ge=0)] = 0.9
    gradient_accumulation: PositiveInt = 1
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    max_bad_steps: PositiveInt = 10
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    seed: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[Any, _auto_or_count(0)] = "auto"
    validate_every: PositiveInt = 1
    monitor: str = "mean_miou"
    save_every: Annotated[Any, BeforeValidator(_save_every)] = None
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(default_factory=list)
    processes: PositiveInt | None = None


class OutputConfig(Section):
    dir: Path = Path("runs")
    name: str | None = None


class Config(Section):
    """A whole, validated config. Paths in it are absolute; `classes` is known to make a tree."""

    dataset: DatasetConfig
    classes: ClassesConfig
    backbone: BackboneConfig = BackboneConfig()
    head: HeadConfig = HeadConfig()
    loss: dict[str, Any] = Field(default_factory=dict)
    transform: TransformConfig = TransformConfig()
    training: TrainingConfig = TrainingConfig()
    output: OutputConfig = OutputConfig()
    init_from: Annotated[str, Field(min_length=1)] | None = None
    plugins: list[str] = Field(default_factory=list)

    @cached_property
    def hierarchy(self) -> Hierarchy:
        """The class tree, built once. Raises ConfigError where `classes` makes no tree."""
        return Hierarchy.from_config(self.classes)

    @property
    def run_dir(self) -> Path:
        """The folder of the run."""
        return self.output.dir / str(self.output.name)

    def to_yaml(self) -> str:
        """The resolved config as a YAML document that loads to an equal one, wherever it lies."""
        document = self.model_dump(mode="json")
        document["classes"]["labels"] = dict(self.classes.labels)  # JSON's keys are strings, mask values are numbers
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)

"""The sections of the YAML file, their keys, types and defaults. docs/config.md explains every key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.hierarchy.values import LARGEST_VALUE, check_colors, check_labels, check_tree, short_repr


def _error(expected: str, value: Any) -> ValueError:
    return ValueError(f"expected {expected}, found {short_repr(value)}")


def _is_whole_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _auto_or_whole_number(value: Any, least: int) -> Any:
    if value == "auto" or (_is_whole_number(value) and value >= least):
        return value
    raise _error(f"'auto' or a whole number from {least}", value)


def _batch_size(value: Any) -> Any:
    return _auto_or_whole_number(value, least=1)


def _workers(value: Any) -> Any:
    return _auto_or_whole_number(value, least=0)


def _device(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda|cuda:\d+|mps", value):
        return value
    raise _error("auto, cpu, cuda, cuda:N or mps", value)


def _save_every(value: Any) -> Any:
    if value is None or (_is_whole_number(value) and value > 0):
        return value
    if isinstance(value, str) and re.fullmatch(r"[1-9]\d*[smh]", value):
        return value
    raise _error("a number of steps, or a time such as 90s, 10m or 2h", value)


def _freeze(value: Any) -> Any:
    if value == "backbone" or (_is_whole_number(value) and 0 <= value <= 4):
        return value
    raise _error("'backbone', or a number of stages from 0 to 4", value)


def _pretrained(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, str) and value):
        return value
    raise _error("true, false, a tag of published weights, or a path", value)


def _size(value: Any) -> Any:
    return _pair(value, "two numbers: [height, width]")


def _scale(value: Any) -> Any:
    return _pair(value, "two numbers: [smallest, largest]")


def _pair(value: Any, expected: str) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        return value
    raise _error(expected, value)


def _range(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise _error("[smallest, largest], both above 0", list(value))
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # which Python counts as 0 or 1
        raise _error("a number", value)
    return value


_Number = BeforeValidator(_number)
_Fraction = Annotated[float, Field(ge=0, le=1), _Number]
_PositiveFloat = Annotated[float, Field(gt=0), _Number]
_PositiveInt = Annotated[int, Field(gt=0), _Number]


class _Section(BaseModel):
    """A section of the YAML file. It is frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Component(BaseModel):
    """A section whose other keys are the options of the component that `type` names."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class SplitConfig(_Section):
    """`dataset.train`, `dataset.val` or `dataset.test`: the folders of a split.

    A single FOLDER stands for FOLDER/images and FOLDER/masks.
    """

    images: Path
    masks: Path

    @model_validator(mode="before")
    @classmethod
    def _from_folder(cls, value: Any) -> Any:
        if isinstance(value, str) and value:
            return {"images": Path(value, "images"), "masks": Path(value, "masks")}
        if isinstance(value, Mapping | cls):
            return value
        raise _error("FOLDER, which holds images/ and masks/, or {images: FOLDER, masks: FOLDER}", value)


class DatasetConfig(_Section):
    """`dataset`: where the images and masks are, and how much of them to check before training."""

    root: Path = Path()
    train: SplitConfig
    val: SplitConfig
    test: SplitConfig | None = None
    image_suffix: str = ""
    mask_suffix: str = ""
    check: Literal["full", "fast"] = "full"


class ClassesConfig(_Section):
    """`classes`: the labels and their tree.

    A `preset` is replaced by the keys that it stands for before validation, so a valid section has none.
    """

    preset: Annotated[None, Field(exclude=True)] = None
    labels: Annotated[dict[int, str | list[str]], BeforeValidator(check_labels)]
    tree: Annotated[Any, BeforeValidator(check_tree)] = None
    ignore: Annotated[int, Field(ge=0, le=LARGEST_VALUE), _Number] = 255
    colors: Annotated[dict[str, list[int]] | None, BeforeValidator(check_colors)] = None


class BackboneConfig(_Component):
    """`backbone`: its type, its weights, and the type's own options."""

    type: str = "resnet"
    pretrained: Annotated[bool | str, BeforeValidator(_pretrained)] = False


class HeadConfig(_Component):
    """`head`: its type, its width, and the type's own options."""

    type: str = "aspp"
    proj_dim: _PositiveInt | None = None


class TransformConfig(_Section):
    """`transform`: how training images are augmented."""

    size: Annotated[tuple[_PositiveInt, _PositiveInt], BeforeValidator(_size)] = (512, 512)
    scale: Annotated[
        tuple[Annotated[float, _Number], Annotated[float, _Number]], BeforeValidator(_scale), AfterValidator(_range)
    ] = (0.5, 2.0)
    flip: _Fraction = 0.5
    color_jitter: _Fraction = 0.3


class TrainingConfig(_Section):
    """`training`: the device, the optimizer, the schedule, and what is saved when."""

    device: Annotated[str, BeforeValidator(_device)] = "auto"
    epochs: _PositiveInt = 100
    batch_size: Annotated[Any, BeforeValidator(_batch_size)] = 8
    val_batch_size: Annotated[Any, BeforeValidator(_batch_size)] = "auto"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: _PositiveFloat = 1e-3
    backbone_lr: _PositiveFloat | None = None
    layer_decay: Annotated[float, Field(gt=0, le=1), _Number] = 1.0
    freeze: Annotated[Any, BeforeValidator(_freeze)] = 0
    freeze_norm: bool = False
    weight_decay: Annotated[float, Field(ge=0), _Number] = 0.01
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    warmup: _Fraction = 0.05
    power: Annotated[float, Field(ge=0), _Number] = 0.9
    gradient_accumulation: _PositiveInt = 1
    clip_norm: _PositiveFloat | None = None
    ema: Annotated[float, Field(ge=0, lt=1), _Number] = 0.0
    max_bad_steps: _PositiveInt = 10
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    seed: Annotated[int, Field(ge=0, le=2**32 - 1), _Number] = 0
    workers: Annotated[Any, BeforeValidator(_workers)] = "auto"
    validate_every: _PositiveInt = 1
    monitor: str = "mean_miou"
    early_stopping: _PositiveInt | None = None
    save_every: Annotated[Any, BeforeValidator(_save_every)] = None
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(default_factory=list)
    processes: _PositiveInt | None = None

    @field_validator("power")
    @classmethod
    def _check_power(cls, power: float, info: Any) -> float:
        if power != cls.model_fields["power"].default and info.data.get("schedule", "poly") != "poly":
            raise ValueError(f"the {info.data['schedule']} schedule has no power; remove this key")
        return power


class OutputConfig(_Section):
    """`output`: where the run folder goes."""

    dir: Path = Path("runs")
    name: str | None = None


class Config(_Section):
    """A whole config. `load_config` returns it validated, with absolute paths and with classes that form a tree."""

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
        """The class tree, built once."""
        return Hierarchy.from_config(self.classes)

    @property
    def run_dir(self) -> Path:
        """The folder of the run."""
        return self.output.dir / str(self.output.name)

    def to_yaml(self) -> str:
        """Write the config as a YAML document that loads to an equal config from any folder.

        Returns:
            The text of the document.
        """
        document = self.model_dump(mode="json")
        document["classes"]["labels"] = dict(self.classes.labels)  # JSON keys are strings, mask values are numbers
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)

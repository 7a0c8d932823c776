"""The sections of the YAML file, their keys, types and defaults. docs/config.md explains every key."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from seghiero_core.config.readers import DEFAULT_TYPE, SPLITS, complete_source, expand_split
from seghiero_core.config.values import (
    IS_LIST_OF_SOURCES,
    IS_NUMBER,
    BatchSize,
    Device,
    Float32,
    Fraction,
    Freeze,
    Labels,
    LabelsOrNone,
    MaskValue,
    Number,
    PositiveFloat,
    PositiveInt,
    Pretrained,
    Rgb,
    SaveEvery,
    Scale,
    Size,
    SourceName,
    Workers,
)
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.hierarchy.values import check_colors, check_tree
from seghiero_core.readers import Bands


class _Section(BaseModel):
    """A section of the YAML file. It is frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Component(BaseModel):
    """A section whose other keys are the options of the component that `type` names."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class SplitConfig(_Component):
    """`dataset.train`, `dataset.val` or `dataset.test`: options of the reader, such as two folders.

    A string stands for what the reader's `short` makes of it: FOLDER for FOLDER/images and FOLDER/masks.
    """


class _Part(_Component):
    """A type of data set, its splits, and the options of its reader for all of them."""

    type: str = DEFAULT_TYPE
    root: Path = Path()
    train: SplitConfig | None = None
    val: SplitConfig | None = None
    test: SplitConfig | None = None

    @field_validator(*SPLITS, mode="before")
    @classmethod
    def _expand_split(cls, value: Any, info: Any) -> Any:
        return expand_split(info.data.get("type"), value)


class SourceConfig(_Part):
    """An entry of `dataset.sources`: a data set with mask values of its own, on the one tree."""

    name: SourceName
    labels: LabelsOrNone = None
    ignore: MaskValue | None = None
    weight: Annotated[float, Field(gt=0, le=1000), IS_NUMBER] = 1.0


class DatasetConfig(_Part):
    """`dataset`: where the samples come from, and how much of them to check before training.

    What an entry of `sources` leaves out comes from here before validation, so that each is complete.
    """

    check: Literal["full", "fast"] = "full"
    channels: PositiveInt | None = None
    mean: list[Number] | None = None
    std: list[PositiveFloat] | None = None
    rgb: Rgb = None
    nodata: Float32 = None
    sources: Annotated[list[SourceConfig] | None, IS_LIST_OF_SOURCES] = None

    @model_validator(mode="before")
    @classmethod
    def _complete_sources(cls, value: Any) -> Any:
        entries = value.get("sources") if isinstance(value, Mapping) else None
        if not isinstance(entries, list):
            return value
        return {**value, "sources": [complete_source(value, e) if isinstance(e, Mapping) else e for e in entries]}

    @property
    def bands(self) -> Bands | None:
        """How the images are read: None for 8-bit RGB."""
        if self.channels is None:
            return None
        rgb = self.rgb if self.rgb is not None else (range(3) if self.channels >= 3 else ())
        return Bands(self.channels, self.nodata, tuple(rgb))

    @property
    def parts(self) -> tuple[_Part, ...]:
        """The sources; of a data set without, the data set itself."""
        return tuple(self.sources or (self,))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it has, or one of its sources."""
        return tuple(split for split in SPLITS if any(getattr(part, split) for part in self.parts))

    @property
    def weights(self) -> list[float]:
        """How often each source is drawn; empty for a data set without sources."""
        return [source.weight for source in self.sources or ()]


class ClassesConfig(_Section):
    """`classes`: the labels and their tree.

    A `preset` is replaced by the keys that it stands for before validation, so a valid section has none.
    """

    preset: Annotated[None, Field(exclude=True)] = None
    labels: Labels
    tree: Annotated[Any, BeforeValidator(check_tree)] = None
    ignore: MaskValue = 255
    colors: Annotated[dict[str, list[int]] | None, BeforeValidator(check_colors)] = None


class BackboneConfig(_Component):
    """`backbone`: its type, its weights, and the type's own options."""

    type: str = "resnet"
    pretrained: Pretrained = False


class HeadConfig(_Component):
    """`head`: its type, its width, and the type's own options."""

    type: str = "aspp"
    proj_dim: PositiveInt | None = None


class TransformConfig(_Section):
    """`transform`: how training images are augmented."""

    size: Size = (512, 512)
    scale: Scale = (0.5, 2.0)
    flip: Fraction = 0.5
    color_jitter: Fraction = 0.3


class TrainingConfig(_Section):
    """`training`: the device, the optimizer, the schedule, and what is saved when."""

    device: Device = "auto"
    epochs: PositiveInt = 100
    batch_size: BatchSize = 8
    val_batch_size: BatchSize = "auto"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: PositiveFloat = 1e-3
    backbone_lr: PositiveFloat | None = None
    layer_decay: Annotated[float, Field(gt=0, le=1), IS_NUMBER] = 1.0
    freeze: Freeze = 0
    freeze_norm: bool = False
    augmentation_variants: PositiveInt | None = None
    cache_features: bool = False
    cache_mib: PositiveInt = 20480
    weight_decay: Annotated[float, Field(ge=0), IS_NUMBER] = 0.01
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    warmup: Fraction = 0.05
    power: Annotated[float, Field(ge=0), IS_NUMBER] = 0.9
    gradient_accumulation: PositiveInt = 1
    clip_norm: PositiveFloat | None = None
    ema: Annotated[float, Field(ge=0, lt=1), IS_NUMBER] = 0.0
    max_bad_steps: PositiveInt = 10
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    seed: Annotated[int, Field(ge=0, le=2**32 - 1), IS_NUMBER] = 0
    workers: Workers = "auto"
    validate_every: PositiveInt = 1
    monitor: str = "mean_miou"
    early_stopping: PositiveInt | None = None
    save_every: SaveEvery = None
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(default_factory=list)
    processes: PositiveInt | None = None

    @field_validator("cache_features")
    @classmethod
    def _check_cache_features(cls, wanted: bool, info: Any) -> bool:
        if wanted and info.data.get("freeze", "backbone") != "backbone":
            raise ValueError("features can be stored only if the backbone is frozen; set training.freeze: backbone")
        if wanted and info.data.get("augmentation_variants", 1) is None:
            raise ValueError("every epoch has other images; set training.augmentation_variants, for example to 4")
        return wanted

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
        return Hierarchy.from_config(self)

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
        if self.dataset.sources:
            document["dataset"]["sources"] = [
                {"name": source.name, **source.model_dump(mode="json"), "labels": source.labels and dict(source.labels)}
                for source in self.dataset.sources
            ]
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)

"""The types of the config's values: what each may be, and what a message says was expected instead."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from seghiero_core.hierarchy.values import LARGEST_VALUE, FaultAt, check_labels, short_repr

_LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127


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


def _source_name(value: Any) -> Any:
    if isinstance(value, str) and value.strip() and value.isprintable() and value != "all":
        return value
    raise _error("a name of printable characters, other than 'all', which is the total of all sources", value)


def _labels_or_none(value: Any) -> Any:
    return None if value is None else check_labels(value)


def _list_of_sources(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, Mapping):
        name, settings = next(iter(value.items()), ("NAME", None))
        rest = "".join(f", {key}: ..." for key in settings) if isinstance(settings, Mapping) else ", root: FOLDER"
        raise ValueError(f"expected a list, found a mapping; write - {{name: {name}{rest}}} for each source")
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise _error("a list of sources, such as [{name: city, root: city}]", value)
    for position, source in enumerate(value):
        if not isinstance(source, Mapping | BaseModel):
            name = source if isinstance(source, str) else "NAME"
            text = f"expected a mapping, found {short_repr(source)}; write {{name: {name}, root: FOLDER}}"
            raise FaultAt((position,), text)
    return value


def _rgb(value: Any) -> Any:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    whole = is_list and all(_is_whole_number(each) and each >= 0 for each in value)
    if value is None or (whole and len(value) in (0, 3) and len({*value}) == len(value)):
        return value
    raise _error("the positions of red, green and blue, such as [3, 2, 1], or [] for none", value)


def _float32(value: Any) -> Any:
    if value is not None and abs(value) > _LARGEST_FLOAT32:
        raise _error("a number that float32 can hold", value)
    return value


IS_NUMBER = BeforeValidator(_number)
IS_LIST_OF_SOURCES = BeforeValidator(_list_of_sources)

Number = Annotated[float, IS_NUMBER]
Fraction = Annotated[float, Field(ge=0, le=1), IS_NUMBER]
PositiveFloat = Annotated[float, Field(gt=0), IS_NUMBER]
PositiveInt = Annotated[int, Field(gt=0), IS_NUMBER]
MaskValue = Annotated[int, Field(ge=0, le=LARGEST_VALUE), IS_NUMBER]
Labels = Annotated[dict[int, str | list[str]], BeforeValidator(check_labels)]
SourceName = Annotated[str, BeforeValidator(_source_name)]
LabelsOrNone = Annotated[dict[int, str | list[str]] | None, BeforeValidator(_labels_or_none)]
Pretrained = Annotated[bool | str, BeforeValidator(_pretrained)]
Size = Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(_size)]
Scale = Annotated[tuple[Number, Number], BeforeValidator(_scale), AfterValidator(_range)]
Device = Annotated[str, BeforeValidator(_device)]
BatchSize = Annotated[Any, BeforeValidator(_batch_size)]
Workers = Annotated[Any, BeforeValidator(_workers)]
Freeze = Annotated[Any, BeforeValidator(_freeze)]
Rgb = Annotated[list[int] | None, BeforeValidator(_rgb)]
Float32 = Annotated[float | None, AfterValidator(_float32), IS_NUMBER]
SaveEvery = Annotated[Any, BeforeValidator(_save_every)]

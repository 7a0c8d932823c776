"""A data set of the library `datasets`, local or from the hub, with a column of images and one of masks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from seghiero_core.data.encoded import Pair, encoded_reader
from seghiero_core.errors import DataError, UsageError, shorten
from seghiero_core.readers import Bands, HubOrPath, Reader, register_reader


@register_reader(
    "huggingface",
    form="the name of a split, or {path: PATH OR HUB NAME, split: NAME}",
    short=lambda split: {"split": split},
)
def build(
    key: str,
    bands: Bands | None = None,
    *,
    path: HubOrPath,
    split: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    image: str = "image",
    mask: str = "mask",
) -> Reader:
    """Rows of Arrow files, which are memory-mapped."""
    try:
        import datasets
    except ImportError:
        raise UsageError(
            f"{key}: `type: huggingface` needs the package datasets; install it with "
            "`pip install 'seghiero[huggingface]'`."
        ) from None
    try:
        if Path(path, "dataset_dict.json").exists() or Path(path, "state.json").exists():
            found = datasets.load_from_disk(path)
        else:
            found = datasets.load_dataset(path, subset, split=split, revision=revision)
    except Exception as error:  # the library raises nearly every type, for names, files and networks
        raise DataError(
            f"{key}: the data set '{path}' can't be loaded ({' '.join(str(error).split())}). Write a folder saved by "
            "`datasets`, or the name of a data set on the hub."
        ) from error
    table = _split(found, key, path, split)
    for column in (image, mask):
        if column not in table.column_names:
            option, known = "image" if column == image else "mask", shorten(table.column_names)
            raise DataError(f"{key}: '{path}' has no column '{column}'; set dataset.{option} to one of {known}.")
        try:
            table = table.cast_column(column, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise DataError(
                f"{key}: column '{column}' of '{path}' holds no encoded images, but {table.features[column]}. Save it "
                "as datasets.Image()."
            ) from error
    folder = Path(path, split) if split else Path(path)
    return encoded_reader(_Rows(table.select_columns([image, mask]), folder, image, mask), bands)


def _split(found: Any, key: str, path: str, split: str | None) -> Any:
    """One split of what was loaded: a data set, or several by the names of their splits."""
    if not isinstance(found, dict):
        if split is not None and str(found.split) != split:
            raise DataError(f"{key}: '{path}' is one data set without splits; remove `split: {split}`.")
        return found
    if split not in found:
        problem = "has several splits" if split is None else f"has no split '{split}'"
        raise DataError(f"{key}: '{path}' {problem}; set {key}.split to one of {shorten(list(found))}.")
    return found[split]


class _Rows(Sequence[Pair]):
    """The pairs of a table, whose bytes are read from it when they are needed."""

    def __init__(self, table: Any, folder: Path, image: str, mask: str) -> None:
        self.table, self.folder, self.image, self.mask = table, folder, image, mask

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Pair:
        name = f"{range(len(self.table))[index]:08d}"
        return Pair(self.folder / name / self.image, self.folder / name / self.mask, name, partial(self._load, index))

    def _load(self, index: int) -> tuple[bytes, bytes]:
        row = self.table[index]
        return self._bytes(row[self.image], index, self.image), self._bytes(row[self.mask], index, self.mask)

    def _bytes(self, cell: Any, index: int, column: str) -> bytes:
        if cell is None:
            raise DataError(f"{self.folder}: row {index} has no {column}. Remove the row.")
        if cell["bytes"] is not None:
            return cell["bytes"]
        try:
            return Path(cell["path"]).read_bytes()
        except OSError as error:
            raise DataError(f"{self.folder}: row {index} refers to {cell['path']}: {error.strerror}.") from error

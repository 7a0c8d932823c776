"""Shards that `seghiero data pack` wrote, on this machine or read from anywhere through fsspec."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from seghiero_core.data.encoded import Pair, encoded_reader
from seghiero_core.data.remote import ShardCache, is_url, read_bytes
from seghiero_core.data.shards import expand, index_of, read_index
from seghiero_core.errors import DataError
from seghiero_core.readers import Bands, Reader, Urls, register_reader

_DOWNLOADS = 16  # indices at a time
_Positive = Annotated[int, Ge(1)]
MIB = 2**20


@register_reader("shards", form="URLS, or {urls: URLS} with a pattern or a list", short=lambda urls: {"urls": urls})
def build(
    key: str,
    bands: Bands | None = None,
    *,
    urls: Urls,
    window: _Positive = 8,
    cache_dir: str = "~/.cache/seghiero/shards",
    cache_mib: _Positive = 20480,
) -> Reader:
    """Samples of tar files, read at random by their indices."""
    places = [place for pattern in ([urls] if isinstance(urls, str) else urls) for place in expand(pattern)]
    if len(set(places)) < len(places) or not places:
        raise DataError(f"{key}.urls: expected shards, each of them once, found {len(places)}.")
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        texts = pool.map(lambda place: read_bytes(index_of(place)), places)
        indices = [read_index(text, place) for text, place in zip(texts, places, strict=True)]
    for place, index in zip(places, indices, strict=True):
        if not is_url(place):
            _check_size(Path(place), index["bytes"])
    window = min(window, len(places))
    remote = [index["bytes"] for place, index in zip(places, indices, strict=True) if is_url(place)]
    needed = sum(sorted(remote)[-window - 1 :])
    if needed > cache_mib * MIB:
        raise DataError(
            f"{key}: training reads {window} shards at a time, and the cache must hold these and the next: "
            f"{-(-needed // MIB)} MiB. Set dataset.cache_mib to that or more, or dataset.window lower."
        )
    cache = ShardCache(Path(cache_dir).expanduser(), cache_mib * MIB)
    blocks = [len(index["names"]) for index in indices]
    return encoded_reader(_Members(places, indices, cache), bands, blocks=blocks, window=window)


def _check_size(path: Path, expected: int) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. Restore the shard, or pack the data set again.") from error
    if size != expected:
        raise DataError(f"{path} is cut: it has {size} bytes, its index says {expected}. Restore it.")


class _Members(Sequence[Pair]):
    """The pairs of all shards, whose bytes are read when they are needed."""

    def __init__(self, places: list[str], indices: list[dict[str, Any]], cache: ShardCache) -> None:
        self.places, self.cache = places, cache
        self.shards = [(index["bytes"], index["sha256"]) for index in indices]
        self.ends = np.cumsum([len(index["names"]) for index in indices])
        names = [name for index in indices for name in index["names"]]
        if len(set(names)) < len(names):  # shards of several data sets
            stems = np.repeat([place.rpartition("/")[2] for place in places], [len(i["names"]) for i in indices])
            names = [f"{stem}/{name}" for stem, name in zip(stems, names, strict=True)]
        self.names = names
        self.files = [tuple(files) for index in indices for files in index["files"]]
        self.offsets, self.sizes, self.crc32, self.pixels = (
            np.concatenate([np.array(index[key], dtype=np.int64).reshape(-1, 2) for index in indices])
            for key in ("offsets", "sizes", "crc32", "pixels")
        )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Pair:
        shard = int(np.searchsorted(self.ends, index, side="right"))
        folder = Path(self.places[shard].partition("://")[2] or self.places[shard])
        image, mask = (folder / file for file in self.files[index])
        size = tuple(self.pixels[index].tolist())
        stamp = f"{self.shards[shard][1]} {self.offsets[index]}"
        return Pair(image, mask, self.names[index], partial(self._load, shard, index), size, stamp)

    def _load(self, shard: int, index: int) -> tuple[bytes, bytes]:
        place = self.places[shard]
        if is_url(place):
            with self.cache.open(place, *self.shards[shard]) as file:
                return self._members(file.fileno(), f"{file.name} in the cache", index)
        try:
            with Path(place).open("rb") as file:
                return self._members(file.fileno(), place, index)
        except OSError as error:
            raise DataError(f"{place}: {error.strerror}. Restore the shard.") from error

    def _members(self, file: int, place: str, index: int) -> tuple[bytes, bytes]:
        found = []
        for offset, size, crc32, name in zip(
            self.offsets[index], self.sizes[index], self.crc32[index], self.files[index], strict=True
        ):
            data = os.pread(file, size, offset)
            if len(data) != size or zlib.crc32(data) != crc32:
                cached = "remove it from the cache, " if "://" in place else ""
                raise DataError(
                    f"{place} is altered: its file {name} is not what its index says. To mend it, {cached}restore it, "
                    "or pack the data set again."
                )
            found.append(data)
        return found[0], found[1]

"""What a check finds in one sample, whatever the classes are, and a cache of it."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seghiero_core.atomic import make_folder
from seghiero_core.data.bands import absent_pixels
from seghiero_core.data.images import check_same_size
from seghiero_core.data.samples import Sample
from seghiero_core.errors import SeghieroError

CACHE_VARIABLE = "SEGHIERO_CACHE"
"""The environment variable with the folder of the cache, or "off"."""
PIXELS_PER_CHUNK = 1 << 20  # counted at a time, which bounds the memory for images of any size
_UINT16_VALUES = 1 << 16
_TABLE = "facts_2"  # another number when other facts are kept
_SAVED_AT_A_TIME = 200
_KEYS_PER_QUERY = 500
_PATIENCE = 10  # s to wait for another process


class Facts(NamedTuple):
    """What is known about a sample.

    Attributes:
        size: (H, W) of the upright image in px.
        values: The number of pixels of each mask value; None where the sample wasn't decoded.
        turned: See `readers.Inspection`, as for the rest.
        peak: The greatest value of a 16-bit image.
        mean: The mean red, green and blue.
        digest: A hash of the image.
        nodata: The number of pixels without data, which `values` leaves out.
    """

    size: tuple[int, int]
    values: Mapping[int, int] | None = None
    turned: bool = False
    peak: int | None = None
    mean: tuple[float, float, float] | None = None
    digest: str | None = None
    nodata: int = 0


def find_facts(sample: Sample, *, decode: bool) -> Facts:
    """Check one sample.

    Args:
        sample: The sample.
        decode: Whether to find what only decoding shows.

    Returns:
        What was found.

    Raises:
        DataError: When it is missing or damaged, or image and mask don't fit together.
    """
    found = sample.reader.inspect(sample.index, decode=decode)
    if found.mask is None:
        return Facts(found.size, None, found.turned, found.peak)
    mask, nodata = found.mask, 0
    check_same_size(sample.image, found.size, sample.mask, mask.shape)
    if sample.bands:
        absent = absent_pixels(sample.decode()[0])
        mask, nodata = mask[~absent], int(absent.sum())
    return Facts(found.size, _count_values(mask), found.turned, found.peak, found.mean, found.digest, nodata)


def user_cache() -> Path | None:
    """Return the folder of what is kept between runs.

    Returns:
        $SEGHIERO_CACHE, else `seghiero` in the user's folder for caches; None where the variable is "off".
    """
    folder = os.environ.get(CACHE_VARIABLE)
    if folder == "off":
        return None
    if not folder:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seghiero"
    return Path(folder).absolute()


def cache_file() -> Path | None:
    """Return the file of the cache.

    Returns:
        `facts.sqlite` in `user_cache`; None if the variable is "off".
    """
    folder = user_cache()
    return folder and folder / "facts.sqlite"


class FactsCache:
    """The facts of samples that were decoded before, in a SQLite database that several processes may use at once.

    An entry counts only while the `stamp` of its sample is the same. A cache that can't be used holds nothing, and
    `problem` says why. Use it as a context manager, in one thread.

    Args:
        path: The database. Default: `cache_file()`; None there for a cache that holds nothing.

    Attributes:
        problem: Why the cache can't be used; empty where it can.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_file()
        self.problem = ""
        self._database: sqlite3.Connection | None = None
        self._waiting: list[tuple[str, str, str]] = []

    def __enter__(self) -> FactsCache:
        if self.path:
            try:
                make_folder(self.path.parent)
                self._database = sqlite3.connect(self.path, timeout=_PATIENCE)
                self._database.execute(
                    f"CREATE TABLE IF NOT EXISTS {_TABLE} (sample TEXT PRIMARY KEY, stamp TEXT, facts TEXT)"
                )
            except (sqlite3.Error, OSError, SeghieroError) as error:
                self._give_up(error)
        return self

    def __exit__(self, *_: object) -> None:
        self._save()
        if self._database:
            self._database.close()

    def find(self, samples: Sequence[Sample], stamps: Sequence[str | None]) -> Iterator[Facts | None]:
        """Look samples up.

        Args:
            samples: The samples.
            stamps: The stamp of each.

        Yields:
            The facts of each sample; None where they are unknown, or the sample has changed.
        """
        for start in range(0, len(samples), _KEYS_PER_QUERY):
            keys = [_key(sample) for sample in samples[start : start + _KEYS_PER_QUERY]]
            known = self._query(keys)
            for key, stamp in zip(keys, stamps[start:], strict=False):
                saved, text = known.get(key, (None, ""))
                yield _from_json(text) if stamp is not None and saved == stamp else None

    def add(self, sample: Sample, stamp: str | None, facts: Facts) -> None:
        """Keep what was found in a sample.

        Args:
            sample: The sample.
            stamp: Its stamp from before it was decoded; with None nothing is kept.
            facts: What was found.
        """
        if stamp is not None and self._database:
            self._waiting.append((_key(sample), stamp, _to_json(facts)))
            if len(self._waiting) >= _SAVED_AT_A_TIME:
                self._save()

    def _query(self, keys: Sequence[str]) -> dict[str, tuple[str, str]]:
        if not self._database:
            return {}
        marks = ", ".join("?" * len(keys))
        try:
            rows = self._database.execute(f"SELECT sample, stamp, facts FROM {_TABLE} WHERE sample IN ({marks})", keys)
            return {key: (stamp, text) for key, stamp, text in rows}
        except sqlite3.Error as error:
            self._give_up(error)
            return {}

    def _save(self) -> None:
        if self._database and self._waiting:
            try:
                with self._database:
                    self._database.executemany(f"INSERT OR REPLACE INTO {_TABLE} VALUES (?, ?, ?)", self._waiting)
            except sqlite3.Error as error:
                self._give_up(error)
        self._waiting = []

    def _give_up(self, error: Exception) -> None:
        self.problem = f"{self.path} ({str(error).rstrip('.')})"
        if self._database:
            with suppress(sqlite3.Error):
                self._database.close()
        self._database = None


def _key(sample: Sample) -> str:
    return f"{sample.image.absolute()}\n{sample.mask.absolute()}"


def _to_json(facts: Facts) -> str:
    return json.dumps([*facts._replace(values=list(facts.values.items()))])


def _from_json(text: str) -> Facts:
    size, values, turned, peak, mean, digest, nodata = json.loads(text)
    return Facts(tuple(size), dict(values), turned, peak, mean and tuple(mean), digest, nodata)


def _count_values(mask: np.ndarray) -> dict[int, int]:
    """The number of pixels of each value that occurs in a mask of any integer dtype."""
    counts = np.zeros(256 if mask.dtype == np.uint8 else _UINT16_VALUES, dtype=np.int64)
    others: Counter[int] = Counter()
    pixels = mask.ravel()
    for start in range(0, len(pixels), PIXELS_PER_CHUNK):
        chunk = pixels[start : start + PIXELS_PER_CHUNK]
        if chunk.dtype not in (np.uint8, np.uint16):
            is_uint16 = (chunk >= 0) & (chunk < _UINT16_VALUES)
            others.update(chunk[~is_uint16].tolist())
            chunk = chunk[is_uint16]
        counts += np.bincount(chunk, minlength=len(counts))
    found = np.flatnonzero(counts)
    return dict(zip(found.tolist(), counts[found].tolist(), strict=True)) | dict(others)

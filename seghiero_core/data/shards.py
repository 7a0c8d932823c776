"""Shards: tar files in WebDataset's layout, each with an index of where its samples are.

A shard NAME.tar holds, for each sample, KEY.image.EXT and KEY.mask.EXT with the encoded image and mask as they were,
and KEY.json with the name of the sample. NAME.index.json says where their bytes are, so that samples can be read in any
order, and has the SHA-256 of the shard.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seghiero_core.atomic import file_sha256, make_folder, replacing
from seghiero_core.config.schema import Config
from seghiero_core.data.samples import Sample, split_samples
from seghiero_core.errors import DataError, UsageError

_FORMAT = 1
INDEX = ".index.json"
_KEYS = {"format", "bytes", "sha256", "names", "files", "offsets", "sizes", "crc32", "pixels"}


@dataclass(frozen=True)
class Packed:
    """What was packed of a split, or of one source of it.

    Attributes:
        split: "train", "val" or "test".
        source: The name of the source; None without sources.
        shards: The tar files.
        samples: Their number of samples.
        bytes: Their size.
    """

    split: str
    source: str | None
    shards: tuple[Path, ...]
    samples: int
    bytes: int

    @property
    def pattern(self) -> str:
        """The file names, as `urls` takes them."""
        names = [path.name for path in self.shards]
        if len(names) == 1:
            return names[0]
        first, last = (re.findall(r"\d+", name)[-1] for name in (names[0], names[-1]))
        return f"{self.split}-{{{first}..{last}}}.tar"


def pack(
    config: Config, out: Path, shard_bytes: int, on_progress: Callable[[str, int, int], None] | None = None
) -> list[Packed]:
    """Write all splits of a data set as shards. Shards that are complete are kept, so a killed run goes on.

    Args:
        config: A loaded config.
        out: The folder for the shards; those of a source go into a folder of its name.
        shard_bytes: The size of a shard, exceeded only by one sample that is larger.
        on_progress: Called with (split, samples done, samples in the split).

    Returns:
        What was written, for each split and source.

    Raises:
        DataError: When a sample can't be read, or its mask has another size.
        UsageError: When `out` has other shards.
    """
    written = []
    for split in config.dataset.splits:
        samples = split_samples(config.dataset, split)
        done = 0
        for source in dict.fromkeys(sample.source for sample in samples):
            name = None if source is None else config.dataset.sources[source].name
            folder = out if name is None else out / name
            make_folder(folder)
            group = [sample for sample in samples if sample.source == source]
            shards, position = [], 0
            while position < len(group):
                shard = folder / f"{split}-{len(shards):03d}.tar"
                place = (shard, group, position, shard_bytes)
                position += _packed_before(*place) or _write(*place)
                shards.append(shard)
                if on_progress:
                    on_progress(split, done + position, len(samples))
            done += len(group)
            _check_no_more(folder / f"{split}-{len(shards):03d}.tar")
            total = sum(path.stat().st_size for path in shards)
            written.append(Packed(split, name, tuple(shards), len(group), total))
    return written


def read_index(text: bytes, place: str) -> dict[str, Any]:
    """Parse the index of a shard.

    Args:
        text: The content of the index.
        place: The shard, for messages.

    Returns:
        "bytes" and "sha256" of the shard, and for each sample: its name in "names", the names of the two files in
        "files", their "offsets", "sizes" and "crc32", and the (H, W) of the image in "pixels".

    Raises:
        DataError: When it is damaged, or of another version.
    """
    try:
        index = json.loads(text)
        if set(index) >= _KEYS and index["format"] == _FORMAT:
            return index
    except (ValueError, TypeError):
        pass
    raise DataError(f"{index_of(place)} is damaged, or not the index of a shard. Pack the data set again.")


def index_of(place: str) -> str:
    """Name the index of a shard.

    Args:
        place: The URL or path of the shard.

    Returns:
        The URL or path of its index.
    """
    return f"{place.removesuffix('.tar')}{INDEX}"


def expand(pattern: str) -> list[str]:
    """Expand ranges such as {000..099} in a URL or path.

    Args:
        pattern: A URL or path, with any number of ranges.

    Returns:
        The URLs or paths, in order.
    """
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    before, after = pattern[: found.start()], pattern[found.end() :]
    numbers = range(int(first), int(last) + 1)
    return [each for number in numbers for each in expand(f"{before}{number:0{len(first)}d}{after}")]


def _write(shard: Path, samples: Sequence[Sample], start: int, limit: int) -> int:
    """Write samples from `start` on until the shard is full, and its index; returns their number."""
    index: dict[str, Any] = {key: [] for key in ("names", "files", "offsets", "sizes", "crc32", "pixels")}
    with replacing(shard) as partial:
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            for position in range(start, len(samples)):
                sample = samples[position]
                height, width = sample.reader.inspect(sample.index, decode=False).size
                files = list(_files(sample, f"{position:08d}"))
                if index["names"] and _tar_size(tar, files) > limit:
                    break
                places = [_add(tar, name, data) for name, data in files][:2]
                index["names"].append(sample.name)
                index["files"].append([name for name, _ in files[:2]])
                index["offsets"].append(places)
                index["sizes"].append([len(data) for _, data in files[:2]])
                index["crc32"].append([zlib.crc32(data) for _, data in files[:2]])
                index["pixels"].append([int(height), int(width)])
        facts = {"format": _FORMAT, "limit": limit, "bytes": partial.stat().st_size, "sha256": file_sha256(partial)}
    with replacing(Path(index_of(str(shard)))) as partial:
        partial.write_text(json.dumps({**facts, **index}, separators=(",", ":")))
    return len(index["names"])


def _files(sample: Sample, key: str) -> Iterator[tuple[str, bytes]]:
    """The names and contents of the files of a sample: image, mask, and what describes it."""
    for kind, (data, extension) in zip(("image", "mask"), sample.reader.encoded(sample.index), strict=True):
        yield f"{key}.{kind}{extension}", data
    yield f"{key}.json", json.dumps({"name": sample.name}).encode()


def _tar_size(tar: tarfile.TarFile, files: Sequence[tuple[str, bytes]]) -> int:
    """The size of a tar once it has these files, too: whole records, with two empty blocks at its end."""
    size = tar.offset + 2 * tarfile.BLOCKSIZE
    size += sum(tarfile.BLOCKSIZE * (1 + -(-len(data) // tarfile.BLOCKSIZE)) for _, data in files)
    return -(-size // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a file without a date or owner, so that equal data gives equal shards; returns where its bytes begin."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    begin = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(entry, io.BytesIO(data))
    return begin


def _packed_before(shard: Path, samples: Sequence[Sample], start: int, limit: int) -> int:
    """How many samples an earlier run has packed into this shard; 0 if it isn't complete."""
    index_path = Path(index_of(str(shard)))
    if not (shard.exists() and index_path.exists()):
        return 0
    index = read_index(index_path.read_bytes(), str(shard))
    names = index["names"]
    same = [sample.name for sample in samples[start : start + len(names)]] == names
    if not same or index["bytes"] != shard.stat().st_size:
        raise UsageError(f"{shard} holds other samples than this config; choose another folder, or remove it.")
    if index.get("limit", limit) != limit:
        mib = index["limit"] / 2**20
        raise UsageError(f"{shard} was packed with --shard-mib {mib:g}; keep that size, or choose another folder.")
    return len(names)


def _check_no_more(shard: Path) -> None:
    if shard.exists():
        raise UsageError(f"{shard} is left over from another data set; choose another folder, or remove it.")

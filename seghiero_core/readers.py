"""Readers: where the samples of a data set come from, one decorated builder for each `dataset.type`.

A builder's keyword-only parameters are keys of the config. Each may be set in a split, or in `dataset` (or a source)
for all its splits. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import inspect
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from seghiero_core.errors import DataError
from seghiero_core.registry import Registry, keyword_options

if TYPE_CHECKING:
    import numpy as np

HUB_OR_PATH, URL_OR_PATH = "the name of something on a hub, or a path", "a URL or a path"
HubOrPath = Annotated[str, HUB_OR_PATH]
"""An option that is a local path where one of this name exists; like a `Path` it is relative to the root."""
Urls = Annotated[str | list[str], URL_OR_PATH]
"""An option of one or more URLs or paths; the paths are relative to the root."""


class Bands(NamedTuple):
    """How images are read that aren't 8-bit RGB: the keys of `dataset`.

    Attributes:
        channels: The number of bands of every image.
        nodata: The value that all bands of a pixel have where there is no data; None for none.
        rgb: The positions of red, green and blue; empty for none.
    """

    channels: int
    nodata: float | None = None
    rgb: tuple[int, ...] = ()


class Inspection(NamedTuple):
    """What a check finds in one sample.

    Attributes:
        size: (H, W) of the upright image in px.
        mask: H,W label values; None where they weren't decoded.
        turned: Whether image and mask have different EXIF orientations, although the sizes fit either way.
        peak: The greatest value of a 16-bit image; None for others, or where it wasn't decoded.
        mean: The mean red, green and blue of the image, 0..255; None for `Bands`, or where it wasn't decoded.
        digest: A hash of the image as it is stored, equal for equal images; None where it wasn't decoded.
    """

    size: tuple[int, int]
    mask: np.ndarray | None = None
    turned: bool = False
    peak: int | None = None
    mean: tuple[float, float, float] | None = None
    digest: str | None = None


class Reader(ABC):
    """The samples of one split. `__len__` and `read` are required; the rest is faster or says more where it is defined.

    A reader is used by several threads and processes at once, and must be picklable. What it can't read is a DataError.

    Attributes:
        blocks: The numbers of samples that are stored together, such as in a shard; they add up to the length. Training
            then draws samples of few blocks at a time. Empty where the order doesn't matter.
        window: Of how many blocks training draws at a time.
    """

    blocks: Sequence[int] = ()
    window: int = 1

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def read(self, index: int) -> tuple[np.ndarray, np.ndarray, str]:
        """Decode a sample.

        Args:
            index: Its position, from 0.

        Returns:
            The image, H,W,3 uint8 RGB, or what `dataset.channels` asks for: H,W,C uint8 or float32 in stored units,
            NaN where there is no data; the mask, H,W label values of any integer dtype; and a name that no other sample
            of the reader has.
        """

    def name(self, index: int) -> str:
        """Return the name of a sample, if possible without decoding it.

        Args:
            index: Its position.

        Returns:
            The third value of `read`.
        """
        return self.read(index)[2]

    def files(self, index: int) -> tuple[Path, Path]:
        """Return what messages call the image and the mask. No other image has this path, in no split.

        Args:
            index: Its position.

        Returns:
            The two files, or paths that look like it, such as "train-000.tar/00000012.image.jpg".
        """
        return Path(self.name(index)), Path(self.name(index))

    def size(self, index: int) -> tuple[int, int]:
        """Return the size of a sample's image, if possible from its header.

        Args:
            index: Its position.

        Returns:
            (H, W) of the upright image, in px.
        """
        return self.read(index)[0].shape[:2]

    def encoded(self, index: int) -> tuple[tuple[bytes, str], tuple[bytes, str]]:
        """Return image and mask as files that decode to what `read` returns, for shards.

        Args:
            index: Its position.

        Returns:
            The content and the extension, such as ".png", of both.
        """
        image, mask, _ = self.read(index)
        is_rgb = image.dtype == "uint8" and image.shape[2] == 3
        return (as_png(image), ".png") if is_rgb else (as_npy(image), ".npy"), (as_png(mask), ".png")

    def inspect(self, index: int, *, decode: bool) -> Inspection:
        """Check a sample, if possible faster than by reading it. A difference in size is found by the caller, too.

        Args:
            index: Its position.
            decode: Whether to find what only decoding shows: damage, and the values of the mask.

        Returns:
            What was found.
        """
        if not decode:
            return Inspection(self.size(index))
        image, mask, _ = self.read(index)
        mean = tuple(image.mean(axis=(0, 1)).tolist()) if image.shape[2] == 3 else None
        digest = hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()
        return Inspection(image.shape[:2], mask, mean=mean, digest=digest)

    def stamp(self, index: int) -> str | None:
        """Return a text that changes whenever the sample does, so that what was found in it need not be found again.

        Args:
            index: Its position.

        Returns:
            For example the sizes and times of its files; None where nothing tells, and the sample is always checked.
        """
        return None


def as_png(pixels: np.ndarray) -> bytes:
    """Encode an image or a mask without loss.

    Args:
        pixels: H,W,3 uint8 RGB, or H,W label values of any integer dtype.

    Returns:
        A PNG file.

    Raises:
        DataError: When a mask has values that no label can have.
    """
    from PIL import Image  # not at the top: this module is imported by --help

    from seghiero_core.hierarchy.values import LARGEST_VALUE

    if pixels.dtype != "uint8":
        if pixels.size and (pixels.min() < 0 or pixels.max() > LARGEST_VALUE):
            raise DataError(f"a mask has values from {pixels.min()} to {pixels.max()}; expected 0 to {LARGEST_VALUE}.")
        pixels = pixels.astype("uint16")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def as_npy(pixels: np.ndarray) -> bytes:
    """Save an image as numpy does.

    Args:
        pixels: H,W,C of any dtype.

    Returns:
        An .npy file.
    """
    import numpy as np

    file = io.BytesIO()
    np.save(file, pixels, allow_pickle=False)
    return file.getvalue()


@dataclass(frozen=True)
class ReaderEntry:
    """What is known about a type of data set without reading one.

    Attributes:
        name: Its `dataset.type`.
        build: The builder, `build(key, **options) -> Reader`, where `key` is such as "dataset.train", for messages. One
            with a second positional parameter also gets the `Bands` to read, None for 8-bit RGB.
        form: How a split is written, for messages.
        short: The keys of a split that a string stands for; None where a split can't be a string.
        options: The keys of a split, by name.
    """

    name: str
    build: Callable[..., Reader]
    form: str
    short: Callable[[str], Mapping[str, Any]] | None
    options: Mapping[str, inspect.Parameter]

    def open(self, key: str, bands: Bands | None, options: Mapping[str, Any]) -> Reader:
        """Build a reader of one split.

        Args:
            key: Where the split is in the config, for messages.
            bands: How to read the images; None for 8-bit RGB.
            options: The options of the builder.

        Returns:
            The reader.
        """
        parameters = inspect.signature(self.build).parameters.values()
        takes_bands = sum(each.kind is not inspect.Parameter.KEYWORD_ONLY for each in parameters) > 1
        return self.build(key, bands, **options) if takes_bands else self.build(key, **options)


READERS = Registry("reader", "seghiero_core.data.readers")


def register_reader(
    name: str, *, form: str = "", short: Callable[[str], Mapping[str, Any]] | None = None
) -> Callable[[Callable[..., Reader]], Callable[..., Reader]]:
    """Register a builder, `build(key, *, options...)` or `build(key, bands, *, options...)`, as a type of data set.

    Options annotated as `Path`, `HubOrPath` or `Urls` are relative to the root of the data set or source.

    Args:
        name: Its `dataset.type`.
        form: How a split is written, for messages. Default: its required keys.
        short: Returns the keys of a split that is written as one string. Default: a split can't be a string.

    Returns:
        The decorator; it returns the builder unchanged and raises UsageError when the name is taken.
    """

    def decorate(build: Callable[..., Reader]) -> Callable[..., Reader]:
        options = keyword_options(f"reader '{name}'", build)
        required = ", ".join(f"{key}: ..." for key, option in options.items() if option.default is option.empty)
        READERS.add(ReaderEntry(name, build, form or f"{{{required}}}", short, options))
        return build

    return decorate

"""From the samples that a TIFF stores to what a network takes, and which pixels hold data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from seghiero_core.data.bands import mark_nodata, to_stored_units
from seghiero_core.errors import DataError
from seghiero_core.predict.windows import Block
from seghiero_core.readers import Bands

_NODATA = 42113
_ALPHA = (1, 2)  # values of the tag ExtraSamples
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6  # of the tag PhotometricInterpretation
_UPRIGHT = 1  # of the tag Orientation


class SampleLayout:
    """How the samples of a page become a network's image.

    A network for RGB gets what it gets of other images: gray three times, palettes as colors, of 16 bits the high byte.
    One with `dataset.channels` gets the bands as stored.

    Args:
        path: The file, for messages.
        page: A `tifffile.TiffPage`.
        bands: How to read it; None for 8-bit RGB.

    Attributes:
        has_nodata: Whether there may be pixels without data: the file has a nodata value or an alpha channel, or the
            network's bands may.

    Raises:
        DataError: The page has other pixels than the network takes.
    """

    def __init__(self, path: Path, page: Any, bands: Bands | None) -> None:
        self.path, self.bands, self.photometric = path, bands, int(page.photometric)
        if page.tags.valueof(274, _UPRIGHT) != _UPRIGHT:
            raise DataError(f"{path} is a raster with an EXIF orientation; save it upright, without that tag.")
        if page.imagedepth > 1:
            raise DataError(f"{path} is a volume of {page.imagedepth} planes; save the one to predict in its own file.")
        extra = [int(kind) for kind in page.extrasamples]
        first_extra = page.samplesperpixel - len(extra)
        alphas = [first_extra + i for i, kind in enumerate(extra) if kind in _ALPHA]
        self.alpha = alphas[0] if alphas and bands is None else None
        self.nodata = _declared_nodata(page)
        self.has_nodata = bands is not None or self.alpha is not None or self.nodata is not None
        self.palette = None
        if bands is None:
            self.used = self._rgb_samples(page, page.samplesperpixel - len(alphas), alphas)
            if self.photometric == _PALETTE:
                self.palette = (np.asarray(page.colormap).T >> 8).astype(np.uint8)
        else:
            self._check_bands(page, bands.channels)
            self.used = list(range(bands.channels))

    def convert(self, samples: np.ndarray, valid: np.ndarray | None) -> Block:
        """Convert a block.

        Args:
            samples: h,w,C, all samples as stored.
            valid: h,w bool: the mask that the file keeps beside them, or None.

        Returns:
            The block for the network; pixels without data are NaN where it takes bands.
        """
        absent = np.zeros(samples.shape[:2], dtype=bool) if valid is None else ~valid
        pixels = samples[..., self.used]
        if self.alpha is not None:
            absent |= samples[..., self.alpha] == 0
        if self.nodata is not None:
            absent |= (np.isnan(pixels) if np.isnan(self.nodata) else pixels == self.nodata).all(axis=2)
        if self.bands is None:
            pixels = self._to_rgb(pixels)
        else:
            pixels = mark_nodata(to_stored_units(pixels, self.path, self.bands.nodata), self.bands.nodata)
            if pixels.dtype.kind == "f":
                absent |= np.isnan(pixels[..., 0])
        return Block(np.ascontiguousarray(pixels), ~absent if absent.any() else None)

    def _to_rgb(self, pixels: np.ndarray) -> np.ndarray:
        if self.palette is not None:
            return self.palette[pixels[..., 0]]
        if pixels.dtype == np.uint16:
            pixels = (pixels >> 8).astype(np.uint8)
        if self.photometric == _WHITE_IS_ZERO:
            pixels = 255 - pixels
        return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)

    def _rgb_samples(self, page: Any, colors: int, alphas: list[int]) -> list[int]:
        """The samples that are gray, or red, green and blue."""
        if page.dtype not in (np.uint8, np.uint16) or page.bitspersample not in (8, 16):
            raise DataError(
                f"{self.path} has pixels of {page.bitspersample} bits ({page.dtype}), whose range is unknown. "
                "Convert it to 8 or 16 bits per band, or train on its bands with dataset.channels."
            )
        kept = [i for i in range(page.samplesperpixel) if i not in alphas]
        gray = (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE)
        if colors == 1 and self.photometric in gray:
            return kept
        if self.photometric in (_RGB, _YCBCR) or (self.photometric == _BLACK_IS_ZERO and colors == 3):
            return kept[:3]
        raise DataError(
            f"{self.path} has {colors} bands of the kind {page.photometric.name}, and the network takes RGB. "
            "Convert it to RGB, or train on its bands with dataset.channels."
        )

    def _check_bands(self, page: Any, channels: int) -> None:
        if self.photometric == _PALETTE:
            raise DataError(f"{self.path} has a palette, and the network takes {channels} bands of values.")
        found = page.samplesperpixel
        if found != channels:
            bands = "1 band" if found == 1 else f"{found} bands"
            raise DataError(
                f"{self.path} has {bands}, expected {channels}. Predict files with the bands that the network was "
                "trained on."
            )


def _declared_nodata(page: Any) -> float | None:
    """The value of the tag GDAL_NODATA."""
    text = str(page.tags.valueof(_NODATA, "")).strip("\0 ")
    try:
        return float(text.split()[0]) if text else None
    except ValueError:
        return None

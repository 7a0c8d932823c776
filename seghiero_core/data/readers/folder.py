"""Two folders: images, and masks with the same names."""

from __future__ import annotations

from pathlib import Path

from seghiero_core.data.encoded import encoded_reader
from seghiero_core.data.pairing import find_pairs
from seghiero_core.readers import Bands, Reader, register_reader


@register_reader(
    "folder",
    form="FOLDER, which holds images/ and masks/, or {images: FOLDER, masks: FOLDER}",
    short=lambda folder: {"images": str(Path(folder, "images")), "masks": str(Path(folder, "masks"))},
)
def build(
    key: str,
    bands: Bands | None = None,
    *,
    images: Path,
    masks: Path,
    image_suffix: str = "",
    mask_suffix: str = "",
    list: Path | None = None,
) -> Reader:
    """Images and masks in two folders, paired by name; of a `list` of images, only those that it names."""
    return encoded_reader(find_pairs(key, images, masks, image_suffix, mask_suffix, list, bands=bands), bands)

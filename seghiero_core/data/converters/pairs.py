"""An image and its mask in the output: where the image comes from, and a mask that is turned as the image is."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np

from seghiero_core.atomic import make_folder, replacing
from seghiero_core.data.faults import FileError
from seghiero_core.data.images import open_image
from seghiero_core.data.orientation import exif_orientation, upright_size

TURNED = "masks_turned"
_TURNS = {5: np.transpose, 6: lambda m: np.rot90(m, -1), 7: lambda m: np.rot90(m, 2).T, 8: np.rot90}
# What a file system answers that has no hard links, or none for this file.
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES)


def fit_to_image(mask: np.ndarray, image: Path, annotation: Path, counts: Counter[str]) -> np.ndarray:
    """Check that a mask has its image's size, and turn it upright if it was drawn on the image as stored.

    Loaders rotate images upright by their EXIF orientation. Most tools draw on the upright image, some on the stored
    one; the size tells, where the two differ.

    Args:
        mask: H,W mask values.
        image: The image file.
        annotation: The file that the mask comes from, for messages.
        counts: Increased by a mask that was turned.

    Returns:
        H,W mask values of the upright image.

    Raises:
        DataError: When the image can't be read, or has another size.
    """
    with open_image(image) as opened:
        upright, orientation = upright_size(opened), exif_orientation(opened)
    if mask.shape == upright:
        return mask
    if mask.shape == upright[::-1] and orientation in _TURNS:
        counts[TURNED] += 1
        return _TURNS[orientation](mask)
    sizes = f"{mask.shape[0]}x{mask.shape[1]} px (HxW), the image {upright[0]}x{upright[1]}"
    advice = "Annotations must belong to the image at its full size: use the image that was annotated."
    raise FileError(
        f"{annotation} has a mask of {sizes} ({image}). {advice}",
        annotation,
        many=f"{{count}} masks differ in size from their images: {{files}}. {advice}",
        detail=sizes,
    )


def place_image(image: Path, path: Path, *, copy: bool) -> str:
    """Give an image a second name by a hard link, or copy it where the file system has none. Nothing is overwritten.

    Args:
        image: The original.
        path: Its new place.
        copy: Copy it in any case.

    Returns:
        "linked" or "copied"; of a file that exists, what it is.
    """
    image = image.resolve()  # of a symbolic link, the file that it points to
    make_folder(path.parent)
    if not copy and not path.exists():
        try:
            os.link(image, path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
    if path.exists():
        return "linked" if path.samefile(image) else "copied"
    with replacing(path) as temporary:
        shutil.copyfile(image, temporary)
    return "copied"

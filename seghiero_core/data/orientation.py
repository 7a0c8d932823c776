"""EXIF orientation: the upright size of an image from its header, and its pixels turned upright."""

from __future__ import annotations

from PIL import Image, ImageOps

_EXIF_ORIENTATION = 0x0112
QUARTER_TURNS = (5, 6, 7, 8)
"""The EXIF orientations that swap height and width."""
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_PNG_KEYWORDS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # of texts with an orientation
_LONGEST_KEYWORD = max(map(len, _PNG_KEYWORDS))


def turn_upright(image: Image.Image) -> None:
    """Decode an image and rotate it upright by its EXIF orientation, in place.

    Args:
        image: An open image.
    """
    if image.format == "TIFF":
        # Without a name Pillow doesn't map the file into memory. It maps files that need a quarter turn with height
        # and width swapped, which scrambles the pixels.
        image.filename = ""
    ImageOps.exif_transpose(image, in_place=True)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Get the size of an image once it is rotated upright, from its header.

    Args:
        image: An open image; it is not decoded.

    Returns:
        (H, W) in px.
    """
    width, height = image.size
    if exif_orientation(image) not in QUARTER_TURNS:
        return height, width
    if image.format == "TIFF":  # depending on its version, Pillow has already swapped `size`
        width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
    return width, height


def exif_orientation(image: Image.Image) -> int:
    """Read the EXIF orientation of an image, from its header.

    Args:
        image: An open image; it is not decoded, except for a PNG with EXIF or XMP after its pixels.

    Returns:
        1 (upright) to 8, as in the EXIF standard; 1 for an image without the tag.
    """
    if image.format == "PNG" and not _has_exif_after_pixels(image):
        exif = Image.Image.getexif(image)  # the method of PNG images decodes all pixels to look behind them
    else:
        exif = image.getexif()
    orientation = exif.get(_EXIF_ORIENTATION, 1)
    return orientation if orientation in range(1, 9) else 1


def _has_exif_after_pixels(image: Image.Image) -> bool:
    """Whether a PNG that isn't decoded yet has EXIF or XMP behind its pixels; skips from chunk to chunk.

    Other text is common there: ImageMagick adds dates.
    """
    file = image.fp
    if file is None:
        return False
    position = file.tell()
    file.seek(8)
    pixels_seen = found = False
    while not found and len(header := file.read(8)) == 8 and (kind := header[4:]) != b"IEND":
        pixels_seen |= kind == b"IDAT"
        end = file.tell() + int.from_bytes(header[:4], "big") + 4
        if pixels_seen:
            found = kind == b"eXIf" or (kind in _PNG_TEXT and file.read(_LONGEST_KEYWORD).startswith(_PNG_KEYWORDS))
        file.seek(end)
    file.seek(position)
    return found

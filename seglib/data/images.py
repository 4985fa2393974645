"""Image files: their headers, their pixels as RGB, and how they are turned by their EXIF orientation."""

import os
import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from seglib.errors import InputError

_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 swap width and height


def read_header(path: str | Path) -> tuple[int, int, int]:
    """(width, height, EXIF orientation) as stored, without decoding the pixels; orientation 1 is upright.

    Raises
    ------
    InputError
        Where the file is missing or its header cannot be read.
    """
    _require_file(path)
    try:
        with Image.open(path) as image:
            return *image.size, _orientation(image.info.get("exif", b""))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise InputError(f"{path}: must be an image that can be read, got: {reason}; copy the file again") from None


def read_image(path: str | Path, size: tuple[int, int] | None) -> np.ndarray:
    """Decode an image to (height, width, 3) uint8 RGB, whatever its format, depth and channels.

    Pixels are read as stored, ignoring the EXIF orientation, since annotations usually are drawn on these; only where
    `size`, the JSON's (width, height), is that of the turned image are they turned.

    Raises
    ------
    InputError
        Where the file is missing, unreadable or truncated, or its size is not `size`.
    """
    _require_file(path)
    try:
        data = Path(path).read_bytes()
        image = _decode(data, cv2.IMREAD_IGNORE_ORIENTATION)
        if image is not None and size is not None and image.shape[:2] == tuple(size) != image.shape[1::-1]:
            image = _decode(data, 0)  # turned by its EXIF orientation
    except (OSError, cv2.error) as error:
        raise InputError(f"{path}: must be an image that can be read, got: {error}; copy the file again") from None
    if image is None:
        raise InputError(f"{path}: must be a whole image, got a file that is truncated or no image; copy it again")
    height, width = image.shape[:2]
    if size is not None and (width, height) != tuple(size):
        raise InputError(
            f"{path}: must be {size[0]}x{size[1]} px (width x height) as the JSON says, got {width}x{height}; "
            "use the image that was annotated, or correct the JSON"
        )
    return image


def _decode(data: bytes, flags: int) -> np.ndarray | None:
    if data.startswith(b"\xff\xd8") and not _has_end_marker(data):
        return None  # a download that stopped in a file of full length: libjpeg makes the zeros grey, and only warns
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | flags)


def _has_end_marker(jpeg: bytes) -> bool:
    """Whether the end marker follows the main scan; the one of an embedded thumbnail comes before it."""
    at = 2
    while jpeg[at : at + 1] == b"\xff" and jpeg[at + 1 : at + 2] != b"\xda":
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    return jpeg.find(b"\xff\xd9", at) >= 0


def _orientation(exif: bytes) -> int:
    tags = Image.Exif()
    try:
        tags.load(exif)
        orientation = tags.get(_ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, TypeError, struct.error):
        return 1  # decoders ignore an EXIF block that they cannot parse
    return orientation if orientation in range(1, 9) else 1


def _require_file(path: str | Path) -> None:
    if not os.path.isfile(path):
        raise InputError(f"{path}: the image must exist, got no such file; check file_name and the data folder")

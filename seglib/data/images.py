"""Image files: their headers, their pixels as RGB of eight bits, and how they are turned by their EXIF orientation."""

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from seglib.errors import InputError
from seglib.files import read_file

EXIF = ("apply", "ignore")  # whether images are turned where the JSON's size does not tell; the first is the default
BLACK = 15  # an image with no value above it shows nothing
CONSTANT = 3  # [grey levels] between the darkest and the brightest value of each channel: what JPEG makes of one colour
FULL_RANGE = 2**14  # images of 16 bits whose values all lie below this hold 10, 12 or 14 bits
DAMAGES = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises of damaged files
_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 swap width and height
_EIGHT_BITS = ("JPEG", "MPO", "WEBP", "GIF", "BMP")  # formats of nothing else


def read_header(path: str | Path) -> tuple[int, int, int]:
    """(width, height, EXIF orientation) as stored, without decoding the pixels; orientation 1 is upright.

    Raises
    ------
    InputError
        Where the file is missing or its header cannot be read.
    """
    _require_file(path)
    with opening(path, "must be an image that can be read", "copy the file again", whole=False) as image:
        return *image.size, _find_orientation(image)


@contextmanager
def opening(path: str | Path, required: str, fix: str, whole: bool = True) -> Iterator[Image.Image]:
    """An image as Pillow opens it, from the whole file or as far as it asks; InputError where it cannot be read."""
    try:
        with Image.open(io.BytesIO(read_file(path)) if whole else path) as image:
            yield image
    except InputError:
        raise
    except DAMAGES as error:
        got = "not an image" if isinstance(error, Image.UnidentifiedImageError) else error
        raise InputError(f"{path}: {required}, got: {got}; {fix}") from None


def choose_turn(stored: tuple[int, int], orientation: int, size: tuple[int, int] | None, exif: str) -> int:
    """The EXIF orientation by which an image is to be turned; 1 leaves it as it is.

    Parameters
    ----------
    stored : (width, height) of the pixels in the file [px].
    size : what the JSON says; None where it says nothing.
    exif : {"apply", "ignore"}, what is done where the size does not tell: it is missing, the image is square, or it is
        mirrored or upside down. Browsers, and with them most annotation tools, apply it.
    """
    if size is not None and orientation >= 5 and stored[0] != stored[1]:
        return orientation if tuple(size) == stored[::-1] else 1
    return orientation if exif == "apply" else 1


def read_image(path: str | Path, size: tuple[int, int] | None, exif: str = EXIF[0]) -> np.ndarray:
    """Decode an image to (height, width, 3) uint8 RGB.

    One channel becomes three equal ones; of four, the last (transparency) is left out; of 16 bits the upper eight are
    taken. It is turned as `choose_turn` says, all eight orientations as `PIL.ImageOps.exif_transpose` does.

    Parameters
    ----------
    size, exif : as in `choose_turn`

    Raises
    ------
    InputError
        Where the file is missing, unreadable or truncated, holds floats or 32 bits, or its size is not `size`.
    """
    _require_file(path)
    try:
        data = read_file(path)
        image = _decode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        kind = "" if image is not None and image.ndim == 3 else _find_type(data)
    except (OSError, cv2.error) as error:
        raise InputError(f"{path}: must be an image that can be read, got: {error}; copy the file again") from None
    if kind not in ("", "uint8", "uint16"):
        raise InputError(
            f"{path}: must hold 8 or 16 bits per channel, got {kind}; scale the values to 0..255 and save them"
        )
    if image is None:
        raise InputError(f"{path}: must be a whole image, got a file that is truncated or no image; copy it again")
    image = turn_image(image, choose_turn(image.shape[1::-1], _read_orientation(data), size, exif))
    height, width = image.shape[:2]
    if size is not None and (width, height) != tuple(size):
        raise InputError(
            f"{path}: must be {size[0]}x{size[1]} px (width x height) as the JSON says, got {width}x{height}; "
            "use the image that was annotated, or correct the JSON"
        )
    return image


def turn_image(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (H, W, 3) as `PIL.ImageOps.exif_transpose` does for an EXIF orientation from 1 to 8."""
    image = image.swapaxes(0, 1) if orientation >= 5 else image
    image = image[:, ::-1] if orientation in (2, 3, 6, 7) else image
    return np.ascontiguousarray(image[::-1] if orientation in (3, 4, 7, 8) else image)


def find_largest(path: str | Path) -> int | None:
    """The largest value in an image of 16 bits per channel; None for one of eight bits.

    Raises
    ------
    InputError
        For floats and 32 bits, which have no range that is known.
    """
    with suppress(*DAMAGES), Image.open(path) as image:
        if image.format in _EIGHT_BITS:
            return None
    try:
        data = read_file(path)
        is_shallow = data.startswith(b"\x89PNG") and data[24:25] != b"\x10"
        image = None if is_shallow else _decode(data, cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error):
        image = None
    if image is None or image.dtype == np.uint8:
        return None  # what cannot be decoded is found where pixels are read
    if image.dtype != np.uint16:
        raise InputError(f"must hold 8 or 16 bits per channel, got {image.dtype}; scale the values to 0..255")
    return int(image.max())


def _decode(data: bytes, flags: int) -> np.ndarray | None:
    if data.startswith(b"\xff\xd8") and not _has_end_marker(data):
        return None  # a download that stopped in a file of full length: libjpeg makes the zeros grey, and only warns
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def _find_type(data: bytes) -> str:
    """The type of the values in a file, "" where it cannot be decoded."""
    image = _decode(data, cv2.IMREAD_UNCHANGED)
    return "" if image is None else str(image.dtype)


def _has_end_marker(jpeg: bytes) -> bool:
    """Whether the end marker follows the main scan; the one of an embedded thumbnail comes before it."""
    at = 2
    while jpeg[at : at + 1] == b"\xff" and jpeg[at + 1 : at + 2] != b"\xda":
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    return jpeg.find(b"\xff\xd9", at) >= 0


def _read_orientation(data: bytes) -> int:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _find_orientation(image)
    except DAMAGES:
        return 1  # a format that OpenCV alone reads


def _find_orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # both decoders turn it by themselves
    try:
        if image.format == "PNG":  # its `getexif` would decode the pixels to look behind them
            tags = Image.Exif()
            tags.load(image.info.get("exif", b""))
        else:
            tags = image.getexif()
        orientation = tags.get(_ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, TypeError, struct.error):
        return 1  # decoders ignore an EXIF block that they cannot parse
    return orientation if orientation in range(1, 9) else 1


def _require_file(path: str | Path) -> None:
    if not os.path.isfile(path):
        raise InputError(f"{path}: the image must exist, got no such file; check file_name and the data folder")

"""Read a COCO folder: the tables of its images, annotations and categories, and the pixels of an image."""

import json
import math
import os
import reprlib
import struct
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from seglib.data.class_names import BACKGROUND
from seglib.errors import InputError, unknown_name

MAX_CATEGORIES = 254  # masks are uint8: 0 is the background, 255 the ignored pixels
MAX_SIDE = 65_535  # [px], of a JPEG; keeps height * width within RLE's 32-bit counts
_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 swap width and height


@dataclass(frozen=True, eq=False)
class CocoData:
    """A COCO file as tables, nothing left out: what is wrong inside is for `verify_coco` to say.

    Attributes
    ----------
    json_path, data_dir : Path
        The file, and the folder that its file names are relative to.
    images : DataFrame
        `image_id`, `file_name`, `width`, `height` [px], `group`; rows in the file's order. A size that the file leaves
        out is read from the image's header, 0 where that cannot be read. `group`: the scene's number or name, or None.
    annotations : DataFrame
        `annotation_id`, `image_id`, `category_id`, `class_id` (-1: unknown category), `area` [px^2] (NaN: no number),
        `iscrowd` (0 or 1), `segmentation` (as in the file), `score` (0..1 of a predicted label, 1 without one, NaN: no
        number) and `ignore` (0 or 1), both for `join_extra`; rows in the file's order.
    class_names : tuple of str
        "Background", then the categories by ascending id, whatever the ids are.
    category_ids : tuple of int
        Ascending; `class_id` is 1 + the rank in here.
    painted_class_names : tuple of str
        The classes that masks are painted with, where some of them were folded into background; else empty.
    """

    json_path: Path
    data_dir: Path
    images: pd.DataFrame
    annotations: pd.DataFrame
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    painted_class_names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Classes with the background."""
        return len(self.class_names)


def load_coco(data_dir: str | Path, json_name: str) -> CocoData:
    """Read `data_dir/json_name`; a file without `annotations`, such as a test set's, has none.

    Without annotations it needs no `categories` either: its classes are then the background alone.

    Raises
    ------
    InputError
        Where no table can be made of the file: missing, not JSON, lists or ids missing or of another type.
    """
    data_dir = Path(data_dir)
    json_path = data_dir / json_name
    content = _read_json(json_path)
    categories = _read_categories(content, json_path)
    return CocoData(
        json_path=json_path,
        data_dir=data_dir,
        images=_read_images(content, json_path, data_dir),
        annotations=_read_annotations(content, json_path, [category_id for category_id, _ in categories]),
        class_names=(BACKGROUND, *(name for _, name in categories)),
        category_ids=tuple(category_id for category_id, _ in categories),
    )


def resolve_image(data_dir: str | Path, file_name: str) -> Path:
    """The real path of an image, which need not exist.

    Raises
    ------
    InputError
        Where the name leaves the data folder: through `..`, as an absolute path, or by a symbolic link.
    """
    root = os.path.realpath(data_dir)
    try:
        path = Path(os.path.realpath(os.path.join(root, file_name)))
    except ValueError:  # a NUL character
        raise InputError(f"{file_name!r}: an image's file name must be a path, got a NUL character in it") from None
    if os.path.isabs(file_name) or not path.is_relative_to(root):
        raise InputError(
            f"{file_name}: an image's path must stay inside the data folder, got one that leads to {path}; "
            "make it relative to the data folder, and copy the image into it where a link leads out"
        )
    return path


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


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(_no_such_json(path)) from None
    except json.JSONDecodeError as error:
        got = f"a file that breaks at line {error.lineno} column {error.colno} ({error.msg})"
        raise InputError(f"{path}: must be JSON, got {got}; export it again") from None
    except RecursionError:
        raise InputError(f"{path}: must be COCO JSON, got lists nested too deep to read; export it again") from None
    except (OSError, ValueError) as error:  # not UTF-8, a folder, no permission, a number of thousands of digits
        raise InputError(f"{path}: must be a JSON file that can be read, got: {error}; export it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a JSON object with `images` and `categories`, got {_show(content)}")
    return content


def _no_such_json(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path.parent}: the data folder must exist, got no such folder; check data_dir"
    return f"{path.parent}: {unknown_name('JSON file', path.name, sorted(p.name for p in path.parent.glob('*.json')))}"


def _read_categories(content: dict, json_path: Path) -> list[tuple[int, str]]:
    """(id, name) by ascending id; a repeated id stays in, for the check to find."""
    if not content.get("annotations") and content.get("categories", []) == []:
        return []  # a test set's list of images
    entries = _entries(content, "categories", json_path)
    if not 1 <= len(entries) <= MAX_CATEGORIES:
        raise InputError(
            f"{json_path} [categories]: must list 1 to {MAX_CATEGORIES} categories (masks are uint8, 255 is ignored), "
            f"got {len(entries)}; {'merge some' if entries else 'export them with the annotations'}"
        )
    pairs = [(_integer(entry, "id", where), _text(entry, "name", where)) for where, entry in entries]
    return sorted(pairs, key=lambda pair: pair[0])


def _read_images(content: dict, json_path: Path, data_dir: Path) -> pd.DataFrame:
    rows = []
    for where, entry in _entries(content, "images", json_path):
        image_id, file_name = _integer(entry, "id", where), _text(entry, "file_name", where)
        sides = [_side(entry, name, where) for name in ("width", "height")]
        if 0 in sides:
            sides = _stored_size(data_dir, file_name)
        rows.append((image_id, file_name, *sides, _group(entry, where)))
    kinds = {"image_id": "int64", "file_name": "str", "width": "int64", "height": "int64", "group": "object"}
    return pd.DataFrame(rows, columns=list(kinds), dtype="object").astype(kinds)


def _read_annotations(content: dict, json_path: Path, category_ids: list[int]) -> pd.DataFrame:
    class_ids = {category_id: 1 + rank for rank, category_id in enumerate(category_ids)}
    rows = []
    for where, entry in _entries({"annotations": [], **content}, "annotations", json_path):
        ids = [_integer(entry, name, where) for name in ("id", "image_id", "category_id")]
        class_id, area = class_ids.get(ids[-1], -1), _number(entry.get("area"))
        score = 1.0 if entry.get("score") is None else _number(entry["score"])
        flags = [int(entry.get(name) == 1) for name in ("iscrowd", "ignore")]
        rows.append((*ids, class_id, area, flags[0], entry.get("segmentation"), score, flags[1]))
    kinds = dict.fromkeys(["annotation_id", "image_id", "category_id", "class_id"], "int64")
    kinds |= {"area": "float64", "iscrowd": "int64", "segmentation": "object", "score": "float64", "ignore": "int64"}
    return pd.DataFrame(rows, columns=list(kinds), dtype="object").astype(kinds)


def _entries(content: dict, name: str, json_path: Path) -> list[tuple[str, dict]]:
    """(where, entry) for every object of a list of the file."""
    entries = content.get(name)
    if not isinstance(entries, list):
        got = _show(entries) if name in content else "nothing"
        raise InputError(f"{json_path} [{name}]: must be a list of objects, got {got}; is this a COCO file?")
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(f"{json_path} [{name}[{i}]]: must be an object, got {_show(entry)}; export the file again")
    return [(f"{json_path} [{name}[{i}]]", entry) for i, entry in enumerate(entries)]


def _integer(entry: dict, name: str, where: str) -> int:
    number = _number(value := entry.get(name))
    if not number.is_integer() or not -(2**63) <= number < 2**63:
        raise InputError(f"{where}: `{name}` must be a whole number, got {_got(entry, name)}; correct it in the file")
    return int(value)


def _side(entry: dict, name: str, where: str) -> int:
    """A width or height [px]; 0 where the file leaves it out."""
    side = 0 if entry.get(name) is None else _integer(entry, name, where)
    if entry.get(name) is not None and not 1 <= side <= MAX_SIDE:
        raise InputError(f"{where}: `{name}` must be 1 to {MAX_SIDE} px, got {side}; write the image's {name}")
    return side


def _group(entry: dict, where: str) -> int | str | None:
    group = entry.get("group")
    return group if group is None or isinstance(group, str) else _integer(entry, "group", where)


def _text(entry: dict, name: str, where: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip() or not _encodes(value):
        raise InputError(f"{where}: `{name}` must be a text, got {_got(entry, name)}; write it into the file")
    return value


def _encodes(text: str) -> bool:
    """Whether a text can be written: JSON's escapes can spell half a character."""
    return text == text.encode("utf-8", "ignore").decode("utf-8")


def _number(value: object) -> float:
    """A JSON number as a float, NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return math.nan
    return float(value)


def _stored_size(data_dir: Path, file_name: str) -> tuple[int, int]:
    try:
        return read_header(resolve_image(data_dir, file_name))[:2]
    except InputError:
        return 0, 0  # the check reports the image itself


def _got(entry: dict, name: str) -> str:
    return _show(entry[name]) if name in entry else "nothing"


def _show(value: object) -> str:
    return reprlib.repr(value)

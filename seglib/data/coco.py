"""Read and check a COCO folder: tables of its images, annotations and categories, pixels, every problem as a row."""

import json
import math
import os
import reprlib
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from seglib.data.class_names import BACKGROUND
from seglib.data.masks import MAX_SIDE, PAINTS_LESS, segmentation_problems
from seglib.errors import InputError, InputErrors, unknown_name
from seglib.files import resolve_image

MAX_CATEGORIES = 254  # masks are uint8: 0 is the background, 255 the ignored pixels
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
        raise InputError(f"{path}: must hold a JSON object with `images` and `categories`, got {reprlib.repr(content)}")
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
    return _make_table(rows, kinds)


def _read_annotations(content: dict, json_path: Path, category_ids: list[int]) -> pd.DataFrame:
    class_ids = {category_id: 1 + rank for rank, category_id in enumerate(category_ids)}
    rows = []
    for where, entry in _entries({"annotations": [], **content}, "annotations", json_path):
        ids = [_integer(entry, name, where) for name in ("id", "image_id", "category_id")]
        class_id, area = class_ids.get(ids[-1], -1), _number(entry.get("area"))
        score = 1.0 if entry.get("score") is None else _number(entry["score"])
        is_crowd, is_ignored = (int(entry.get(name) == 1) for name in ("iscrowd", "ignore"))
        rows.append((*ids, class_id, area, is_crowd, entry.get("segmentation"), score, is_ignored))
    kinds = dict.fromkeys(["annotation_id", "image_id", "category_id", "class_id"], "int64")
    kinds |= {"area": "float64", "iscrowd": "int64", "segmentation": "object", "score": "float64", "ignore": "int64"}
    return _make_table(rows, kinds)


def _make_table(rows: list[tuple], kinds: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(kinds), dtype="object").astype(kinds)


def _entries(content: dict, name: str, json_path: Path) -> list[tuple[str, dict]]:
    """(where, entry) for every object of a list of the file."""
    entries = content.get(name)
    if not isinstance(entries, list):
        raise InputError(
            f"{json_path} [{name}]: must be a list of objects, got {_got(content, name)}; is this a COCO file?"
        )
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(
                f"{json_path} [{name}[{i}]]: must be an object, got {reprlib.repr(entry)}; export the file again"
            )
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
    # JSON's escapes can spell half a character, which cannot be written
    if not isinstance(value, str) or not value.strip() or value != value.encode("utf-8", "ignore").decode("utf-8"):
        raise InputError(f"{where}: `{name}` must be a text, got {_got(entry, name)}; write it into the file")
    return value


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
    return reprlib.repr(entry[name]) if name in entry else "nothing"


# What is wrong with a data set: every problem as a row, and the refusal to train on errors.
FIXES = {
    "no-images": "export the file with its images",
    "duplicate-category-id": "give each category an id of its own",
    "duplicate-category-name": "rename or merge the categories",
    "background-category": "delete or rename it: class 0 is the background, and scores go by class name",
    "duplicate-image-id": "give each image an id of its own",
    "duplicate-file-name": "merge the entries: each has a part of the objects, and both sides of a split see the image",
    "outside-folder": "write a path relative to the data folder; copy the image where a link leads out of it",
    "missing-image": "check data_dir and file_name, or remove the entry",
    "unreadable-image": "copy the image again, or remove the entry",
    "size-differs": "use the image that was annotated, or correct the JSON",
    "exif-rotated": "check the masks on this image, or store it upright",
    "duplicate-annotation-id": "number the annotations again where tools look them up by id",
    "unknown-image": "remove the annotation, or add its image",
    "unknown-category": "add the category, or remove the annotation",
    "empty-segmentation": "draw it again, or remove the annotation",
    "unknown-segmentation": "export it as polygons or RLE",
    "unreadable-coordinates": "export the annotation again",
    "non-finite-coordinates": "draw it again, or remove the annotation",
    "odd-coordinates": "add the lost coordinate, or remove the annotation",
    "too-few-points": "draw it again, or remove the annotation",
    "far-coordinates": "check the unit of the coordinates (px of this image)",
    "outside-image": "check that image and annotation belong together; rescale both or neither",
    "rle-size": "encode the mask at the image's size",
    "rle-corrupt": "encode the mask again with pycocotools",
    "rle-sum": "encode the mask again, by columns, at the image's size",
}
WARNINGS = {*PAINTS_LESS, "exif-rotated", "duplicate-annotation-id"}  # with these training goes on
_LINES = 100  # of a refusal: a wrong data_dir makes every image missing
Problem = tuple[str, str, str]  # its name, where, and in detail


def verify_coco(data: CocoData, read_pixels: bool = False) -> pd.DataFrame:
    """Find every problem of a COCO folder; images without annotations are none.

    Training refuses errors: images, categories or annotations that are missing, cannot be read or mean two things. It
    goes on with the warnings `exif-rotated` (the image is read as stored, and turned only where so its size is the
    JSON's), `duplicate-annotation-id` (both are painted), `empty-segmentation` and `too-few-points` (nothing is painted)
    and `outside-image` (more than 1 px outside; clipped).

    Parameters
    ----------
    data : what `load_coco` returns
    read_pixels : bool
        Decode every image as well, which finds broken and truncated ones; some milliseconds each.

    Returns
    -------
    DataFrame
        `severity` ("error" or "warning"), `problem` (a name in `FIXES`), `where` ("image 12 (images/a.jpg)",
        "annotation 7 (image 12)"), `detail` (what was required, what arrived), `fix`; errors first.
    """
    found = [*_category_problems(data), *_image_problems(data, read_pixels), *_annotation_problems(data)]
    rows = [
        (
            "warning" if name in WARNINGS else "error",
            name,
            " ".join(where.split()),
            " ".join(detail.split()),
            FIXES[name],
        )
        for name, where, detail in found
    ]
    problems = pd.DataFrame(rows, columns=["severity", "problem", "where", "detail", "fix"], dtype="str")
    return problems.sort_values("severity", kind="stable", ignore_index=True)  # "error" < "warning"


def refuse_errors(problems: pd.DataFrame, json_path: str | Path) -> None:
    """Raise `InputErrors`, one line per error, where `verify_coco` found any; warnings pass."""
    errors = problems[problems["severity"] == "error"]
    shown = errors.head(_LINES).itertuples()
    lines = [f"{json_path} [{row.where}]: {row.problem}: {row.detail}; {row.fix}" for row in shown]
    if len(errors) > _LINES:
        counts = ", ".join(f"{problem} {count}" for problem, count in Counter(errors["problem"]).most_common())
        lines.append(f"{json_path}: {len(errors)} errors in all ({counts}); verify_coco lists them")
    if lines:
        raise InputErrors(lines)


def _category_problems(data: CocoData) -> Iterator[Problem]:
    names = data.class_names[1:]
    for what, values in (("id", data.category_ids), ("name", names)):
        for value, count in Counter(values).items():
            if count > 1:
                yield (
                    f"duplicate-category-{what}",
                    f"category {value}",
                    f"{what}s must be unique, got {count} of this one",
                )
    for category_id, name in zip(data.category_ids, names, strict=True):
        if name.strip().casefold() == BACKGROUND.casefold():
            detail = f"no category may be called {BACKGROUND}, got {name!r}"
            yield "background-category", f"category {category_id}", detail


def _image_problems(data: CocoData, read_pixels: bool) -> Iterator[Problem]:
    if data.images.empty:
        yield "no-images", "images", "must list an image or more, got an empty list"
    first_place, first_use = {}, {}  # by image id, by path
    for place, (image_id, file_name, *size, _) in enumerate(data.images.itertuples(index=False, name=None)):
        where = f"image {image_id} ({file_name})"
        if (first := first_place.setdefault(image_id, place)) != place:
            yield (
                "duplicate-image-id",
                where,
                f"ids must be unique, got this one at images[{first}] and images[{place}]",
            )
        try:
            path = resolve_image(data.data_dir, file_name)
        except InputError as error:
            yield "outside-folder", where, _without_fix(error)
            continue
        if (first := first_use.setdefault(path, place)) != place:
            yield "duplicate-file-name", where, f"a file must have one entry, got images[{first}] and images[{place}]"
        yield from ((problem, where, detail) for problem, detail in _file_problems(path, tuple(size), read_pixels))


def _file_problems(path: Path, size: tuple[int, int], read_pixels: bool) -> Iterator[tuple[str, str]]:
    """(problem, detail) of one image file; `size` is the JSON's (width, height)."""
    if not os.path.isfile(path):  # Path.is_file raises for a name too long
        yield "missing-image", f"the file must exist, got none at {path}"
        return
    try:
        *stored, orientation = read_header(path)
        turned = orientation >= 5 and tuple(stored) == size[::-1] != size
        if orientation != 1:
            done = "turned when read" if turned else "read as stored"
            yield "exif-rotated", f"EXIF orientation must be 1 (upright), got {orientation}; {done}"
        if tuple(stored) != size and not turned:
            required = f"{size[0]}x{size[1]} px (width x height) as the JSON says"
            yield "size-differs", f"must be {required}, got {stored[0]}x{stored[1]}"
        elif read_pixels:
            read_image(path, size)
    except InputError as error:
        yield "unreadable-image", _without_fix(error)


def _annotation_problems(data: CocoData) -> Iterator[Problem]:
    images = data.images.drop_duplicates("image_id")
    sizes = dict(zip(images["image_id"], zip(images["height"], images["width"], strict=True), strict=True))
    repeated = data.annotations["annotation_id"].duplicated()
    names = ("annotation_id", "image_id", "category_id", "class_id", "segmentation")
    columns = (data.annotations[name] for name in names)
    for again, annotation_id, image_id, category_id, class_id, segmentation in zip(repeated, *columns, strict=True):
        where = f"annotation {annotation_id} (image {image_id})"
        if again:
            yield "duplicate-annotation-id", where, "ids must be unique, got this one before"
        if class_id < 0:
            yield "unknown-category", where, f"category_id must be one of the categories, got {category_id}"
        if image_id not in sizes:
            yield "unknown-image", where, f"image_id must be one of the images, got {image_id}"
        elif 0 not in sizes[image_id]:  # else the size is unknown, and the image reported
            found = segmentation_problems(segmentation, *sizes[image_id])
            yield from ((problem, where, detail) for problem, detail in found)


def _without_fix(error: InputError) -> str:
    return str(error).rpartition("; ")[0]

"""Read a COCO file as tables of its images, annotations and categories; `verify.py` says what is wrong with them."""

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pandas as pd

from seglib.data.class_names import BACKGROUND, is_background
from seglib.data.images import EXIF
from seglib.data.label_folders import find_size
from seglib.data.layouts import ImageFinder
from seglib.data.masks import IGNORE_INDEX, MAX_SIDE
from seglib.data.sources import open_source
from seglib.errors import InputError, require_known

# Columns of annotations as in the file -> their types.
ANNOTATION_KINDS = dict.fromkeys(["annotation_id", "image_id", "category_id", "class_id"], "int64")
ANNOTATION_KINDS |= {
    "area": "float64",
    "iscrowd": "int64",
    "segmentation": "object",
    "score": "float64",
    "ignore": "int64",
}
MAX_CATEGORIES = 254  # masks are uint8: 0 is the background, 255 the ignored pixels


@dataclass(frozen=True, eq=False)
class CocoData:
    """A COCO file as tables, nothing left out: what is wrong inside is for `verify_coco` to say.

    Attributes
    ----------
    json_path, data_dir : Path
        The file, and the folder that its file names are looked up in; see `ImageFinder`.
    images : DataFrame
        `image_id`, `file_name`, `width`, `height` [px], `group`, `exif`, `path`; rows in the file's order. Ids that are
        texts or beyond 64 bits are numbered by their places, from 1. A size that the file leaves out is read from the
        image's header, 0 where that cannot be read. `group`: the scene's number or name, or None. `exif`: "apply" or
        "ignore", the file's policy for images of which the size does not tell how they are turned. `path`: the file that
        was found, or where it should be; "" where the name leads out of the folder.
    annotations : DataFrame
        `annotation_id`, `image_id`, `category_id`, `class_id` (-1:
        unknown category), `area` [px^2] (as in the file, which nothing trusts; NaN: no number), `iscrowd` (0 or 1),
        `segmentation` (as in the file; points that stand as pairs are made flat lists), `score` (0..1 of a predicted
        label, 1 without one, NaN: no number) and `ignore` (0 or 1), both for `join_extra`; rows in the file's order.
        `load_verified` adds `mask_area` [px]: what each one paints at the image's size.
    class_names : tuple of str
        "Background", then the categories by ascending id, whatever the ids are; texts after numbers. One that is called
        background is class 0.
    category_ids : tuple of int
        Ascending, without those of background; `class_id` is 1 + the rank in here.
    painted_class_names : tuple of str
        The classes that masks are painted with, where some of them were folded into background; else empty.
    background_names : tuple of str
        The categories that are background by their names; their annotations have class 0.
    phantom_names : tuple of str
        The categories that no annotation uses and that look like a super-category: id 0, or the parent of others.
    ignored : DataFrame or None
        As `annotations`, of class 255: regions of categories with `"ignore": 1`, which are no classes. None without any.
    """

    json_path: Path
    data_dir: Path
    images: pd.DataFrame
    annotations: pd.DataFrame
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    painted_class_names: tuple[str, ...] = ()
    background_names: tuple[str, ...] = ()
    phantom_names: tuple[str, ...] = ()
    ignored: pd.DataFrame | None = None

    @property
    def name(self) -> str:
        """The file as seen from its data folder, for words."""
        inside = self.json_path.is_relative_to(self.data_dir)
        return str(self.json_path.relative_to(self.data_dir)) if inside else self.json_path.name

    @property
    def painted(self) -> pd.DataFrame:
        """All that masks are painted from: the annotations, and the ignored regions."""
        return (
            self.annotations if self.ignored is None else pd.concat([self.annotations, self.ignored], ignore_index=True)
        )

    @property
    def num_classes(self) -> int:
        """Classes with the background."""
        return len(self.class_names)


def load_coco(data_dir: str | Path, json_name: str) -> CocoData:
    """Read `data_dir/json_name`, in any format that `open_source` reads; a file without `annotations`, such as a test set's, has none.

    Without annotations it needs no `categories` either: its classes are then the background alone.

    Raises
    ------
    InputError
        Where no table can be made of the file: missing, not JSON, lists or ids missing or of another type.
    """
    data_dir = Path(data_dir)
    json_path = data_dir / json_name
    content = read_content(data_dir, json_name)
    categories, ignored = _read_categories(content, json_path)
    numbers = _number_ids([*(category_id for category_id, _ in categories), *ignored])
    objects = [(numbers[category_id], name) for category_id, name in categories if not is_background(name)]
    class_ids = dict.fromkeys(numbers.values(), 0) | {each[0]: 1 + rank for rank, each in enumerate(objects)}
    class_ids |= {numbers[category_id]: IGNORE_INDEX for category_id in ignored}
    annotations = _read_annotations(content, json_path, numbers, class_ids)
    is_ignored = annotations["class_id"] == IGNORE_INDEX
    return CocoData(
        json_path=json_path,
        data_dir=data_dir,
        images=_read_images(content, json_path, ImageFinder(data_dir, json_name)),
        annotations=annotations[~is_ignored].reset_index(drop=True),
        ignored=annotations[is_ignored] if is_ignored.any() else None,
        class_names=(BACKGROUND, *(name for _, name in objects)),
        category_ids=tuple(category_id for category_id, _ in objects),
        background_names=tuple(name for _, name in categories if is_background(name)),
        phantom_names=_find_phantoms(content, objects, {*annotations["category_id"]}),
    )


def read_content(data_dir: str | Path, json_name: str) -> dict:
    """The content of a COCO file, or of anything else that `open_source` reads as one."""
    return open_source(data_dir, json_name).read()


def _read_categories(content: dict, json_path: Path) -> tuple[list[tuple[int | str, str]], list[int | str]]:
    """(id, name) by ascending id, and the ids of what is ignored; a repeated id stays in, for the check to find."""
    if not content.get("annotations") and content.get("categories", []) == []:
        return [], []  # a test set's list of images
    entries = _entries(content, "categories", json_path)
    ignored = [_read_id(entry, "id", where) for where, entry in entries if entry.get("ignore") == 1]
    kept = [(where, entry) for where, entry in entries if entry.get("ignore") != 1]
    pairs = [(_read_id(entry, "id", where), _text(entry, "name", where)) for where, entry in kept]
    number = sum(not is_background(name) for _, name in pairs)
    if not 1 <= number <= MAX_CATEGORIES:
        raise InputError(
            f"{json_path} [categories]: must list 1 to {MAX_CATEGORIES} categories (masks are uint8, 255 is ignored), "
            f"got {number}; {'merge some' if number else 'export them with the annotations'}"
        )
    return sorted(pairs, key=lambda pair: (isinstance(pair[0], str), pair[0])), ignored


def _find_phantoms(content: dict, categories: list[tuple[int, str]], used: set[int]) -> tuple[str, ...]:
    pairs = [(each["name"], each.get("supercategory")) for each in content.get("categories", [])]
    parents = [parent for name, parent in pairs if parent != name]
    unused = [(category_id, name) for category_id, name in categories if used and category_id not in used]
    return tuple(name for category_id, name in unused if category_id == 0 or name in parents)


def _read_images(content: dict, json_path: Path, finder: ImageFinder) -> pd.DataFrame:
    exif, rows, numbers = content.get("exif", EXIF[0]), [], _number_images(content, json_path)
    require_known("exif", exif, EXIF, str(json_path))
    for where, entry in _entries(content, "images", json_path):
        image_id, file_name = numbers[_read_id(entry, "id", where)], _text(entry, "file_name", where)
        path, _ = finder.find(file_name)
        sides = [_side(entry, name, where) for name in ("width", "height")]
        if 0 in sides:
            sides = find_size(path, exif)
        group = entry.get("group")
        group = group if group is None or isinstance(group, str) else _integer(entry, "group", where)
        rows.append((image_id, file_name, *sides, group, exif, path))
    kinds = {"image_id": "int64", "file_name": "str", "width": "int64", "height": "int64", "group": "object"}
    return _make_table(rows, kinds | {"exif": "str", "path": "str"})


def _number_images(content: dict, json_path: Path) -> dict[int | str, int]:
    return _number_ids([_read_id(entry, "id", where) for where, entry in _entries(content, "images", json_path)])


def _read_annotations(
    content: dict, json_path: Path, category_numbers: Mapping[int | str, int], class_ids: Mapping[int, int]
) -> pd.DataFrame:
    entries = _entries({"annotations": [], **content}, "annotations", json_path)
    keys = [
        f"#{n}" if entry.get("id") is None else _read_id(entry, "id", where) for n, (where, entry) in enumerate(entries)
    ]
    own_numbers, image_numbers, rows = _number_ids(keys), _number_images(content, json_path), []
    for key, (where, entry) in zip(keys, entries, strict=True):
        ids = [
            own_numbers[key],
            _refer(entry, "image_id", where, image_numbers),
            _refer(entry, "category_id", where, category_numbers),
        ]
        class_id, area = class_ids.get(ids[-1], -1), _number(entry.get("area"))
        score = 1.0 if entry.get("score") is None else _number(entry["score"])
        is_crowd, is_ignored = (int(entry.get(name) == 1) for name in ("iscrowd", "ignore"))
        rows.append((*ids, class_id, area, is_crowd, _flatten(entry.get("segmentation")), score, is_ignored))
    return _make_table(rows, ANNOTATION_KINDS)


def _flatten(segmentation: object) -> object:
    """Points that stand as pairs [[x, y], ...], alone or in a list of polygons, as the flat lists that COCO has."""
    if not isinstance(segmentation, list):
        return segmentation
    if len(segmentation) >= 3 and all(map(_is_pair, segmentation)):
        return [[*chain.from_iterable(segmentation)]]
    is_paired = [isinstance(each, list) and len(each) > 0 and all(map(_is_pair, each)) for each in segmentation]
    return [
        [*chain.from_iterable(each)] if paired else each for each, paired in zip(segmentation, is_paired, strict=True)
    ]


def _is_pair(point: object) -> bool:
    return isinstance(point, list) and len(point) == 2 and all(type(each) in (int, float) for each in point)


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


def _read_id(entry: dict, name: str, where: str) -> int | str:
    """A whole number of any size, or a text; a text that spells a number is one."""
    value = entry.get(name)
    if isinstance(value, str) and value.strip():
        return int(value) if re.fullmatch("0|-?[1-9][0-9]{0,99}", value) else value
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise InputError(f"{where}: `{name}` must be a whole number or a text, got {_got(entry, name)}; correct it")
    return int(value)


def _number_ids(keys: Sequence[int | str]) -> dict[int | str, int]:
    """Ids -> themselves where all of them are numbers of 64 bits, else their places among one another, from 1."""
    fit = all(isinstance(key, int) and -(2**63) <= key < 2**63 for key in keys)
    return {key: key if fit else place for place, key in enumerate(dict.fromkeys(keys), 1)}


def _refer(entry: dict, name: str, where: str, numbers: Mapping[int | str, int]) -> int:
    """The number of the image or category that an annotation names; one that is none is for the check to report."""
    key = _read_id(entry, name, where)
    if key in numbers:
        return numbers[key]
    if all(number == each for each, number in numbers.items()) and _number_ids([key]) == {key: key}:
        return key
    raise InputError(f"{where}: `{name}` must be one of the file's, got {key!r}; correct it, or remove the annotation")


def _side(entry: dict, name: str, where: str) -> int:
    """A width or height [px]; 0 where the file leaves it out."""
    side = 0 if entry.get(name) is None else _integer(entry, name, where)
    if entry.get(name) is not None and not 1 <= side <= MAX_SIDE:
        raise InputError(f"{where}: `{name}` must be 1 to {MAX_SIDE} px, got {side}; write the image's {name}")
    return side


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


def _got(entry: dict, name: str) -> str:
    return reprlib.repr(entry[name]) if name in entry else "nothing"

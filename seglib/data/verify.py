"""What is wrong with a COCO folder: every problem as a row with its fix, and the refusal to train on errors."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from seglib.data.coco import CocoData, load_coco
from seglib.data.images import FULL_RANGE, choose_turn, find_largest, read_header, read_image
from seglib.data.layouts import ImageFinder
from seglib.data.masks import PAINTS_LESS, measure_masks, segmentation_problems
from seglib.data.sources import hash_annotations
from seglib.errors import InputError, InputErrors
from seglib.files import PROJECT, cache_dir, hash_file, hash_files, hash_text, keep_json, read_json

FIXES = {
    "no-images": "export the file with its images",
    "duplicate-category-id": "give each category an id of its own",
    "duplicate-category-name": "rename or merge the categories",
    "background-category": "rename it where it is an object",
    "unused-category": "name it in ignore_classes, or delete it from the categories; the ids of those after it move down by one",
    "duplicate-image-id": "give each image an id of its own",
    "duplicate-file-name": "merge the entries: each has a part of the objects, and both sides of a split see the image",
    "outside-folder": "write a path relative to the data folder; copy the image where a link leads out of it",
    "ambiguous-image": "write the folder of the one that is meant into file_name",
    "missing-image": "check data_dir and file_name, or remove the entry",
    "unreadable-image": "copy the image again, or remove the entry",
    "size-differs": "use the image that was annotated, or correct the JSON",
    "unknown-depth": "scale the values to 0..255 and save 8 bits",
    "unused-range": "scale the values to the whole range of 16 bits, or to 0..255 and save 8 bits",
    "exif-rotated": 'check its mask; where it was drawn on the stored pixels, write "exif": "ignore" at the top of the JSON',
    "duplicate-annotation-id": "number the annotations again where tools look them up by id",
    "unknown-image": "remove the annotation, or add its image",
    "unknown-category": "add the category, or remove the annotation",
    "empty-segmentation": "draw it again, or remove the annotation",
    "unknown-segmentation": "export it as polygons or RLE",
    "unreadable-coordinates": "export the annotation again",
    "non-finite-coordinates": "draw it again, or remove the annotation",
    "odd-coordinates": "add the lost coordinate, or remove the annotation",
    "too-few-points": "draw it again, or remove the annotation",
    "normalised-coordinates": "multiply x by the image's width and y by its height",
    "far-coordinates": "check the unit of the coordinates (px of this image)",
    "outside-image": "check that image and annotation belong together; rescale both or neither",
    "rle-size": "encode the mask at the image's size",
    "rle-corrupt": "encode the mask again with pycocotools",
    "rle-sum": "encode the mask again, by columns, at the image's size",
}
# With these training goes on.
WARNINGS = {*PAINTS_LESS, "background-category", "unused-category", "exif-rotated", "duplicate-annotation-id"}
_COLUMNS = ["severity", "problem", "where", "detail", "fix"]
_STRAY = 0.01  # polygons within 0..1 that are no sign of another unit, of all
_LINES = 100  # of a refusal: a wrong data_dir makes every image missing
Problem = tuple[str, str, str]  # its name, where, and in detail


def verify_coco(data: CocoData, read_pixels: bool = False) -> pd.DataFrame:
    """Find every problem of a COCO folder; images without annotations are none.

    Training refuses errors: images, categories or annotations that are missing, cannot be read or mean two things. It
    goes on with the warnings `exif-rotated` (see `images.choose_turn`), `background-category` (read as class 0), `unused-category` (stays a class, so that ids stay),
    `duplicate-annotation-id` (both are painted), `empty-segmentation` and `too-few-points` (nothing is painted) and
    `outside-image` (more than 1 px outside; clipped).

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
        ("warning" if name in WARNINGS else "error", name, *(" ".join(each.split()) for each in words), FIXES[name])
        for name, *words in found
    ]
    problems = pd.DataFrame(rows, columns=_COLUMNS, dtype="str")
    return problems.sort_values("severity", kind="stable", ignore_index=True)  # "error" < "warning"


def load_verified(folder: str | Path, json_name: str) -> CocoData:
    """Read a COCO file, refuse its errors, one line each, and print its warnings, one line for each kind.

    The annotations get `mask_area`, see `CocoData`. What is found is remembered in `cache_dir()`/verified for as long as
    the file and its images stay as they are.
    """
    data = load_coco(folder, json_name)
    problems, areas, turns = _examine(data)
    refuse_errors(problems, data.json_path)
    for name, rows in problems.groupby("problem", sort=False):
        first, times = rows.iloc[0], f" ({len(rows)} times)" if len(rows) > 1 else ""
        print(f"{data.name}: warning: {name}{times}: {first['where']}: {first['detail']}; {first['fix']}")
    return replace(data, annotations=data.annotations.assign(mask_area=areas), images=data.images.assign(turn=turns))


def find_turns(data: CocoData) -> list[int]:
    """For each image the EXIF orientation by which it is turned where its size does not tell; 0 where it is not."""
    if "turn" in data.images:
        return data.images["turn"].tolist()
    turns = []
    for path, width, height, exif in data.images[["path", "width", "height", "exif"]].itertuples(index=False):
        try:
            *stored, orientation = read_header(path)
        except InputError:
            orientation = 1
        by_policy = orientation > 1 and (orientation < 5 or stored[0] == stored[1])
        turns.append(choose_turn(tuple(stored), orientation, (width, height), exif) if by_policy else 0)
    return [turn if turn > 1 else 0 for turn in turns]


def _examine(data: CocoData) -> tuple[pd.DataFrame, np.ndarray, list[int]]:
    """Of `verify_coco`, `measure_masks` and `find_turns`, remembered by content."""
    image_hashes = hash_files(data.images["path"])
    name = os.path.relpath(data.json_path, data.data_dir)
    content = [[hash_annotations(data.data_dir, name)], data.images["file_name"].tolist(), image_hashes, _hash_code()]
    path = cache_dir() / "verified" / f"{hash_text(json.dumps(content))}.json"
    try:
        rows, areas, turns = read_json(path).values()
    except (OSError, ValueError, AttributeError):  # not there, or damaged
        problems, areas, turns = verify_coco(data), measure_masks(data), find_turns(data)
        if "error" not in set(problems["severity"]):  # errors name paths, and what is no file may become one
            keep_json(path, {"problems": problems.to_numpy().tolist(), "mask_areas": areas.tolist(), "turns": turns})
        return problems, areas, turns
    return pd.DataFrame(rows, columns=_COLUMNS, dtype="str"), np.array(areas, np.int64), turns


@cache
def _hash_code() -> list[str]:
    """Of the code that finds problems: another version looks again."""
    return [hash_file(path) for path in sorted((PROJECT / "seglib/data").glob("*.py"))]


# What annotations paint, at the images' own sizes: a set that paints nothing would score 1.0 with an empty mask.


def tabulate_painted(data: CocoData, image_ids: np.ndarray | None = None) -> pd.DataFrame:
    """How much of each class is painted, one row per class without the background.

    Parameters
    ----------
    image_ids : of the images that count; None for all.

    Returns
    -------
    DataFrame, index: class names; `annotations`; `objects`: those that paint a pixel; `pixels`: of their masks, each alone.
    """
    annotations = data.annotations.assign(mask_area=find_areas(data))
    own = annotations if image_ids is None else annotations[annotations["image_id"].isin(image_ids)]
    grouped = own.assign(objects=own["mask_area"] > 0).groupby("class_id")
    table = pd.DataFrame(
        {"annotations": grouped.size(), "objects": grouped["objects"].sum(), "pixels": grouped["mask_area"].sum()}
    )
    table = table.reindex(range(1, data.num_classes), fill_value=0).astype("int64")
    return table.set_index(pd.Index(data.class_names[1:], name="class"))


def find_areas(data: CocoData) -> np.ndarray:
    """(annotations,) int64, pixels that each paints: of `load_verified`, measured where the data was not verified."""
    known = data.annotations.get("mask_area")
    return measure_masks(data) if known is None or known.isna().any() else known.to_numpy(np.int64)


def refuse_unpainted(table: pd.DataFrame, where: str) -> None:
    """Refuse a set whose annotations paint nothing, and each class whose annotations do.

    Parameters
    ----------
    table : of `tabulate_painted`

    Raises
    ------
    InputErrors
        One line for the set, or for each class.
    """
    fix = "were only boxes exported? export polygons or masks"
    total, lacking = table.sum(), table[(table["annotations"] > 0) & (table["objects"] == 0)]
    if total["annotations"] and not total["objects"]:
        raise InputErrors(
            [f"{where}: must have annotations that paint pixels, got {total['annotations']:,} that paint none; {fix}"]
        )
    if len(lacking):
        required = "a class must have annotations that paint pixels, got"
        counts = lacking["annotations"].items()
        raise InputErrors(f"{where} [{name}]: {required} {count:,} that paint none; {fix}" for name, count in counts)


def describe_unpainted(table: pd.DataFrame) -> str:
    """How many annotations paint nothing, in all and of the classes that have most of them; "" where all paint."""
    unpainted = (table["annotations"] - table["objects"]).sort_values(ascending=False, kind="stable")
    counts = unpainted[unpainted > 0].items()
    shown = [f"{name} {count:,} of {table.loc[name, 'annotations']:,}" for name, count in counts]
    rest = f", and of {len(shown) - 5} more classes" if len(shown) > 5 else ""
    total = f"{unpainted.sum():,} of {table['annotations'].sum():,} annotations paint nothing"
    return f"{total} ({', '.join(shown[:5])}{rest})" if shown else ""


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
                detail = f"{what}s must be unique, got {count} of this one"
                yield f"duplicate-category-{what}", f"category {value}", detail
    for name in data.background_names:
        yield "background-category", f"category {name}", "class 0 is the background, and this one is read as class 0"
    for name in data.phantom_names:
        place = names.index(name)
        seen = f"it looks like a super-category, and is class {place + 1} of the model"
        detail = f"must have annotations, got none: {seen}"
        yield "unused-category", f"category {data.category_ids[place]} ({name})", detail


def _image_problems(data: CocoData, read_pixels: bool) -> Iterator[Problem]:
    if data.images.empty:
        yield "no-images", "images", "must list an image or more, got an empty list"
    first_place, first_use, largest = {}, {}, {}  # by image id, by path; of the images of 16 bits
    finder = ImageFinder(data.data_dir, data.json_path)
    columns = (data.images[name] for name in ("image_id", "file_name", "width", "height", "exif", "path"))
    for place, (image_id, file_name, *size, exif, path) in enumerate(zip(*columns, strict=True)):
        where = f"image {image_id} ({file_name})"
        if (first := first_place.setdefault(image_id, place)) != place:
            detail = f"ids must be unique, got this one at images[{first}] and images[{place}]"
            yield "duplicate-image-id", where, detail
        if not os.path.isfile(path):
            problem = finder.find(file_name)[1] or "missing-image"
            yield problem, where, finder.explain(file_name)
            if problem != "missing-image":
                continue
        if (first := first_use.setdefault(path, place)) != place:
            yield "duplicate-file-name", where, f"a file must have one entry, got images[{first}] and images[{place}]"
        if not os.path.isfile(path):
            continue
        try:
            largest[where] = find_largest(path)
        except InputError as error:
            yield "unknown-depth", where, _without_fix(error)
        else:
            found = _file_problems(path, tuple(size), exif, read_pixels)
            yield from ((problem, where, detail) for problem, detail in found)
    of_16_bits = {where: value for where, value in largest.items() if value is not None}
    if of_16_bits and 0 < (used := max(of_16_bits.values())) < FULL_RANGE:
        got = f"{used.bit_length()} bits: no value of {len(of_16_bits)} such images is above {used:,}"
        yield "unused-range", next(iter(of_16_bits)), f"images of 16 bits must use them, got {got}"


def _file_problems(path: Path, size: tuple[int, int], exif: str, read_pixels: bool) -> Iterator[tuple[str, str]]:
    """(problem, detail) of one image file; `size` is the JSON's (width, height)."""
    try:
        *stored, orientation = read_header(path)
        turn = choose_turn(tuple(stored), orientation, size, exif)
        if orientation != 1:
            told = orientation >= 5 and stored[0] != stored[1]
            why = "as width and height say" if told else f"by exif: {exif}, which they do not say"
            done = "turned when read" if turn != 1 else "read as stored"
            yield "exif-rotated", f"EXIF orientation must be 1 (upright), got {orientation}; {done}, {why}"
        if tuple(stored[::-1] if turn >= 5 else stored) != size:
            required = f"{size[0]}x{size[1]} px (width x height) as the JSON says"
            yield "size-differs", f"must be {required}, got {stored[0]}x{stored[1]}"
        elif read_pixels:
            read_image(path, size, exif)
    except InputError as error:
        yield "unreadable-image", _without_fix(error)


def _annotation_problems(data: CocoData) -> Iterator[Problem]:
    images = data.images.drop_duplicates("image_id")
    sizes = dict(zip(images["image_id"], zip(images["height"], images["width"], strict=True), strict=True))
    repeated = data.painted["annotation_id"].duplicated()
    normalised, is_reported = _find_normalised(data.painted["segmentation"]), False
    names = ("annotation_id", "image_id", "category_id", "class_id", "segmentation")
    columns = (data.painted[name] for name in names)
    for again, is_share, annotation_id, image_id, category_id, class_id, segmentation in zip(
        repeated, normalised, *columns, strict=True
    ):
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
            if is_share and max(sizes[image_id]) > 2 and not is_reported:
                is_reported = True
                got = f"shares of the image, all within 0 to 1, here and in {normalised.sum() - 1:,} more annotations"
                yield "normalised-coordinates", where, f"must be in px, got {got}"


def _find_normalised(segmentations: pd.Series) -> np.ndarray:
    """(annotations,) bool, whose polygons lie in 0..1: in px no object is so small, unless it is the only one of many."""
    is_share = np.array([_is_share(each) for each in segmentations], bool)
    is_stray = is_share.sum() <= _STRAY * sum(isinstance(each, list) and len(each) > 0 for each in segmentations)
    return np.zeros_like(is_share) if is_stray else is_share


def _is_share(segmentation: object) -> bool:
    """Whether all coordinates lie in 0..1 (and a little beyond: some round up), not all of them whole."""
    polygons = segmentation if isinstance(segmentation, list) else [None]
    if not all(isinstance(each, list) and len(each) >= 6 for each in polygons):
        return False
    numbers = [number for polygon in polygons for number in polygon]
    if not all(type(number) in (int, float) and -0.05 <= number <= 1.05 for number in numbers):
        return False
    return any(number != int(number) for number in numbers)


def _without_fix(error: InputError) -> str:
    return str(error).rpartition("; ")[0]

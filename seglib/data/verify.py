"""What is wrong with a COCO folder: every problem as a row with its fix, and the refusal to train on errors."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from seglib.data.class_names import BACKGROUND
from seglib.data.coco import CocoData
from seglib.data.images import read_header, read_image
from seglib.data.layouts import ImageFinder
from seglib.data.masks import PAINTS_LESS, segmentation_problems
from seglib.errors import InputError, InputErrors

FIXES = {
    "no-images": "export the file with its images",
    "duplicate-category-id": "give each category an id of its own",
    "duplicate-category-name": "rename or merge the categories",
    "background-category": "delete or rename it: class 0 is the background, and scores go by class name",
    "duplicate-image-id": "give each image an id of its own",
    "duplicate-file-name": "merge the entries: each has a part of the objects, and both sides of a split see the image",
    "outside-folder": "write a path relative to the data folder; copy the image where a link leads out of it",
    "ambiguous-image": "write the folder of the one that is meant into file_name",
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
    finder = ImageFinder(data.data_dir, data.json_path)
    for place, (image_id, file_name, *size, _, path) in enumerate(data.images.itertuples(index=False, name=None)):
        where = f"image {image_id} ({file_name})"
        if (first := first_place.setdefault(image_id, place)) != place:
            yield (
                "duplicate-image-id",
                where,
                f"ids must be unique, got this one at images[{first}] and images[{place}]",
            )
        if not os.path.isfile(path):
            problem = finder.find(file_name)[1] or "missing-image"
            yield problem, where, finder.explain(file_name)
            if problem != "missing-image":
                continue
        if (first := first_use.setdefault(path, place)) != place:
            yield "duplicate-file-name", where, f"a file must have one entry, got images[{first}] and images[{place}]"
        if os.path.isfile(path):
            yield from ((problem, where, detail) for problem, detail in _file_problems(path, tuple(size), read_pixels))


def _file_problems(path: Path, size: tuple[int, int], read_pixels: bool) -> Iterator[tuple[str, str]]:
    """(problem, detail) of one image file; `size` is the JSON's (width, height)."""
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

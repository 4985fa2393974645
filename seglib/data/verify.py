"""Check a COCO folder: every problem as a row, and the refusal to train on errors."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from seglib.data.coco import BACKGROUND, CocoData, read_header, read_image, resolve_image
from seglib.data.masks import segmentation_problems
from seglib.errors import InputError, InputErrors

_COLUMNS = ["severity", "problem", "where", "detail"]
_LINES = 100  # of a refusal: a wrong data_dir makes every image missing
Row = tuple[str, str, str, str]

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
    "duplicate-annotation-id": "number the annotations anew where tools look them up by id",
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


def verify_coco(data: CocoData, read_pixels: bool = False) -> pd.DataFrame:
    """Find every problem of a COCO folder; images without annotations are none.

    ======================== ======== ===================================================================
    problem                  severity meaning, and what training does with a warning
    ======================== ======== ===================================================================
    no-images                error    the list of images is empty
    duplicate-category-id    error    which of the names is meant is open
    duplicate-category-name  error    scores are reported by class name
    background-category      error    a category has the name of our class 0
    duplicate-image-id       error    which image the annotations belong to is open
    duplicate-file-name      error    two entries use one file
    outside-folder           error    the file name leaves the data folder
    missing-image            error    no such file
    unreadable-image         error    no image, broken header; with `read_pixels` also broken or truncated
    size-differs             error    the file's size is not the JSON's
    exif-rotated             warning  read as stored; turned where only so the size is the JSON's
    duplicate-annotation-id  warning  both are painted
    unknown-image            error    the annotation's image is not in the file
    unknown-category         error    the annotation's category is not in the file
    empty-segmentation       warning  paints nothing
    unknown-segmentation     error    neither a list of polygons nor an RLE
    unreadable-coordinates   error    something other than numbers
    non-finite-coordinates   error    NaN or infinity
    odd-coordinates          error    a coordinate is lost: x and y may be swapped behind it
    too-few-points           warning  a polygon of 0 to 2 points paints nothing
    far-coordinates          error    further than any image reaches, or an outline of over a million px
    outside-image            warning  more than 1 px outside; clipped
    rle-size                 error    the RLE is of another size than the image
    rle-corrupt              error    counts that are no run lengths
    rle-sum                  error    counts that do not fill the image
    ======================== ======== ===================================================================

    Parameters
    ----------
    data : what `load_coco` returns
    read_pixels : bool
        Decode every image as well; some milliseconds each.

    Returns
    -------
    DataFrame
        `severity` ("error": training must refuse; "warning": it goes on), `problem`,
        `where` ("image 12 (images/a.jpg)", "annotation 7 (image 12)"), `detail` (what was required, what arrived),
        `fix`; errors first.
    """
    rows = [*_category_rows(data), *_image_rows(data, read_pixels), *_annotation_rows(data)]
    folded = [[" ".join(text.split()) for text in row] for row in rows]  # file names can hold line breaks
    problems = pd.DataFrame(folded, columns=_COLUMNS, dtype="str")
    problems["fix"] = problems["problem"].map(FIXES).astype("str")
    return problems.sort_values("severity", kind="stable", ignore_index=True)  # "error" < "warning"


def refuse_errors(problems: pd.DataFrame, json_path: str | Path) -> None:
    """Raise `InputErrors`, one line an error, where `verify_coco` found any; warnings pass."""
    errors = problems[problems["severity"] == "error"]
    shown = errors.head(_LINES).itertuples()
    lines = [f"{json_path} [{row.where}]: {row.problem}: {row.detail}; {row.fix}" for row in shown]
    if len(errors) > _LINES:
        counts = ", ".join(f"{problem} {count}" for problem, count in Counter(errors["problem"]).most_common())
        lines.append(f"{json_path}: {len(errors)} errors in all ({counts}); verify_coco lists them")
    if lines:
        raise InputErrors(lines)


def _category_rows(data: CocoData) -> Iterator[Row]:
    names = data.class_names[1:]
    for what, values in (("id", data.category_ids), ("name", names)):
        for value, count in Counter(values).items():
            if count > 1:
                detail = f"{what}s must be unique, got {count} of this one"
                yield "error", f"duplicate-category-{what}", f"category {value}", detail
    for category_id, name in zip(data.category_ids, names, strict=True):
        if name.strip().casefold() == BACKGROUND.casefold():
            detail = f"no category may be called {BACKGROUND}, got {name!r}"
            yield "error", "background-category", f"category {category_id}", detail


def _image_rows(data: CocoData, read_pixels: bool) -> Iterator[Row]:
    if data.images.empty:
        yield "error", "no-images", "images", "must list an image or more, got an empty list"
    first_place, first_use = {}, {}  # by image id, by path
    for place, (image_id, file_name, width, height, _) in enumerate(data.images.itertuples(index=False, name=None)):
        where = f"image {image_id} ({file_name})"
        if first_place.setdefault(image_id, place) != place:
            detail = f"ids must be unique, got this one at images[{first_place[image_id]}] and images[{place}]"
            yield "error", "duplicate-image-id", where, detail
        try:
            path = resolve_image(data.data_dir, file_name)
        except InputError as error:
            yield "error", "outside-folder", where, _without_fix(error)
            continue
        if first_use.setdefault(path, place) != place:
            detail = f"a file must have one entry, got images[{first_use[path]}] and images[{place}]"
            yield "error", "duplicate-file-name", where, detail
        for severity, problem, detail in _file_problems(path, (width, height), read_pixels):
            yield severity, problem, where, detail


def _file_problems(path: Path, size: tuple[int, int], read_pixels: bool) -> Iterator[tuple[str, str, str]]:
    """(severity, problem, detail) of one image file; `size` is the JSON's (width, height)."""
    if not os.path.isfile(path):  # Path.is_file raises for a name too long
        yield "error", "missing-image", f"the file must exist, got none at {path}"
        return
    try:
        *stored, orientation = read_header(path)
        turned = orientation >= 5 and tuple(stored) == size[::-1] != size
        if orientation != 1:
            done = "turned when read" if turned else "read as stored"
            yield "warning", "exif-rotated", f"EXIF orientation must be 1 (upright), got {orientation}; {done}"
        if tuple(stored) != size and not turned:
            sizes = f"{size[0]}x{size[1]} px (width x height) as the JSON says, got {stored[0]}x{stored[1]}"
            yield "error", "size-differs", f"must be {sizes}"
        elif read_pixels:
            read_image(path, size)
    except InputError as error:
        yield "error", "unreadable-image", _without_fix(error)


def _annotation_rows(data: CocoData) -> Iterator[Row]:
    sizes = {}
    for image_id, width, height in zip(*(data.images[name] for name in ("image_id", "width", "height")), strict=True):
        sizes.setdefault(image_id, (height, width))
    repeated = data.annotations["annotation_id"].duplicated()
    names = ("annotation_id", "image_id", "category_id", "class_id", "segmentation")
    columns = (data.annotations[name] for name in names)
    for again, annotation_id, image_id, category_id, class_id, segmentation in zip(repeated, *columns, strict=True):
        where = f"annotation {annotation_id} (image {image_id})"
        if again:
            yield "warning", "duplicate-annotation-id", where, "ids must be unique, got this one before"
        if class_id < 0:
            yield "error", "unknown-category", where, f"category_id must be one of the categories, got {category_id}"
        if image_id not in sizes:
            yield "error", "unknown-image", where, f"image_id must be one of the images, got {image_id}"
        elif 0 not in sizes[image_id]:  # else the size is unknown, and the image reported
            for severity, problem, detail in segmentation_problems(segmentation, *sizes[image_id]):
                yield severity, problem, where, detail


def _without_fix(error: InputError) -> str:
    return str(error).rpartition("; ")[0]

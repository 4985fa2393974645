"""Masks: annotations painted by one named policy, and what is wrong with a segmentation."""

import reprlib
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd
from pycocotools import mask as mask_api

from seglib.errors import InputError, require_known

if TYPE_CHECKING:
    from seglib.data.coco import CocoData

PAINT_ORDERS = ("class_id", "longest", "area")
BACKGROUNDS = ("class", "ignore")
IGNORE_INDEX = 255
MAX_SIDE = 65_535  # [px], of a JPEG; keeps height * width within RLE's 32-bit counts
PAINTS_LESS = ("empty-segmentation", "too-few-points", "outside-image")  # problems that are warnings
_MAX_PERIMETER = 2**20  # [px]; pycocotools takes 80 bytes for each, and a few wild points must not take the memory
_DECODED_BYTES = 2**26  # masks of objects held at once: 60 objects on 24 megapixels would be 1.4 GB
Rle = dict[str, object]  # {"size": [height, width], "counts": bytes}, as `pycocotools.mask` takes it
Problem = tuple[str, str]  # its name, and in detail


def paint_mask(annotations: pd.DataFrame, height: int, width: int, paint_order: str, background: str) -> np.ndarray:
    """Paint the annotations of one image, crowds like the rest.

    Parameters
    ----------
    annotations : rows of `CocoData.annotations`
    height, width : the image's [px]
    paint_order : {"class_id", "longest", "area"}
        Who wins where objects overlap, below ignored regions (class 255): the highest class id; the longest first
        polygon, in coordinates (an RLE has none); or the smallest mask in pixels, whatever the file's `area` says. The
        later row wins between equals.
    background : {"class", "ignore"}
        Pixels that no annotation covers are 0, or 255.

    Returns
    -------
    (height, width) uint8, class ids (0 of a category that is background), or the background

    Raises
    ------
    InputError
        Where a segmentation is broken (see `segmentation_problems`) or the category is unknown.
    """
    require_known("paint_order", paint_order, PAINT_ORDERS)
    require_known("background", background, BACKGROUNDS)
    _require_size(height, width)
    # pycocotools lays masks out by columns: so does the canvas, or each of the copies would take six times longer
    canvas = np.full((height, width), choose_empty_id(background), np.uint8, order="F")
    rles = _annotation_rles(annotations, height, width)
    order = sort_for_painting(annotations, rles, paint_order)
    class_ids = annotations["class_id"].to_numpy(np.uint8)
    at_once = max(1, _DECODED_BYTES // (height * width))
    for start in range(0, len(order), at_once):
        batch = order[start : start + at_once]
        objects = mask_api.decode([rles[i] for i in batch]).view(bool)  # (height, width, objects)
        for k, i in enumerate(batch):
            np.copyto(canvas, class_ids[i], where=objects[..., k])
    return np.ascontiguousarray(canvas)


def segmentation_to_rle(segmentation: list | dict, height: int, width: int) -> Rle:
    """The compressed RLE of polygons or of an RLE, the same pixels as `COCO.annToMask` paints.

    Unlike there, polygons of fewer than three points cover nothing: pycocotools would read four numbers as a box.

    Parameters
    ----------
    segmentation : list of polygons, or RLE with counts as list, str or bytes
    height, width : the image's [px]

    Raises
    ------
    InputError
        Where the segmentation has a problem that is an error; an RLE of another size than the image is not decoded.
    """
    _require_size(height, width)
    for problem, detail in segmentation_problems(segmentation, height, width):
        if problem not in PAINTS_LESS:
            raise InputError(f"{problem}: {detail}; correct the annotation")
    size = [int(height), int(width)]
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        if isinstance(counts, list):
            return mask_api.frPyObjects({"size": size, "counts": counts}, *size)
        return {"size": size, "counts": counts.encode() if isinstance(counts, str) else counts}
    polygons = [polygon for polygon in segmentation or [] if len(polygon) >= 6]
    if not polygons:
        return mask_api.frPyObjects({"size": size, "counts": [size[0] * size[1]]}, *size)
    return mask_api.merge(mask_api.frPyObjects(polygons, *size))


def segmentation_problems(segmentation: object, height: int, width: int) -> Iterator[Problem]:
    """What is wrong with a segmentation of an image of that size [px].

    With the problems of `PAINTS_LESS` something is painted: less than was meant; the others cannot be painted.
    """
    if isinstance(segmentation, dict):
        yield from _rle_problems(segmentation, height, width)
    elif segmentation is None or segmentation == []:
        yield "empty-segmentation", "must hold a polygon or an RLE, got nothing"
    elif not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        got = "a list of something else" if isinstance(segmentation, list) else type(segmentation).__name__
        yield "unknown-segmentation", f"must be an RLE or polygons [[x1, y1, x2, y2, ...], ...], got {got}"
    else:
        for i, polygon in enumerate(segmentation, start=1):
            for problem, detail in _polygon_problems(polygon, height, width):
                yield problem, f"polygon {i} of {len(segmentation)} {detail}"


def resize_rle(rle: Rle, size: int) -> np.ndarray:
    """The object's mask resized by nearest neighbour to (size, size) bool: the pixels that `resize_mask` would take.

    Samples lie in the order of the run lengths, by columns: counting those before the end of each run gives the runs of
    the resized mask, so the work grows with the object's outline and not with the photograph's megapixels.
    """
    height, width = rle["size"]
    rows_before, columns_before, repeats = _count_samples(height, width, size)
    runs = _decompress(rle["counts"])
    column, row = np.divmod(np.cumsum(runs), height)
    is_sampled = columns_before[column + 1] - columns_before[column]
    samples_before = columns_before[column] * size + is_sampled * rows_before[row]
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, np.diff(samples_before, prepend=0))
    return flat.reshape(-1, size).T[:, repeats]


@lru_cache(maxsize=1024)
def _count_samples(height: int, width: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where nearest neighbour samples an image: samples above each row, sampled columns left of each column, and which
    of these each column of the result is (where an image grows, several are the same)."""
    columns, repeats = np.unique(_sampled(width, size), return_inverse=True)
    rows_before = np.searchsorted(_sampled(height, size), np.arange(height + 1))
    return rows_before, np.searchsorted(columns, np.arange(width + 2)), repeats


def _sampled(side: int, size: int) -> np.ndarray:
    """(size,) positions that OpenCV takes of `side`, asked of OpenCV itself: versions differ in rounding."""
    return cv2.resize(np.arange(side, dtype=np.float32)[None], (size, 1), interpolation=cv2.INTER_NEAREST)[0]


def choose_empty_id(background: str) -> int:
    """What a pixel is that no annotation covers."""
    return IGNORE_INDEX if background == "ignore" else 0


def _require_size(height: int, width: int) -> None:
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise InputError(f"height and width must be 1 to {MAX_SIDE} px, got {height} and {width}; verify the data")


def _annotation_rles(annotations: pd.DataFrame, height: int, width: int) -> list[Rle]:
    rles = []
    columns = (annotations[name] for name in ("annotation_id", "class_id", "segmentation"))
    for annotation_id, class_id, segmentation in zip(*columns, strict=True):
        if not 0 <= class_id <= IGNORE_INDEX:
            raise InputError(f"annotation {annotation_id}: class_id must be 0 to 255, got {class_id}; add the category")
        try:
            rles.append(segmentation_to_rle(segmentation, height, width))
        except InputError as error:
            raise InputError(f"annotation {annotation_id}: {error}") from None
    return rles


def sort_for_painting(annotations: pd.DataFrame, rles: list[Rle], paint_order: str) -> np.ndarray:
    """Row numbers, the winner last."""
    if paint_order == "class_id":
        keys = annotations["class_id"].to_numpy()
    elif paint_order == "longest":
        keys = np.array(
            [len(each[0]) if isinstance(each, list) and each else 0 for each in annotations["segmentation"]]
        )
    else:
        keys = -measure_rles(rles)  # the file's `area` is often that of the box or the image
    order = np.argsort(keys, kind="stable")
    return order[np.argsort(annotations["class_id"].to_numpy()[order] == IGNORE_INDEX, kind="stable")]


def measure_rles(rles: list[Rle]) -> np.ndarray:
    """Pixels of each mask, one by one: of more than 255 at once pycocotools 2.0.11 makes an OverflowError."""
    return np.array([mask_api.area(rle) for rle in rles], np.int64)


# The objects of a data set: which can be painted, and how large they are.


def measure_masks(data: "CocoData") -> np.ndarray:
    """(annotations,) int64: pixels that each one paints at its image's size, one by one; 0 where it cannot be painted."""
    areas = np.zeros(len(data.annotations), np.int64)
    painted = find_paintable(data)
    areas[[*painted]] = measure_rles([*painted.values()])
    return areas


def find_paintable(data: "CocoData") -> dict[int, Rle]:
    """Row of `data.annotations` -> its mask, by image, without those that are broken or of unknown class, image or size."""
    of_image = find_image_rows(data)
    sizes = data.images[["height", "width"]].to_numpy()
    class_ids, segmentations = (data.annotations[name].to_numpy() for name in ("class_id", "segmentation"))
    painted: dict[int, Rle] = {}
    for row in np.argsort(of_image, kind="stable").tolist():
        if of_image[row] >= 0 and class_ids[row] >= 0 and sizes[of_image[row]].all():
            with suppress(InputError):
                painted[row] = segmentation_to_rle(segmentations[row], *sizes[of_image[row]].tolist())
    return painted


def find_image_rows(data: "CocoData") -> np.ndarray:
    """(annotations,) row of the first image with the annotation's image id, -1 where there is none."""
    first = np.flatnonzero(~data.images["image_id"].duplicated())
    rows = pd.Index(data.images["image_id"].iloc[first]).get_indexer(data.annotations["image_id"])
    return np.append(first, -1)[rows]


# What is wrong with a segmentation.


def _polygon_problems(polygon: list, height: int, width: int) -> Iterator[Problem]:
    xy = _numbers(polygon)
    if xy is None:
        yield "unreadable-coordinates", "must be a list of numbers [x1, y1, x2, ...], got something else in it"
    elif not np.isfinite(xy).all():
        yield "non-finite-coordinates", f"must have finite coordinates, got {xy[~np.isfinite(xy)][0]}"
    elif len(xy) % 2:
        yield "odd-coordinates", f"must have x and y of each point, got {len(xy)} coordinates"
    elif len(xy) < 6:
        yield "too-few-points", f"must have 3 points or more, got {len(xy) // 2}"
    else:
        yield from _extent_problems(xy.reshape(-1, 2).astype(np.float64), height, width)  # integers may overflow


def _extent_problems(points: np.ndarray, height: int, width: int) -> Iterator[Problem]:
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    extent = f"x {left:g} to {right:g}, y {top:g} to {bottom:g}"
    perimeter = np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum()
    if max(-left, -top, right, bottom) > MAX_SIDE or perimeter > _MAX_PERIMETER:
        limits = f"within {MAX_SIDE} px and no longer than {_MAX_PERIMETER} px"
        yield "far-coordinates", f"must lie {limits}, got {extent}"
    elif left < -1 or top < -1 or right > width + 1 or bottom > height + 1:  # 1 px: tools differ in where a pixel lies
        yield "outside-image", f"must lie in the image of {width}x{height} px (width x height), got {extent}"


def _rle_problems(rle: dict, height: int, width: int) -> Iterator[Problem]:
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width]:  # first: the counts of another size may be those of a mask that fills the memory
        required = f"[{height}, {width}], the image's height and width"
        yield "rle-size", f"size must be {required}, got {reprlib.repr(size)}"
        return
    lengths = _numbers(counts) if isinstance(counts, list) else _decompress(counts)
    if lengths is None or lengths.dtype.kind == "f" or (lengths < 0).any():
        yield "rle-corrupt", "counts must be whole numbers from 0, or their compressed text, got neither"
    elif (total := lengths.sum(dtype=np.float64)) != height * width:  # as floats these cannot overflow
        yield "rle-sum", f"counts must add up to height x width = {height * width}, got {total:.0f}"


def _numbers(values: list) -> np.ndarray | None:
    """A flat list of JSON numbers as an array; None for anything else."""
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):  # lists of several lengths in it
        return None
    return array if array.ndim == 1 and array.dtype.kind in "iuf" else None


def _decompress(counts: object) -> np.ndarray | None:
    """The run lengths of a compressed RLE, None where it is corrupt: pycocotools reads on behind the string's end.

    Source: rleFrString of pycocotools. Each character holds 5 bits of a number, the 6th says that the next one goes on;
    from the fourth number on, each is the difference to the last but one.
    """
    text = counts.encode(errors="replace") if isinstance(counts, str) else counts
    digits = np.frombuffer(text if isinstance(text, bytes) else b"", np.uint8).astype(np.int64) - 48
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        return None
    last = np.flatnonzero(digits & 32 == 0)
    first = np.append(0, last[:-1] + 1)
    length = last - first + 1
    if length.max() > 7:  # 35 bits
        return None
    place = np.arange(len(digits)) - np.repeat(first, length)
    numbers = np.add.reduceat((digits & 31) << 5 * place, first)
    numbers -= np.where(digits[last] & 16, 1 << 5 * length, 0)  # the sign
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers

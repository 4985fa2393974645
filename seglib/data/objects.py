"""The objects of a data set one by one: sizes, overlaps, and what of them is painted."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import pandas as pd
from pycocotools import mask as mask_api

from seglib.data.coco import CocoData
from seglib.data.masks import IGNORE_INDEX, PAINT_ORDERS, decompress_counts, segmentation_to_rle, sort_for_painting
from seglib.errors import InputError

# One row per annotation: its size, its place, its mask; and that mask at any resolution without decoding the whole.


Rle = dict[str, object]


def tabulate_objects(data: CocoData, image_size: int) -> pd.DataFrame:
    """Measure every annotation that can be painted; those that cannot are left out (`verify_coco` names them).

    Returns
    -------
    DataFrame
        Index: row of `data.annotations`, grouped by image. `image`: row of `data.images`; `annotation_id`, `class_id`,
        `class_name`; `area` [px^2] (the file's, the mask's where it has none) and `mask_area` [px^2], both of the
        original; `scale`: px^2 of the training image for one of the original; `size`: sqrt(area) [px] in the training
        image; `x`, `y`: the box's middle, 0..1 of the image; `aspect`: the box's width / height [original px], NaN
        where the mask is empty; `rle`: compressed, as `pycocotools.mask` takes it.
    """
    of_image = pd.Index(data.images["image_id"]).get_indexer(data.annotations["image_id"])
    sizes = data.images[["height", "width"]].to_numpy()
    class_ids, segmentations = (data.annotations[name].to_numpy() for name in ("class_id", "segmentation"))
    rows, rles = [], []
    for row in np.argsort(of_image, kind="stable"):
        if of_image[row] < 0 or class_ids[row] < 1 or not sizes[of_image[row]].all():
            continue
        try:
            rles.append(segmentation_to_rle(segmentations[row], *sizes[of_image[row]].tolist()))
        except InputError:
            continue
        rows.append(row)
    objects = data.annotations.iloc[rows][["annotation_id", "class_id", "area"]].assign(image=of_image[rows])
    objects["class_name"] = np.array(data.class_names, object)[objects["class_id"]]
    height, width = sizes[of_image[rows]].reshape(-1, 2).T
    return _measure(objects, rles, height, width, image_size)


def resize_rle(rle: Rle, size: int) -> np.ndarray:
    """The object's mask resized by nearest neighbour to (size, size) bool: the pixels that `resize_mask` would take.

    Samples lie in the order of the run lengths, by columns: counting those before the end of each run gives the runs of
    the resized mask, so the work grows with the object's outline and not with the photograph's megapixels.
    """
    height, width = rle["size"]
    rows_before, columns_before, repeats = _count_samples(height, width, size)
    runs = decompress_counts(rle["counts"])
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


def _measure(
    objects: pd.DataFrame, rles: list[Rle], height: np.ndarray, width: np.ndarray, image_size: int
) -> pd.DataFrame:
    # one by one: of more than 255 at once pycocotools 2.0.11 makes an OverflowError
    objects["mask_area"] = np.array([mask_api.area(rle) for rle in rles], np.int64)
    known = objects["area"].gt(0) & np.isfinite(objects["area"])
    objects["area"] = objects["area"].where(known, objects["mask_area"])
    objects["scale"] = (image_size / width) * (image_size / height)
    objects["size"] = np.sqrt(objects["area"] * objects["scale"])
    left, top, box_width, box_height = np.array(mask_api.toBbox(rles) if rles else [], float).reshape(-1, 4).T
    objects["x"], objects["y"] = (left + box_width / 2) / width, (top + box_height / 2) / height
    objects["aspect"] = np.divide(box_width, box_height, out=np.full(len(rles), np.nan), where=box_height > 0)
    objects["rle"] = rles
    return objects


# Which annotations overlap, in which pairs of classes, in how many pixels.


def find_overlaps(objects: pd.DataFrame) -> pd.DataFrame:
    """Every pair of annotations of one image that have pixels in common, compared at the original resolution.

    Parameters
    ----------
    objects : of `tabulate_objects`

    Returns
    -------
    DataFrame
        `image`; `first`, `second`: index of the two in `objects`; `class_a`, `class_b`: their class names, the lower id
        first; `pixels` [px^2 of the training image]; `share`: of the smaller one, 0..1.
    """
    found = [_overlaps_of(own) for _, own in objects.groupby("image") if len(own) > 1]
    found.append(_overlaps_of(objects.iloc[:0]))  # the columns, where there are none
    return pd.concat(found, ignore_index=True)


def tabulate_class_pairs(overlaps: pd.DataFrame) -> pd.DataFrame:
    """Class pairs by overlapping pixels: `class_a`, `class_b`, `overlaps` (pairs of annotations), `images`, `pixels`."""
    grouped = overlaps.groupby(["class_a", "class_b"])
    table = grouped.agg(overlaps=("image", "size"), images=("image", "nunique"), pixels=("pixels", "sum"))
    return table.sort_values("pixels", ascending=False).reset_index()


def _overlaps_of(objects: pd.DataFrame) -> pd.DataFrame:
    """The overlapping pairs of one image's objects."""
    area = objects["mask_area"].to_numpy()
    first, second, common = _intersect(objects["rle"].tolist(), area)
    swap = objects["class_id"].to_numpy()[first] > objects["class_id"].to_numpy()[second]
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    names = objects["class_name"].to_numpy()
    return pd.DataFrame(
        {
            "image": objects["image"].to_numpy()[first],
            "first": objects.index[first],
            "second": objects.index[second],
            "class_a": names[first],
            "class_b": names[second],
            "pixels": common * objects["scale"].to_numpy()[first],
            "share": common / np.minimum(area[first], area[second]),
        }
    )


def _intersect(rles: list[dict], area: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first, second, pixels in common) of each pair of masks that meet; first < second."""
    if len(rles) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    covered = mask_api.iou(rles, rles, [1] * len(rles))  # with crowds: the intersection over the first one's area
    common = np.rint(np.nan_to_num(covered) * area[:, None])
    first, second = np.nonzero(np.triu(common, 1))
    return first, second, common[first, second]


# What is left of the annotations in the masks that training sees: pixels by class, vanished objects, disputed pixels.


@dataclass(frozen=True, eq=False)
class PaintedCounts:
    """Counts over the masks at the training resolution, N images and C classes with the background.

    Attributes
    ----------
    class_pixels : (N, C + 1) int64, pixels of each class under the chosen policy; the ignored ones last.
    covered, disputed : (N,) int64, pixels that lie in an object; of these, the pixels in which the three painting policies
        do not all agree.
    left : DataFrame, index as the objects', one column a size [px]: pixels of the object's own mask at that size.
    """

    class_pixels: np.ndarray
    covered: np.ndarray
    disputed: np.ndarray
    left: pd.DataFrame


def count_painted(
    data: CocoData,
    objects: pd.DataFrame,
    image_size: int,
    paint_order: str,
    background: str,
    sizes: Sequence[int] = (256, 128),
) -> PaintedCounts:
    """Paint every image at the training resolution, one at a time, from the annotations alone.

    Parameters
    ----------
    data, objects : of `pool_files` and `tabulate_objects`
    sizes : resolutions [px] at which the objects' own pixels are counted, besides the training's
    """
    count, classes = len(data.images), data.num_classes
    class_pixels, layers = np.zeros((count, 256), np.int64), np.zeros((count, 2), np.int64)
    class_pixels[:, IGNORE_INDEX if background == "ignore" else 0] = image_size**2
    sizes = sorted({*sizes, image_size}, reverse=True)
    left = np.zeros((len(objects), len(sizes)), np.int64)
    for image, rows in objects.groupby("image").indices.items():
        own = objects.iloc[rows]
        masks = {size: [resize_rle(rle, size) for rle in own["rle"]] for size in sizes}
        left[rows] = np.transpose([[np.count_nonzero(mask) for mask in masks[size]] for size in sizes])
        painted = paint_policies(data, own, masks[image_size], background)
        class_pixels[image] = np.bincount(painted[paint_order].ravel(), minlength=256)
        layers[image] = _count_layers(masks[image_size], painted)
    counts = class_pixels[:, [*range(classes), IGNORE_INDEX]]
    return PaintedCounts(counts, *layers.T, pd.DataFrame(left, objects.index, sizes))


def paint_layers(
    data: CocoData, objects: pd.DataFrame, image: int, image_size: int, background: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """How many objects lie on each pixel of one image, and its mask under each policy: (S, S) each."""
    own = objects[objects["image"] == image]
    masks = [resize_rle(rle, image_size) for rle in own["rle"]]
    return np.sum(masks, axis=0, dtype=np.uint16), paint_policies(data, own, masks, background)


def paint_policies(
    data: CocoData, objects: pd.DataFrame, masks: Sequence[np.ndarray], background: str
) -> dict[str, np.ndarray]:
    """The masks of one image under each painting policy: what `paint_mask` then `resize_mask` make.

    Parameters
    ----------
    objects : the image's rows of `tabulate_objects`
    masks : for each of them (S, S) bool, of `resize_rle`

    Returns
    -------
    Policy -> (S, S) uint8 class ids.
    """
    annotations, rles = data.annotations.loc[objects.index], objects["rle"].tolist()
    empty = np.full(masks[0].shape, IGNORE_INDEX if background == "ignore" else 0, np.uint8)
    class_ids = objects["class_id"].to_numpy(np.uint8)
    painted, known = {}, {}
    for policy in PAINT_ORDERS:
        order = tuple(sort_for_painting(annotations, rles, policy).tolist())
        if order not in known:
            canvas = known[order] = empty.copy()
            for i in order:
                canvas[masks[i]] = class_ids[i]
        painted[policy] = known[order]
    return painted


def _count_layers(masks: Sequence[np.ndarray], painted: dict[str, np.ndarray]) -> tuple[int, int]:
    """Pixels in an object, and disputed ones."""
    first, *others = painted.values()
    disputed = np.any([first != other for other in others], axis=0)
    return np.count_nonzero(np.any(masks, axis=0)), np.count_nonzero(disputed)

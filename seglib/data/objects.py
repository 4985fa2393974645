"""The objects of a data set one by one: sizes, overlaps, and what of them is left in the masks that training sees."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from pycocotools import mask as mask_api

from seglib.data.masks import (
    IGNORE_INDEX,
    PAINT_ORDERS,
    Rle,
    choose_empty_id,
    measure_rles,
    resize_rle,
    segmentation_to_rle,
    sort_for_painting,
)
from seglib.errors import InputError

if TYPE_CHECKING:
    from seglib.data.coco import CocoData


def measure_masks(data: "CocoData") -> np.ndarray:
    """(annotations,) int64: pixels that each one paints at its image's size, one by one; 0 where it cannot be painted."""
    areas = np.zeros(len(data.annotations), np.int64)
    painted = _paintable_rles(data)
    areas[[*painted]] = measure_rles([*painted.values()])
    return areas


def _paintable_rles(data: "CocoData") -> dict[int, Rle]:
    """Row of `data.annotations` -> its mask, by image, without those that are broken or of unknown class, image or size."""
    of_image = _find_images(data)
    sizes = data.images[["height", "width"]].to_numpy()
    class_ids, segmentations = (data.annotations[name].to_numpy() for name in ("class_id", "segmentation"))
    painted: dict[int, Rle] = {}
    for row in np.argsort(of_image, kind="stable").tolist():
        if of_image[row] >= 0 and class_ids[row] >= 0 and sizes[of_image[row]].all():
            with suppress(InputError):
                painted[row] = segmentation_to_rle(segmentations[row], *sizes[of_image[row]].tolist())
    return painted


def _find_images(data: "CocoData") -> np.ndarray:
    """(annotations,) row of the first image with the annotation's image id, -1 where there is none."""
    first = np.flatnonzero(~data.images["image_id"].duplicated())
    rows = pd.Index(data.images["image_id"].iloc[first]).get_indexer(data.annotations["image_id"])
    return np.append(first, -1)[rows]


def tabulate_objects(data: "CocoData", image_size: int) -> pd.DataFrame:
    """Measure every annotation that paints a pixel; the others count nowhere (`verify_coco` names those that cannot).

    Returns
    -------
    DataFrame
        Index: row of `data.annotations`, grouped by image. `image`: row of `data.images`; `annotation_id`, `class_id`,
        `class_name`; `area` [px^2] (the file's, the mask's where it has none) and `mask_area` [px^2], measured, both of
        the original; `scale`: px^2 of the training image for one of the original; `size`: sqrt(mask_area) [px] in the
        training image; `x`, `y`: the box's middle, 0..1 of the image; `aspect`: the box's width / height [original px];
        `rle`: compressed, as `pycocotools.mask` takes it.
    """
    masks = {row: rle for row, rle in _paintable_rles(data).items() if mask_api.area(rle)}
    rows, rles = [*masks], [*masks.values()]
    images = _find_images(data)[rows]
    objects = data.annotations.iloc[rows][["annotation_id", "class_id", "area"]].assign(image=images)
    height, width = data.images[["height", "width"]].to_numpy()[images].reshape(-1, 2).T
    objects["class_name"] = np.array(data.class_names, object)[objects["class_id"]]
    objects["mask_area"] = measure_rles(rles)
    known = objects["area"].gt(0) & np.isfinite(objects["area"])
    objects["area"] = objects["area"].where(known, objects["mask_area"])
    objects["scale"] = (image_size / width) * (image_size / height)
    objects["size"] = np.sqrt(objects["mask_area"] * objects["scale"])
    left, top, box_width, box_height = np.array(mask_api.toBbox(rles) if rles else [], float).reshape(-1, 4).T
    objects["x"], objects["y"] = (left + box_width / 2) / width, (top + box_height / 2) / height
    objects["aspect"] = box_width / box_height
    objects["rle"] = rles
    return objects


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
    rles, area = objects["rle"].tolist(), objects["mask_area"].to_numpy()
    # with crowds, pycocotools gives the intersection over the first one's area
    covered = mask_api.iou(rles, rles, [1] * len(rles)) if rles else np.zeros((0, 0))
    common = np.rint(np.nan_to_num(covered) * area[:, None])
    first, second = np.nonzero(np.triu(common, 1))
    common, class_ids, names = common[first, second], objects["class_id"].to_numpy(), objects["class_name"].to_numpy()
    swap = class_ids[first] > class_ids[second]
    first, second = np.where(swap, second, first), np.where(swap, first, second)
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


class PaintedCounts(NamedTuple):
    """Counts over the masks at the training resolution, N images and C classes with the background."""

    class_pixels: np.ndarray  # (N, C + 1) int64, pixels of each class under the chosen policy; the ignored ones last
    covered: np.ndarray  # (N,) int64, pixels that lie in an object
    disputed: np.ndarray  # (N,) int64, of these, pixels in which the painting policies do not all agree
    left: pd.DataFrame  # index as the objects', one column per size [px]: pixels of the object's own mask at that size


def count_painted(
    data: "CocoData",
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
    class_pixels, covered, disputed = (np.zeros((len(data.images), *shape), np.int64) for shape in ((256,), (), ()))
    class_pixels[:, choose_empty_id(background)] = image_size**2
    ignored = _find_ignored(data, image_size)
    for image, where in ignored.items():
        class_pixels[image] = np.bincount(
            np.where(where, IGNORE_INDEX, choose_empty_id(background)).ravel(), minlength=256
        )
    sizes = sorted({*sizes, image_size}, reverse=True)
    left = np.zeros((len(objects), len(sizes)), np.int64)
    for image, rows in objects.groupby("image").indices.items():
        own = objects.iloc[rows]
        masks = {size: [resize_rle(rle, size) for rle in own["rle"]] for size in sizes}
        left[rows] = np.transpose([[np.count_nonzero(mask) for mask in masks[size]] for size in sizes])
        painted = _paint_policies(data, own, masks[image_size], background, ignored.get(image))
        class_pixels[image] = np.bincount(painted[paint_order].ravel(), minlength=256)
        covered[image] = np.count_nonzero(np.any(masks[image_size], axis=0))
        disputed[image] = np.count_nonzero(np.ptp([*painted.values()], axis=0))
    counts = class_pixels[:, [*range(data.num_classes), IGNORE_INDEX]]
    return PaintedCounts(counts, covered, disputed, pd.DataFrame(left, objects.index, sizes))


def paint_layers(
    data: "CocoData", objects: pd.DataFrame, image: int, image_size: int, background: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """How many objects lie on each pixel of one image, and its mask under each policy: (S, S) each."""
    own = objects[objects["image"] == image]
    masks = [resize_rle(rle, image_size) for rle in own["rle"]]
    ignored = _find_ignored(data, image_size).get(image)
    return np.sum(masks, axis=0, dtype=np.uint16), _paint_policies(data, own, masks, background, ignored)


def _find_ignored(data: "CocoData", image_size: int) -> dict[int, np.ndarray]:
    """Row of an image with ignored regions -> where they are, (S, S) bool."""
    found: dict[int, np.ndarray] = {}
    if data.ignored is not None:
        data = replace(data, annotations=data.ignored)
        images = _find_images(data)
        for row, rle in _paintable_rles(data).items():
            found[images[row]] = found.get(images[row], False) | resize_rle(rle, image_size)
    return found


def _paint_policies(
    data: "CocoData", objects: pd.DataFrame, masks: Sequence[np.ndarray], background: str, ignored: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Policy -> (S, S) uint8 class ids of one image: what `paint_mask` and then `resize_mask` make of its `objects`.

    `masks` are the objects' (S, S) bool, of `resize_rle`.
    """
    annotations, rles = data.annotations.loc[objects.index], objects["rle"].tolist()
    class_ids = objects["class_id"].to_numpy(np.uint8)
    painted: dict[str, np.ndarray] = {}
    for policy in PAINT_ORDERS:
        canvas = painted[policy] = np.full(masks[0].shape, choose_empty_id(background), np.uint8)
        for i in sort_for_painting(annotations, rles, policy):
            canvas[masks[i]] = class_ids[i]
        if ignored is not None:
            canvas[ignored] = IGNORE_INDEX
    return painted

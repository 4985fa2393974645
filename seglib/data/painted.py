"""What is left of the annotations in the masks that training sees: pixels by class, vanished objects, disputed pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from seglib.data.coco import CocoData
from seglib.data.masks import IGNORE_INDEX, PAINT_ORDERS, sort_for_painting
from seglib.data.objects import resize_rle


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

"""One row an annotation: its size, its place, its mask; and that mask at any resolution without decoding the whole."""

from functools import lru_cache

import cv2
import numpy as np
import pandas as pd
from pycocotools import mask as mask_api

from seglib.data.coco import CocoData
from seglib.data.masks import decompress_counts, segmentation_to_rle
from seglib.errors import InputError

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

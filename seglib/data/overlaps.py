"""Which annotations overlap, in which pairs of classes, in how many pixels."""

import numpy as np
import pandas as pd
from pycocotools import mask as mask_api


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

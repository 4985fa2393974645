"""Which annotated objects were found: recall by object, class and size, which scores of pixels cannot show."""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import pandas as pd
from scipy.stats import binomtest

from seglib.data.coco import CocoData
from seglib.data.masks import IGNORE_INDEX, segmentation_to_rle
from seglib.data.objects import resize_rle

SIZE_BINS = {"≤ 8 px": 8, "8–20 px": 20, "20–32 px": 32, "32–96 px": 96, "> 96 px": np.inf}  # upper ends of sqrt(area)
FOUND_AT = 0.5  # IoU


def measure_objects(
    data: CocoData, image_ids: Sequence[int], pairs: Iterable[tuple[np.ndarray, np.ndarray]]
) -> pd.DataFrame:
    """Measure every annotated object that is no crowd against the prediction of its image.

    An object is painted alone, in the images' size; what others painted over it is no pixel of it. It is compared with
    the connected regions (8 neighbours) of its predicted class that overlap it, all together, without what they cover of
    other true objects of its class: neighbours that the prediction joins are found, each of them, and each answers for
    all that the joint region invents.

    Parameters
    ----------
    image_ids, pairs : the images, and (truth, pred) of each, (S, S) uint8.

    Returns
    -------
    One row an object: annotation_id, image_id, class_id, size (sqrt of the painted area) [px], visible [px], hit
    (visible pixels that are predicted right), recall = hit / visible, iou, found (iou >= 0.5), missed [px]. Objects
    without a visible pixel have NaN in recall and iou. A pixel is in `missed` of one object only, so that these sum to
    the missed pixels of the class.
    """
    rows_of_image = data.annotations.groupby("image_id").indices
    sizes = data.images.set_index("image_id")[["height", "width"]]
    rows = []
    for image_id, (truth, pred) in zip(image_ids, pairs, strict=True):
        annotations = data.annotations.iloc[rows_of_image.get(image_id, [])]
        for class_id, objects in annotations[annotations["iscrowd"] == 0].groupby("class_id"):
            rles = [segmentation_to_rle(segmentation, *sizes.loc[image_id]) for segmentation in objects["segmentation"]]
            masks = [resize_rle(rle, len(truth)) for rle in rles]
            measures = _measure_class(masks, truth == class_id, pred == class_id, truth == IGNORE_INDEX)
            ids = objects["annotation_id"]
            rows += [(i, image_id, class_id, *measured) for i, measured in zip(ids, measures, strict=True)]
    columns = ["annotation_id", "image_id", "class_id", "size", "visible", "hit", "recall", "iou", "missed"]
    table = pd.DataFrame(rows, columns=columns)
    table["found"] = table["iou"] >= FOUND_AT
    ends = [0, *SIZE_BINS.values()]
    table["bin"] = pd.cut(table["size"], ends, labels=list(SIZE_BINS), include_lowest=True)
    return table


def summarise_objects(objects: pd.DataFrame, by: str | list[str], resamples: int, seed: int = 0) -> pd.DataFrame:
    """Recall by group, over the objects that have a visible pixel, with 95 % intervals.

    Parameters
    ----------
    objects : of `measure_objects`.
    by : column or columns to group by.
    resamples : of the images, for the interval of the mean recall: the objects of an image are not independent.

    Returns
    -------
    One row a group: objects, found (share; Wilson's interval in found_low, found_high), recall (mean of the objects;
    bootstrap interval in recall_low, recall_high), missed [px].
    """
    visible = objects[objects["visible"] > 0]
    rows = {}
    for group, members in visible.groupby(by, observed=True):
        low, high = wilson_interval(int(members["found"].sum()), len(members))
        recall_low, recall_high = _bootstrap_mean(members, resamples, seed)
        rows[group] = {
            "objects": len(members),
            "found": members["found"].mean(),
            "found_low": low,
            "found_high": high,
            "recall": members["recall"].mean(),
            "recall_low": recall_low,
            "recall_high": recall_high,
            "missed": int(members["missed"].sum()),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = table.index.set_names(by)
    return table


def price_missed(objects: pd.DataFrame, confusion: np.ndarray, class_names: Sequence[str]) -> pd.DataFrame:
    """mIoU points lost to the missed pixels of the objects: classes in rows, sizes in columns.

    The cells add up to what missed pixels cost (see `errors.lost_to_confusions`), background and crowds left out.

    Parameters
    ----------
    objects : of `measure_objects`.
    confusion : (C, C) counts of the same images, truth in rows.
    """
    confusion = np.asarray(confusion)
    unions = confusion.sum(0) + confusion.sum(1) - np.diagonal(confusion)
    missed = objects.pivot_table(index="class_id", columns="bin", values="missed", aggfunc="sum", observed=True)
    points = 100 * missed.div(unions[missed.index] * (unions > 0).sum(), axis=0)
    return points.fillna(0.0).set_axis([class_names[index] for index in points.index], axis=0)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _measure_class(
    masks: Sequence[np.ndarray], is_true: np.ndarray, is_pred: np.ndarray, ignored: np.ndarray
) -> list[tuple]:
    """(size, visible, hit, recall, iou, missed) of each object of one class in one image; masks (S, S) bool."""
    count, labels = cv2.connectedComponents(is_pred.view(np.uint8), connectivity=8)
    invented = np.bincount(labels[~is_true & ~ignored], minlength=count)
    free, rows = is_true & ~is_pred, []
    for mask in masks:
        shown = mask & is_true
        regions = np.bincount(labels[shown], minlength=count)
        visible, hit = int(regions.sum()), int(regions[1:].sum())
        extra = int(invented[1:][regions[1:] > 0].sum())
        missed = int((mask & free).sum())
        free &= ~mask
        recall, iou = (hit / visible, hit / (visible + extra)) if visible else (np.nan, np.nan)
        rows.append((float(np.sqrt(mask.sum())), visible, hit, recall, iou, missed))
    return rows


def _bootstrap_mean(objects: pd.DataFrame, resamples: int, seed: int) -> tuple[float, float]:
    """95 % interval of the mean recall when images are drawn anew."""
    sums = objects.groupby("image_id")["recall"].agg(["sum", "count"]).to_numpy()
    weights = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples)
    means = (weights @ sums[:, 0]) / (weights @ sums[:, 1])
    return tuple(float(value) for value in np.quantile(means, [0.025, 0.975]))

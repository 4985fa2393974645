"""Where predictions are wrong: by confusion, image, boundary, cause and object.

Two answers, for two questions:

- *Gain*: what would the mIoU be if this were right and all else as it is? Gains tell what to work on next. They do not
  add up: after one fix, another gains more or less than before.
- *Lost*: how is the missing mIoU shared out? 1 - IoU of class c is (FN + FP) / union, so each pixel of class t predicted
  as p loses 1 / union_t as missed and 1 / union_p as invented, divided by the number of classes present. Over all
  confusions these add up to 1 - mIoU exactly.

Kinds are those of Bernhard et al., "What's Outside the Intersection?" (WACV 2024). For each class alone, a wrong pixel of
it (missed: the class is there and not predicted; invented: predicted and not there) is one of

- boundary: it belongs to a strip between what is right with the class (true positives) and right without it (true
  negatives). Strips are made of the wrong pixels within `width` of both kinds, and of the wrong pixels within `width` of
  these; each connected strip must touch both.
- extent: elsewhere, in a segment (a connected region of the class, in truth for missed pixels, in the prediction for
  invented ones) that has a true positive: the object was found, and its size is wrong.
- segment: elsewhere, in a segment without one: the object was missed, or invented.

Regions are 8-connected; distances are Euclidean, rounded to whole pixels. Ignored pixels are right, wrong and near to
nothing, and a predicted segment may run through them.
"""

import math
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from seglib.data.coco import CocoData
from seglib.data.masks import IGNORE_INDEX, resize_rle, segmentation_to_rle
from seglib.evaluation.compare import estimate_noise, find_interval
from seglib.evaluation.metrics import iou_per_class, mean_iou, precision_per_class, recall_per_class

KINDS = ("boundary", "extent", "segment")
BOUNDARY, EXTENT, SEGMENT = 1, 2, 3
WIDTH = 0.01  # of boundary strips, of the image's diagonal, as in the paper
BOUNDARY_SHARE = 0.02  # d of Boundary IoU, of the image's diagonal: Cheng et al. (2021)
SIZE_BINS = {"≤ 8 px": 8, "8–20 px": 20, "20–32 px": 32, "32–96 px": 96, "> 96 px": np.inf}  # upper ends of sqrt(area)
FOUND_AT = 0.5  # IoU
_OUTSIDE = 254  # no class: beyond the image's border
_NEIGHBOURS = np.ones((3, 3), np.uint8)


def find_boundary(mask: np.ndarray, distance: int) -> np.ndarray:
    """(H, W) bool: the pixels within `distance` of another class or of the image's border (chessboard distance) [px].

    Source: `mask_to_boundary` of Cheng et al. (2021), "Boundary IoU", for all classes at once: a pixel is inside where
    the lowest and the highest id of the square around it are the same.
    """
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=_OUTSIDE)
    square = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    return (cv2.erode(padded, square) != cv2.dilate(padded, square))[1:-1, 1:-1]


def boundary_iou(pairs: Iterable[tuple[np.ndarray, np.ndarray]], num_classes: int) -> tuple[np.ndarray, float]:
    """Boundary IoU of each class, and the share of wrong pixels that lie at the boundaries of the truth.

    Intersections and unions are summed over the (truth, pred) pairs, (H, W) uint8 each; d is 2 % of the image's
    diagonal, at least 1 px. Ignored pixels belong to no class in truth and prediction, and are not counted.

    Returns
    -------
    (C,) float64, NaN for a class without boundary pixels; and a share in 0..1, NaN where nothing is wrong.
    """
    counts = np.zeros((3, 256), np.int64)  # truth, prediction, both
    wrong_near, wrong_all = 0, 0
    for truth, pred in pairs:
        ignored = truth == IGNORE_INDEX
        pred = np.where(ignored, truth, pred)
        distance = choose_width(*truth.shape, BOUNDARY_SHARE)
        truth_edge, pred_edge = find_boundary(truth, distance), find_boundary(pred, distance)
        wrong = truth != pred
        for row, classes in enumerate((truth[truth_edge], pred[pred_edge], truth[truth_edge & pred_edge & ~wrong])):
            counts[row] += np.bincount(classes, minlength=256)
        wrong_near, wrong_all = wrong_near + int((wrong & truth_edge).sum()), wrong_all + int(wrong.sum())
    in_truth, in_pred, both = counts[:, :num_classes]
    union = in_truth + in_pred - both
    iou = np.divide(both, union, out=np.full(num_classes, np.nan), where=union > 0)
    return iou, wrong_near / wrong_all if wrong_all else float("nan")


def gain_of_confusions(confusion: ArrayLike) -> np.ndarray:
    """Rise of the mIoU if the pixels of one confusion alone were right: all of cell (t, p) moved to (t, t).

    (C, C) counts, truth in rows -> (C, C) float64, 0 on the diagonal. A class that was never more than invented leaves
    the mean with its last pixel.
    """
    moved = np.asarray(confusion, dtype=np.float64)
    hits, unions, iou, total, present = _parts(moved)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0: the class is gone, and its IoU with it
        true_iou = (hits[:, None] + moved) / unions[:, None]
        left = unions[None, :] - moved
        predicted_iou = np.where(left > 0, hits[None, :] / left, 0)
        fixed = (total - iou[:, None] - iou[None, :] + true_iou + predicted_iou) / (present - (left == 0))
    gain = np.where(moved > 0, fixed - total / max(present, 1), 0)
    np.fill_diagonal(gain, 0)
    return gain


def lost_to_confusions(confusion: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Share the missing mIoU out over the confusions: (missed + invented).sum() == 1 - mIoU.

    (C, C) counts, truth in rows -> two (C, C) float64: what the pixels of cell (t, p) cost class t, which they are taken
    from, and class p, which they are added to.
    """
    wrong = np.array(confusion, dtype=np.float64)
    _, unions, _, _, present = _parts(wrong)
    np.fill_diagonal(wrong, 0)
    share = np.divide(1, unions * present, out=np.zeros_like(unions), where=unions > 0)
    return wrong * share[:, None], wrong * share[None, :]


def gain_of_images(per_image: ArrayLike) -> np.ndarray:
    """Rise of the pooled mIoU if one image alone were predicted perfectly. (images, C, C) -> (images,) float64."""
    per_image = np.asarray(per_image)
    pooled = per_image.sum(0)
    perfect = np.eye(len(pooled), dtype=per_image.dtype) * per_image.sum(2, keepdims=True)
    return mean_iou(pooled - per_image + perfect) - mean_iou(pooled)


def tabulate_classes(confusion: ArrayLike, class_names: Sequence[str]) -> pd.DataFrame:
    """One row per class: iou, precision, recall, pixels of truth, and iou + lost_missed + lost_invented = 1."""
    confusion = np.asarray(confusion)
    _, unions, _, _, present = _parts(confusion)
    missed, invented = (part * present for part in lost_to_confusions(confusion))  # of the class's IoU, not of the mean
    columns = {
        "class": list(class_names),
        "iou": iou_per_class(confusion),
        "precision": precision_per_class(confusion),
        "recall": recall_per_class(confusion),
        "lost_missed": np.where(unions > 0, missed.sum(1), np.nan),
        "lost_invented": np.where(unions > 0, invented.sum(0), np.nan),
        "pixels": confusion.sum(1),
    }
    return pd.DataFrame(columns)


def tabulate_confusions(confusion: ArrayLike, class_names: Sequence[str]) -> pd.DataFrame:
    """One row per confusion that occurs, the most costly first.

    Columns: true, predicted, pixels, share (of the true class's pixels), gain, and lost = lost_missed + lost_invented
    (see the module: lost adds up to 1 - mIoU, gain does not).
    """
    confusion, names = np.asarray(confusion), np.array(class_names, dtype=object)
    missed, invented = lost_to_confusions(confusion)
    cells = np.nonzero(confusion * (1 - np.eye(len(confusion), dtype=int)))
    columns = {
        "true": names[cells[0]],
        "predicted": names[cells[1]],
        "pixels": confusion[cells],
        "share": confusion[cells] / confusion.sum(1)[cells[0]],
        "gain": gain_of_confusions(confusion)[cells],
        "lost": (missed + invented)[cells],
        "lost_missed": missed[cells],
        "lost_invented": invented[cells],
    }
    return pd.DataFrame(columns).sort_values("gain", ascending=False, kind="stable", ignore_index=True)


def tabulate_images(per_image: ArrayLike, image_ids: Sequence) -> pd.DataFrame:
    """One row per image, in the order given: image_id, miou of its own (NaN without valid pixels), gain, accuracy."""
    per_image = np.asarray(per_image)
    right, pixels = np.trace(per_image, axis1=1, axis2=2), per_image.sum((1, 2))
    accuracy = np.divide(right, pixels, out=np.full(len(pixels), np.nan), where=pixels > 0)
    columns = {"miou": mean_iou(per_image), "gain": gain_of_images(per_image), "accuracy": accuracy}
    return pd.DataFrame({"image_id": np.asarray(image_ids), **columns})


def choose_images(images: pd.DataFrame, by: str, count: int) -> tuple[list[int], list[str]]:
    """Positions of images worth a look, and a title for each.

    Parameters
    ----------
    images : of `tabulate_images`, with column `softmin` for it.
    by : "miou" (worst first), "gain" (most costly first), "softmin" (most doubtful labels first), "typical" (half from
        the middle of the mIoUs, half the best), or "spread" (from the worst to the best, evenly).
    """
    known = images.dropna(subset=["miou"])
    ranked = known.sort_values(by if by in known else "miou", ascending=by != "gain", kind="stable")
    if by == "spread":
        ranked = ranked.iloc[np.unique(np.linspace(0, len(ranked) - 1, min(count, len(ranked))).astype(int))]
    if by == "typical":
        best = ranked.tail(count // 2)
        rest = ranked.drop(best.index)
        start = max(0, (len(ranked) - count + len(best)) // 2)
        ranked = pd.concat([rest.iloc[start : start + count - len(best)], best])
    chosen = ranked.head(count)
    notes = {"gain": ", gain {:+.2f}", "softmin": ", label {:.3f}"}
    values = 100 * chosen["gain"] if by == "gain" else chosen.get(by, chosen["miou"])
    rows = zip(chosen["image_id"], chosen["miou"], values, strict=True)
    titles = [f"image {name}\nmIoU {miou:.3f}{notes.get(by, '').format(value)}" for name, miou, value in rows]
    return chosen.index.tolist(), titles


def _parts(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, int]:
    """hits (C,), unions (C,), IoU (C,) with 0 for absent classes, the sum of the IoUs, the classes present."""
    hits = np.diagonal(confusion).astype(np.float64)
    unions = confusion.sum(1) + confusion.sum(0) - hits
    iou = np.divide(hits, unions, out=np.zeros_like(hits), where=unions > 0)
    return hits, unions, iou, float(iou.sum()), int((unions > 0).sum())


def choose_width(height: int, width: int, share: float = WIDTH) -> int:
    """A share of the image's diagonal in whole pixels, at least 1 [px]."""
    return max(1, round(share * float(np.hypot(height, width))))


def classify_errors(truth: np.ndarray, pred: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Assign each wrong pixel twice: as missed by its true class, and as invented by the predicted one.

    (H, W) uint8 class ids and the width of boundaries [px] -> missed, invented: (H, W) uint8, 0 where the prediction is
    right or the truth ignored; 1 boundary, 2 extent, 3 segment.
    """
    valid = truth != IGNORE_INDEX
    wrong = (truth != pred) & valid
    missed, invented = np.zeros_like(truth), np.zeros_like(truth)
    for class_id in np.union1d(truth[wrong], pred[wrong]):
        there, margin = (truth == class_id) | (pred == class_id), width + 1
        left, top, wide, high = cv2.boundingRect(there.view(np.uint8))
        window = np.s_[max(0, top - margin) : top + high + margin, max(0, left - margin) : left + wide + margin]
        is_true, is_pred, is_valid = truth[window] == class_id, pred[window] == class_id, valid[window]
        hit, rest = is_true & is_pred, ~(is_true | is_pred) & is_valid
        near_both = _near(hit, width) & _near(rest, width)
        touches = cv2.dilate(hit.view(np.uint8), _NEIGHBOURS), cv2.dilate(rest.view(np.uint8), _NEIGHBOURS)
        missed_here, invented_here = is_true & ~is_pred, is_pred & ~is_true & is_valid
        for kinds, here, region in ((missed, missed_here, is_true), (invented, invented_here, is_pred)):
            if here.any():
                strips = _grow_strips(here & near_both, here, touches, width)
                count, labels = cv2.connectedComponents(region.view(np.uint8), connectivity=8)
                of_segment = np.full(count, SEGMENT, np.uint8)
                of_segment[labels[hit]] = EXTENT
                kinds[window][here] = np.where(strips, BOUNDARY, of_segment[labels])[here]
    return missed, invented


def merge_kinds(missed: np.ndarray, invented: np.ndarray) -> np.ndarray:
    """One kind per pixel, (H, W) uint8, of the two in which its classes see it.

    Boundary if either says so; else segment if either says so (a missed object lies in a background of too great an
    extent: what was missed is what matters); else extent.
    """
    boundary = (missed == BOUNDARY) | (invented == BOUNDARY)
    return np.where(boundary, BOUNDARY, np.maximum(missed, invented)).astype(np.uint8)


def show_kinds(truths: np.ndarray, preds: np.ndarray) -> np.ndarray:
    """(N, H, W) uint8: the kind of each wrong pixel, 0 where right or ignored. Masks (N, H, W) uint8."""
    width, pairs = choose_width(*truths.shape[1:]), zip(truths, preds, strict=True)
    return np.stack([merge_kinds(*classify_errors(truth, pred, width)) for truth, pred in pairs])


def count_error_kinds(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], class_names: Sequence[str]
) -> tuple[pd.DataFrame, pd.Series]:
    """Count the wrong pixels of (truth, pred) pairs, (H, W) uint8 each, by kind.

    Returns
    -------
    by_class : one row per class: class, missed_boundary, missed_extent, missed_segment, invented_boundary, ... [px]
        The missed columns sum to all wrong pixels, and so do the invented ones.
    overall : pixels by kind, each wrong pixel counted once (see `merge_kinds`).
    """
    by_class = np.zeros((2, 256, 4), np.int64)
    overall = np.zeros(4, np.int64)
    for truth, pred in pairs:
        kinds = classify_errors(truth, pred, choose_width(*truth.shape))
        wrong = kinds[0] > 0
        for side, (classes, kind) in enumerate(zip((truth, pred), kinds, strict=True)):
            index = classes[wrong].astype(np.int64) * 4 + kind[wrong]
            by_class[side] += np.bincount(index, minlength=1024).reshape(256, 4)
        overall += np.bincount(merge_kinds(kinds[0][wrong], kinds[1][wrong]), minlength=4)
    count = len(class_names)
    table = pd.DataFrame({"class": list(class_names)})
    for side, name in enumerate(("missed", "invented")):
        for code, kind in enumerate(KINDS, start=1):
            table[f"{name}_{kind}"] = by_class[side, :count, code]
    return table, pd.Series(overall[1:], index=list(KINDS), name="pixels")


def _grow_strips(seeds: np.ndarray, wrong: np.ndarray, touches: Sequence[np.ndarray], width: int) -> np.ndarray:
    """(H, W) bool: the seeds, the wrong pixels near them, without the strips that do not touch both sides."""
    if not seeds.any():
        return seeds
    strips = wrong & _near(seeds, width)
    count, labels = cv2.connectedComponents(strips.view(np.uint8), connectivity=8)
    both = np.ones(count, bool)
    for side in touches:
        touched = np.zeros(count, bool)
        touched[labels[side.view(bool) & strips]] = True
        both &= touched
    both[0] = False
    return both[labels]


def _near(mask: np.ndarray, width: int) -> np.ndarray:
    """(H, W) bool: pixels whose distance to the mask, rounded, is at most `width`."""
    if not mask.any():
        return mask
    distance = cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance < width + 0.5


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
    One row per object: annotation_id, image_id, class_id, size (sqrt of the painted area) [px], visible [px], hit
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


def summarise_objects(objects: pd.DataFrame, by: str | list[str]) -> pd.DataFrame:
    """Recall by group, over the objects that have a visible pixel, with 95 % intervals over other scenes.

    Objects of a scene are not independent: they count as as many as would give what the jackknife over scenes finds.

    Parameters
    ----------
    objects : of `measure_objects`, with a column `scene` (int), see `find_scenes`.
    by : column or columns to group by.

    Returns
    -------
    One row per group: objects, found (share; Wilson's interval in found_low, found_high), recall (mean of the objects;
    t interval in recall_low, recall_high, NaN of one scene), missed [px].

    Source: effective sample size and its degrees of freedom: Korn and Graubard (1998), Survey Methodology 24.
    """
    columns, rows = ["objects", "found", "found_low", "found_high", "recall", "recall_low", "recall_high", "missed"], {}
    for group, members in objects[objects["visible"] > 0].groupby(by, observed=True):
        scenes = members["scene"].to_numpy()
        counts = np.stack([members["recall"], np.ones(len(members))], axis=1)
        recall, noise = members["recall"].mean(), estimate_noise(_ratio, counts, scenes)
        low, high = np.clip(find_interval(recall, noise), 0, 1)
        worth = members["recall"].var() / noise.variance if noise.variance else 0
        worth = float(np.clip(worth, len(np.unique(scenes)), len(members)))
        found = _wilson(members["found"].to_numpy(bool), scenes, worth)
        rows[group] = [len(members), *found, recall, low, high, int(members["missed"].sum())]
    if not rows:  # no object has a visible pixel
        return objects.set_index(by)[[]].iloc[:0].reindex(columns=columns)
    return pd.DataFrame(list(rows.values()), pd.Index(list(rows)).set_names(by), columns)


def _ratio(total: np.ndarray) -> float:
    return float(total[0] / total[1])


def _wilson(found: np.ndarray, scenes: np.ndarray, count: float) -> tuple[float, float, float]:
    """A share and Wilson's 95 % interval; all or none found: as many objects as their recall is worth, `count`."""
    share, z = float(found.mean()), stats.norm.isf(0.025)
    noise = estimate_noise(_ratio, np.stack([found, np.ones(len(found))], axis=1), scenes)
    if noise.df and 0 < share < 1:
        count = min(len(found), share * (1 - share) / noise.variance) if noise.variance else len(found)
    if noise.df:
        count *= (z / stats.t.isf(0.025, noise.df)) ** 2
    centre, scale = share + z**2 / (2 * count), 1 + z**2 / count
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return share, (centre - half) / scale, (centre + half) / scale


def lost_to_missed(objects: pd.DataFrame, confusion: np.ndarray, class_names: Sequence[str]) -> pd.DataFrame:
    """mIoU points lost to the missed pixels of the objects (of `measure_objects`): classes in rows, sizes in columns.

    The cells add up to what missed pixels cost (see `lost_to_confusions`), background and crowds left out; (C, C) counts
    of the same images.
    """
    confusion = np.asarray(confusion)
    unions = confusion.sum(0) + confusion.sum(1) - np.diagonal(confusion)
    missed = objects.pivot_table(index="class_id", columns="bin", values="missed", aggfunc="sum", observed=True)
    points = 100 * missed.div(unions[missed.index] * (unions > 0).sum(), axis=0)
    return points.fillna(0.0).set_axis([class_names[index] for index in points.index], axis=0)


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

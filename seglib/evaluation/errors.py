"""Where predictions are wrong: by confusion, image, boundary and cause.

Two answers, for two questions:

- *Gain*: what would the mIoU be if this were right and all else as it is? Gains tell what to work on next. They do not
  add up: after one fix, another gains more or less than before.
- *Lost*: how is the missing mIoU shared out? 1 - IoU of class c is (FN + FP) / union, so each pixel of class t predicted
  as p loses 1 / union_t as missed and 1 / union_p as invented, divided by the number of classes present. Over all
  confusions these add up to 1 - mIoU exactly.

Bernhard et al., "What's Outside the Intersection?" (WACV 2024). For each class alone, a wrong pixel of it (missed: the
class is there and not predicted; invented: predicted and not there) is one of

- boundary: it belongs to a strip between what is right with the class (true positives) and right without it (true
  negatives). Strips are made of the wrong pixels within `width` of both kinds, and of the wrong pixels within `width` of
  these; each connected strip must touch both.
- extent: elsewhere, in a segment (a connected region of the class, in truth for missed pixels, in the prediction for
  invented ones) that has a true positive: the object was found, and its size is wrong.
- segment: elsewhere, in a segment without one: the object was missed, or invented.

Regions are 8-connected; distances are Euclidean, rounded to whole pixels. Ignored pixels are right, wrong and near to
nothing, and a predicted segment may run through them.
"""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from seglib.evaluation.metrics import iou_per_class, mean_iou, precision_per_class, recall_per_class

# Boundary IoU: the IoU of what lies close to the contours, where a large object's IoU no longer sees mistakes.


BOUNDARY_SHARE = 0.02  # d, of the image's diagonal: Cheng et al. (2021)
_OUTSIDE = 254  # no class: beyond the image's border


def find_boundary(mask: np.ndarray, distance: int) -> np.ndarray:
    """(H, W) bool: the pixels within `distance` of another class or of the image's border (chessboard distance) [px].

    Source: `mask_to_boundary` of Cheng et al. (2021), "Boundary IoU", for all classes at once: a pixel is inside where
    the lowest and the highest id of the square around it are the same.
    """
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=_OUTSIDE)
    square = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    return (cv2.erode(padded, square) != cv2.dilate(padded, square))[1:-1, 1:-1]


def boundary_iou(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], num_classes: int, ignore_index: int = 255
) -> tuple[np.ndarray, float]:
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
        ignored = truth == ignore_index
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


# What each confusion, each class and each image costs in mIoU, computed from confusion matrices alone.


def gain_of_confusions(confusion: ArrayLike) -> np.ndarray:
    """Rise of the mIoU if the pixels of one confusion alone were right: all of cell (t, p) moved to (t, t).

    A class that was never more than invented leaves the mean with its last pixel. The diagonal is 0.

    Parameters
    ----------
    confusion : (C, C) counts, truth in rows.

    Returns
    -------
    (C, C) float64.
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

    Parameters
    ----------
    confusion : (C, C) counts, truth in rows.

    Returns
    -------
    missed, invented : (C, C) float64
        What the pixels of cell (t, p) cost class t, which they are taken from, and class p, which they are added to.
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
    gains = np.empty(len(per_image))
    for index, matrix in enumerate(per_image):
        gains[index] = mean_iou(pooled - matrix + np.diag(matrix.sum(1)))
    return gains - mean_iou(pooled)


def tabulate_classes(confusion: ArrayLike, class_names: Sequence[str]) -> pd.DataFrame:
    """One row a class: iou, precision, recall, pixels of truth, and iou + lost_missed + lost_invented = 1."""
    confusion = np.asarray(confusion)
    _, unions, _, _, present = _parts(confusion)
    lost = [part * present for part in lost_to_confusions(confusion)]  # of the class's own IoU, not of the mean
    table = pd.DataFrame({
        "class": list(class_names),
        "iou": iou_per_class(confusion),
        "precision": precision_per_class(confusion),
        "recall": recall_per_class(confusion),
        "lost_missed": lost[0].sum(1),
        "lost_invented": lost[1].sum(0),
        "pixels": confusion.sum(1),
    })  # fmt: skip
    table.loc[unions == 0, ["lost_missed", "lost_invented"]] = np.nan
    return table


def tabulate_confusions(confusion: ArrayLike, class_names: Sequence[str]) -> pd.DataFrame:
    """One row a confusion that occurs, the dearest first.

    Columns: true, predicted, pixels, share (of the true class's pixels), gain, and lost = lost_missed + lost_invented
    (see the module: lost adds up to 1 - mIoU, gain does not).
    """
    confusion = np.asarray(confusion)
    missed, invented = lost_to_confusions(confusion)
    gain = gain_of_confusions(confusion)
    true, predicted = np.nonzero(confusion * (1 - np.eye(len(confusion), dtype=int)))
    names = np.array(class_names, dtype=object)
    table = pd.DataFrame({
        "true": names[true],
        "predicted": names[predicted],
        "pixels": confusion[true, predicted],
        "share": confusion[true, predicted] / confusion.sum(1)[true],
        "gain": gain[true, predicted],
        "lost": (missed + invented)[true, predicted],
        "lost_missed": missed[true, predicted],
        "lost_invented": invented[true, predicted],
    })  # fmt: skip
    return table.sort_values("gain", ascending=False, kind="stable", ignore_index=True)


def tabulate_images(per_image: ArrayLike, image_ids: Sequence) -> pd.DataFrame:
    """One row an image, in the order given: image_id, miou of its own (NaN without valid pixels), gain, accuracy."""
    per_image = np.asarray(per_image)
    right, pixels = np.trace(per_image, axis1=1, axis2=2), per_image.sum((1, 2))
    return pd.DataFrame({
        "image_id": np.asarray(image_ids),
        "miou": [mean_iou(matrix) for matrix in per_image],
        "gain": gain_of_images(per_image),
        "accuracy": np.divide(right, pixels, out=np.full(len(pixels), np.nan), where=pixels > 0),
    })  # fmt: skip


def choose_images(images: pd.DataFrame, by: str, count: int) -> tuple[list[int], list[str]]:
    """Positions of images worth a look, and a title for each.

    Parameters
    ----------
    images : of `tabulate_images`, with column `softmin` for it.
    by : "miou" (worst first), "gain" (dearest first), "softmin" (most doubtful labels first), or "typical": half from
        the middle of the mIoUs, half the best.
    """
    known = images.dropna(subset=["miou"])
    ranked = known.sort_values("miou" if by == "typical" else by, ascending=by != "gain", kind="stable")
    if by == "typical":
        best = ranked.tail(count // 2)
        rest = ranked.drop(best.index)
        start = max(0, (len(ranked) - count + len(best)) // 2)
        ranked = pd.concat([rest.iloc[start : start + count - len(best)], best])
    chosen = ranked.head(count)
    titles = [
        f"image {row.image_id}\nmIoU {row.miou:.3f}"
        + (f", gain {100 * row.gain:+.2f}" if by == "gain" else f", label {row.softmin:.3f}" if by == "softmin" else "")
        for row in chosen.itertuples()
    ]
    return chosen.index.tolist(), titles


def _parts(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, int]:
    """hits (C,), unions (C,), IoU (C,) with 0 for absent classes, the sum of the IoUs, the classes present."""
    hits = np.diagonal(confusion).astype(np.float64)
    unions = confusion.sum(1) + confusion.sum(0) - hits
    iou = np.divide(hits, unions, out=np.zeros_like(hits), where=unions > 0)
    return hits, unions, iou, float(iou.sum()), int((unions > 0).sum())


# Where a wrong pixel lies: at the edge of what was found, farther in it, or in a segment missed or invented as a whole.


KINDS = ("boundary", "extent", "segment")
BOUNDARY, EXTENT, SEGMENT = 1, 2, 3
WIDTH = 0.01  # of the image's diagonal, as in the paper
_NEIGHBOURS = np.ones((3, 3), np.uint8)


def choose_width(height: int, width: int, share: float = WIDTH) -> int:
    """A share of the image's diagonal in whole pixels, at least 1 [px]."""
    return max(1, round(share * float(np.hypot(height, width))))


def classify_errors(
    truth: np.ndarray, pred: np.ndarray, width: int, ignore_index: int = 255
) -> tuple[np.ndarray, np.ndarray]:
    """Assign each wrong pixel twice: as missed by its true class, and as invented by the predicted one.

    Parameters
    ----------
    truth, pred : (H, W) uint8 class ids.
    width : of boundaries [px].

    Returns
    -------
    missed, invented : (H, W) uint8
        0 where the prediction is right or the truth ignored; 1 boundary, 2 extent, 3 segment.
    """
    valid = truth != ignore_index
    wrong = (truth != pred) & valid
    missed, invented = np.zeros_like(truth), np.zeros_like(truth)
    for class_id in np.union1d(truth[wrong], pred[wrong]):
        window = _find_window((truth == class_id) | (pred == class_id), width + 1)
        is_true, is_pred, is_valid = truth[window] == class_id, pred[window] == class_id, valid[window]
        hit, rest = is_true & is_pred, ~(is_true | is_pred) & is_valid
        near_both = _near(hit, width) & _near(rest, width)
        touches = cv2.dilate(hit.view(np.uint8), _NEIGHBOURS), cv2.dilate(rest.view(np.uint8), _NEIGHBOURS)
        for kinds, wrong_here, region in (
            (missed, is_true & ~is_pred, is_true),
            (invented, is_pred & ~is_true & is_valid, is_pred),
        ):
            if wrong_here.any():
                found = _classify(
                    wrong_here, hit, region, _grow_strips(wrong_here & near_both, wrong_here, touches, width)
                )
                kinds[window][wrong_here] = found[wrong_here]
    return missed, invented


def merge_kinds(missed: np.ndarray, invented: np.ndarray) -> np.ndarray:
    """One kind a pixel, (H, W) uint8, of the two in which its classes see it.

    Boundary if either says so; else segment if either says so (a missed object lies in a background of too great an
    extent: what was missed is what matters); else extent.
    """
    boundary = (missed == BOUNDARY) | (invented == BOUNDARY)
    return np.where(boundary, BOUNDARY, np.maximum(missed, invented)).astype(np.uint8)


def show_kinds(truths: np.ndarray, preds: np.ndarray) -> np.ndarray:
    """(N, H, W) uint8: the kind of each wrong pixel, 0 where right or ignored. Masks (N, H, W) uint8."""
    width = choose_width(*truths.shape[1:])
    return np.stack(
        [merge_kinds(*classify_errors(truth, pred, width)) for truth, pred in zip(truths, preds, strict=True)]
    )


def count_error_kinds(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], class_names: Sequence[str], ignore_index: int = 255
) -> tuple[pd.DataFrame, pd.Series]:
    """Count the wrong pixels of (truth, pred) pairs, (H, W) uint8 each, by kind.

    Returns
    -------
    by_class : one row a class: class, missed_boundary, missed_extent, missed_segment, invented_boundary, ... [px]
        The missed columns sum to all wrong pixels, and so do the invented ones.
    overall : pixels by kind, each wrong pixel counted once (see `merge_kinds`).
    """
    by_class = np.zeros((2, 256, 4), np.int64)
    overall = np.zeros(4, np.int64)
    for truth, pred in pairs:
        kinds = classify_errors(truth, pred, choose_width(*truth.shape), ignore_index)
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


def _classify(wrong: np.ndarray, hit: np.ndarray, region: np.ndarray, strips: np.ndarray) -> np.ndarray:
    count, labels = cv2.connectedComponents(region.view(np.uint8), connectivity=8)
    kind = np.full(count, SEGMENT, np.uint8)
    kind[labels[hit]] = EXTENT
    return np.where(strips, BOUNDARY, kind[labels]).astype(np.uint8)


def _near(mask: np.ndarray, width: int) -> np.ndarray:
    """(H, W) bool: pixels whose distance to the mask, rounded, is at most `width`."""
    if not mask.any():
        return mask
    distance = cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance < width + 0.5


def _find_window(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """The bounding box of a mask and a margin around it."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    rows = slice(max(0, top - margin), top + height + margin)
    return rows, slice(max(0, left - margin), left + width + margin)

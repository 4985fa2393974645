"""Boundary IoU: the IoU of what lies close to the contours, where a large object's IoU no longer sees mistakes."""

from collections.abc import Iterable

import cv2
import numpy as np

from seglib.evaluation.error_kinds import choose_width

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

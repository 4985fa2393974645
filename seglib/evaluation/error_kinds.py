"""Where a wrong pixel lies: at the edge of what was found, farther in it, or in a segment missed or invented as a whole.

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

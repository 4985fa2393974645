"""Two runs on the same images: who is right where, and whether the difference is more than the choice of images."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from seglib.evaluation.metrics import iou_per_class, mean_iou

OUTCOMES = ("both", "only_a", "only_b", "neither")  # who is right


def show_outcomes(truth: np.ndarray, pred_a: np.ndarray, pred_b: np.ndarray, ignore_index: int = 255) -> np.ndarray:
    """(H, W) uint8: index into `OUTCOMES`, 255 where the truth is ignored. Masks (H, W) uint8."""
    outcome = np.uint8(2) * (pred_a != truth) + (pred_b != truth)  # 0 both, 1 only a, 2 only b, 3 neither
    outcome[truth == ignore_index] = 255
    return outcome


def count_outcomes(
    triples: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], class_names: Sequence[str], ignore_index: int = 255
) -> tuple[pd.DataFrame, np.ndarray]:
    """Count who is right, by true class and by image, over (truth, pred_a, pred_b), (H, W) uint8 each.

    Returns
    -------
    by_class : one row a class: class, both, only_a, only_b, neither [px].
    by_image : (images, 4) int64 [px].
    """
    by_class, by_image = np.zeros((len(class_names), 4), np.int64), []
    for truth, pred_a, pred_b in triples:
        outcome = show_outcomes(truth, pred_a, pred_b, ignore_index)
        valid = outcome < 4
        counts = np.bincount(truth[valid].astype(np.int64) * 4 + outcome[valid], minlength=4 * len(class_names))
        by_class += counts.reshape(-1, 4)
        by_image.append(counts.reshape(-1, 4).sum(0))
    table = pd.DataFrame(by_class, columns=list(OUTCOMES))
    table.insert(0, "class", list(class_names))
    return table, np.array(by_image, dtype=np.int64).reshape(-1, 4)


def choose_duels(by_image: np.ndarray, image_ids: Sequence, count: int) -> tuple[list[int], list[str]]:
    """Positions and titles: the images with the most pixels that only a gets right, then those for b, half and half.

    by_image : (images, 4), of `count_outcomes`; count is at least 2.
    """
    lead = by_image[:, 1] - by_image[:, 2]
    order = np.argsort(-lead, kind="stable")
    count = min(max(2, count), len(order))
    chosen = [*order[: (count + 1) // 2], *order[::-1][: count // 2]]
    titles = [
        f"image {image_ids[index]}\nonly A {by_image[index, 1]} px\nonly B {by_image[index, 2]} px" for index in chosen
    ]
    return [int(index) for index in chosen], titles


def compare_class_iou(confusion_a: ArrayLike, confusion_b: ArrayLike, class_names: Sequence[str]) -> pd.DataFrame:
    """One row a class: class, iou_a, iou_b, difference = a - b. (images, C, C) counts each."""
    iou_a, iou_b = (iou_per_class(np.sum(confusion, axis=0)) for confusion in (confusion_a, confusion_b))
    return pd.DataFrame({"class": list(class_names), "iou_a": iou_a, "iou_b": iou_b, "difference": iou_a - iou_b})


def bootstrap_difference(
    confusion_a: ArrayLike, confusion_b: ArrayLike, resamples: int, seed: int = 0
) -> tuple[float, float, float]:
    """Pooled mIoU of a minus that of b, and its 95 % interval when the images are drawn anew, the same for both.

    It says how much the difference owes to the choice of images; other seeds of the training move it as well.

    Parameters
    ----------
    confusion_a, confusion_b : (images, C, C) counts over the same images in the same order.
    """
    a, b = np.asarray(confusion_a), np.asarray(confusion_b)
    count = len(a)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    drawn_a, drawn_b = (
        np.array([mean_iou(matrix) for matrix in (weights @ part.reshape(count, -1)).reshape(-1, *part.shape[1:])])
        for part in (a, b)
    )
    low, high = np.quantile(drawn_a - drawn_b, [0.025, 0.975])
    return mean_iou(a.sum(0)) - mean_iou(b.sum(0)), float(low), float(high)

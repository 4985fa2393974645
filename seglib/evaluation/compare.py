"""Two runs on the same images: who is right where, and what the choice of images alone can do to a difference."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from seglib.data.masks import IGNORE_INDEX
from seglib.evaluation.metrics import iou_per_class, mean_iou

OUTCOMES = ("both", "only_a", "only_b", "neither")  # who is right


def show_outcomes(
    truth: np.ndarray, pred_a: np.ndarray, pred_b: np.ndarray, ignore_index: int = IGNORE_INDEX
) -> np.ndarray:
    """(..., H, W) uint8: index into `OUTCOMES`, 255 where the truth is ignored. Masks (..., H, W) uint8."""
    outcome = np.uint8(2) * (pred_a != truth) + (pred_b != truth)  # 0 both, 1 only a, 2 only b, 3 neither
    outcome[truth == ignore_index] = 255
    return outcome


def count_outcomes(
    triples: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    class_names: Sequence[str],
    ignore_index: int = IGNORE_INDEX,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Count who is right, by true class and by image, over (truth, pred_a, pred_b), (H, W) uint8 each.

    Returns
    -------
    by_class : one row per class: class, both, only_a, only_b, neither [px].
    by_image : (images, 4) int64 [px].
    """
    counts = [np.zeros((0, len(class_names), 4), np.int64)]
    for truth, pred_a, pred_b in triples:
        outcome = show_outcomes(truth, pred_a, pred_b, ignore_index)
        valid = outcome < 4
        codes = np.bincount(truth[valid].astype(np.int64) * 4 + outcome[valid], minlength=4 * len(class_names))
        counts.append(codes.reshape(1, -1, 4))
    counts = np.concatenate(counts)
    table = pd.DataFrame(counts.sum(0), columns=list(OUTCOMES))
    table.insert(0, "class", list(class_names))
    return table, counts.sum(1)


def choose_disagreements(by_image: np.ndarray, image_ids: Sequence, count: int) -> tuple[list[int], list[str]]:
    """Positions and titles: the images with the most pixels that only a gets right, then those for b, half and half.

    by_image : (images, 4), of `count_outcomes`; count is at least 2.
    """
    order = np.argsort(by_image[:, 2] - by_image[:, 1], kind="stable")
    count = min(max(2, count), len(order))
    chosen = [*order[: (count + 1) // 2].tolist(), *order[::-1][: count // 2].tolist()]
    titles = [f"image {image_ids[i]}\nonly A {by_image[i, 1]} px\nonly B {by_image[i, 2]} px" for i in chosen]
    return chosen, titles


def compare_class_iou(confusion_a: ArrayLike, confusion_b: ArrayLike, class_names: Sequence[str]) -> pd.DataFrame:
    """One row per class: class, iou_a, iou_b, difference = a - b. (images, C, C) counts each."""
    iou_a, iou_b = (iou_per_class(np.sum(confusion, axis=0)) for confusion in (confusion_a, confusion_b))
    return pd.DataFrame({"class": list(class_names), "iou_a": iou_a, "iou_b": iou_b, "difference": iou_a - iou_b})


def draw_images(count: int, resamples: int, seed: int = 0) -> np.ndarray:
    """(resamples, count) int64: how often each image is in a bootstrap sample; each row sums to `count`."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)


def bootstrap_difference(
    confusion_a: ArrayLike, confusion_b: ArrayLike, resamples: int, seed: int = 0
) -> tuple[float, float, float]:
    """Pooled mIoU of a minus that of b, and its 95 % interval when the images are drawn again, the same for both.

    It says how much the difference owes to the choice of images; other seeds of the training move it as well.

    Parameters
    ----------
    confusion_a, confusion_b : (images, C, C) counts over the same images in the same order.
    """
    a, b = np.asarray(confusion_a), np.asarray(confusion_b)
    weights = draw_images(len(a), resamples, seed)
    drawn = [mean_iou((weights @ part.reshape(len(part), -1)).reshape(-1, *part.shape[1:])) for part in (a, b)]
    low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
    return mean_iou(a.sum(0)) - mean_iou(b.sum(0)), float(low), float(high)

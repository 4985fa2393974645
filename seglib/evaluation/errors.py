"""What each confusion, each class and each image costs in mIoU, computed from confusion matrices alone.

Two answers, for two questions:

- *Gain*: what would the mIoU be if this were right and all else as it is? Gains tell what to work on next. They do not
  add up: after one fix, another gains more or less than before.
- *Lost*: how is the missing mIoU shared out? 1 - IoU of class c is (FN + FP) / union, so each pixel of class t predicted
  as p loses 1 / union_t as missed and 1 / union_p as invented, divided by the number of classes present. Over all
  confusions these add up to 1 - mIoU exactly.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from seglib.evaluation.metrics import iou_per_class, mean_iou, precision_per_class, recall_per_class


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

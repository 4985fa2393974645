"""How far probabilities can be trusted, which labels they contradict, and an error analysis in words."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from seglib.data.masks import IGNORE_INDEX

RELIABILITY_BINS = 15
TEMPERATURE = 0.1  # of the softmin, as in Lad and Mueller (2023)


def summarise_probabilities(
    probabilities: Tensor, masks: Tensor, ignore_index: int = IGNORE_INDEX, temperature: float = TEMPERATURE
) -> dict[str, np.ndarray]:
    """Reduce the probabilities of a batch to a few numbers per image, over its valid pixels.

    Parameters
    ----------
    probabilities : (N, C, H, W) float, after softmax
    masks : (N, H, W) uint8, the given labels

    Returns
    -------
    reliability : (N, bins, 3) float64
        By confidence, the highest probability of a pixel, in `RELIABILITY_BINS` bins of equal width: pixels, sum of
        confidences, pixels whose most probable class is the label.
    softmin : (N,) float64
        Sum over pixels of p * softmax((1 - p) / temperature), where p is the probability of the given label: the mean,
        drawn towards the smallest. NaN without valid pixels. Source: Lad and Mueller 2023, "Estimating label quality
        and errors in semantic segmentation data via any model".
    given : (N,) float64
        The mean of p.
    """
    confidence, pred = probabilities.max(dim=1)
    labels, scores = masks.long(), {"reliability": [], "softmin": [], "given": []}
    given = probabilities.gather(1, labels.clamp(max=probabilities.shape[1] - 1)[:, None])[:, 0]
    for image in range(len(masks)):
        valid = masks[image] != ignore_index
        right = pred[image][valid] == labels[image][valid]
        scores["reliability"].append(_fill_bins(confidence[image][valid], right))
        p = given[image][valid].double()
        scores["softmin"].append(float((p * ((1 - p) / temperature).softmax(dim=0)).sum()) if len(p) else np.nan)
        scores["given"].append(float(p.mean()) if len(p) else np.nan)
    return {name: np.stack(values) for name, values in scores.items()}


def tabulate_reliability(reliability: np.ndarray) -> pd.DataFrame:
    """One row per bin that has pixels: confidence (mean), accuracy, pixels, share of all. reliability: (N, bins, 3)."""
    pixels, confidence, right = reliability.sum(0).T
    with np.errstate(invalid="ignore"):  # empty bins are left out below
        means = {"confidence": confidence / pixels, "accuracy": right / pixels}
    table = pd.DataFrame({"pixels": pixels.astype(np.int64), "share": pixels / max(1, pixels.sum()), **means})
    table.index = pd.Index(np.arange(len(table)) / len(table), name="from")
    return table[pixels > 0]


def calibration_error(reliability: np.ndarray) -> float:
    """Expected calibration error in 0..1: mean over pixels of |confidence - accuracy| of their bin. (N, bins, 3)."""
    pixels, confidence, right = reliability.sum(0).T
    return float(np.abs(confidence - right).sum() / pixels.sum())


def _fill_bins(confidence: Tensor, right: Tensor) -> np.ndarray:
    """(bins, 3): pixels, sum of confidences, right pixels."""
    confidence, right = confidence.cpu(), right.cpu()  # CUDA's bincount with weights adds in any order
    index = (confidence * RELIABILITY_BINS).long().clamp(max=RELIABILITY_BINS - 1)
    weights = (None, confidence.double(), right.double())
    sums = [torch.bincount(index, weight, minlength=RELIABILITY_BINS) for weight in weights]
    return torch.stack([values.double() for values in sums], dim=1).numpy()


def describe_classes(classes: pd.DataFrame) -> str:
    """What the mean hides; table of `tabulate_classes`."""
    known = classes.dropna(subset=["iou"]).sort_values("iou")
    zero = known.loc[known["iou"] < 0.005, "class"].tolist()
    missed, invented = 100 * known["lost_missed"].mean(), 100 * known["lost_invented"].mean()
    text = f"mIoU **{known['iou'].mean():.4f}** over {len(known)} classes, from {_named(known.iloc[0])} to {_named(known.iloc[-1])}."
    text += f" Missed pixels cost {missed:.1f} points, invented ones {invented:.1f}."
    if zero:
        text += f" At zero: {', '.join(zero)}; they alone hold back {100 * len(zero) / len(known):.1f} points."
    return text


def describe_confusions(confusions: pd.DataFrame) -> str:
    """What to work on next; table of `tabulate_confusions`."""
    if confusions.empty:
        return "Nothing is confused."
    first = confusions.iloc[0]
    share = confusions["lost"].head(5).sum() / confusions["lost"].sum()
    return (
        f"Work on next: **{first['true']} taken for {first['predicted']}**, {first['share']:.0%} of its pixels; fixed alone,"
        f" mIoU would change by {first['gain']:+.4f}. The five most costly of {len(confusions)} confusions hold {share:.0%}"
        " of what is lost."
    )


def describe_images(images: pd.DataFrame) -> str:
    """How concentrated the mistakes are; table of `tabulate_images`."""
    first, scores = images["gain"].idxmax(), images["miou"].dropna()
    return (
        f"Images score from {scores.min():.3f} to {scores.max():.3f} (median {scores.median():.3f}). The most costly is"
        f" {images.loc[first, 'image_id']}: predicted perfectly, it would change the mIoU by {images.loc[first, 'gain']:+.4f}."
    )


def describe_objects(by_size: pd.DataFrame, uncounted: int) -> str:
    """Which sizes are found; table of `summarise_objects` by size, and the objects without a visible pixel."""
    if by_size.empty:
        return "No annotated object has a visible pixel."
    total = by_size["objects"].sum()
    found = (by_size["found"] * by_size["objects"]).sum() / total
    parts = [f"{row.found:.0%} of the {row.objects} of {row.Index}" for row in by_size.itertuples()]
    worst = by_size["missed"].idxmax()
    gone = f" {uncounted} objects have no pixel left at this size and count nowhere." if uncounted else ""
    return (
        f"Of {total} objects **{found:.0%} are found** at IoU 0.5: {', '.join(parts)}. Most missed pixels belong to objects"
        f" of {worst} ({by_size['missed'].max() / max(1, by_size['missed'].sum()):.0%}).{gone}"
    )


def describe_kinds(kinds: pd.Series, near: float) -> str:
    """Where wrong pixels lie; counts of `count_error_kinds`, and the share near true boundaries."""
    if not kinds.sum():
        return "No pixel is wrong."
    share = kinds / kinds.sum()
    meaning = {
        "boundary": "edges are drawn inexactly: resolution, and a loss that sees boundaries",
        "extent": "objects are found, and cut short or spilt over",
        "segment": "whole objects are missed or invented: more such examples, or a better classifier",
    }
    listed = ", ".join(f"{value:.0%} {name}" for name, value in share.items())
    return (
        f"Wrong pixels: {listed}. Mostly **{share.idxmax()}**: {meaning[share.idxmax()]}. {near:.0%} lie within 2 %"
        " of the diagonal of a true boundary."
    )


def describe_calibration(reliability: pd.DataFrame, error: float) -> str:
    """Whether probabilities mean what they say; table of `tabulate_reliability`."""
    bias = float(((reliability["confidence"] - reliability["accuracy"]) * reliability["share"]).sum())
    word = "over" if bias > 0 else "under"
    return f"Calibration error {error:.3f}: pixels are **{word}confident** by {abs(bias):.3f} on average."


def describe_labels(images: pd.DataFrame, count: int) -> str:
    """Which images' labels deserve a second look; needs the column softmin."""
    lowest = images.sort_values("softmin")["image_id"].head(count)
    return f"Look again at the labels of images {', '.join(map(str, lowest))}."


def describe_difference(difference: float, low: float, high: float, scenes: str, seeds: str) -> str:
    """How two runs differ on these images, which is no verdict on what they were made with; `seeds` says what is.

    `scenes` are the words of `find_scenes`.
    """
    if np.isnan(low):
        images = f"not known, {scenes} say nothing of others"
    else:
        words = "it could" if low <= 0 <= high else "hardly"
        images = f"{words}, 95 % interval {low:+.4f} to {high:+.4f} over {scenes}"
    return (
        f"A minus B: **{difference:+.4f}** mIoU on these images. Would other images change who is ahead? {images}."
        f" Would other seeds? {seeds}"
    )


def describe_ensemble(expected: float, name: str, beside: dict[str, float]) -> str:
    """What an ensemble is expected to score, and whether that is more than its best member, `name`, has alone.

    `beside` is from that member to the ensemble's masks, of `measure_gain`.
    """
    words = "surely better" if beside["low"] > 0 else "not surely better"
    if expected <= beside["before"]:
        words = "NOT better; with weights: best that member predicts alone"
    gain = "{points:+.2f} points, {low:+.2f} to {high:+.2f} over other scenes".format_map(beside)
    return (
        f"expected mIoU {expected:.4f}; the best member alone, {name}, has {beside['before']:.4f}: {words} (on images that"
        f" the choices have seen {gain})"
    )


def _named(row: pd.Series) -> str:
    return f"{row['class']} ({row['iou']:.3f})"

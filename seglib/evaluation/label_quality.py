"""How far probabilities can be trusted, and which images' labels they contradict."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

IGNORE_INDEX = 255
RELIABILITY_BINS = 15
TEMPERATURE = 0.1  # of the softmin, as in Lad and Mueller (2023)


def summarise_probabilities(
    probabilities: Tensor, masks: Tensor, ignore_index: int = IGNORE_INDEX, temperature: float = TEMPERATURE
) -> dict[str, np.ndarray]:
    """Reduce the probabilities of a batch to a few numbers an image, over its valid pixels.

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
    labels = masks.long()
    given = probabilities.gather(1, labels.clamp(max=probabilities.shape[1] - 1)[:, None])[:, 0]
    scores = {"reliability": [], "softmin": [], "given": []}
    for image in range(len(masks)):
        valid = masks[image] != ignore_index
        right = pred[image][valid] == labels[image][valid]
        scores["reliability"].append(_fill_bins(confidence[image][valid], right))
        p = given[image][valid].double()
        scores["softmin"].append(float((p * ((1 - p) / temperature).softmax(dim=0)).sum()) if len(p) else np.nan)
        scores["given"].append(float(p.mean()) if len(p) else np.nan)
    return {name: np.stack(values) for name, values in scores.items()}


def tabulate_reliability(reliability: np.ndarray) -> pd.DataFrame:
    """One row a bin that has pixels: confidence (mean), accuracy, pixels, share of all. reliability: (N, bins, 3)."""
    pixels, confidence, right = reliability.sum(0).T
    table = pd.DataFrame({"pixels": pixels.astype(np.int64), "share": pixels / max(1, pixels.sum())})
    known = pixels > 0
    table["confidence"] = np.divide(confidence, pixels, out=np.zeros_like(pixels), where=known)
    table["accuracy"] = np.divide(right, pixels, out=np.zeros_like(pixels), where=known)
    table.index = pd.Index(np.arange(len(table)) / len(table), name="from")
    return table[known]


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

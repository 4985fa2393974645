"""Predictions of a model for some images of a data set."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from seglib.data.dataset import Subset
from seglib.evaluation.metrics import mean_iou
from seglib.training.loop import autocast


@torch.inference_mode()
def predict(
    model: nn.Module, subset: Subset, positions: Sequence[int], device: torch.device, precision: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predict a few images, one at a time.

    Returns
    -------
    images (N, S, S, 3) uint8 RGB, truths (N, S, S) uint8, preds (N, S, S) uint8.
    """
    model.eval()
    images, truths = (np.stack(arrays) for arrays in zip(*map(subset.read, positions), strict=True))
    preds = []
    for image in images:
        batch = torch.from_numpy(image)[None].permute(0, 3, 1, 2).to(device)
        with autocast(device, precision):
            preds.append(model(batch).argmax(dim=1)[0].to(torch.uint8).cpu().numpy())
    return images, truths, np.stack(preds)


def choose_spread(confusion: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of images from the worst to the best by their own mIoU, evenly spread, and these mIoUs.

    Images without a valid pixel are left out. confusion: (images, classes, classes).
    """
    scores = np.array([mean_iou(matrix) for matrix in confusion])
    order = np.argsort(scores)[: np.isfinite(scores).sum()]
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).astype(int))]
    return chosen, scores[chosen]

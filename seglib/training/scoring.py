"""Scores of a training: an evaluation's predictions and loss, which is best, whether the loss falls."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from seglib import ranks
from seglib.data.masks import IGNORE_INDEX
from seglib.evaluation.metrics import confusion_per_image, find_signs
from seglib.training.averaging import AVERAGES
from seglib.training.device import autocast, move
from seglib.training.step import ComputeLoss, ForwardOnce, prepare_images


class Evaluation(NamedTuple):
    """Predictions against truth: `confusion` (images, classes, classes) int64 with truth in rows, and the mean loss."""

    confusion: np.ndarray
    loss: float


def evaluate(
    model: nn.Module, loader: DataLoader, compute_loss: ComputeLoss, num_classes: int, precision: str = "float32"
) -> Evaluation:
    """Predict every image of a loader once.

    The loss is the mean over batches weighted by their valid pixels. Of several ranks each predicts its part of the images.
    """
    device = next(model.eval().parameters()).device
    confusions, total, pixels = [], torch.zeros((), device=device), 0
    with torch.inference_mode():
        for images, masks in loader:
            valid = int((masks != IGNORE_INDEX).sum())
            images, masks = prepare_images(model, move(images, device)), move(masks, device)
            with autocast(device, precision), ForwardOnce(model, images):
                total += compute_loss(images, masks.long()) * valid
                logits = model(images)
            confusions.append(confusion_per_image(masks, logits.argmax(dim=1), num_classes, IGNORE_INDEX).cpu())
            pixels += valid
    pixels = int(ranks.add_up(torch.tensor(pixels, device=device)))
    return Evaluation(torch.cat(ranks.gather(confusions)).numpy(), float(ranks.add_up(total)) / max(1, pixels))


def order(scores: Mapping[str, float], select_by: str) -> float:
    """A score, higher is better; the worst where it is no number: nothing would ever be better than NaN."""
    score = find_signs()[select_by] * scores[_column(select_by)]
    return -math.inf if math.isnan(score) else score


def find_best(history: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The best by each score: {"miou": {"epoch", "weights" ("plain", "ema", ...), "score"}, ...}."""
    best = {}
    for select_by, sign in find_signs().items():
        column = _column(select_by)
        averaged = {name: f"{name}_{column}" for name in AVERAGES if f"{name}_{column}" in history}
        columns = {"plain": column} | averaged
        scores = (sign * history[[*columns.values()]]).max().dropna() if column in history else ()
        if len(scores):
            weights = max(columns, key=lambda name: scores.get(columns[name], -math.inf))
            value = sign * scores[columns[weights]]
            row = history[columns[weights]].eq(value).idxmax()
            best[select_by] = {"epoch": int(history.loc[row, "epoch"]), "weights": weights, "score": float(value)}
    return best


def require_falling_loss(history: pd.DataFrame) -> None:
    """Fail loudly if training does not lower its own loss; what `--debug` is for.

    Raises
    ------
    RuntimeError
    """
    first, last = history["train_loss"].iloc[0], history["train_loss"].iloc[-1]
    if not last < first:
        raise RuntimeError(
            f"debug: the training loss must fall, but went from {first:.4f} (epoch 1) to {last:.4f}"
            f" (epoch {len(history)}); look at the learning rate, the loss and the masks"
        )


def _column(select_by: str) -> str:
    return "val_loss" if select_by == "loss" else select_by

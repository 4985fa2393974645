"""Scores of a training: an evaluation's predictions and loss, which is best, whether the loss falls; examples."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from seglib import ranks
from seglib.data.dataset import Subset
from seglib.data.masks import IGNORE_INDEX
from seglib.evaluation.metrics import confusion_per_image, find_signs, load_confusion
from seglib.training.averaging import AVERAGES
from seglib.training.device import autocast, free_memory, move
from seglib.training.step import ComputeLoss, ForwardOnce, is_oom, prepare_images

if TYPE_CHECKING:
    from seglib.training.trainer import Trainer


class Evaluation(NamedTuple):
    """Predictions against truth: `confusion` (images, classes, classes) int64 with truth in rows, and the mean loss."""

    confusion: np.ndarray
    loss: float


def evaluate(
    model: nn.Module, loader: DataLoader, compute_loss: ComputeLoss, num_classes: int, precision: str = "float32"
) -> Evaluation:
    """Predict every image of a loader once.

    The loss is the mean over batches weighted by their valid pixels. Of several ranks each predicts its part of the images.
    A batch that does not fit into memory, and those after it, are predicted in parts: scores are the same, and so is a loss
    that is a mean over pixels.
    """
    device = next(model.eval().parameters()).device
    confusions, total, pixels, parts = [], torch.zeros((), device=device), 0, 1

    def predict(images: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        valid = int((masks != IGNORE_INDEX).sum())
        images, masks = prepare_images(model, move(images, device)), move(masks, device)
        with autocast(device, precision), ForwardOnce(model, images):
            loss = compute_loss(images, masks.long()) * valid
            logits = model(images)
        return confusion_per_image(masks, logits.argmax(dim=1), num_classes).cpu(), loss, valid

    with torch.inference_mode():
        for images, masks in loader:
            while (found := _try_parts(predict, images, masks, parts)) is None:
                parts = min(2 * parts, len(images))
                free_memory(device)
                print(f"out of memory in evaluation; going on with {-(-len(images) // parts)} images at a time")
            for confusion, loss, valid in found:
                confusions.append(confusion)
                total += loss
                pixels += valid
    pixels = int(ranks.add_up(torch.tensor(pixels, device=device)))
    return Evaluation(torch.cat(ranks.gather(confusions)).numpy(), float(ranks.add_up(total)) / max(1, pixels))


def _try_parts(predict: Callable, images: torch.Tensor, masks: torch.Tensor, parts: int) -> list | None:
    """What `predict` says of each part of a batch; None where a part of several images does not fit into memory."""
    pairs = zip(images.tensor_split(parts), masks.tensor_split(parts), strict=True)
    try:
        return [predict(*pair) for pair in pairs if len(pair[0])]
    except RuntimeError as error:
        if not is_oom(error) or parts >= len(images):
            raise
        return None


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


# Some of its images beside their truth.


def predict_examples(trainer: "Trainer", count: int) -> tuple:
    """What `plot_predictions` draws: validation images from the worst to the best, predicted by a trainer's best weights.

    Returns
    -------
    images (N, S, S, 3) uint8 RGB, truths and preds (N, S, S) uint8, class names, titles.
    """
    from seglib.evaluation.errors import choose_images, tabulate_images

    trainer.load_best()
    confusion, image_ids, class_names = load_confusion(trainer.run_dir / "confusion.npz")
    chosen, titles = choose_images(tabulate_images(confusion, image_ids), "spread", count)
    images = trainer.val_loader.dataset.subset
    return *predict(trainer.model, images, chosen, trainer.device, trainer.precision), class_names, titles


def predict(
    model: nn.Module, subset: Subset, positions: Sequence[int], device: torch.device, precision: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predict a few images, one at a time.

    Returns
    -------
    images (N, S, S, 3) uint8 RGB, truths (N, S, S) uint8, preds (N, S, S) uint8.
    """
    images, truths = (np.stack(arrays) for arrays in zip(*map(subset.read, positions), strict=True))
    preds = [predict_logits(model, image, device, precision).argmax(0).to(torch.uint8).cpu() for image in images]
    return images, truths, np.stack(preds)


@torch.inference_mode()
def predict_logits(model: nn.Module, image: np.ndarray, device: torch.device, precision: str) -> torch.Tensor:
    """Logits (C, S, S) float32 of one image (S, S, 3) uint8 RGB."""
    model.eval()
    batch = torch.from_numpy(image)[None].permute(0, 3, 1, 2).to(device)
    with autocast(device, precision):
        return model(prepare_images(model, batch))[0].float()


def _column(select_by: str) -> str:
    return "val_loss" if select_by == "loss" else select_by

"""The training loop: plain PyTorch, everything passed in, short enough to read in one sitting."""

import itertools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from seglib.errors import InputError
from seglib.evaluation.metrics import compute_metrics, confusion_per_image, save_confusion
from seglib.files import replacing
from seglib.training.checkpoint import load_checkpoint, save_checkpoint
from seglib.training.device import autocast, move, peak_memory_mb
from seglib.training.reproducibility import seed_epoch
from seglib.training.step import IGNORE_INDEX, Trainee, add_gradients

BETTER = {"miou": 1, "miou_image": 1, "accuracy": 1, "loss": -1}  # 1: higher is better


class Watcher(Protocol):
    """Who looks on while a model trains."""

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Told after each step."""

    def epoch(self, history: pd.DataFrame) -> None:
        """Told after each epoch, with all epochs so far."""

    def end(self, history: pd.DataFrame) -> None:
        """Told when no epoch follows: after the last one, or where training stopped early."""


@dataclass(frozen=True)
class Evaluation:
    """Predictions against truth: `confusion` (images, classes, classes) int64 with truth in rows, and the mean loss."""

    confusion: np.ndarray
    loss: float


def train(
    trainee: Trainee,
    train_loader: DataLoader,
    val_loader: DataLoader,
    *,
    epochs: int,
    seed: int,
    select_by: str,
    run_dir: Path,
    checkpoint_facts: dict,
    watcher: Watcher,
    patience: int = 0,
) -> pd.DataFrame:
    """Train, evaluate after each epoch, keep the best weights; go on where an earlier process stopped.

    Writes into `run_dir`: best.pt and confusion.npz when `select_by` improves, history.csv and last.pt after each
    epoch, last.pt at the very end of it: whatever a kill leaves behind, the next process repeats the epoch it was in.

    Parameters
    ----------
    train_loader : gives batches of up to accumulate * batch_size images, see `train_one_epoch`.
    checkpoint_facts : plain values that best.pt and last.pt carry: how to build the model, class names.
    patience : epochs without a better `select_by` after which training stops; 0 for never.

    Returns
    -------
    One row an epoch: epoch (from 1), lr, train_loss, val_loss, miou, miou_image, miou_batch, accuracy, seconds,
    memory_mb.
    """
    model, loss, scheduler, device = trainee.model, trainee.loss, trainee.scheduler, trainee.device
    state = {"model": model, "optimizer": trainee.optimizer, "scheduler": scheduler, "scaler": trainee.scaler}
    rows, best, trainee.split = _resume(run_dir / "last.pt", state, checkpoint_facts)
    class_names, image_ids = checkpoint_facts["class_names"], val_loader.dataset.subset.image_ids
    for epoch in range(len(rows) + 1, epochs + 1):
        if patience and _count_epochs_waited(rows, select_by) >= patience:
            break
        began = time.monotonic()
        learning_rate = scheduler.get_last_lr()[0]
        seed_epoch(seed, epoch)
        train_loss = train_one_epoch(trainee, train_loader, epoch, watcher)
        evaluation = evaluate(model, loss, val_loader, len(class_names), trainee.precision, device)
        metrics = compute_metrics(evaluation.confusion, class_names, val_loader.batch_sampler.batch_size)
        scores = {name: metrics[name] for name in ("miou", "miou_image", "miou_batch", "accuracy")}
        seconds = time.monotonic() - began
        rows.append({"epoch": epoch, "lr": learning_rate, "train_loss": train_loss, "val_loss": evaluation.loss, **scores,
                     "seconds": round(seconds, 3), "memory_mb": peak_memory_mb(device)})  # fmt: skip
        score = _rank(rows[-1], select_by)
        scheduler.end_epoch(score)
        if best is None or score > best:
            best = score
            save_checkpoint(run_dir / "best.pt", {"model": model.state_dict(), "epoch": epoch, **checkpoint_facts})
            save_confusion(run_dir / "confusion.npz", evaluation.confusion, image_ids, class_names)
        history = pd.DataFrame(rows)
        with replacing(run_dir / "history.csv") as temporary:
            history.to_csv(temporary, index=False)
        parts = {name: part.state_dict() for name, part in state.items()}
        save_checkpoint(
            run_dir / "last.pt",
            {**parts, "history": rows, "best": best, "split": trainee.split, **checkpoint_facts},
        )
        watcher.epoch(history)
    history = pd.DataFrame(rows)
    watcher.end(history)
    return history


def _rank(row: dict, select_by: str) -> float:
    """The score of an epoch, higher is better; the worst where it is no number: nothing would ever be better than NaN."""
    score = BETTER[select_by] * row["val_loss" if select_by == "loss" else select_by]
    return -math.inf if math.isnan(score) else score


def _count_epochs_waited(rows: list[dict], select_by: str) -> int:
    """Epochs since the best one."""
    scores = [_rank(row, select_by) for row in rows]
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


def train_one_epoch(trainee: Trainee, loader: DataLoader, epoch: int, watcher: Watcher) -> float:
    """One pass over the training images; return the mean loss over its valid pixels.

    The loader's batches are mixed, then cut into micro-batches, see `add_gradients`. Counts and losses stay on the device
    until the epoch's end.

    Raises
    ------
    FloatingPointError
        The loss is no longer a number; told with the images of the batch in which that began.
    """
    device, optimizer, scaler = trainee.device, trainee.optimizer, trainee.scaler
    trainee.set_mode(epoch)
    loader.batch_sampler.epoch = epoch
    total, pixels = torch.zeros(2, device=device, dtype=torch.float64)
    lost_at = torch.zeros((), device=device, dtype=torch.int64)  # the first step whose loss was no number
    for step, (images, masks) in enumerate(loader, 1):
        images, targets = trainee.mix(move(images, device), move(masks, device), epoch, step)
        optimizer.zero_grad(set_to_none=True)
        value, valid = add_gradients(trainee, images, targets, loader.batch_sampler.batch_size)
        if trainee.clip_norm:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(trainee.model.parameters(), trainee.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        trainee.scheduler.step()
        total, pixels = total + value * valid, pixels + valid
        lost_at = torch.where((lost_at == 0) & ~value.isfinite(), step, lost_at)
        watcher.step(epoch, step, len(loader))
    mean = float(total) / max(1.0, float(pixels))
    if not math.isfinite(mean):
        raise FloatingPointError(_explain_lost_loss(mean, loader, epoch, int(lost_at)))
    return mean


def _explain_lost_loss(mean: float, loader: DataLoader, epoch: int, step: int) -> str:
    subset = loader.dataset.subset
    batch = next(itertools.islice(loader.batch_sampler, step - 1, None))
    images = ", ".join(str(subset.image_ids[position % len(subset)]) for _, position in batch)
    return (
        f"the training loss became {mean} in epoch {epoch}, step {step}, on the images {images}; look at these, lower lr,"
        " clip the gradient (clip_norm: 1.0), or set precision: float32"
    )


@torch.inference_mode()
def evaluate(
    model: nn.Module, loss: nn.Module, loader: DataLoader, num_classes: int, precision: str, device: torch.device
) -> Evaluation:
    """Predict every image of a loader once; the loss is the mean over batches weighted by their valid pixels."""
    model.eval()
    confusions, total, pixels = [], torch.zeros((), device=device), 0
    for images, masks in loader:
        valid = int((masks != IGNORE_INDEX).sum())
        images, masks = move(images, device), move(masks, device)
        with autocast(device, precision):
            logits = model(images)
            total += loss(logits, masks) * valid
        confusions.append(confusion_per_image(masks, logits.argmax(dim=1), num_classes, IGNORE_INDEX).cpu())
        pixels += valid
    return Evaluation(torch.cat(confusions).numpy(), float(total) / max(1, pixels))


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


def _name(fact: str, saved: object, value: object) -> list[str]:
    """A fact that differs, or what differs in it."""
    if isinstance(saved, dict) and isinstance(value, dict):
        return [name for name in value if saved.get(name) != value[name]]
    return [fact]


def _resume(path: Path, state: dict, facts: dict) -> tuple[list[dict], float | None, int]:
    """Load where an earlier process of the same run stopped; nothing if it never finished an epoch."""
    if not path.exists():
        return [], None, 1
    saved = load_checkpoint(path, required=(*state, "history", "best", "split", *facts))
    different = [part for name, value in facts.items() if saved[name] != value for part in _name(name, saved[name], value)]
    if different:
        raise InputError(f"{path}: is of another run, with other {', '.join(different)}; required a new run_dir")
    for name, part in state.items():
        part.load_state_dict(saved[name])
    print(f"going on after epoch {len(saved['history'])}, where an earlier process stopped")
    return list(saved["history"]), saved["best"], saved["split"]

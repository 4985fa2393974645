"""The training loop: plain PyTorch, everything passed in."""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from seglib.evaluation.metrics import compute_metrics, confusion_per_image, find_signs, save_confusion
from seglib.files import replacing
from seglib.training.averaging import Averages, build_averages
from seglib.training.checkpoint import Position, TrainingState, hash_weights, save_checkpoint
from seglib.training.device import autocast, forget_peak_memory, move, peak_memory_mb, seed_epoch
from seglib.training.optim import build_scheduler
from seglib.training.step import IGNORE_INDEX, Trainee, describe_conditions, take_step
from seglib.vocabulary import AVERAGES

# The loss of an epoch, summed on the device, and the words when it is lost: no number any more, or far too high.


DIVERGED = 10  # times the lowest loss so far, and twice the first: a loss that comes back from there is not known


class EpochLoss:
    """Adds up the steps of an epoch without waiting for the device.

    `sums` (6,) float64 on the device: sum of loss * valid pixels, valid pixels, first step whose loss is no number (0
    for none), highest loss, its step, loss of the first step.
    """

    def __init__(self, device: torch.device, sums: Tensor | None = None):
        start = torch.tensor([0, 0, 0, -math.inf, 0, 0], dtype=torch.float64) if sums is None else sums
        self.sums = start.to(device)

    def add(self, step: int, loss: Tensor, valid: Tensor) -> None:
        """Add a step (from 1): its mean loss over so many valid pixels, both on the device."""
        total, pixels, lost_at, highest, highest_at, first = self.sums.unbind()
        self.sums = torch.stack([
            total + loss * valid,
            pixels + valid,
            torch.where((lost_at == 0) & ~loss.isfinite(), step, lost_at),
            torch.where(loss > highest, loss, highest),
            torch.where(loss > highest, step, highest_at),
            loss.double() if step == 1 else first,
        ])  # fmt: skip

    def take_mean(self, loader: DataLoader, epoch: int, previous: list[float]) -> float:
        """Mean loss over the valid pixels so far; waits for the device.

        Parameters
        ----------
        previous : the means of the epochs before this one.

        Raises
        ------
        FloatingPointError
            It is no number, or has diverged: above 10 times the lowest so far and twice the first (in the first epoch:
            above 10 times the first step's). Told with the images of the batch where it was seen.
        """
        total, pixels, lost_at, highest, highest_at, first = self.sums.tolist()
        mean = total / max(1.0, pixels)
        if lost_at or not math.isfinite(mean):
            raise FloatingPointError(
                _explain(f"became {math.nan if lost_at else mean}", loader, epoch, int(lost_at or highest_at))
            )
        lowest, start = (min(previous), previous[0]) if previous else (first, first)
        if lowest > 0 and mean > DIVERGED * lowest and mean > 2 * start:
            words = f"diverged to {mean:.4g}, from {lowest:.4g} before (highest: {highest:.4g})"
            raise FloatingPointError(_explain(words, loader, epoch, int(highest_at)))
        return mean


def _explain(words: str, loader: DataLoader, epoch: int, step: int) -> str:
    subset = loader.dataset.subset
    loader.batch_sampler.epoch, loader.batch_sampler.first = epoch, 0
    batch = next(itertools.islice(loader.batch_sampler, step - 1, None))
    images = ", ".join(str(subset.image_ids[position % len(subset)]) for _, position in batch)
    return (
        f"the training loss {words} in epoch {epoch}, step {step}, on the images {images}; look at these, lower lr,"
        " clip the gradient (clip_norm: 1.0), or set precision: float32"
    )


# Which epoch is the best, by what score and with which weights, and when no better one is waited for any more.


def rank(scores: Mapping[str, float], select_by: str) -> float:
    """A score, higher is better; the worst where it is no number: nothing would ever be better than NaN."""
    score = find_signs()[select_by] * scores[_column(select_by)]
    return -math.inf if math.isnan(score) else score


def is_over(rows: Sequence[Mapping], epochs: int, patience: int, select_by: str) -> bool:
    """Whether no epoch follows these: all were made, or the plain weights have not become better for `patience` epochs."""
    ranks = [rank(row, select_by) for row in rows]
    waited = len(ranks) - 1 - ranks.index(max(ranks)) if ranks else 0
    return len(rows) >= epochs or bool(patience and waited >= patience)


def find_best(history: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The best by each score: {"miou": {"epoch", "weights" ("plain", "ema", ...), "score"}, ...}."""
    best = {}
    for select_by, sign in find_signs().items():
        columns = {"plain": _column(select_by)} | {name: f"{name}_{_column(select_by)}" for name in AVERAGES}
        scores = {name: sign * (sign * history[column]).max() for name, column in columns.items() if column in history}
        scores = {name: score for name, score in scores.items() if not math.isnan(score)}
        if scores:
            weights = max(scores, key=lambda name: sign * scores[name])
            row = history[columns[weights]].eq(scores[weights]).idxmax()
            best[select_by] = {
                "epoch": int(history.loc[row, "epoch"]),
                "weights": weights,
                "score": float(scores[weights]),
            }
    return best


def _column(select_by: str) -> str:
    return "val_loss" if select_by == "loss" else select_by


# The training loop: plain PyTorch, everything passed in, short enough to read in one sitting.


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
    checkpoint_facts: Mapping[str, Any],
    averages: Averages,
    watchers: Sequence[Watcher],
    patience: int = 0,
    checkpoint_minutes: float = 0,
) -> pd.DataFrame:
    """Train, evaluate after each epoch, keep the best weights; go on where an earlier process stopped.

    Writes into `run_dir`: best.pt and confusion.npz when `select_by` improves, history.csv and last.pt after each
    epoch, last.pt at the very end of it, and every `checkpoint_minutes` within: whatever a kill leaves behind, the next
    process repeats what is missing, to the same bits.

    Parameters
    ----------
    train_loader : gives batches of up to accumulate * batch_size images, see `train_one_epoch`.
    checkpoint_facts : plain values that best.pt and last.pt carry: how to build the model, class names.
    averages : of the weights; each is evaluated beside the plain ones, and kept where it is better.
    patience : epochs without a better `select_by` of the plain weights after which training stops; 0 for never.

    Returns
    -------
    One row an epoch: epoch (from 1), lr, train_loss, val_loss, miou, miou_image, miou_batch, accuracy, seconds,
    memory_mb, conditions (device, threads, precision: other ones give other last bits); and ema_miou, ema_val_loss, ... of each average, where it was evaluated.
    """
    state = TrainingState(run_dir / "last.pt", trainee, averages, checkpoint_facts, checkpoint_minutes)
    examine = _Examiner(trainee, val_loader, select_by, run_dir, checkpoint_facts)
    position = state.resume()
    while not is_over(position.rows, epochs, patience, select_by):
        epoch, began = position.epoch, time.monotonic() - position.seconds
        position.lr = position.lr if position.step else trainee.scheduler.get_last_lr()[0]
        row = {"epoch": epoch, "lr": position.lr}
        forget_peak_memory(trainee.device)

        def after_step(position: Position = position, epoch: int = epoch, began: float = began) -> None:
            position.seconds = time.monotonic() - began
            state.save_now_and_then(position)
            for watcher in watchers:
                watcher.step(epoch, position.step, len(train_loader))

        row["train_loss"] = train_one_epoch(trainee, train_loader, epoch, seed, position, averages, after_step)
        row |= examine(position, epoch, "plain")
        trainee.scheduler.end_epoch(rank(row, select_by))
        for name in averages.ready(last=is_over([*position.rows, row], epochs, patience, select_by)):
            with averages.applied(name, train_loader, val_loader.batch_sampler.batch_size, trainee.precision):
                row |= {f"{name}_{score}": value for score, value in examine(position, epoch, name).items()}
        row |= {"seconds": round(time.monotonic() - began, 3), "memory_mb": peak_memory_mb(trainee.device)}
        row["conditions"] = describe_conditions(trainee)
        position = Position([*position.rows, row], position.best)
        history = _write_history(run_dir, position)
        state.save(position)
        for watcher in watchers:
            watcher.epoch(history)
    history = _write_history(run_dir, position)  # where no epoch was left to train, nothing is there yet
    for watcher in watchers:
        watcher.end(history)
    return history


def _write_history(run_dir: Path, position: Position) -> pd.DataFrame:
    history = pd.DataFrame(position.rows)
    with replacing(run_dir / "history.csv") as temporary:
        history.to_csv(temporary, index=False)
    return history


@dataclass(frozen=True)
class _Examiner:
    """Evaluates the weights that the model has now, keeps them where they are the best, returns their scores."""

    trainee: Trainee
    loader: DataLoader
    select_by: str
    run_dir: Path
    facts: Mapping[str, Any]

    def __call__(self, position: Position, epoch: int, weights: str) -> dict[str, float]:
        class_names = self.facts["class_names"]
        evaluation = evaluate(self.trainee, self.loader, len(class_names))
        metrics = compute_metrics(evaluation.confusion, class_names, self.loader.batch_sampler.batch_size)
        scores = {"val_loss": evaluation.loss}
        scores |= {name: value for name, value in metrics.items() if name != "iou"}
        score = rank(scores, self.select_by)
        if position.best is None or score > position.best:
            position.best, model = score, self.trainee.model.state_dict()
            save_checkpoint(
                self.run_dir / "best.pt", {"model": model, "epoch": epoch, "weights": weights, **self.facts}
            )
            image_ids = self.loader.dataset.subset.image_ids
            save_confusion(self.run_dir / "confusion.npz", evaluation.confusion, image_ids, class_names)
        return scores


def train_one_epoch(
    trainee: Trainee,
    loader: DataLoader,
    epoch: int,
    seed: int,
    position: Position,
    averages: Averages,
    after_step: Callable[[], None],
) -> float:
    """One pass over the training images, from `position` on; return the mean loss over the epoch's valid pixels.

    The loader's batches are mixed, then cut into micro-batches, see `add_gradients`. Counts and losses stay on the device
    until the epoch's end. `position` is kept up to date; `after_step` is called after each step.

    Raises
    ------
    FloatingPointError
        The loss is no longer a number, or has diverged; told with the images of the batch in which that began.
    """
    device, batches = trainee.device, loader.batch_sampler
    if not position.step:  # else the generators are those of the step that comes
        seed_epoch(seed, epoch)
    trainee.set_mode(epoch)
    batches.epoch, batches.first = epoch, position.step
    loss = EpochLoss(device, position.loss)
    for step, (images, masks) in enumerate(loader, position.step + 1):
        images, targets = trainee.mix(move(images, device), move(masks, device), epoch, step)
        value, valid = take_step(trainee, images, targets, batches.batch_size)
        averages.step()
        loss.add(step, value, valid)
        position.step, position.loss = step, loss.sums
        after_step()
    batches.first = 0  # the next pass may be another's
    return loss.take_mean(loader, epoch, [row["train_loss"] for row in position.rows])


@torch.inference_mode()
def evaluate(trainee: Trainee, loader: DataLoader, num_classes: int) -> Evaluation:
    """Predict every image of a loader once; the loss is the mean over batches weighted by their valid pixels."""
    model, device = trainee.model.eval(), trainee.device
    confusions, total, pixels = [], torch.zeros((), device=device), 0
    for images, masks in loader:
        valid = int((masks != IGNORE_INDEX).sum())
        images, masks = move(images, device), move(masks, device)
        with autocast(device, trainee.precision):
            logits = model(images)
            total += trainee.compute_loss(logits, masks) * valid
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


# The last fit: the best weights, trained a little more on training and validation images together, for the test set.


def fit_everything(
    trainee: Trainee,
    optimizer: Optimizer,
    loader: DataLoader,
    *,
    after: int,
    epochs: int,
    seed: int,
    run_dir: Path,
    checkpoint_facts: Mapping[str, Any],
    progress: Callable[[int, int], None],
    minutes: float = 0,
) -> dict[str, Any]:
    """Train on all images and write run_dir/final.pt; its folder final_fit/ holds what a killed process goes on from.

    No image is left to score these weights with: the run's scores remain those of best.pt.

    Parameters
    ----------
    trainee : its model holds the best weights; how its steps are made stays as it is.
    optimizer : a new one, of a learning rate that is small and stays, over what is trained after the last epoch.
    after : epochs of the training before; these are counted on from there, so that no draw is made twice.

    progress : called with (steps done, steps in all).
    minutes : between two checkpoints within an epoch; 0 for none.

    Returns
    -------
    For the record: epochs, seconds, peak_memory_mb, oom_split, weights_sha256 of final.pt.
    """
    folder = run_dir / "final_fit"
    folder.mkdir(exist_ok=True)
    schedule = build_scheduler("constant", optimizer, epochs, len(loader), 0)
    trainee = replace(trainee, optimizer=optimizer, scheduler=schedule)
    averages = build_averages({}, trainee.model, epochs, len(loader), 0)
    state = TrainingState(folder / "last.pt", trainee, averages, checkpoint_facts, minutes)
    position = state.resume()
    while len(position.rows) < epochs:
        epoch, began = after + position.epoch, time.monotonic() - position.seconds
        position.lr = position.lr if position.step else trainee.scheduler.get_last_lr()[0]
        row = {"epoch": epoch, "lr": position.lr}
        forget_peak_memory(trainee.device)

        def after_step(position: Position = position, began: float = began) -> None:
            position.seconds = time.monotonic() - began
            state.save_now_and_then(position)
            progress(len(position.rows) * len(loader) + position.step, epochs * len(loader))

        row["train_loss"] = train_one_epoch(trainee, loader, epoch, seed, position, averages, after_step)
        row |= {"seconds": round(time.monotonic() - began, 3), "memory_mb": peak_memory_mb(trainee.device)}
        position = Position([*position.rows, row])
        state.save(position)
    history = pd.DataFrame(position.rows)
    with replacing(folder / "history.csv") as temporary:
        history.to_csv(temporary, index=False)
    facts = {"epoch": int(history["epoch"].iloc[-1]), **checkpoint_facts}
    save_checkpoint(run_dir / "final.pt", {"model": trainee.model.state_dict(), **facts})
    return {
        "epochs": epochs, "seconds": round(float(history["seconds"].sum()), 2), "peak_memory_mb": float(history["memory_mb"].max()),
        "oom_split": trainee.split, "weights_sha256": hash_weights(trainee.model.state_dict()),
    }  # fmt: skip

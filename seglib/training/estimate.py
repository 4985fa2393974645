"""How long a training will take and what memory it needs, measured on three of its own steps before it begins."""

import copy
import itertools
import time
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader

from seglib.runs.text_table import format_seconds
from seglib.training.device import autocast, move, peak_memory_mb
from seglib.training.reproducibility import seed_epoch
from seglib.training.step import Trainee, take_step

TIMED = 3  # steps, after one that is not: it fills caches, chooses algorithms and compiles


@dataclass(frozen=True)
class Estimate:
    """Seconds of the first step, of an epoch with its evaluation, and of all epochs [s]; the peak so far [MB]."""

    first_step: float
    epoch: float
    total: float
    peak_memory_mb: float

    def __str__(self) -> str:
        return (
            f"about {format_seconds(self.epoch)} an epoch, {format_seconds(self.total)} in all; peak memory"
            f" {self.peak_memory_mb:,.0f} MB; the first step took {self.first_step:.1f} s"
        )


def estimate_training(
    trainee: Trainee, train_loader: DataLoader, val_loader: DataLoader, *, epochs: int, seed: int
) -> Estimate:
    """Time a few steps of the first epoch and one batch of the evaluation, then put everything back as it was.

    Raises
    ------
    torch.OutOfMemoryError
        As training would: here before hours have gone into it.
    """
    parts = (trainee.model, trainee.optimizer, trainee.scheduler, trainee.scaler)
    saved = [copy.deepcopy(part.state_dict()) for part in parts]
    first_step, step = _time_steps(trainee, train_loader, seed)
    evaluation = _time_evaluation(trainee, val_loader)
    for part, state in zip(parts, saved, strict=True):
        part.load_state_dict(state)
    trainee.optimizer.zero_grad(set_to_none=True)
    epoch = step * len(train_loader) + evaluation * len(val_loader)
    return Estimate(first_step, epoch, epoch * epochs, peak_memory_mb(trainee.device))


def _time_steps(trainee: Trainee, loader: DataLoader, seed: int) -> tuple[float, float]:
    """Seconds of the first step, and of one of those that follow, the loader's share included."""
    seed_epoch(seed, 1)
    trainee.set_mode(1)
    batches, times = loader.batch_sampler, [time.monotonic()]
    batches.epoch = 1
    for step, (images, masks) in enumerate(loader, 1):
        images, targets = trainee.mix(move(images, trainee.device), move(masks, trainee.device), 1, step)
        take_step(trainee, images, targets, batches.batch_size)
        _wait(trainee.device)
        times.append(time.monotonic())
        if step > TIMED:
            break
    first, *others = (end - begin for begin, end in itertools.pairwise(times))
    return first, sum(others) / len(others) if others else first


@torch.inference_mode()
def _time_evaluation(trainee: Trainee, loader: DataLoader) -> float:
    """Seconds of a batch, after one that is not timed."""
    model, times = trainee.model.eval(), [time.monotonic()]
    for images, _ in loader:
        with autocast(trainee.device, trainee.precision):
            model(move(images, trainee.device))
        _wait(trainee.device)
        times.append(time.monotonic())
        if len(times) > 2:
            break
    return times[-1] - times[-2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

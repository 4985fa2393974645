"""How long a training will take and what memory it needs, measured on three of its own steps before it begins."""

import copy
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from seglib.text import format_seconds
from seglib.training.device import autocast, forget_peak_memory, move, peak_memory_mb, seed_epoch
from seglib.training.mixing import Mix
from seglib.training.step import ComputeLoss, GradientStep, prepare_images

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
    stepper: GradientStep,
    compute_loss: ComputeLoss,
    train_loader: DataLoader,
    val_loader: DataLoader,
    *,
    epochs: int,
    seed: int,
    mix: Mix | None = None,
    evaluations: int = 1,
) -> Estimate:
    """Time a few steps of the first epoch and one batch of the evaluation, then put all weights and states back.

    Parameters
    ----------
    evaluations : of each epoch; an EMA is evaluated too.

    Raises
    ------
    torch.OutOfMemoryError
        As training would: here before hours have gone into it.
    """
    parts = (stepper.model, stepper.optimizer, stepper.scheduler, stepper.scaler)
    saved = [_copy_to_host(part.state_dict()) for part in parts]
    forget_peak_memory(stepper.device)
    try:
        first_step, step = _time_steps(stepper, compute_loss, train_loader, mix, seed)
        evaluation = _time_evaluation(stepper, val_loader)
    finally:
        for part, state in zip(parts, saved, strict=True):
            part.load_state_dict(state)
        stepper.optimizer.zero_grad(set_to_none=True)
    epoch = max(step, _time_loading(train_loader)) * len(train_loader) + evaluations * evaluation * len(val_loader)
    return Estimate(first_step, epoch, epoch * epochs, peak_memory_mb(stepper.device))


def _time_steps(
    stepper: GradientStep, compute_loss: ComputeLoss, loader: DataLoader, mix: Mix | None, seed: int
) -> tuple[float, float]:
    """Seconds of the first step, and of one of those that follow; without loader processes, loading included."""
    seed_epoch(seed, 1)
    stepper.set_mode(1)
    batches, times = loader.batch_sampler, [time.monotonic()]
    batches.epoch = 1
    for step, (images, masks) in enumerate(loader, 1):
        images, targets = move(images, stepper.device), move(masks, stepper.device)
        images, targets = mix(images, targets, 1, step) if mix else (images, targets)
        stepper.backward(compute_loss, images, targets, batches.batch_size)
        stepper.update()
        _wait(stepper.device)
        times.append(time.monotonic())
        if step > TIMED:
            break
    first, *others = (end - begin for begin, end in itertools.pairwise(times))
    return first, sum(others) / len(others) if others else first


def _time_loading(loader: DataLoader) -> float:
    """Seconds of a batch for loader processes that never wait; 0 without any, whose share is in each step.

    They have filled a queue while the first step ran, so steps alone do not show a loader that is too slow.
    """
    if not loader.num_workers:
        return 0.0
    keys, began = next(iter(loader.batch_sampler))[:4], time.monotonic()
    for key in keys:
        loader.dataset[key]
    return (time.monotonic() - began) / len(keys) * loader.batch_sampler.batch_size / loader.num_workers


def _copy_to_host(value: Any) -> Any:
    """A state dict's copy that needs no memory of the device."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {key: _copy_to_host(item) for key, item in value.items()}
    return [_copy_to_host(item) for item in value] if isinstance(value, list) else copy.deepcopy(value)


@torch.inference_mode()
def _time_evaluation(stepper: GradientStep, loader: DataLoader) -> float:
    """Seconds of a batch, after one that is not timed."""
    model, times = stepper.model.eval(), [time.monotonic()]
    for images, _ in loader:
        with autocast(stepper.device, stepper.precision):
            model(prepare_images(model, move(images, stepper.device)))
        _wait(stepper.device)
        times.append(time.monotonic())
        if len(times) > 2:
            break
    return times[-1] - times[-2] if len(times) > 1 else 0.0  # of several ranks one may have no batch


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

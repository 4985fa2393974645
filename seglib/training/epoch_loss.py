"""The loss of an epoch, summed on the device, and the words when it is lost: no number any more, or far too high."""

import itertools
import math

import torch
from torch import Tensor
from torch.utils.data import DataLoader

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

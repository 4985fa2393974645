"""Optimizers and learning-rate schedules by name."""

import math
from collections.abc import Callable

from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

# name -> factor of the learning rate at progress 0..1 through the steps after the warm-up
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "polynomial": lambda progress: (1 - progress) ** 0.9,  # DeepLab's power
}


def build_optimizer(name: str, model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """Build one of timm's optimizers; biases and norm layers are not decayed."""
    return create_optimizer_v2(model, opt=name, lr=lr, weight_decay=weight_decay)


def build_scheduler(
    name: str, optimizer: Optimizer, epochs: int, steps_per_epoch: int, warmup_epochs: float
) -> LambdaLR:
    """Build a schedule that is stepped after each optimizer step: a linear warm-up, then the named curve to its end."""
    curve = SCHEDULES[name]
    total, warmup = epochs * steps_per_epoch, round(warmup_epochs * steps_per_epoch)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return curve(min(1.0, (step - warmup) / max(1, total - warmup)))

    return LambdaLR(optimizer, factor)

"""Optimizers and learning-rate schedules by name."""

import inspect
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from timm.optim import create_optimizer_v2, get_optimizer_info
from timm.optim import list_optimizers as list_timm_optimizers
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from seglib.errors import InputError
from seglib.parameters import BelowOne, NotNegative, Positive
from seglib.parts import check_part, find_parts, read_choice, register


def list_optimizers() -> list[str]:
    """timm's names, less those that need a second backward pass, Apex, bitsandbytes or opt_einsum."""
    names = list_timm_optimizers(exclude_filters=["fused*", "bnb*", "kron*"])
    return [name for name in names if not get_optimizer_info(name).second_order]


def find_refusal(optimizer: str | Mapping[str, Any]) -> str:
    """Why an optimizer cannot be had, in one line; "" if it can."""
    own, names = find_parts("optimizer"), list_optimizers()
    try:
        check_part("optimizer", optimizer, own, names)
    except InputError as error:
        return str(error)
    return ""


# Optimizers by name, with a learning rate of the encoder's own and weight decay where it belongs.


def build_optimizer(
    name: str | Mapping[str, Any],
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    encoder_lr: float = 0.0,
    decay_norms: bool = False,
) -> Optimizer:
    """Build one of timm's optimizers.

    Parameters
    ----------
    name : as timm writes it: adamw, adamp, sgd (Nesterov momentum 0.9), ...; or one that you registered, `name` or
        `{name: options}`.
    encoder_lr : learning rate of `model.encoder`; 0 for `lr`.
    decay_norms : whether the weights of norm layers and the biases are decayed too.

    Raises
    ------
    InputError
        A name or options that are unknown; an encoder_lr for a model without encoder.
    """
    encoder = getattr(model, "encoder", None)
    if encoder_lr and encoder is None:
        raise InputError(f"encoder_lr must be 0 for a model without an encoder, got {encoder_lr}; leave it out")
    apart = {id(parameter) for parameter in encoder.parameters()} if encoder_lr else set()
    decoder = [parameter for parameter in model.parameters() if id(parameter) not in apart]
    # The decoder first: its learning rate is the one that curves and tables show.
    groups = _split_by_decay(decoder, lr, weight_decay, decay_norms)
    if apart:
        groups += _split_by_decay(encoder.parameters(), encoder_lr, weight_decay, decay_norms)
    own = find_parts("optimizer")
    chosen, options = read_choice("optimizer", check_part("optimizer", name, own, list_optimizers()))
    if chosen in own:
        optimizer = own[chosen].build(groups, lr, weight_decay, **options)
    else:
        optimizer = create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=weight_decay, filter_bias_and_bn=False)
    optimizer.built_from = {"optimizer": name, "lr": lr, "weight_decay": weight_decay, "encoder_lr": encoder_lr}
    optimizer.built_from["decay_norms"] = decay_norms
    return optimizer


def _split_by_decay(
    parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, decay_norms: bool
) -> list[dict]:
    """Parameter groups: norms and biases, which have one dimension at most, are not decayed unless it is asked for."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    plain = [] if decay_norms else [parameter for parameter in trained if parameter.ndim <= 1]
    decayed = [parameter for parameter in trained if decay_norms or parameter.ndim > 1]
    groups = [(decayed, weight_decay), (plain, 0.0)]
    return [{"params": some, "lr": lr, "weight_decay": decay} for some, decay in groups if some]


# Learning-rate schedules: a linear warm-up, then a named curve; stepped by iteration or by epoch.


# Every curve gives the factor of the learning rate at `epoch` of `epochs`, fractions included, both counted from the end
# of the warm-up. torch's own schedulers cannot be stepped by iteration with options in epochs, put behind a warm-up,
# and looked at before training; their formulas are theirs, and the tests compare.


@register("scheduler")
def constant(epoch: float, epochs: float) -> float:
    """1."""
    return 1.0


@register("scheduler")
def cosine(epoch: float, epochs: float, min_factor: BelowOne = 0.0) -> float:
    """Half a cosine from 1 to min_factor (CosineAnnealingLR)."""
    return min_factor + (1 - min_factor) * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


@register("scheduler")
def cosine_restarts(
    epoch: float,
    epochs: float,
    T_0: NotNegative = 0.0,
    T_mult: Annotated[int, Field(ge=1)] = 2,
    min_factor: BelowOne = 0.0,
) -> float:
    """Half cosines of T_0 [epochs], T_0 * T_mult, ... (CosineAnnealingWarmRestarts); 0 is a third of them.

    With T_mult 2 the default makes two cycles that end with the training.
    """
    cycle, start = T_0 or epochs / 3, 0.0
    while epoch >= start + cycle:
        start, cycle = start + cycle, cycle * T_mult
    return cosine(epoch - start, cycle, min_factor)


@register("scheduler")
def step(
    epoch: float, epochs: float, step_size: NotNegative = 0.0, gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
) -> float:
    """gamma more after every step_size [epochs] (StepLR); 0 is a third of them."""
    return gamma ** math.floor(epoch / (step_size or epochs / 3))


@register("scheduler")
def multistep(
    epoch: float,
    epochs: float,
    milestones: Annotated[list[Positive], Field(min_length=1)] | None = None,
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1,
) -> float:
    """gamma more after each of the milestones [epochs] (MultiStepLR); by default after half and three quarters."""
    return gamma ** bisect_right(sorted(milestones or [epochs / 2, epochs * 3 / 4]), epoch)


@register("scheduler")
def polynomial(epoch: float, epochs: float, power: Positive = 0.9) -> float:
    """(1 - progress)^power (PolynomialLR); DeepLab's power by default."""
    return (1 - epoch / epochs) ** power


@register("scheduler")
def onecycle(
    epoch: float,
    epochs: float,
    pct_start: Annotated[float, Field(gt=0, lt=1)] = 0.3,
    div_factor: Annotated[float, Field(ge=1)] = 25.0,
    final_div_factor: Annotated[float, Field(ge=1)] = 1e4,
) -> float:
    """Up from 1/div_factor to 1 in pct_start of the epochs, then down to 1/(div_factor * final_div_factor).

    Both ways half a cosine (OneCycleLR; its momentum is not cycled along).
    """
    peak, low = pct_start * epochs, 1 / div_factor
    if epoch < peak:
        return low + (1 - low) * 0.5 * (1 - math.cos(math.pi * epoch / peak))
    return cosine(epoch - peak, epochs - peak, low / final_div_factor)


@register("scheduler")
def plateau(
    epoch: float,
    epochs: float,
    patience: Annotated[int, Field(ge=0)] = 2,
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1,
    min_factor: BelowOne = 0.0,
) -> float:
    """1, until the score has not become better for more than `patience` epochs: then `factor` more (ReduceLROnPlateau).

    The score is that of `select_by`; `Schedule` keeps it.
    """
    return 1.0


class Schedule(LambdaLR):
    """A schedule that is stepped after each optimizer step; `end_epoch` tells it the score of an epoch.

    What it has learnt from scores (`scale`, `best`, `waited`) is part of its state dict. From the iteration `held[0]` on
    the factor is `held[1]`, whatever the curve and the scores say.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor: Callable[[int], float],
        reduce: Mapping[str, float] | None,
        held: tuple[float, float] = (math.inf, 0.0),
    ):
        self.scale, self.best, self.waited, self.reduce = 1.0, -math.inf, 0, reduce
        begin, level = held
        super().__init__(optimizer, lambda iteration: level if iteration >= begin else factor(iteration) * self.scale)

    def state_dict(self) -> dict[str, Any]:
        """Without what it was built from, which a training that goes on with more epochs has otherwise."""
        return {name: value for name, value in super().state_dict().items() if name not in ("built_from", "length")}

    def preview(self, steps: int) -> np.ndarray:
        """Learning rate of each parameter group at each of the coming steps, (steps, groups) float64, as known now."""
        factors = np.array([self.lr_lambdas[0](iteration) for iteration in range(steps)])
        return factors[:, None] * np.array(self.base_lrs)

    def end_epoch(self, score: float) -> None:
        """Tell the score of an epoch, higher is better; only `plateau` listens."""
        if self.reduce is None:
            return
        self.waited = 0 if score > self.best else self.waited + 1
        self.best = max(self.best, score)
        if self.waited > self.reduce["patience"]:
            self.scale, self.waited = max(self.scale * self.reduce["factor"], self.reduce["min_factor"]), 0
            self._last_lr = [base * self.lr_lambdas[0](self.last_epoch) for base in self.base_lrs]
            for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
                group["lr"] = rate  # the next step is taken with it


def build_scheduler(
    name: str,
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    *,
    per: str = "iteration",
    options: Mapping[str, Any] | None = None,
    averaging: Mapping[str, Mapping[str, Any]] | None = None,
) -> Schedule:
    """Build a schedule over `epochs * steps_per_epoch` optimizer steps.

    With SWA among `averaging` its last epochs are made with SWA's own learning rate: `lr` of the first parameter group,
    the other groups in proportion; half of each group's own where it is not given.

    Parameters
    ----------
    name : shipped (`python -m seglib list scheduler`) or registered by you.
    warmup_epochs : length of the linear warm-up in front of the curve [epochs]; always stepped by iteration.
    per : {"iteration", "epoch"}, how often the curve is followed.
    options : the curve's own, see there.
    averaging : name -> options, see `seglib.training.averaging`.
    """
    factor = partial(
        compute_factor, name, epochs=epochs, steps_per_epoch=steps_per_epoch, warmup_epochs=warmup_epochs, per=per,
        options=options or {},
    )  # fmt: skip
    reduce = _bind_plateau(options or {}) if name == "plateau" else None
    swa, held = (averaging or {}).get("swa"), (math.inf, 0.0)
    if swa is not None:
        lr = optimizer.param_groups[0]["lr"]
        held = count_epochs_before_swa(epochs, **swa) * steps_per_epoch, swa.get("lr", lr / 2) / lr
    schedule = Schedule(optimizer, factor, reduce, held)
    schedule.length = epochs, steps_per_epoch
    schedule.built_from = {"scheduler": name, "schedule_per": per, "scheduler_options": options or {}}
    schedule.built_from |= {"warmup_epochs": warmup_epochs, "averaging": averaging or {}}
    return schedule


def count_epochs_before_swa(epochs: int, start: float = 0.75, **_: Any) -> int:
    """Epochs before those whose weights SWA averages: the share `start` of all, fewer where not two would be left."""
    return max(0, min(math.floor(round(start * epochs, 6)), epochs - 2))


def find_cycle_ends(
    epochs: int, steps_per_epoch: int, warmup_epochs: float, per: str, T_0: float = 0.0, T_mult: int = 2, **_: Any
) -> list[int]:
    """Optimizer steps after which each cycle of `cosine_restarts` is over, as far as they end within the training."""
    warmup = round(warmup_epochs * steps_per_epoch)
    length = max(1, epochs * steps_per_epoch - warmup)
    grid = steps_per_epoch if per == "epoch" else 1  # the curve is looked at once in so many steps
    cycle, end, ends = T_0 * steps_per_epoch or length / 3, 0.0, set()
    while (end := end + cycle) < length + 1e-6:
        ends.add(warmup + min(math.ceil(end / grid - 1e-6) * grid, length))
        cycle *= T_mult
    return sorted(ends)


def compute_factor(
    name: str, iteration: int, *, epochs: int, steps_per_epoch: int, warmup_epochs: float, per: str, options: Mapping
) -> float:
    """Factor of the learning rate in an iteration, counted from 0."""
    warmup = round(warmup_epochs * steps_per_epoch)
    if iteration < warmup:
        return (iteration + 1) / (warmup + 1)
    length = max(1, epochs * steps_per_epoch - warmup)
    passed = min(iteration - warmup, length)
    if per == "epoch":
        passed = passed // steps_per_epoch * steps_per_epoch
    return find_parts("scheduler")[name].build(passed / steps_per_epoch, length / steps_per_epoch, **options)


def _bind_plateau(options: Mapping) -> dict[str, float]:
    bound = inspect.signature(plateau).bind(0, 1, **options)
    bound.apply_defaults()
    return bound.arguments

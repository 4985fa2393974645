"""Running averages of a model's weights while it trains: EMA, SWA and snapshots, to be scored beside its plain weights."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from seglib.errors import InputError
from seglib.training.device import autocast, move
from seglib.training.optim import count_epochs_before_swa, find_cycle_ends

EMA_DECAY = 0.999
AVERAGES = ("ema", "swa", "snapshot")


class Averages:
    """The averages of one model; each holds one copy of its weights, on its device and in its memory format.

    What an average has taken follows from `steps`, the optimizer steps made so far, alone: a resumed run goes on with the
    same bits.

    Parameters
    ----------
    ema_decay : highest decay of the exponential moving average; None for no such average.
    taken_after : name -> the steps after which an average of equal shares takes the weights.
    """

    def __init__(self, model: nn.Module, ema_decay: float | None, taken_after: Mapping[str, Sequence[int]]):
        self.steps = 0
        self.model, self._ema_decay, self._taken_after = model, ema_decay, taken_after
        self.names = [*(["ema"] if ema_decay is not None else []), *taken_after]
        self._means: dict[str, dict[str, Tensor]] = {}

    def step(self) -> None:
        """To be called after each optimizer step; nothing waits for the device."""
        self.steps += 1
        for name in self.names:
            share = self._share(name)
            if share:
                self._add(name, share)

    def ready(self, last: bool) -> list[str]:
        """The averages to score after an epoch: the EMA after each, those of equal shares of two or more after the last."""
        if not last:
            return [name for name in self._means if name == "ema"]
        return [name for name in self._means if name == "ema" or len(self._taken(name)) > 1]

    @contextmanager
    def applied(self, name: str, loader: DataLoader, batch_size: int, precision: str) -> Iterator[None]:
        """The model holds an average's weights and buffers; afterwards its own again, bit for bit, whatever happened.

        Batch-norm statistics of SWA and of snapshots are estimated again, on the training images in the order and with the
        augmentations of (seed, epoch 0), which no epoch of the training has. Needs a second copy of the weights meanwhile.

        Parameters
        ----------
        loader : of the training images.
        batch_size : images on the device at a time.
        """
        live = self.model.state_dict()  # tensors that share the model's memory
        own = {each: tensor.clone() for each, tensor in live.items()}
        try:
            _copy(self._means[name], live)
            if name != "ema":
                with _epoch(loader, 0):
                    estimate_batch_norm(self.model, loader, batch_size, precision)
            yield
        finally:
            _copy(own, live)

    def state_dict(self) -> dict[str, Any]:
        """Tensors (shared, not copied), numbers, lists and dicts."""
        return {"steps": self.steps, "taken": {name: self._taken(name) for name in self.names}, "means": self._means}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises
        ------
        InputError
            It is of other averages, or of a training of another length, which took the weights at other steps.
        """
        self.steps = state["steps"]
        taken = {name: self._taken(name) for name in self.names}
        if state["taken"] != taken:
            raise InputError(
                f"averaging: required averages of the weights after the steps {taken}, the checkpoint has {state['taken']}: it is"
                " of a training of another length, or with other averages; train from the beginning"
            )
        live = self.model.state_dict()
        self._means = {
            name: {each: torch.empty_like(live[each]).copy_(tensor) for each, tensor in mean.items()}
            for name, mean in state["means"].items()
        }

    def _share(self, name: str) -> float:
        """How much of the average the present weights become."""
        if name == "ema":
            return 1 - min(self._ema_decay, self.steps / (self.steps + 9))
        return 1 / len(self._taken(name)) if self.steps in self._taken_after[name] else 0.0

    def _taken(self, name: str) -> list[int]:
        return [step for step in self._taken_after.get(name, []) if step <= self.steps]

    def _add(self, name: str, share: float) -> None:
        live = self.model.state_dict()
        if name not in self._means:
            self._means[name] = {each: tensor.clone() for each, tensor in live.items()}
            return
        mean = self._means[name]
        floats = [each for each, tensor in live.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([mean[each] for each in floats], [live[each] for each in floats], share)
        _copy({each: tensor for each, tensor in live.items() if not tensor.is_floating_point()}, mean)


def build_averages(
    averaging: Mapping[str, Mapping[str, Any]],
    model: nn.Module,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    *,
    per: str = "iteration",
    options: Mapping[str, Any] | None = None,
) -> Averages:
    """Build the averages of a training.

    ema : exponential moving average over steps (Polyak; Tarvainen and Valpola 2017), from the first step on. Its decay
        rises as n / (n + 9) with the steps n up to `decay` (0.999): it averages about the last tenth of the training,
        never more than 1 / (1 - decay) steps, so short trainings need no other decay.
    swa : equal shares of the weights after each epoch from `start` on (Izmailov et al. 2018), a share of the epochs
        (0.75, and at least the last two); `build_scheduler` holds its learning rate.
    snapshot : equal shares of the weights at the end of each cycle of `cosine_restarts`, where the learning rate is
        lowest (the members of Huang et al. 2017, whose predictions are averaged there).

    Parameters
    ----------
    averaging : name -> options.
    epochs, steps_per_epoch, warmup_epochs, per, options : of the schedule, as `build_scheduler` takes them.

    Raises
    ------
    InputError
        swa and snapshot together.
    """
    if "swa" in averaging and "snapshot" in averaging:
        raise InputError(
            "averaging: swa holds the learning rate, and snapshot needs its cycles to the end; choose one of them"
        )
    taken_after = {}
    if "swa" in averaging:
        before = count_epochs_before_swa(epochs, **averaging["swa"])
        taken_after["swa"] = [epoch * steps_per_epoch for epoch in range(before + 1, epochs + 1)]
    if "snapshot" in averaging:
        taken_after["snapshot"] = find_cycle_ends(epochs, steps_per_epoch, warmup_epochs, per, **(options or {}))
    for name, steps in taken_after.items():
        if len(steps) < 2:
            print(
                f"averaging.{name}: {len(steps)} of two or more times to take the weights is within {epochs} epochs: no average"
            )
    ema = averaging.get("ema")
    averages = Averages(model, None if ema is None else ema.get("decay", EMA_DECAY), taken_after)
    averages.built_from = {"averaging": averaging}
    return averages


@torch.no_grad()
def estimate_batch_norm(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], batch_size: int, precision: str
) -> None:
    """Estimate the statistics of batch norms again, as the mean over all batches: weights that were averaged need that.

    As `torch.optim.swa_utils.update_bn`, but everything besides batch norm is as it predicts: dropout, which update_bn
    leaves on, would give variances that no prediction has. Layers that see no batch (auxiliary heads) and layers whose
    weights are frozen keep their statistics; a model without batch norm is not run at all.

    Parameters
    ----------
    batches : images (N, 3, S, S) uint8 and masks.
    batch_size : images on the device at a time.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and _is_learnt(layer)]
    if not layers:
        return
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    model.eval()
    try:
        for layer in layers:
            layer.train()
            layer.num_batches_tracked.zero_()
            layer.momentum = None  # the mean of all since the count was 0
        for images, *_ in batches:
            # Batch norm may refuse a single image.
            parts = max(1, min(-(-len(images) // batch_size), len(images) // 2))
            for part in images.tensor_split(parts):
                with autocast(device, precision):
                    model(move(part, device))
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, training in modes:
            module.training = training


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    if source:
        torch._foreach_copy_([target[name] for name in source], list(source.values()))


def _is_learnt(layer: _BatchNorm) -> bool:
    return layer.running_mean is not None and (layer.weight is None or layer.weight.requires_grad)


@contextmanager
def _epoch(loader: DataLoader, epoch: int) -> Iterator[None]:
    sampler = loader.batch_sampler
    before, sampler.epoch = sampler.epoch, epoch
    try:
        yield
    finally:
        sampler.epoch = before

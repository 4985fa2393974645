"""One training step: the gradient of a batch, the change of the weights, memory that runs out, the sum of losses."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from seglib import ranks
from seglib.data.masks import IGNORE_INDEX
from seglib.errors import InputError
from seglib.models import IMAGENET_MEAN, IMAGENET_STD
from seglib.training.device import autocast, explain_nondeterminism, free_memory, peak_memory_mb

ComputeLoss = Callable[[Tensor, Tensor], Tensor]  # (images (N, 3, S, S), targets (N, S, S) int64) -> scalar
DIVERGED = 10  # times the lowest loss so far, and twice the first: a loss that comes back from there is not known
Targets = Tensor | list[tuple[Tensor, float]]  # masks (N, S, S) uint8; of mixed images: masks and their shares


def prepare_images(model: nn.Module, images: Tensor) -> Tensor:
    """Images (N, 3, S, S) uint8 as a model wants them: seglib's normalises its own, any other gets normalised floats."""
    if getattr(model, "takes_uint8", False) or images.dtype != torch.uint8:
        return images
    mean, std = (torch.tensor(each, device=images.device).view(1, 3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    return (images.float() / 255 - mean) / std


class ForwardOnce:
    """Context in which `model(images)` computes once for these very images, and then gives what it gave again.

    So a loss that is written for one output and one mask is asked once for each output of the model (auxiliary ones) and
    for each mask of a mixed image, and all share one forward pass.

    Attributes
    ----------
    outputs : of that pass, the main one first; None before it.
    shown : which of them `model(images)` gives.
    called : whether the model was called at all.
    """

    def __init__(self, model: nn.Module, images: Tensor):
        self.model, self.images = model, images
        self.outputs, self.shown, self.called = None, 0, False

    def __enter__(self) -> "ForwardOnce":
        self.compiled = vars(self.model).get("_compiled_call_impl")
        self.compute = self.compiled or self.model._call_impl
        self.model._compiled_call_impl = self  # what nn.Module.__call__ asks first; torch.compile stands there too
        return self

    def __exit__(self, *_: object) -> None:
        self.model._compiled_call_impl = self.compiled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.called = True
        if kwargs or len(args) != 1 or args[0] is not self.images:
            return self.compute(*args, **kwargs)
        if self.outputs is None:
            outputs = self.compute(self.images)
            self.outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return self.outputs[self.shown]


class GradientStep:
    """How the steps of a training are made.

    Parameters
    ----------
    scheduler : stepped after each change of the weights; None for none.
    precision : {"float32", "bfloat16", "float16"}
    accumulate : micro-batches of a step, see `backward`.
    clip_norm : longest gradient of a step, in the Euclidean norm over all weights; 0 for any.
    freeze_epochs : first epochs in which `model.encoder` keeps its weights and its batch-norm statistics.
    on_oom : {"fail", "accumulate"}, what to do when memory runs out, see `backward`.

    Attributes
    ----------
    split : micro-batches that each of the `accumulate` has been cut into since memory ran out.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: Any = None,
        *,
        precision: str = "float32",
        accumulate: int = 1,
        clip_norm: float = 0.0,
        freeze_epochs: int = 0,
        on_oom: str = "fail",
    ):
        if freeze_epochs and getattr(model, "encoder", None) is None:
            raise InputError(f"freeze_epochs must be 0 for a model without an encoder, got {freeze_epochs}")
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.precision, self.accumulate, self.clip_norm = precision, accumulate, clip_norm
        self.freeze_epochs, self.on_oom, self.split = freeze_epochs, on_oom, 1
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")

    def set_mode(self, epoch: int) -> None:
        """Make the model train, without its encoder in the epochs (from 1) in which that is frozen."""
        self.model.train()
        if self.freeze_epochs:
            frozen = epoch <= self.freeze_epochs
            self.model.encoder.requires_grad_(not frozen).train(not frozen)

    def backward(
        self, compute_loss: ComputeLoss, images: Tensor, targets: Targets, batch_size: int
    ) -> tuple[Tensor, Tensor]:
        """Leave the gradient of one batch in the weights' `grad`; return its loss and its valid pixels.

        The batch is cut into `accumulate` micro-batches, each weighted by its share of the batch's valid pixels: for cross
        entropy and focal loss without class weights the gradient is the whole batch's; other terms see one micro-batch at
        a time. Auxiliary outputs add to the gradient, not to the loss that is reported.

        Parameters
        ----------
        compute_loss : of a micro-batch; it calls `model(images)`.
        images : (N, 3, S, S) uint8, mixed already.
        batch_size : of a whole step; the last batch of an epoch may be smaller.

        Raises
        ------
        torch.OutOfMemoryError
            The micro-batch does not fit; the message says how many images do. With `on_oom: accumulate` only if not even
            the smallest does: otherwise micro-batches are halved from here on, and the step is made again.
        """
        targets = targets if isinstance(targets, list) else [(targets, 1.0)]
        self.optimizer.zero_grad(set_to_none=True)
        valid = [ranks.add_up(_count_valid(masks)) for masks, _ in targets]
        while True:
            parts = _count_parts(len(images), self.accumulate * self.split, batch_size)
            try:
                result = self._backward(compute_loss, images, targets, parts, valid)
                ranks.add_gradients(self.model)
                if self.scaler.is_enabled():
                    self.scaler.unscale_(self.optimizer)  # whoever looks at gradients before `update` sees plain ones
                return ranks.add_up(result[0]), result[1]
            except RuntimeError as error:
                if not is_oom(error):
                    self._explain(error, images)
                    raise
            except ValueError as error:
                if "more than 1 value per channel" in str(error):  # of torch, whose words name no image
                    raise InputError(_LONELY) from error
                raise
            # Not inside the handler: while the exception lives, so do the tensors of the step that failed.
            self._free()
            more = _count_parts(len(images), self.accumulate * self.split * 2, batch_size)
            alone = more == len(images) and not self._fits(compute_loss, images, targets, 1)
            if self.on_oom != "accumulate" or more == parts or alone or ranks.count() > 1:
                raise torch.OutOfMemoryError(self._explain_oom(compute_loss, images, targets, parts, batch_size))
            self.split *= 2
            print(
                f"out of memory with {-(-len(images) // parts)} images at a time; going on with"
                f" {-(-len(images) // more)}, the step is still of {len(images)}"
            )

    def update(self) -> None:
        """Change the weights by the gradient that `backward` left."""
        if self.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scheduler is not None:
            self.scheduler.step()

    def _backward(
        self, compute_loss: ComputeLoss, images: Tensor, targets: list, parts: int, valid: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """`valid`: pixels of the whole batch that count, for each of its masks."""
        valid = [pixels.clamp_min(1) for pixels in valid]
        total = torch.zeros((), device=images.device)
        cut = [masks.tensor_split(parts) for masks, _ in targets]
        for part, *masks_parts in zip(images.tensor_split(parts), *cut, strict=True):
            # A mixed image has a mask from each of its sources: shares (of the mixture) * (of the batch's valid pixels).
            shares = [
                share * (masks != IGNORE_INDEX).sum() / count
                for masks, count, (_, share) in zip(masks_parts, valid, targets, strict=True)
            ]
            part = prepare_images(self.model, part)
            with autocast(self.device, self.precision), ForwardOnce(self.model, part) as once:

                def compute(part=part, masks_parts=masks_parts, shares=shares) -> Tensor:
                    pairs = zip(shares, masks_parts, strict=True)
                    return sum(share * compute_loss(part, masks.long()) for share, masks in pairs)

                main = objective = compute()
                for shown in range(1, len(once.outputs or ())):
                    once.shown = shown
                    objective = objective + self.model.auxiliary_weight * compute()
            if not once.called:
                raise InputError(
                    "compute_loss: required a call of the trainer's model, got none; run the cells of the model, the optimizer and the trainer again"
                )
            self.scaler.scale(objective).backward()
            total = total + main.detach()
        return total, sum(share * count for count, (_, share) in zip(valid, targets, strict=True))

    def _explain(self, error: RuntimeError, images: Tensor) -> None:
        refusal = explain_nondeterminism(error, self.model, prepare_images(self.model, images[:2]))
        if refusal:
            raise InputError(refusal) from error

    def _explain_oom(
        self, compute_loss: ComputeLoss, images: Tensor, targets: list, parts: int, batch_size: int
    ) -> str:
        peak, size = peak_memory_mb(self.device), -(-len(images) // parts)
        fits, too_many = 0, size
        while too_many - fits > 1:
            count = (fits + too_many) // 2
            fits, too_many = (count, too_many) if self._fits(compute_loss, images, targets, count) else (fits, count)
        even = max((n for n in range(1, fits + 1) if batch_size % n == 0), default=0)  # keeps the step's size
        way_out = (
            f"{fits} do fit: set batch_size: {even} and accumulate: {batch_size // even}, or on_oom: accumulate"
            if fits
            else "not even one fits: lower image_size, or take a smaller model"
        )
        side = images.shape[-1]
        return f"out of memory: {size} images of {side} px at a time do not fit (peak {peak:.0f} MB); {way_out}"

    def _fits(self, compute_loss: ComputeLoss, images: Tensor, targets: list, count: int) -> bool:
        try:
            first = [(masks[:count], share) for masks, share in targets]
            self._backward(compute_loss, images[:count], first, 1, [_count_valid(masks) for masks, _ in first])
            fits = True
        except (RuntimeError, ValueError) as error:
            if not (is_oom(error) or count == 1):  # batch norm may refuse a single image
                raise
            fits = False
        self._free()
        return fits

    def _free(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        free_memory(self.device)


_LONELY = (
    "a batch of one image leaves a batch norm of this model one value per channel, and it needs two; set batch_size to 2 or"
    " more, and expand: 2 where there is one training image"
)


def is_oom(error: Exception) -> bool:
    """Also cuDNN's and oneDNN's own words, which torch does not translate, and tensors too large for a kernel's indices."""
    words = (
        *("_STATUS_ALLOC_FAILED", "unable to find an engine to execute", "valid cuDNN algorithm", "out of memory"),
        *("can't allocate memory", "could not create a primitive", "INT_MAX", "32-bit index", "canUse32BitIndexMath"),
    )
    return isinstance(error, torch.OutOfMemoryError) or any(word.lower() in str(error).lower() for word in words)


def _count_valid(masks: Tensor) -> Tensor:
    return (masks != IGNORE_INDEX).sum()


def _count_parts(count: int, accumulate: int, batch_size: int) -> int:
    """Micro-batches to cut a batch into: `accumulate`, fewer where the last batch would leave one image alone."""
    smallest = 1 if accumulate >= batch_size else 2  # batch norm refuses a single image in some models
    return max(1, min(accumulate, count // smallest))


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
            above 10 times the first step's). The message names the images of the batch where it was seen.
        """
        total, pixels, lost_at, highest, highest_at, first = self.sums.tolist()
        mean = total / max(1.0, pixels)
        if lost_at or not math.isfinite(mean):
            words = f"became {math.nan if lost_at else mean}"
            raise FloatingPointError(_explain(words, loader, epoch, int(lost_at or highest_at)))
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

"""One training step: a model and how it is trained, the gradients of a batch, and what happens when memory runs out."""

import gc
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from seglib.errors import InputError
from seglib.training.device import autocast, describe_device, explain_nondeterminism, forget_peak_memory, peak_memory_mb
from seglib.training.losses import Mixture
from seglib.training.mixing import Mix, Targets, keep_apart
from seglib.training.optim import Schedule

IGNORE_INDEX = 255


@dataclass
class Trainee:
    """A model and how each of its steps is made.

    Attributes
    ----------
    accumulate : micro-batches of a step, see `add_gradients`.
    precision : {"float32", "bfloat16", "float16"}
    mix : mixes the images of a batch, see `seglib.training.mixing`.
    clip_norm : longest gradient of a step, in the Euclidean norm over all weights; 0 for any.
    freeze_epochs : first epochs in which `model.encoder` keeps its weights and its batch-norm statistics.
    on_oom : {"fail", "accumulate"}, what to do when memory runs out, see `add_gradients`.
    split : micro-batches that each of the `accumulate` has been cut into since memory ran out.
    """

    model: nn.Module
    loss: nn.Module
    optimizer: Optimizer
    scheduler: Schedule
    device: torch.device
    precision: str = "float32"
    accumulate: int = 1
    mix: Mix = keep_apart
    clip_norm: float = 0.0
    freeze_epochs: int = 0
    on_oom: str = "fail"
    split: int = 1
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self):
        if self.freeze_epochs and self.model.encoder is None:
            raise InputError(f"freeze_epochs must be 0 for a model without an encoder, got {self.freeze_epochs}")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "float16")

    def compute_loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        """The loss of logits (N, C, H, W) and masks (N, H, W) uint8; a scalar.

        seglib's own takes masks as they are; any other, as torch's nn.CrossEntropyLoss, wants int64.
        """
        return self.loss(logits, masks if isinstance(self.loss, Mixture) else masks.long())

    def set_mode(self, epoch: int) -> None:
        """Make the model train, without its encoder in the epochs (from 1) in which that is frozen."""
        self.model.train()
        if self.freeze_epochs:
            frozen = epoch <= self.freeze_epochs
            self.model.encoder.requires_grad_(not frozen).train(not frozen)


def describe_conditions(trainee: Trainee) -> str:
    """What a step's last bits depend on besides its parameters."""
    return f"{describe_device(trainee.device)}, {torch.get_num_threads()} threads, {trainee.precision}"


def take_step(trainee: Trainee, images: Tensor, targets: Targets, batch_size: int) -> tuple[Tensor, Tensor]:
    """Change the weights by the gradient of one batch; see `add_gradients`."""
    trainee.optimizer.zero_grad(set_to_none=True)
    loss, valid = add_gradients(trainee, images, targets, batch_size)
    if trainee.clip_norm:
        trainee.scaler.unscale_(trainee.optimizer)
        nn.utils.clip_grad_norm_(trainee.model.parameters(), trainee.clip_norm)
    trainee.scaler.step(trainee.optimizer)
    trainee.scaler.update()
    trainee.scheduler.step()
    return loss, valid


def add_gradients(trainee: Trainee, images: Tensor, targets: Targets, batch_size: int) -> tuple[Tensor, Tensor]:
    """Add up the gradients of one batch, cut into micro-batches; return its loss and its valid pixels.

    Parameters
    ----------
    images : (N, 3, S, S) uint8, mixed already.
    targets : masks (N, S, S) uint8 and their shares.
    batch_size : of a whole step; the last batch of an epoch may be smaller.

    Raises
    ------
    torch.OutOfMemoryError
        The micro-batch does not fit; told with how many images do. With `on_oom: accumulate` only if not even the
        smallest does: otherwise micro-batches are halved from here on, and the step is made again.
    """
    while True:
        parts = _count_parts(len(images), trainee.accumulate * trainee.split, batch_size)
        try:
            return _backward(trainee, images, targets, parts)
        except RuntimeError as error:
            if not _is_oom(error):
                refusal = explain_nondeterminism(error, trainee.model, images[:2])
                if refusal:
                    raise InputError(refusal) from error
                raise
        # Not inside the handler: while the exception lives, so do the tensors of the step that failed.
        _free(trainee)
        more = _count_parts(len(images), trainee.accumulate * trainee.split * 2, batch_size)
        alone = more == len(images) and not _fits(trainee, images[:1], [(masks[:1], share) for masks, share in targets])
        if trainee.on_oom != "accumulate" or more == parts or alone:
            raise torch.OutOfMemoryError(_explain_oom(trainee, images, targets, parts, batch_size))
        trainee.split *= 2
        print(
            f"out of memory with {-(-len(images) // parts)} images at a time; going on with {-(-len(images) // more)},"
            f" the step is still of {len(images)}"
        )


def _is_oom(error: Exception) -> bool:
    """Also cuDNN's own words, which torch does not translate."""
    words = ("_STATUS_ALLOC_FAILED", "unable to find an engine to execute", "valid cuDNN algorithm")
    return isinstance(error, torch.OutOfMemoryError) or any(word.lower() in str(error).lower() for word in words)


def _explain_oom(trainee: Trainee, images: Tensor, targets: Targets, parts: int, batch_size: int) -> str:
    peak, size = peak_memory_mb(trainee.device), -(-len(images) // parts)
    fits, too_many = 0, size
    while too_many - fits > 1:
        count = (fits + too_many) // 2
        if _fits(trainee, images[:count], [(masks[:count], share) for masks, share in targets]):
            fits = count
        else:
            too_many = count
    even = max((count for count in range(1, fits + 1) if batch_size % count == 0), default=0)  # keeps the step's size
    way_out = (
        f"{fits} do fit: set batch_size: {even} and accumulate: {batch_size // even}, or on_oom: accumulate"
        if fits
        else "not even one fits: lower image_size, or take a smaller model"
    )
    return f"out of memory: {size} images of {images.shape[-1]} px at a time do not fit (peak {peak:.0f} MB); {way_out}"


def _fits(trainee: Trainee, images: Tensor, targets: Targets) -> bool:
    try:
        _backward(trainee, images, targets, parts=1)
        fits = True
    except (RuntimeError, ValueError) as error:
        if not (_is_oom(error) or len(images) == 1):  # batch norm may refuse a single image
            raise
        fits = False
    _free(trainee)
    return fits


def _free(trainee: Trainee) -> None:
    trainee.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if trainee.device.type == "cuda":
        torch.cuda.empty_cache()
        forget_peak_memory(trainee.device)  # it is of what did not fit


def _backward(trainee: Trainee, images: Tensor, targets: Targets, parts: int) -> tuple[Tensor, Tensor]:
    """See `add_gradients`.

    Each micro-batch is weighted by its share of the batch's valid pixels: for cross entropy and focal loss without
    class weights the gradient is the whole batch's; other terms see one micro-batch at a time. Auxiliary outputs add to the gradient, not to the loss that is shown.
    """
    valid = [(masks != IGNORE_INDEX).sum().clamp_min(1) for masks, _ in targets]
    total = torch.zeros((), device=images.device)
    cut = [masks.tensor_split(parts) for masks, _ in targets]
    for images_part, *masks_parts in zip(images.tensor_split(parts), *cut, strict=True):
        # A mixed image has a mask from each of its sources: shares (of the mixture) * (of the batch's valid pixels).
        shares = [
            share * (masks != IGNORE_INDEX).sum() / count
            for masks, count, (_, share) in zip(masks_parts, valid, targets, strict=True)
        ]
        with autocast(trainee.device, trainee.precision):
            outputs = trainee.model(images_part)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            values = [
                sum(
                    share * trainee.compute_loss(logits, masks)
                    for share, masks in zip(shares, masks_parts, strict=True)
                )
                for logits in outputs
            ]
        objective = values[0] + sum(trainee.model.auxiliary_weight * value for value in values[1:])
        trainee.scaler.scale(objective).backward()
        total = total + values[0].detach()
    return total, sum(share * count for count, (_, share) in zip(valid, targets, strict=True))


def _count_parts(count: int, accumulate: int, batch_size: int) -> int:
    """Micro-batches to cut a batch into: `accumulate`, fewer where the last batch would leave one image alone."""
    smallest = 1 if accumulate >= batch_size else 2  # batch norm refuses a single image in some models
    return max(1, min(accumulate, count // smallest))

"""The training loop: plain PyTorch, everything passed in, short enough to read in one sitting."""

import math
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from seglib.errors import InputError
from seglib.evaluation.metrics import compute_metrics, confusion_per_image, save_confusion
from seglib.files import replacing
from seglib.training.batch_mixing import Mix, keep_apart
from seglib.training.checkpoint import load_checkpoint, save_checkpoint
from seglib.training.reproducibility import seed_epoch
from seglib.training.schedule import Schedule

IGNORE_INDEX = 255
BETTER = {"miou": 1, "miou_image": 1, "accuracy": 1, "loss": -1}  # 1: higher is better


class Watcher(Protocol):
    """Who looks on while a model trains."""

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Told after each step."""

    def epoch(self, history: pd.DataFrame) -> None:
        """Told after each epoch, with all epochs so far."""


@dataclass(frozen=True)
class Evaluation:
    """Predictions against truth: `confusion` (images, classes, classes) int64 with truth in rows, and the mean loss."""

    confusion: np.ndarray
    loss: float


def train(
    model: nn.Module,
    loss: nn.Module,
    optimizer: Optimizer,
    scheduler: Schedule,
    train_loader: DataLoader,
    val_loader: DataLoader,
    *,
    epochs: int,
    accumulate: int,
    precision: str,
    device: torch.device,
    seed: int,
    select_by: str,
    run_dir: Path,
    checkpoint_facts: dict,
    watcher: Watcher,
    mix: Mix = keep_apart,
) -> pd.DataFrame:
    """Train, evaluate after each epoch, keep the best weights; go on where an earlier process stopped.

    Writes into `run_dir`: best.pt and confusion.npz when `select_by` improves, history.csv and last.pt after each
    epoch, last.pt at the very end of it: whatever a kill leaves behind, the next process repeats the epoch it was in.

    Parameters
    ----------
    train_loader : gives batches of up to accumulate * batch_size images, see `train_one_epoch`.
    checkpoint_facts : plain values that best.pt and last.pt carry: how to build the model, class names.
    mix : mixes the images of a batch, see `seglib.training.batch_mixing`.

    Returns
    -------
    One row an epoch: epoch (from 1), lr, train_loss, val_loss, miou, miou_image, miou_batch, accuracy, seconds,
    memory_mb.
    """
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    rows, best = _resume(run_dir / "last.pt", state, checkpoint_facts)
    class_names, image_ids = checkpoint_facts["class_names"], val_loader.dataset.subset.image_ids
    for epoch in range(len(rows) + 1, epochs + 1):
        began = time.monotonic()
        learning_rate = scheduler.get_last_lr()[0]
        seed_epoch(seed, epoch)
        train_loss = train_one_epoch(
            model, loss, optimizer, scheduler, scaler, train_loader, epoch, accumulate, precision, device, watcher, mix
        )
        evaluation = evaluate(model, loss, val_loader, len(class_names), precision, device)
        metrics = compute_metrics(evaluation.confusion, class_names, val_loader.batch_sampler.batch_size)
        scores = {name: metrics[name] for name in ("miou", "miou_image", "miou_batch", "accuracy")}
        seconds = time.monotonic() - began
        rows.append({"epoch": epoch, "lr": learning_rate, "train_loss": train_loss, "val_loss": evaluation.loss, **scores,
                     "seconds": round(seconds, 3), "memory_mb": peak_memory_mb(device)})  # fmt: skip
        score = BETTER[select_by] * (scores | {"loss": evaluation.loss})[select_by]
        scheduler.end_epoch(score)
        if best is None or score > best:
            best = score
            save_checkpoint(run_dir / "best.pt", {"model": model.state_dict(), "epoch": epoch, **checkpoint_facts})
            save_confusion(run_dir / "confusion.npz", evaluation.confusion, image_ids, class_names)
        history = pd.DataFrame(rows)
        with replacing(run_dir / "history.csv") as temporary:
            history.to_csv(temporary, index=False)
        parts = {name: part.state_dict() for name, part in state.items()}
        save_checkpoint(run_dir / "last.pt", {**parts, "history": rows, "best": best, **checkpoint_facts})
        watcher.epoch(history)
    return pd.DataFrame(rows)


def train_one_epoch(
    model: nn.Module,
    loss: nn.Module,
    optimizer: Optimizer,
    scheduler: Schedule,
    scaler: torch.amp.GradScaler,
    loader: DataLoader,
    epoch: int,
    accumulate: int,
    precision: str,
    device: torch.device,
    watcher: Watcher,
    mix: Mix = keep_apart,
) -> float:
    """One pass over the training images; return the mean loss over its valid pixels.

    The loader's batches are mixed, then cut into `accumulate` micro-batches, see `_backward`. Counts and losses stay on
    the device until the epoch's end.
    """
    model.train()
    loader.batch_sampler.epoch = epoch
    total, pixels = torch.zeros(2, device=device, dtype=torch.float64)
    for step, (images, masks) in enumerate(loader, 1):
        images, targets = mix(move(images, device), move(masks, device), epoch, step)
        optimizer.zero_grad(set_to_none=True)
        parts = _count_parts(len(images), accumulate, loader.batch_sampler.batch_size)
        value, valid = _backward(model, loss, scaler, images, targets, parts, precision)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        total, pixels = total + value * valid, pixels + valid
        watcher.step(epoch, step, len(loader))
    mean = float(total) / max(1.0, float(pixels))
    if not math.isfinite(mean):
        raise FloatingPointError(f"the training loss became {mean} in epoch {epoch}; lower lr, or set precision: float32")
    return mean


def _backward(
    model: nn.Module, loss: nn.Module, scaler: torch.amp.GradScaler, images: Tensor, targets: list, parts: int, precision: str
) -> tuple[Tensor, Tensor]:
    """Add up the gradients of one batch, cut into micro-batches; return its loss and its valid pixels.

    Each micro-batch is weighted by its share of the batch's valid pixels: for losses that are means over pixels the
    gradient is the whole batch's. Auxiliary outputs add to the gradient, not to the loss that is shown.
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
        with autocast(images.device, precision):
            outputs = model(images_part)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            values = [
                sum(share * loss(logits, masks) for share, masks in zip(shares, masks_parts, strict=True))
                for logits in outputs
            ]
        objective = values[0] + sum(model.auxiliary_weight * value for value in values[1:])
        scaler.scale(objective).backward()
        total = total + values[0].detach()
    return total, sum(share * count for count, (_, share) in zip(valid, targets, strict=True))


def _count_parts(count: int, accumulate: int, batch_size: int) -> int:
    """Micro-batches to cut a batch into: `accumulate`, fewer where the last batch would leave one image alone."""
    smallest = 1 if batch_size == accumulate else 2  # batch norm refuses a single image in some models
    return max(1, min(accumulate, count // smallest))


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


def choose_precision(precision: str, device: torch.device) -> str:
    """What `auto` means here: bfloat16 where the device computes in it natively, float32 otherwise."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context in which layers compute in bfloat16 or float16 where that is safe; float32 leaves them alone."""
    return torch.autocast(device.type, dtype=getattr(torch, precision), enabled=precision != "float32")


def move(batch: Tensor, device: torch.device) -> Tensor:
    """Send a batch to the device without waiting for it (the loader pins its memory)."""
    return batch.to(device, non_blocking=True)


def peak_memory_mb(device: torch.device) -> float:
    """Highest memory so far [MB]: the device's on CUDA, else the process's."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)


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


def _resume(path: Path, state: dict, facts: dict) -> tuple[list[dict], float | None]:
    """Load where an earlier process of the same run stopped; nothing if it never finished an epoch."""
    if not path.exists():
        return [], None
    saved = load_checkpoint(path, required=(*state, "history", "best", *facts))
    different = [name for name, value in facts.items() if saved[name] != value]
    if different:
        raise InputError(f"{path}: is of another run, with other {', '.join(different)}; required a new run_dir")
    for name, part in state.items():
        part.load_state_dict(saved[name])
    print(f"going on after epoch {len(saved['history'])}, where an earlier process stopped")
    return list(saved["history"]), saved["best"]

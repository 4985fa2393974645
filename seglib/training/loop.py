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
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from seglib.errors import InputError
from seglib.evaluation.metrics import compute_metrics, confusion_per_image, save_confusion
from seglib.files import replacing
from seglib.training.checkpoint import load_checkpoint, save_checkpoint
from seglib.training.reproducibility import seed_epoch

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
    scheduler: LRScheduler,
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
) -> pd.DataFrame:
    """Train, evaluate after each epoch, keep the best weights; go on where an earlier process stopped.

    Writes into `run_dir`: best.pt and confusion.npz when `select_by` improves, history.csv and last.pt after each
    epoch, last.pt at the very end of it: whatever a kill leaves behind, the next process repeats the epoch it was in.

    Parameters
    ----------
    train_loader : gives batches of up to accumulate * batch_size images, see `train_one_epoch`.
    checkpoint_facts : plain values that best.pt and last.pt carry: how to build the model, class names.

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
            model, loss, optimizer, scheduler, scaler, train_loader, epoch, accumulate, precision, device, watcher
        )
        evaluation = evaluate(model, loss, val_loader, len(class_names), precision, device)
        metrics = compute_metrics(evaluation.confusion, class_names, val_loader.batch_sampler.batch_size)
        scores = {name: metrics[name] for name in ("miou", "miou_image", "miou_batch", "accuracy")}
        seconds = time.monotonic() - began
        rows.append({"epoch": epoch, "lr": learning_rate, "train_loss": train_loss, "val_loss": evaluation.loss, **scores,
                     "seconds": round(seconds, 3), "memory_mb": peak_memory_mb(device)})  # fmt: skip
        score = BETTER[select_by] * (scores | {"loss": evaluation.loss})[select_by]
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
    scheduler: LRScheduler,
    scaler: torch.amp.GradScaler,
    loader: DataLoader,
    epoch: int,
    accumulate: int,
    precision: str,
    device: torch.device,
    watcher: Watcher,
) -> float:
    """One pass over the training images; return the mean loss over its valid pixels.

    The loader's batches are cut into `accumulate` micro-batches, each weighted by its share of the batch's valid
    pixels: for losses that are means over pixels the gradient is the whole batch's.
    """
    model.train()
    loader.batch_sampler.epoch = epoch
    total, pixels = torch.zeros((), device=device), 0
    for step, (images, masks) in enumerate(loader, 1):
        valid = int((masks != IGNORE_INDEX).sum())  # counted before the transfer: the device is not waited for
        optimizer.zero_grad(set_to_none=True)
        parts = _count_parts(len(images), accumulate, loader.batch_sampler.batch_size)
        for images_part, masks_part in zip(images.tensor_split(parts), masks.tensor_split(parts), strict=True):
            share = int((masks_part != IGNORE_INDEX).sum()) / max(1, valid)
            images_part, masks_part = move(images_part, device), move(masks_part, device)
            with autocast(device, precision):
                value = loss(model(images_part), masks_part) * share
            scaler.scale(value).backward()
            total += value.detach() * valid
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        pixels += valid
        watcher.step(epoch, step, len(loader))
    mean = float(total) / max(1, pixels)
    if not math.isfinite(mean):
        raise FloatingPointError(f"the training loss became {mean} in epoch {epoch}; lower lr, or set precision: float32")
    return mean


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

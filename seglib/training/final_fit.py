"""The last fit: the best weights, trained a little more on training and validation images together, for the test set."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from seglib.files import replacing
from seglib.training.averaging import build_averages
from seglib.training.checkpoint import hash_weights, save_checkpoint
from seglib.training.device import forget_peak_memory, peak_memory_mb
from seglib.training.loop import train_one_epoch
from seglib.training.schedule import build_scheduler
from seglib.training.state import Position, TrainingState
from seglib.training.step import Trainee


def fit_everything(
    trainee: Trainee,
    optimizer: Optimizer,
    loader: DataLoader,
    *,
    after: int,
    epochs: int,
    seed: int,
    run_dir: Path,
    checkpoint_facts: Mapping[str, Any],
    progress: Callable[[int, int], None],
    minutes: float = 0,
) -> dict[str, Any]:
    """Train on all images and write run_dir/final.pt; its folder final_fit/ holds what a killed process goes on from.

    No image is left to score these weights with: the run's scores remain those of best.pt.

    Parameters
    ----------
    trainee : its model holds the best weights; how its steps are made stays as it is.
    optimizer : a new one, of a learning rate that is small and stays, over what is trained after the last epoch.
    after : epochs of the training before; these are counted on from there, so that no draw is made twice.

    progress : called with (steps done, steps in all).
    minutes : between two checkpoints within an epoch; 0 for none.

    Returns
    -------
    For the record: epochs, seconds, peak_memory_mb, oom_split, weights_sha256 of final.pt.
    """
    folder = run_dir / "final_fit"
    folder.mkdir(exist_ok=True)
    schedule = build_scheduler("constant", optimizer, epochs, len(loader), 0)
    trainee = replace(trainee, optimizer=optimizer, scheduler=schedule)
    averages = build_averages({}, trainee.model, epochs, len(loader), 0)
    state = TrainingState(folder / "last.pt", trainee, averages, checkpoint_facts, minutes)
    position = state.resume()
    while len(position.rows) < epochs:
        epoch, began = after + position.epoch, time.monotonic() - position.seconds
        position.lr = position.lr if position.step else trainee.scheduler.get_last_lr()[0]
        row = {"epoch": epoch, "lr": position.lr}
        forget_peak_memory(trainee.device)

        def after_step(position: Position = position, began: float = began) -> None:
            position.seconds = time.monotonic() - began
            state.save_now_and_then(position)
            progress(len(position.rows) * len(loader) + position.step, epochs * len(loader))

        row["train_loss"] = train_one_epoch(trainee, loader, epoch, seed, position, averages, after_step)
        row |= {"seconds": round(time.monotonic() - began, 3), "memory_mb": peak_memory_mb(trainee.device)}
        position = Position([*position.rows, row])
        state.save(position)
    history = pd.DataFrame(position.rows)
    with replacing(folder / "history.csv") as temporary:
        history.to_csv(temporary, index=False)
    facts = {"epoch": int(history["epoch"].iloc[-1]), **checkpoint_facts}
    save_checkpoint(run_dir / "final.pt", {"model": trainee.model.state_dict(), **facts})
    return {
        "epochs": epochs, "seconds": round(float(history["seconds"].sum()), 2), "peak_memory_mb": float(history["memory_mb"].max()),
        "oom_split": trainee.split, "weights_sha256": hash_weights(trainee.model.state_dict()),
    }  # fmt: skip

"""The trainer: the epochs, batches, steps and evaluations of a training whose loop stands in the notebook."""

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from seglib import ranks
from seglib.errors import InputError, StoppedForNow, read_whole
from seglib.evaluation.metrics import compute_metrics, load_confusion, save_confusion
from seglib.files import STOP_AFTER, replacing
from seglib.parts import build_callbacks
from seglib.runs.record import read_record, reopen_run, update_record
from seglib.training.averaging import Averages, build_averages
from seglib.training.belonging import (
    describe_identity,
    find_made_by_hand,
    find_referred,
    require_belonging,
    require_built_from,
    require_unchanged,
)
from seglib.training.checkpoint import (
    Position,
    TrainingState,
    continue_run,
    hash_weights,
    load_checkpoint,
    save_checkpoint,
)
from seglib.training.device import (
    choose_precision,
    describe_device,
    forget_peak_memory,
    move,
    peak_memory_mb,
    seed_epoch,
)
from seglib.training.estimate import Estimate, estimate_training
from seglib.training.mixing import Mix
from seglib.training.optim import build_scheduler
from seglib.training.scoring import evaluate, find_best, order, require_falling_loss
from seglib.training.step import ComputeLoss, EpochLoss, GradientStep, Targets

SETTINGS = {  # what a trainer reads from the parameters, and what it does without them
    "seed": 0, "precision": "auto", "accumulate": 1, "clip_norm": 0.0, "freeze_epochs": 0, "on_oom": "fail",
    "select_by": "miou", "patience": 0, "checkpoint_minutes": 10.0, "continue_from": "", "parts": (),
}  # fmt: skip


class Trainer:
    """Trains a model in a loop that stands in the notebook, and keeps what comes of it in the run's folder.

    ::

        for epoch in trainer.epochs():                    # resumes by itself
            for images, targets in trainer.batches():     # on the device, mixed, counted
                trainer.step(compute_loss, images, targets)
            trainer.evaluate()                            # scores, best weights, history, checkpoint

    `compute_loss(images, targets)` calls the model and returns a scalar; it gets a micro-batch: images as the model wants
    them, targets (N, S, S) int64 with 255 where a pixel is ignored. Where images are mixed, or the model has auxiliary
    outputs, it is called once for each mask and output, and `model(images)` is computed once for all.

    In `run_dir`: best.pt and confusion.npz when `select_by` improves, history.csv and last.pt after each epoch, last.pt
    every `checkpoint_minutes` within. Whatever a kill leaves behind, the next process repeats what is missing, to the bit.

    Parameters
    ----------
    model : on its device, not trained yet.
    optimizer : of the model's weights.
    scheduler : of the optimizer, stepped after each step: a schedule of seglib or any of torch that is.
    train_loader, val_loader : of `build_loader`; training batches have accumulate * batch_size images.
    parameters : the view `p`, or a mapping; read are seed, precision, accumulate, clip_norm, freeze_epochs, on_oom,
        select_by, patience, checkpoint_minutes, continue_from, callbacks, debug and parts.
    num_epochs : passes over the training images.
    averages : of the weights; each is evaluated beside the plain ones, and kept where it is better.
    mix : of a batch on the device.
    callbacks : objects with any of on_step(trainer), on_epoch(trainer), on_end(trainer); those that the parameter
        `callbacks` names follow them. One with state_dict() and load_state_dict(state) goes on after a kill where it was.
    data_hash : of the data's content, by `fingerprint_sets`.

    Raises
    ------
    InputError
        Objects that do not belong together; the message names the cell to run again.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: Any,
        train_loader: DataLoader,
        val_loader: DataLoader,
        *,
        parameters: Mapping[str, Any],
        run_dir: str | Path,
        num_epochs: int,
        averages: Averages | None = None,
        mix: Mix | None = None,
        callbacks: Iterable[object] = (),
        data_hash: str = "",
    ):
        self.model, self.train_loader, self.val_loader = model, train_loader, val_loader
        self.num_epochs, self.run_dir = num_epochs, Path(run_dir)
        self._folder = ranks.find_main_folder(self.run_dir)  # of last.pt and history.csv
        self.mix, self.averages = mix, averages or build_averages({}, model, num_epochs, len(train_loader), 0)
        self.parameters, self.values = parameters, dict(parameters)
        self.callbacks = [*callbacks, *build_callbacks(self.values.get("callbacks", {}))]
        self.settings = SETTINGS | {name: self.values[name] for name in SETTINGS if name in self.values}
        options = {name: self.settings[name] for name in ("accumulate", "clip_norm", "freeze_epochs", "on_oom")}
        self.precision = choose_precision(self.settings["precision"], next(model.parameters()).device)
        self._step = GradientStep(model, optimizer, scheduler, precision=self.precision, **options)
        self.class_names = list(train_loader.dataset.subset.data.class_names)
        self.compute_loss: ComputeLoss | None = None
        self.position, self._first_epoch, self._estimate, self._final = Position(), 0, None, None
        self.data_hash, self.ranks = data_hash, ranks.count()
        require_belonging(self)
        ranks.require_shares(len(train_loader.dataset), train_loader.batch_sampler.batch_size)
        ranks.join(model, self._step.device)
        self.identity = describe_identity(self)

    # What the notebook's loop calls.

    def epochs(self) -> Iterator[int]:
        """Give the number of each epoch that is still to be made, from 1."""
        require_unchanged(self)
        continue_run(
            self.settings["continue_from"], self.run_dir, self.identity, self.scheduler, len(self.train_loader)
        )
        minutes = self.settings["checkpoint_minutes"]
        self._state = TrainingState(
            self._folder / "last.pt", self._step, self.averages, self.identity, self.callbacks, minutes
        )
        self.model.is_trained = True
        if not ranks.is_first():
            ranks.wait()  # until the first has a checkpoint that can be read, be it of the beginning
        self.position = self._state.resume()
        if ranks.is_first():
            ranks.wait()
        if not self._is_over(self.position.rows):
            reopen_run(self.run_dir)
        while not self._is_over(self.position.rows):
            self._stop_for_now()
            epoch = self._begin_epoch()
            yield self._first_epoch + epoch
            if self.position.epoch == epoch:
                raise InputError(f"trainer: epoch {epoch} has no scores; end the loop's body with trainer.evaluate()")
        self._write_history()  # where no epoch was left to train, nothing is there yet
        self._call("on_end")
        ranks.leave()

    def batches(self) -> Iterator[tuple[Tensor, Targets]]:
        """Give the batches of an epoch that are still to be made: images (N, 3, S, S) uint8 and their targets.

        Targets are masks (N, S, S) uint8; where images are mixed a list of (masks, share), whose shares sum to 1.
        """
        position, sampler = self.position, self.train_loader.batch_sampler
        if not position.step:  # else the generators are those of the step that comes
            seed_epoch(self.settings["seed"], self.epoch)
        self._step.set_mode(self.epoch)
        sampler.epoch, sampler.first = self.epoch, position.step
        self._losses = EpochLoss(self.device, position.loss)
        for number, (images, masks) in enumerate(self.train_loader, position.step + 1):
            position.step = number
            images, masks = move(images, self.device), move(masks, self.device)
            yield self.mix(images, masks, self.epoch, number) if self.mix else (images, masks)
        sampler.first = 0  # the next pass may be another's

    def step(self, compute_loss: ComputeLoss, images: Tensor, targets: Targets) -> None:
        """Change the weights by the gradient of one batch: `backward`, then `update`."""
        self.backward(compute_loss, images, targets)
        self.update()

    def backward(self, compute_loss: ComputeLoss, images: Tensor, targets: Targets) -> None:
        """Leave the gradient of one batch in the weights' `grad`, where it can be changed before `update`."""
        if compute_loss is not self.compute_loss:
            require_built_from(self, find_referred(compute_loss))
            self.compute_loss = compute_loss
        size = self.train_loader.batch_sampler.batch_size
        self._loss, self._valid = self._step.backward(compute_loss, images, targets, size)

    def update(self) -> None:
        """Change the weights by the gradient that `backward` left; count the step, save now and then."""
        self._step.update()
        self.averages.step()
        self._losses.add(self.position.step, self._loss, self._valid)
        self.position.loss = self._losses.sums
        self.position.seconds = time.monotonic() - self._began
        self._call("on_step")  # first: what it changed is saved with what it knows
        if self.position.step < len(self.train_loader):  # the last one's is the epoch's
            self._state.save_now_and_then(self.position)

    def evaluate(self) -> None:
        """End an epoch: score the weights and their averages, keep the best, write history and checkpoint.

        Raises
        ------
        FloatingPointError
            The loss is no longer a number, or has diverged; the message names the images of that batch.
        """
        position, previous = self.position, [row["train_loss"] for row in self.position.rows]
        row = {"epoch": self.epoch, "lr": position.lr}
        row["train_loss"] = self._losses.take_mean(self.train_loader, self.epoch, previous)
        ranks.share_buffers(self.model)
        if self.val_loader is not None:
            row |= self._score("plain")
            if hasattr(self.scheduler, "end_epoch"):
                self.scheduler.end_epoch(order(row, self.settings["select_by"]))
            for name in self.averages.ready(last=self._is_over([*position.rows, row])):
                size = self.val_loader.batch_sampler.batch_size
                with self.averages.applied(name, self.train_loader, size, self.precision):
                    row |= {f"{name}_{score}": value for score, value in self._score(name).items()}
        row |= {"seconds": round(time.monotonic() - self._began, 3), "memory_mb": peak_memory_mb(self.device)}
        row["conditions"] = f"{describe_device(self.device)}, {torch.get_num_threads()} threads, {self.precision}"
        row["conditions"] += f", {ranks.count()} processes" if ranks.count() > 1 else ""
        self.position = Position([*position.rows, row], position.best)
        self._write_history()
        self._call("on_epoch")
        self._state.save(self.position)

    def run(self, compute_loss: ComputeLoss) -> pd.DataFrame:
        """The loop above; returns the history."""
        for _ in self.epochs():
            for images, targets in self.batches():
                self.step(compute_loss, images, targets)
            self.evaluate()
        return self.history

    def set_mode(self, epoch: int) -> None:
        """Make the model train, without its encoder in the epochs (from 1) in which that is frozen."""
        self._step.set_mode(epoch)

    # What comes of it.

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._step.device

    @property
    def optimizer(self) -> Optimizer:
        """What changes the weights."""
        return self._step.optimizer

    @property
    def scheduler(self) -> Any:
        """What changes the optimizer's learning rate."""
        return self._step.scheduler

    @property
    def epoch(self) -> int:
        """The epoch that is made, from 1."""
        return self._first_epoch + self.position.epoch

    @property
    def history(self) -> pd.DataFrame:
        """One row per finished epoch, as in history.csv.

        epoch (from 1), lr, train_loss, val_loss, miou, miou_image, miou_batch, accuracy, seconds, memory_mb, conditions
        (device, threads, precision: other ones give other last bits); and ema_miou, ema_val_loss, ... of each average,
        where it was evaluated.
        """
        return pd.DataFrame(self.position.rows)

    def estimate(self, compute_loss: ComputeLoss) -> Estimate:
        """Time three steps and one batch of an evaluation, and put everything back; see `estimate_training`."""
        require_built_from(self, find_referred(compute_loss))
        self.compute_loss = compute_loss
        self._estimate = estimate_training(
            self._step, compute_loss, self.train_loader, self.val_loader, mix=self.mix, epochs=self.num_epochs,
            seed=self.settings["seed"], evaluations=1 + ("ema" in self.averages.names),
        )  # fmt: skip
        if (read_record(self.run_dir) or {}).get("status") == "running":
            device = describe_device(self.device)
            update_record(self.run_dir, estimate=vars(self._estimate), device=device)  # before the hours it speaks of
        return self._estimate

    def load_best(self) -> dict[str, Any]:
        """Give the model the best weights; return best.pt: model, epoch, weights (plain, ema, ...), ..."""
        best = self._read_best()
        self.model.load_state_dict(best["model"])
        return best

    def describe_result(self) -> dict[str, Any]:
        """What the record keeps: the best epoch and its scores, the hash of its weights, cost and conditions.

        Raises
        ------
        RuntimeError
            In a debug trial, where the training loss did not fall.
        """
        if self.values.get("debug"):
            require_falling_loss(self.history)
        best = self._read_best()
        confusion, _, _ = load_confusion(self.run_dir / "confusion.npz")
        metrics = compute_metrics(confusion, self.class_names, self.val_loader.batch_sampler.batch_size)
        column = "val_loss" if best["weights"] == "plain" else f"{best['weights']}_val_loss"
        history = self.history
        metrics["loss"] = float(history.loc[history["epoch"] == best["epoch"], column].item())
        return {
            "made_in": str(self.run_dir),
            "best_epoch": int(best["epoch"]),
            "weights": best["weights"],
            "best_epochs": find_best(history),
            "metrics": metrics,
            "weights_sha256": hash_weights(best["model"]),
            "seconds": round(float(history["seconds"].sum()), 2),
            "peak_memory_mb": float(history["memory_mb"].max()),
            "estimate": vars(self._estimate) if self._estimate else None,
            "oom_split": self._step.split,
            "made_by_hand": find_made_by_hand(self),
            "device": describe_device(self.device),
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            **({"processes": self.ranks} if self.ranks > 1 else {}),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "data_hash": self.data_hash,
            "conditions_changed": len(set(history["conditions"])) > 1,
            "train_images": len(self.train_loader.dataset.subset),
            "val_images": len(self.val_loader.dataset.subset),
            "painted": {
                name: loader.dataset.subset.count_painted()
                for name, loader in (("train", self.train_loader), ("val", self.val_loader))
            },
        }

    @property
    def final_fit(self) -> dict[str, Any] | None:
        """What `fit_all` came to; None where the parameter `final_fit` asks for none."""
        if self._final is None and self.values.get("final_fit", "none") != "none":
            raise InputError(
                f"trainer: final_fit is {self.values['final_fit']!r} and no final fit was made; run its cells first"
            )
        return self._final

    def fit_all(
        self,
        compute_loss: ComputeLoss,
        loader: DataLoader,
        optimizer: Optimizer,
        num_epochs: int,
        callback: object = None,
    ) -> dict[str, Any]:
        """Train the best weights a little more, on training and validation images together, into run_dir/final.pt.

        Its folder final_fit/ holds what a killed process goes on from. No image is left to score these weights with: the
        run's scores remain those of best.pt.

        Parameters
        ----------
        loader : of all images.
        optimizer : a new one, of a learning rate that is small and stays.
        num_epochs : passes over all; they are counted on from the training's, so that no draw is made twice.

        Returns
        -------
        For the record: epochs, seconds, peak_memory_mb, oom_split, weights_sha256 of final.pt.
        """
        last = copy.copy(self)
        last.train_loader, last.val_loader = loader, None
        last._folder, last.num_epochs, last._first_epoch = self.run_dir / "final_fit", num_epochs, self.num_epochs
        last.callbacks = [] if callback is None else [callback]
        last.settings = self.settings | {"continue_from": "", "patience": 0}
        last.parameters = last.values = {}
        last.averages = build_averages({}, self.model, num_epochs, len(loader), 0)
        last._step = copy.copy(self._step)
        last._step.optimizer, last._step.scaler = optimizer, copy.deepcopy(self._step.scaler)
        last._step.scheduler = build_scheduler("constant", optimizer, num_epochs, len(loader), 0)
        last._folder.mkdir(exist_ok=True)
        history = last.run(compute_loss)
        state = {"model": self.model.state_dict(), "epoch": int(history["epoch"].iloc[-1])}
        save_checkpoint(self.run_dir / "final.pt", {**state, **self.identity})
        self._final = {
            "epochs": num_epochs,
            "seconds": round(float(history["seconds"].sum()), 2),
            "peak_memory_mb": float(history["memory_mb"].max()),
            "oom_split": last._step.split,
            "weights_sha256": hash_weights(state["model"]),
        }
        return self._final

    # Parts of an epoch.

    def _read_best(self) -> dict[str, Any]:
        if not self.position.rows:
            raise InputError("trainer: required a finished epoch, got none; run the cell of the training loop first")
        return load_checkpoint(self.run_dir / "best.pt", required=("model", "epoch", "weights"))

    def _is_over(self, rows: Sequence[Mapping]) -> bool:
        """Whether no epoch follows these: all were made, or the plain weights have not become better for so long."""
        if len(rows) >= self.num_epochs or not self.settings["patience"] or not rows:
            return len(rows) >= self.num_epochs
        scores = [order(row, self.settings["select_by"]) for row in rows]
        return len(scores) - 1 - scores.index(max(scores)) >= self.settings["patience"]

    def _stop_for_now(self) -> None:
        """Stop where the runner wants so: it compares the run with others before it is trained on."""
        rows = self.position.rows
        if not self._first_epoch and 0 < read_whole(STOP_AFTER, 0) <= len(rows):
            raise StoppedForNow(f"after epoch {len(rows)}, mIoU {rows[-1]['miou']:.4f}")

    def _begin_epoch(self) -> int:
        position = self.position
        self._began = time.monotonic() - position.seconds
        position.lr = position.lr if position.step else self.scheduler.get_last_lr()[0]
        self._losses = EpochLoss(self.device, position.loss)
        forget_peak_memory(self.device)
        return position.epoch

    def _score(self, weights: str) -> dict[str, float]:
        """Evaluate the weights that the model has now, and keep them where they are the best."""
        if self.compute_loss is None:
            raise InputError(
                "trainer: required a loss to score by, got none; call trainer.estimate(compute_loss) first"
            )
        confusion, loss = evaluate(
            self.model, self.val_loader, self.compute_loss, len(self.class_names), self.precision
        )
        metrics = compute_metrics(confusion, self.class_names, self.val_loader.batch_sampler.batch_size)
        scores = {"val_loss": loss} | {name: value for name, value in metrics.items() if name != "iou"}
        score, position = order(scores, self.settings["select_by"]), self.position
        if position.best is None or score > position.best:
            position.best = score
            state = {"model": self.model.state_dict(), "epoch": self.epoch, "weights": weights}
            save_checkpoint(self.run_dir / "best.pt", {**state, **self.identity})
            val = self.val_loader.dataset.subset
            save_confusion(self.run_dir / "confusion.npz", confusion, val.image_ids, self.class_names, val.images)
            ranks.wait()
        return scores

    def _write_history(self) -> None:
        if not ranks.is_first():
            return
        with replacing(self._folder / "history.csv") as temporary:
            self.history.to_csv(temporary, index=False)

    def _call(self, event: str) -> None:
        for callback in self.callbacks:
            getattr(callback, event, lambda trainer: None)(self)

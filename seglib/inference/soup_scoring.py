"""Scores members and soups of finished runs: the model, the images and the loss that all of them share."""

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from seglib.data.dataset import Subset, count_pixels, open_data
from seglib.data.loader import build_loader
from seglib.evaluation.metrics import compute_metrics
from seglib.inference.finished_run import FinishedRun
from seglib.parts import find_kept_parts, load_parts
from seglib.training.averaging import estimate_batch_norm
from seglib.training.loop import Evaluation, evaluate
from seglib.training.losses import build_loss
from seglib.training.reproducibility import seed_everything
from seglib.training.selection import rank
from seglib.training.step import Trainee
from seglib.viz.progress import show_progress


@dataclass(frozen=True)
class Scored:
    """A model that was scored: `runs` are the members averaged in it, `score` is in the unit of `select_by`."""

    runs: list[Path]
    evaluation: Evaluation
    metrics: dict[str, Any]
    score: float
    rank: float


@dataclass(frozen=True)
class Scorer:
    """One model, which holds each member and each soup in turn, and what it is scored with."""

    trainee: Trainee
    class_names: list[str]
    select_by: str
    batch_size: int
    train_loader: DataLoader
    val_loader: DataLoader
    count: Callable[[Iterable], Iterator]  # passes batches on and shows progress

    @property
    def model(self) -> nn.Module:
        return self.trainee.model

    def score(self, runs: list[Path]) -> Scored:
        """Score the model as it is now; weights that were averaged get batch-norm statistics of their own first."""
        if len(runs) > 1:
            estimate_batch_norm(self.model, self.count(self.train_loader), self.batch_size, self.trainee.precision)
        evaluation = evaluate(self.trainee, self.count(self.val_loader), len(self.class_names))
        metrics = compute_metrics(evaluation.confusion, self.class_names, self.batch_size) | {"loss": evaluation.loss}
        score = metrics[self.select_by]
        return Scored(runs, evaluation, metrics, score, rank(metrics | {"val_loss": evaluation.loss}, self.select_by))


def open_scorer(
    first: FinishedRun, records: Sequence[Mapping[str, Any]], soups: int, select_by: str, data_dir: str, output: Path
) -> Scorer:
    """Make ready to score members and soups as the first of the runs was scored.

    Parameters
    ----------
    records : of all members.
    soups : how many will be scored besides, for the progress that is shown and written to `output`.
    """
    params, names = first.record["params"], first.class_names
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seed_everything(params["seed"], params["deterministic"])
    model = first.model.to(device, memory_format=torch.channels_last)
    if all(record.get("best_epoch", 1) <= record["params"].get("freeze_epochs", 0) for record in records):
        model.encoder.requires_grad_(False)  # was frozen throughout, and so its batch norms stay as they are
    train_images = _open_training_images(params, data_dir)
    load_parts(find_kept_parts(first.folder))
    loss = build_loss(params["loss"], len(names), class_names=names,
                      class_pixels=count_pixels(train_images).loc[names].to_numpy())  # fmt: skip
    train_loader = build_loader(
        train_images, first.batch_size, shuffle=True, augmentation=params["augmentation"], mixing=params["mixing"],
        expand=params["expand"], seed=params["seed"], num_workers=params["num_workers"],
    )  # fmt: skip
    val_loader = build_loader(
        first.val_images, first.batch_size, shuffle=False, augmentation="none", seed=0, num_workers=0
    )
    total = (len(records) + soups) * len(val_loader) + soups * len(train_loader)
    trainee = Trainee(model, loss, None, None, device, first.record["precision"])  # it only predicts
    count = _count_batches(show_progress("soup: batches", output), total)
    return Scorer(trainee, names, select_by, first.batch_size, train_loader, val_loader, count)


def _open_training_images(params: Mapping[str, Any], data_dir: str) -> Subset:
    params = params | ({"data_dir": data_dir} if data_dir else {})
    names = inspect.signature(open_data).parameters
    train_images, _ = open_data(**{name: params[name] for name in names if name in params})
    return train_images.take_debug_share() if params["debug"] else train_images


def _count_batches(tell: Callable[[int, int], None], total: int) -> Callable[[Iterable], Iterator]:
    done = itertools.count(1)

    def count(batches: Iterable) -> Iterator:
        for batch in batches:
            yield batch
            tell(next(done), total)

    return count

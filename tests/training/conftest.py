"""A small training, run whole or killed in the middle."""

import pytest
import torch

from seglib.data.dataset import open_data
from seglib.data.loader import build_loader
from seglib.models import build_model
from seglib.training.averaging import build_averages
from seglib.training.checkpoint import adopt_shorter_run
from seglib.training.device import seed_everything
from seglib.training.losses import build_loss
from seglib.training.mixing import build_batch_mixing
from seglib.training.optim import build_optimizer, build_scheduler
from seglib.training.step import Trainee
from seglib.training.trainer import train

CPU = torch.device("cpu")


class Nobody:
    def step(self, epoch, step, steps):
        pass

    def epoch(self, history):
        pass

    def end(self, history):
        pass


class Killer(Nobody):
    """Dies in the middle of an epoch, as a killed kernel does."""

    def __init__(self, epoch, step):
        self.when = (epoch, step)

    def step(self, epoch, step, steps):
        if (epoch, step) == self.when:
            raise KeyboardInterrupt


@pytest.fixture(scope="session")
def subsets(small_data):
    return open_data(str(small_data), "train.json", "val.json", split="given", folds=4, fold=0, seed=1,
                     paint_order="class_id", background="class", image_size=64, cache=False)  # fmt: skip


def run(
    subsets, run_dir, epochs=3, watcher=None, kill=None, select_by="miou", seed=5, workers=0, schedule="cosine", mixing=None, patience=0, facts=None,
    averaging=None, minutes=0, warmup=0.5, compiled=False, architecture="Linknet", continue_from="", **options,
):  # fmt: skip
    run_dir.mkdir(exist_ok=True)
    train_set, val_set = subsets
    names = list(train_set.data.class_names)
    loader = build_loader(train_set, 8, shuffle=True, augmentation="flips", seed=seed, num_workers=workers)
    val_loader = build_loader(val_set, 8, shuffle=False, augmentation="none", seed=seed, num_workers=0)
    seed_everything(seed, deterministic=True)
    model = build_model(architecture, "tu-resnet10t", len(names))
    if compiled:
        model.compile(dynamic=False)
    optimizer = build_optimizer("adamw", model, 1e-3, 1e-4)
    scheduler = build_scheduler(schedule, optimizer, epochs, len(loader), warmup, averaging=averaging)
    averages = build_averages(averaging or {}, model, epochs, len(loader), warmup)
    mix = build_batch_mixing(mixing or {}, model, seed=seed, precision="float32")
    trainee = Trainee(
        model, build_loss({"cross_entropy": 1.0}, len(names)), optimizer, scheduler, CPU, mix=mix, **options
    )
    facts = {"architecture": architecture, "class_names": names} | (facts or {})
    adopt_shorter_run(continue_from, run_dir, facts, scheduler, len(loader))
    return train(
        trainee, loader, val_loader, epochs=epochs, seed=seed, select_by=select_by, run_dir=run_dir, patience=patience,
        checkpoint_facts=facts, averages=averages,
        watchers=[watcher or Nobody(), *([Killer(*kill)] if kill else [])], checkpoint_minutes=minutes,
    )  # fmt: skip


@pytest.fixture(scope="session")
def train_small():
    """`train_small(subsets, run_dir, ...)` trains and returns the history; `kill=(epoch, step)` ends it there."""
    return run

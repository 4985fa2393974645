"""A small training, run whole or killed in the middle."""

import pytest

from seglib.data.dataset import open_data
from seglib.data.loader import build_loader
from seglib.models import build_model
from seglib.training.averaging import build_averages
from seglib.training.device import seed_everything
from seglib.training.losses import build_loss
from seglib.training.mixing import build_batch_mixing
from seglib.training.optim import build_optimizer, build_scheduler
from seglib.training.trainer import Trainer


class Killer:
    """Dies in the middle of an epoch, as a killed kernel does: after a step, whose checkpoint was written if one was due."""

    def __init__(self, epoch, step):
        self.when = (epoch, step)

    def on_step(self, trainer):
        if (trainer.epoch, trainer.position.step - 1) == self.when:
            raise KeyboardInterrupt


@pytest.fixture(scope="session")
def subsets(small_data):
    return open_data(str(small_data), "train.json", "val.json", split="given", folds=4, fold=0, seed=1,
                     paint_order="class_id", background="class", image_size=64, cache=False)  # fmt: skip


def build(
    subsets, run_dir, epochs=3, seed=5, workers=0, schedule="cosine", mixing=None, averaging=None, warmup=0.5, compiled=False,
    architecture="Linknet", callbacks=(), params=None, **options,
):  # fmt: skip
    """A trainer, and the loss that the notebook would define; `options` are parameters that the trainer reads."""
    run_dir.mkdir(exist_ok=True)
    train_set, val_set = subsets
    num_classes = len(train_set.data.class_names)
    loader = build_loader(train_set, 8, shuffle=True, augmentation="flips", seed=seed, num_workers=workers)
    val_loader = build_loader(val_set, 8, shuffle=False, augmentation="none", seed=seed, num_workers=0)
    seed_everything(seed, deterministic=True)
    model = build_model(architecture, "tu-test_resnet", num_classes)
    if compiled:
        model.compile(dynamic=False)
    optimizer = build_optimizer("adamw", model, 1e-3, 1e-4)
    scheduler = build_scheduler(schedule, optimizer, epochs, len(loader), warmup, averaging=averaging)
    averages = build_averages(averaging or {}, model, epochs, len(loader), warmup)
    mix = build_batch_mixing(mixing or {}, model, seed=seed, precision="float32")
    loss = build_loss({"cross_entropy": 1.0}, num_classes)
    trainer = Trainer(
        model, optimizer, scheduler, loader, val_loader, num_epochs=epochs, run_dir=run_dir, averages=averages, mix=mix,
        callbacks=callbacks, parameters={"seed": seed, "precision": "float32", **options, **(params or {})},
    )  # fmt: skip
    return trainer, lambda images, targets: loss(model(images), targets)


def run(subsets, run_dir, kill=None, callback=None, minutes=0, **options):
    callbacks = [each for each in (callback, Killer(*kill) if kill else None) if each]
    trainer, compute_loss = build(subsets, run_dir, callbacks=callbacks, checkpoint_minutes=minutes, **options)
    return trainer.run(compute_loss)


@pytest.fixture(scope="session")
def train_small():
    """`train_small(subsets, run_dir, ...)` trains and returns the history; `kill=(epoch, step)` ends it there."""
    return run


@pytest.fixture(scope="session")
def build_small():
    """`build_small(subsets, run_dir, ...)` gives a trainer and its loss."""
    return build


@pytest.fixture(scope="session")
def killer():
    """`killer(epoch, step)` is a callback that ends the training there."""
    return Killer

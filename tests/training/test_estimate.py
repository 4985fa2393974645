"""An estimate leaves everything as it found it, and meets what training would meet."""

import copy

import pytest
import torch

from seglib.data.loader import build_loader
from seglib.models import build_model
from seglib.training.checkpoint import hash_weights
from seglib.training.estimate import estimate_training
from seglib.training.losses import build_loss
from seglib.training.optim import build_optimizer, build_scheduler
from seglib.training.step import GradientStep


@pytest.fixture(scope="module")
def loaders(subsets):
    train_set, val_set = subsets
    return (
        build_loader(train_set, 8, shuffle=True, augmentation="flips", seed=1, num_workers=0),
        build_loader(val_set, 4, shuffle=False, augmentation="none", seed=1, num_workers=0),
    )


def build_step(steps, optimizer="adamw", num_classes=12, **options):
    torch.manual_seed(3)
    model = build_model("Linknet", "tu-test_resnet", num_classes)
    optimizer = build_optimizer(optimizer, model, 1e-3, 1e-4)
    schedule = build_scheduler("cosine", optimizer, 2, steps, 0.5)
    loss = build_loss({"cross_entropy": 1.0}, num_classes)
    return GradientStep(model, optimizer, schedule, **options), lambda images, targets: loss(model(images), targets)


def describe_state(step):
    optimizer = copy.deepcopy(step.optimizer.state_dict())
    return (
        hash_weights(step.model.state_dict()),
        optimizer,
        step.scheduler.get_last_lr(),
        step.scaler.state_dict(),
    )


@pytest.mark.parametrize("optimizer", ["adamw", "madgrad", "adan", "lion", "adafactor"])
def test_an_estimate_leaves_no_trace_in_what_follows(loaders, optimizer):
    estimated, untouched = (build_step(len(loaders[0]), optimizer) for _ in range(2))
    before = describe_state(estimated[0])
    estimate_training(*estimated, *loaders, epochs=2, seed=1)
    assert describe_state(estimated[0]) == before
    images, masks = next(iter(loaders[1]))
    for step, compute_loss in (estimated, untouched):
        step.set_mode(1)
        for _ in range(2):
            step.backward(compute_loss, images, masks, 4)
            step.update()
    assert hash_weights(estimated[0].model.state_dict()) == hash_weights(untouched[0].model.state_dict())


def test_an_estimate_is_of_all_epochs_and_says_so(loaders):
    estimate = estimate_training(*build_step(len(loaders[0])), *loaders, epochs=7, seed=1)
    assert estimate.total == pytest.approx(7 * estimate.epoch) and estimate.epoch > 0
    assert estimate.peak_memory_mb > 100
    assert "an epoch" in str(estimate) and "in all; peak memory" in str(estimate)


def test_a_training_of_one_step_is_estimated_too(subsets, loaders):
    one = build_loader(subsets[0], len(subsets[0]), shuffle=True, augmentation="none", seed=1, num_workers=0)
    estimate = estimate_training(*build_step(1), one, loaders[1], epochs=1, seed=1)
    assert estimate.first_step < estimate.epoch


def test_memory_that_runs_out_is_met_before_training(loaders):
    step, compute_loss = build_step(len(loaders[0]))

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    step.model.network.decoder.forward = full
    with pytest.raises(torch.OutOfMemoryError, match="out of memory: 8 images of 64 px at a time do not fit"):
        estimate_training(step, compute_loss, *loaders, epochs=2, seed=1)

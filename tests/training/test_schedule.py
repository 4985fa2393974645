"""Schedules against torch's own, where torch has them, and against their formulas."""

import io
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from seglib.parts import find_parts
from seglib.training.optim import build_scheduler

EPOCHS, STEPS, LR = 6, 10, 0.5

SCHEDULES = find_parts("scheduler")


def make(name, epochs=EPOCHS, steps=STEPS, warmup=0.0, per="iteration", **options):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    return optimizer, build_scheduler(name, optimizer, epochs, steps, warmup, per=per, options=options)


def run(optimizer, scheduler, count):
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def learning_rates(name, epochs=EPOCHS, **how):
    return run(*make(name, epochs, **how), epochs * STEPS)


def torchs(build, count=EPOCHS * STEPS):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    return run(optimizer, build(optimizer), count)


def each_epoch(build):
    """torch's schedule stepped once an epoch, as a rate for each iteration."""
    return np.repeat(torchs(build, EPOCHS), STEPS)


@pytest.mark.parametrize(
    ("name", "options", "build"),
    [
        ("constant", {}, lambda o: lr_scheduler.ConstantLR(o, 1.0)),
        ("cosine", {}, lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS)),
        ("cosine", {"min_factor": 0.1}, lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS, eta_min=0.1 * LR)),
        ("cosine_restarts", {"T_0": 2}, lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2, T_mult=2)),
        ("cosine_restarts", {}, lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2, T_mult=2)),
        ("cosine_restarts", {"T_0": 2, "T_mult": 1}, lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2)),
        ("step", {"step_size": 2, "gamma": 0.5}, lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5)),
        ("step", {}, lambda o: lr_scheduler.StepLR(o, 2)),
        ("multistep", {"milestones": [1, 4], "gamma": 0.2}, lambda o: lr_scheduler.MultiStepLR(o, [1, 4], gamma=0.2)),
        ("multistep", {"milestones": [4, 1], "gamma": 0.2}, lambda o: lr_scheduler.MultiStepLR(o, [1, 4], gamma=0.2)),
        ("multistep", {"milestones": [3, 4.5]}, lambda o: lr_scheduler.MultiStepLR(o, [3, 5])),
        ("polynomial", {"power": 2.0}, lambda o: lr_scheduler.PolynomialLR(o, EPOCHS, power=2.0)),
    ],
)
def test_schedule_by_epoch_is_torchs(name, options, build):
    assert learning_rates(name, per="epoch", **options) == pytest.approx(each_epoch(build))


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("cosine", lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS * STEPS)),
        ("cosine_restarts", lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2 * STEPS, T_mult=2)),
        ("step", lambda o: lr_scheduler.StepLR(o, 2 * STEPS)),
        ("polynomial", lambda o: lr_scheduler.PolynomialLR(o, EPOCHS * STEPS, power=0.9)),
    ],
)
def test_schedule_by_iteration_is_torchs_with_iterations_for_epochs(name, build):
    assert learning_rates(name) == pytest.approx(torchs(build))


@pytest.mark.parametrize("options", [{}, {"pct_start": 0.5, "div_factor": 10.0, "final_div_factor": 100.0}])
def test_onecycle_is_torchs_within_the_width_of_a_step(options):
    def build(optimizer):
        return lr_scheduler.OneCycleLR(optimizer, LR, total_steps=EPOCHS * 1000, cycle_momentum=False, **options)

    expected = torchs(build, EPOCHS * 1000)
    rates = run(*make("onecycle", steps=1000, **options), EPOCHS * 1000)
    assert np.abs(np.subtract(rates, expected)).max() < 1e-3 * LR


@pytest.mark.parametrize("options", [{}, {"patience": 0, "factor": 0.5}, {"patience": 1, "min_factor": 0.05}])
def test_plateau_is_torchs_with_the_scores_told_after_each_epoch(options):
    scores = [0.1, 0.2, 0.2, 0.15, 0.19, 0.18, 0.21, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]
    torch_options = {"patience": 2} | {k: v for k, v in options.items() if k != "min_factor"}
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    theirs = lr_scheduler.ReduceLROnPlateau(
        reference, "max", threshold=0, eps=0, min_lr=LR * options.get("min_factor", 0), **torch_options
    )
    optimizer, schedule = make("plateau", epochs=len(scores), **options)
    for score in scores:
        rates = run(optimizer, schedule, STEPS)
        assert rates == pytest.approx([reference.param_groups[0]["lr"]] * STEPS)
        schedule.end_epoch(score)
        theirs.step(score)
    assert min(rates) < LR


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "plateau"])
def test_scores_change_nothing_but_a_plateau(name):
    optimizer, schedule = make(name)
    rates = []
    for _ in range(EPOCHS):
        rates += run(optimizer, schedule, STEPS)
        schedule.end_epoch(0.0)
    assert rates == learning_rates(name)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("per", ["iteration", "epoch"])
def test_warm_up_rises_evenly_and_hands_over_to_the_curve(name, per):
    rates = learning_rates(name, warmup=1.5, per=per)
    assert rates[:15] == pytest.approx([LR * (step + 1) / 16 for step in range(15)])
    assert rates[15] == pytest.approx(LR / 25 if name == "onecycle" else LR)


def test_the_curve_after_a_warm_up_spans_what_is_left():
    rates = learning_rates("cosine", warmup=2.0)
    assert rates[20:] == pytest.approx([0.5 * LR * (1 + math.cos(math.pi * step / 40)) for step in range(40)])
    assert all(earlier > later for earlier, later in pairwise(rates[20:]))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_warm_up_as_long_as_training_never_divides_by_zero(name):
    assert np.isfinite(learning_rates(name, epochs=1, warmup=1.0)).all()


def test_every_parameter_group_keeps_its_own_rate():
    parameters = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (0.1, 0.01)]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    schedule = build_scheduler("step", optimizer, 3, 2, 0.0)
    for _ in range(2):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.01, 0.001])


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_preview_is_what_training_will_do(name):
    optimizer, schedule = make(name, warmup=1.0)
    preview = schedule.preview(EPOCHS * STEPS)
    assert preview.shape == (EPOCHS * STEPS, 1)
    assert preview[:, 0] == pytest.approx(run(optimizer, schedule, EPOCHS * STEPS))


def test_a_plateau_goes_on_from_its_state():
    scores = [0.3, 0.2, 0.2, 0.2, 0.2, 0.2]
    whole = make("plateau", patience=1)
    for score in scores:
        run(*whole, STEPS)
        whole[1].end_epoch(score)
    first = make("plateau", patience=1)
    for score in scores[:3]:
        run(*first, STEPS)
        first[1].end_epoch(score)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    second = make("plateau", patience=1)
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    for score in scores[3:]:
        run(*second, STEPS)
        second[1].end_epoch(score)
    assert run(*second, 1) == run(*whole, 1)
    assert whole[1].scale == second[1].scale < 1

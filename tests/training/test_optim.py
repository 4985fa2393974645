"""Optimizers by name, and schedules against their formulas."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from seglib.training.optim import build_optimizer, build_scheduler


def learning_rates(name, epochs=4, steps=10, warmup=0.0, lr=0.5):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = build_scheduler(name, optimizer, epochs, steps, warmup)
    rates = []
    for _ in range(epochs * steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def test_constant_stays():
    assert learning_rates("constant") == [0.5] * 40


def test_cosine_falls_from_the_whole_rate_to_nearly_none():
    expected = [0.25 * (1 + math.cos(math.pi * step / 40)) for step in range(40)]
    assert learning_rates("cosine") == pytest.approx(expected)


def test_polynomial_has_deeplabs_power():
    assert learning_rates("polynomial") == pytest.approx([0.5 * (1 - step / 40) ** 0.9 for step in range(40)])


def test_warm_up_rises_evenly_and_hands_over_at_the_whole_rate():
    rates = learning_rates("cosine", warmup=1.5)
    assert rates[:15] == pytest.approx([0.5 * (step + 1) / 16 for step in range(15)])
    assert rates[15] == pytest.approx(0.5)
    assert all(earlier > later for earlier, later in pairwise(rates[15:]))


def test_a_warm_up_as_long_as_training_never_divides_by_zero():
    assert len(learning_rates("cosine", epochs=1, warmup=1.0)) == 10


def test_norms_and_biases_are_not_decayed():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    groups = build_optimizer("adamw", model, lr=1e-3, weight_decay=0.1).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decay[id(model[0].weight)] == 0.1
    assert [decay[id(p)] for p in (model[0].bias, model[1].weight, model[1].bias)] == [0, 0, 0]

"""Optimizers by name: what they decay, and which learning rate each part of a model gets."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from seglib.errors import InputError
from seglib.training.optim import build_optimizer, list_optimizers


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.decoder = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.decoder(self.encoder(x))


def settings(optimizer, parameter):
    (group,) = [group for group in optimizer.param_groups if any(parameter is other for other in group["params"])]
    return SimpleNamespace(**group)


def test_norms_and_biases_are_not_decayed():
    model = Model()
    optimizer = build_optimizer("adamw", model, lr=1e-3, weight_decay=0.1)
    assert settings(optimizer, model.encoder[0].weight).weight_decay == 0.1
    for parameter in (model.encoder[0].bias, model.encoder[1].weight, model.encoder[1].bias, model.decoder.bias):
        assert settings(optimizer, parameter).weight_decay == 0


def test_norms_and_biases_are_decayed_on_request():
    model = Model()
    optimizer = build_optimizer("adamw", model, lr=1e-3, weight_decay=0.1, decay_norms=True)
    assert {settings(optimizer, parameter).weight_decay for parameter in model.parameters()} == {0.1}


def test_encoder_and_decoder_learn_apart_and_the_decoders_rate_is_the_first():
    model = Model()
    optimizer = build_optimizer("adamw", model, lr=1e-2, weight_decay=0.1, encoder_lr=1e-4)
    assert {settings(optimizer, parameter).lr for parameter in model.encoder.parameters()} == {1e-4}
    assert {settings(optimizer, parameter).lr for parameter in model.decoder.parameters()} == {1e-2}
    assert optimizer.param_groups[0]["lr"] == 1e-2
    assert settings(optimizer, model.encoder[1].bias).weight_decay == 0


def test_frozen_parameters_are_left_out():
    model = Model()
    model.encoder.requires_grad_(False)
    optimizer = build_optimizer("sgd", model, lr=1e-2, weight_decay=0.1)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_an_encoder_rate_without_an_encoder_is_refused():
    with pytest.raises(InputError, match="encoder_lr must be 0 for a model without an encoder"):
        build_optimizer("adamw", nn.Conv2d(3, 2, 1), lr=1e-3, weight_decay=0, encoder_lr=0.1)


@pytest.mark.parametrize("name", list_optimizers())
def test_every_optimizer_moves_the_weights_and_goes_on_from_its_state(name):
    def train(model, optimizer, first, last):
        for step in range(first, last):
            batch = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()

    def make():
        torch.manual_seed(0)
        model = Model()
        return model, build_optimizer(name, model, lr=0.01, weight_decay=0.01)

    start, whole, first, second = make(), make(), make(), make()
    train(*whole, 0, 4)
    train(*first, 0, 2)
    for part, source in zip(second, first, strict=True):
        part.load_state_dict(source.state_dict())
    train(*second, 2, 4)
    for before, one, other in zip(*(model.parameters() for model, _ in (start, whole, second)), strict=True):
        assert torch.equal(one, other)
        if before.ndim > 1:
            assert not torch.equal(before, one)

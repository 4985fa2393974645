"""What a user may write for a loss, and the words that refuse the rest."""

import dataclasses

import numpy as np
import pytest
import torch

from seglib import parts
from seglib.errors import InputError
from seglib.training.losses import build_loss

NAMES = ["background", "paper", "glass"]


def example():
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, 4, generator=g, dtype=torch.float64), torch.randint(0, 3, (2, 4, 4), generator=g)


def value(terms, **data):
    return build_loss(terms, 3, **data)(*example()).item()


def test_a_term_is_a_weight_or_a_mapping_with_weight_1_by_default():
    ce, focal = value({"cross_entropy": 1}), value({"focal": {"gamma": 3}})
    assert focal != value({"focal": 1.0})
    assert value({"cross_entropy": {}}) == ce
    mixed = value({"cross_entropy": {"weight": 0.9}, "focal": {"weight": 0.1, "gamma": 3.0}})
    assert mixed == pytest.approx(0.9 * ce + 0.1 * focal, rel=1e-12)


def test_a_term_of_weight_0_is_not_computed(monkeypatch):
    def never(logits, target, weight):
        raise AssertionError("computed")

    part = dataclasses.replace(parts.find_parts("loss")["dice"], build=never)
    monkeypatch.setitem(parts._shipped, ("loss", "dice"), part)
    assert value({"dice": 0.0, "cross_entropy": 1.0}) == value({"cross_entropy": 1.0})
    with pytest.raises(AssertionError, match="computed"):
        value({"dice": 0.1, "cross_entropy": 1.0})


def test_classes_that_are_not_named_weigh_1():
    named = value({"focal": {"class_weights": {"glass": 3.0}}}, class_names=NAMES)
    assert named == value({"focal": {"class_weights": {"background": 1, "paper": 1, "glass": 3}}}, class_names=NAMES)
    assert named != value({"focal": 1.0})
    assert value({"focal": {"class_weights": {}}}, class_names=NAMES) == pytest.approx(value({"focal": 1.0}), rel=1e-12)


@pytest.mark.parametrize("counts", [[4, 4, 4], np.array([7, 7, 7]), torch.tensor([2, 2, 2])])
def test_balanced_weights_of_a_balanced_data_set_change_nothing(counts):
    terms = {"cross_entropy": {"class_weights": "balanced"}}
    assert value(terms, class_pixels=counts) == pytest.approx(value({"cross_entropy": 1.0}), rel=1e-12)


def test_pixels_of_classes_without_weight_give_zero_not_nan():
    logits, mask = example()
    terms = {"cross_entropy": {"class_weights": {"glass": 0.0}, "label_smoothing": 0.1}}
    loss = build_loss(terms, 3, class_names=NAMES)
    assert loss(logits, torch.full_like(mask, 2)) == 0


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"focl": 1.0}, "unknown loss 'focl'; did you mean 'focal'"),
        ({}, "at least one weight must be > 0, got {}; try"),
        ({"dice": 0.0}, r"at least one weight must be > 0, got {'dice': 0.0}"),
        ({"dice": {"weight": 0}}, "at least one weight must be > 0"),
        (
            {"dice": 1.0, "focal": -0.1},
            r"loss.focal must be at least 0.0, got -0.1 \(weight, or a mapping of options\)",
        ),
        ({"focal": {"weight": -0.1}}, r"loss.focal.weight must be at least 0.0, got -0.1"),
        ({"dice": float("nan")}, "must be a finite number, got nan"),
        ({"dice": float("inf")}, "must be a finite number, got inf"),
        ({"dice": "1e-3"}, "must be a number, got '1e-3'"),
        ({"dice": True}, "must be a number, got true"),
        ({"dice": None}, "must be a number, got None"),
        ({"focal": {"gama": 1}}, r"unknown option of loss.focal 'gama'; did you mean 'gamma'\?"),
        ({"dice": {"gamma": 1}}, r"unknown option of loss.dice 'gamma'; choices: weight$"),
        ({"focal": {"gamma": -1}}, r"loss.focal.gamma must be at least 0.0, got -1"),
        ({"focal": {"gamma": "2"}}, "got '2'"),
        ({"focal": {"gamma": True}}, "got true"),
        ({"focal": {"gamma": float("nan")}}, "got nan"),
        ({"focal_tversky": {"gamma": 0}}, r"loss.focal_tversky.gamma must be at least 0.01, got 0"),
        ({"cross_entropy": {"label_smoothing": 1.5}}, "label_smoothing must be at most 1.0, got 1.5"),
        ({"ms_ssim": {"scales": 2.5}}, "scales must be a whole number, got 2.5"),
        ({"ms_ssim": {"scales": 6}}, "scales must be at most 5, got 6"),
        ({"boundary": {"theta": 4}}, "loss.boundary.theta must be odd .* got 4"),
        ({"boundary": {"theta0": 1}}, "loss.boundary.theta0 must be at least 3, got 1"),
        ({"lovasz": {"per_image": 1}}, "loss.lovasz.per_image must be true or false, got 1"),
        ({"focal": {"class_weights": "balancd"}}, "unknown loss.focal.class_weights 'balancd'; .*'balanced'"),
        ({"focal": {"class_weights": 2.0}}, "loss.focal.class_weights must be a mapping name: value, got 2.0"),
        ({"focal": {"class_weights": "balanced"}}, "balanced needs the pixels of each class, got none; pass"),
        ({"focal": {"class_weights": {"glas": 1}}}, "class_weights.: unknown class 'glas'; did you mean 'glass'"),
        ({"focal": {"class_weights": {"glass": -1}}}, "loss.focal.class_weights.glass must be at least 0.0, got -1"),
        ({"focal": {"class_weights": dict.fromkeys(NAMES, 0)}}, "at least one class must have a weight > 0"),
        ({"dice": {"class_weights": ""}}, "unknown option of loss.dice 'class_weights'"),
    ],
)
def test_unusable_terms_are_refused(terms, words):
    with pytest.raises(InputError, match=words):
        build_loss(terms, 3, class_names=NAMES)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"num_classes": 1}, "2 to 256 .* got 1"),
        ({"num_classes": 300}, "2 to 256 .* got 300"),
        ({"num_classes": 4, "class_names": NAMES}, "class_names must be 4 names, got 3"),
        ({"num_classes": 3, "class_pixels": [1, 2]}, r"class_pixels must be 3 finite counts >= 0, got \[1, 2\]"),
        ({"num_classes": 3, "class_pixels": [1, 2, -1]}, "got .1, 2, -1."),
    ],
)
def test_class_data_that_does_not_fit_is_refused(data, words):
    with pytest.raises(InputError, match=words):
        build_loss({"dice": 1.0}, **data)


def test_balanced_weights_of_no_pixels_are_refused():
    with pytest.raises(InputError, match="got none"):
        build_loss({"focal": {"class_weights": "balanced"}}, 3, class_pixels=[0, 0, 0])

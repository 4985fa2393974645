"""What a user may write for a loss, and the words that refuse the rest."""

import numpy as np
import pytest
import torch

from seglib.errors import InputError
from seglib.training.loss_options import LIMITS
from seglib.training.losses import LOSSES, build_loss, describe_options

NAMES = ["background", "paper", "glass"]


def example():
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, 4, generator=g, dtype=torch.float64), torch.randint(0, 3, (2, 4, 4), generator=g)


def value(terms, **data):
    return build_loss(terms, 3, **data)(*example()).item()


def test_the_vocabulary_with_its_options_and_defaults_is_this():
    assert describe_options() == {
        "cross_entropy": {"class_weights": "", "label_smoothing": 0.0},
        "label_smoothing": {"smoothing": 0.1, "class_weights": ""},
        "focal": {"gamma": 2.0, "class_weights": ""},
        "ohem": {"threshold": 0.7, "min_kept": 0.0625},
        "dice": {},
        "jaccard": {},
        "miou": {},
        "lovasz": {"per_image": False},
        "tversky": {"alpha": 0.3, "beta": 0.7},
        "focal_tversky": {"alpha": 0.3, "beta": 0.7, "gamma": 0.75},
        "ms_ssim": {"scales": 5},
        "boundary": {"theta0": 3, "theta": 5},
    }


def test_every_number_has_limits_and_its_default_is_within_them():
    for name, options in describe_options().items():
        numbers = {option: default for option, default in options.items() if type(default) in (int, float)}
        assert set(LIMITS.get(name, {})) == set(numbers)
        assert all(LIMITS[name][option][0] <= default <= LIMITS[name][option][1] for option, default in numbers.items())
        build_loss({name: {"weight": 0.5, **options}}, 3)


def test_a_term_is_a_weight_or_a_mapping_with_weight_1_by_default():
    ce, focal = value({"cross_entropy": 1}), value({"focal": {"gamma": 3}})
    assert focal != value({"focal": 1.0})
    assert value({"cross_entropy": {}}) == ce
    mixed = value({"cross_entropy": {"weight": 0.9}, "focal": {"weight": 0.1, "gamma": 3.0}})
    assert mixed == pytest.approx(0.9 * ce + 0.1 * focal, rel=1e-12)


def test_a_term_of_weight_0_is_not_computed(monkeypatch):
    def never(logits, target, weight):
        raise AssertionError("computed")

    monkeypatch.setitem(LOSSES, "dice", never)
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
        ({"focl": 1.0}, "loss: unknown loss 'focl'; did you mean 'focal'"),
        ({}, "at least one weight must be > 0, got {}; try"),
        ({"dice": 0.0}, r"at least one weight must be > 0, got {'dice': 0.0}"),
        ({"dice": {"weight": 0}}, "at least one weight must be > 0"),
        ({"dice": 1.0, "focal": -0.1}, r"loss \[focal\]: its weight must be finite and >= 0, got -0.1; try focal: 1.0"),
        ({"focal": {"weight": -0.1}}, r"loss \[focal\]: its weight must be finite and >= 0, got -0.1"),
        ({"dice": float("nan")}, "got nan"),
        ({"dice": float("inf")}, "got inf"),
        ({"dice": "1e-3"}, "got '1e-3'"),
        ({"dice": True}, "got True"),
        ({"dice": None}, "got None"),
        ({"focal": {"gama": 1}}, r"loss \[focal\]: unknown option 'gama'; did you mean 'gamma'\? choices: weight"),
        ({"dice": {"gamma": 1}}, r"loss \[dice\]: unknown option 'gamma'; choices: weight$"),
        ({"focal": {"gamma": -1}}, r"loss \[focal.gamma\]: must be a number from 0 to 100, got -1; try gamma: 2.0"),
        ({"focal": {"gamma": "2"}}, "got '2'"),
        ({"focal": {"gamma": True}}, "got True"),
        ({"focal": {"gamma": float("nan")}}, "got nan"),
        ({"focal_tversky": {"gamma": 0}}, r"loss \[focal_tversky.gamma\]: must be a number from 0.01 to 100, got 0"),
        ({"cross_entropy": {"label_smoothing": 1.5}}, "number from 0 to 1, got 1.5; try label_smoothing: 0.0"),
        ({"ms_ssim": {"scales": 2.5}}, "scales.: must be a whole number from 1 to 5, got 2.5; try scales: 5"),
        ({"ms_ssim": {"scales": 6}}, "whole number from 1 to 5, got 6"),
        ({"boundary": {"theta": 4}}, "theta.: must be an odd whole number from 1 to 99, got 4; try theta: 5"),
        ({"lovasz": {"per_image": 1}}, "per_image.: must be true or false, got 1; try per_image: false"),
        ({"focal": {"class_weights": "balancd"}}, r"\[focal.class_weights\]: unknown value 'balancd'; .*'balanced'"),
        ({"focal": {"class_weights": 2.0}}, "unknown value 2.0"),
        ({"focal": {"class_weights": "balanced"}}, "balanced needs the pixels of each class, got none; pass"),
        ({"focal": {"class_weights": {"glas": 1}}}, "class_weights.: unknown class 'glas'; did you mean 'glass'"),
        ({"focal": {"class_weights": {"glass": -1}}}, "glass must have a finite weight >= 0, got -1; try glass: 1.0"),
        ({"focal": {"class_weights": dict.fromkeys(NAMES, 0)}}, "at least one class must have a weight > 0"),
        ({"dice": {"class_weights": ""}}, r"loss \[dice\]: unknown option 'class_weights'"),
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

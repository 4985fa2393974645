import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score

from seglib.evaluation.findings import (
    RELIABILITY_BINS,
    calibration_error,
    summarise_probabilities,
    tabulate_reliability,
)


def random_batch(seed=0, images=3):
    rng = np.random.default_rng(seed)
    probabilities = torch.from_numpy(rng.normal(size=(images, 4, 8, 8)) * 2).softmax(dim=1)
    masks = rng.integers(0, 4, (images, 8, 8)).astype(np.uint8)
    masks[rng.random(masks.shape) < 0.1] = 255
    return probabilities, torch.from_numpy(masks)


def given_by_hand(probabilities, mask):
    return np.array([probabilities[mask[y, x], y, x] for y, x in np.argwhere(mask != 255)])


def test_softmin_is_the_formula_of_lad_and_mueller():
    probabilities, masks = random_batch()
    scores = summarise_probabilities(probabilities, masks)
    for image in range(3):
        p = given_by_hand(probabilities[image].numpy(), masks[image].numpy())
        weights = np.exp((1 - p) / 0.1)
        assert scores["softmin"][image] == pytest.approx((p * weights).sum() / weights.sum())
        assert scores["given"][image] == pytest.approx(p.mean())


def test_one_contradicted_region_lowers_the_softmin_more_than_the_mean():
    probabilities = torch.full((1, 2, 10, 10), 0.02)
    probabilities[:, 0] = 0.98
    masks = torch.zeros(1, 10, 10, dtype=torch.uint8)
    clean = summarise_probabilities(probabilities, masks)
    masks[0, :2, :2] = 1
    doubtful = summarise_probabilities(probabilities, masks)
    assert doubtful["softmin"] < 0.05 < 0.9 < doubtful["given"] < clean["given"] == pytest.approx(0.98)


def test_an_image_without_valid_pixels_has_no_score():
    probabilities, masks = random_batch()
    masks[1] = 255
    scores = summarise_probabilities(probabilities, masks)
    assert np.isnan(scores["softmin"]).tolist() == [False, True, False]
    assert not scores["reliability"][1].any()


def test_reliability_and_calibration_error_equal_a_loop_over_the_bins():
    probabilities, masks = random_batch(images=5)
    reliability = summarise_probabilities(probabilities, masks)["reliability"]
    valid = masks.numpy() != 255
    confidence = probabilities.max(dim=1).values.numpy()[valid]
    pred, label = probabilities.argmax(dim=1).numpy()[valid], masks.numpy()[valid]
    table, error = tabulate_reliability(reliability), 0
    for number in range(RELIABILITY_BINS):
        chosen = np.floor(confidence * RELIABILITY_BINS) == number
        if not chosen.any():
            assert number / RELIABILITY_BINS not in table.index
            continue
        row = table.loc[number / RELIABILITY_BINS]
        accuracy = accuracy_score(label[chosen], pred[chosen])
        assert row["pixels"] == chosen.sum()
        assert row["accuracy"] == pytest.approx(accuracy)
        assert row["confidence"] == pytest.approx(confidence[chosen].mean())
        error += chosen.mean() * abs(accuracy - confidence[chosen].mean())
    assert calibration_error(reliability) == pytest.approx(error)
    assert table["share"].sum() == pytest.approx(1)


def test_certainty_of_one_falls_into_the_last_bin():
    probabilities = torch.zeros(1, 2, 2, 2)
    probabilities[:, 1] = 1
    table = tabulate_reliability(
        summarise_probabilities(probabilities, torch.ones(1, 2, 2, dtype=torch.uint8))["reliability"]
    )
    assert table["pixels"].tolist() == [4]
    assert calibration_error(np.array([[[4, 4.0, 4]]])) == 0

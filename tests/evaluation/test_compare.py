import numpy as np
import pytest

from seglib.evaluation.compare import (
    OUTCOMES,
    bootstrap_difference,
    choose_disagreements,
    compare_class_iou,
    count_outcomes,
    show_outcomes,
)
from seglib.evaluation.metrics import pooled_miou


def random_triples(images=4, seed=0):
    rng = np.random.default_rng(seed)
    truths = rng.integers(0, 3, (images, 9, 9)).astype(np.uint8)
    preds = [
        np.where(rng.random(truths.shape) < share, truths, rng.integers(0, 3, truths.shape)) for share in (0.6, 0.3)
    ]
    truths[rng.random(truths.shape) < 0.1] = 255
    return truths, *(pred.astype(np.uint8) for pred in preds)


def random_confusions(images, right, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 20, (images, 3, 3)) + np.eye(3, dtype=int) * rng.integers(0, right, (images, 1, 1))


def test_outcomes_say_who_is_right():
    truth, pred_a, pred_b = np.array([[0, 1, 1, 1, 255]]), np.array([[0, 1, 0, 0, 1]]), np.array([[0, 0, 1, 0, 1]])
    outcome = show_outcomes(truth.astype(np.uint8), pred_a.astype(np.uint8), pred_b.astype(np.uint8))
    assert outcome.tolist() == [[0, 1, 2, 3, 255]]
    assert OUTCOMES == ("both", "only_a", "only_b", "neither")


def test_outcomes_are_counted_by_class_and_by_image():
    truths, preds_a, preds_b = random_triples()
    by_class, by_image = count_outcomes(zip(truths, preds_a, preds_b, strict=True), list("xyz"))
    right = {"both": (True, True), "only_a": (True, False), "only_b": (False, True), "neither": (False, False)}
    for column, (name, (a, b)) in enumerate(right.items()):
        is_so = ((preds_a == truths) == a) & ((preds_b == truths) == b) & (truths != 255)
        assert by_class[name].tolist() == [int((is_so & (truths == c)).sum()) for c in range(3)]
        assert by_image[:, column].tolist() == is_so.sum((1, 2)).tolist()


def test_disagreements_show_each_run_s_best_images():
    by_image = np.array([[0, 5, 1, 0], [0, 0, 9, 0], [0, 50, 0, 0], [0, 3, 3, 0]])
    chosen, titles = choose_disagreements(by_image, [10, 11, 12, 13], 3)
    assert chosen == [2, 0, 1]
    assert titles[0] == "image 12\nonly A 50 px\nonly B 0 px"
    assert choose_disagreements(by_image[:1], [10], 5)[0] == [0]


def test_the_difference_is_that_of_the_pooled_scores():
    a, b = random_confusions(30, 100, 0), random_confusions(30, 30, 1)
    difference, low, high = bootstrap_difference(a, b, 500)
    assert difference == pytest.approx(pooled_miou(a) - pooled_miou(b))
    assert 0 < low < difference < high
    table = compare_class_iou(a, b, list("xyz"))
    assert table["difference"].mean() == pytest.approx(difference)


def test_the_interval_is_that_of_a_loop_over_drawn_images():
    a, b = random_confusions(20, 60, 2), random_confusions(20, 50, 3)
    rng, drawn = np.random.default_rng(5), []
    for _ in range(3000):
        chosen = rng.integers(0, 20, 20)
        drawn.append(pooled_miou(a[chosen]) - pooled_miou(b[chosen]))
    _, low, high = bootstrap_difference(a, b, 3000)
    np.testing.assert_allclose([low, high], np.quantile(drawn, [0.025, 0.975]), atol=0.1 * (high - low))


def test_a_run_does_not_differ_from_itself():
    a = random_confusions(10, 50, 4)
    assert bootstrap_difference(a, a, 100) == (0, 0, 0)

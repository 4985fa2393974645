import numpy as np
import pytest

from seglib.evaluation.errors import (
    gain_of_confusions,
    gain_of_images,
    lost_to_confusions,
    tabulate_classes,
    tabulate_confusions,
    tabulate_images,
)
from seglib.evaluation.metrics import image_miou, mean_iou

SEEDS = range(30)


def random_confusion(seed, num_classes=6):
    """Counts with zeros, absent classes, and classes that are only predicted or only true."""
    rng = np.random.default_rng(seed)
    confusion = rng.integers(0, 100, (num_classes, num_classes)) * (rng.random((num_classes, num_classes)) < 0.6)
    np.fill_diagonal(confusion, rng.integers(0, 500, num_classes))
    if seed % 3 == 0:
        confusion[2, :] = confusion[:, 2] = 0  # absent
    if seed % 2 == 0:
        confusion[4, :] = 0  # only invented
        confusion[:4, 4] = 0
        confusion[5, 4] = 7  # by one confusion: fixing it takes the class out of the mean
    if seed % 5 == 0:
        confusion[:, 1] = 0  # never predicted
    return confusion


def move_and_score(confusion, true, predicted):
    moved = confusion.copy()
    moved[true, true] += moved[true, predicted]
    moved[true, predicted] = 0
    return mean_iou(moved) - mean_iou(confusion)


@pytest.mark.parametrize("seed", SEEDS)
def test_gain_is_the_rise_of_the_miou_when_the_pixels_are_moved(seed):
    confusion = random_confusion(seed)
    gain = gain_of_confusions(confusion)
    for true, predicted in np.argwhere(1 - np.eye(len(confusion))):
        assert gain[true, predicted] == pytest.approx(move_and_score(confusion, true, predicted), abs=1e-12)
    assert (np.diagonal(gain) == 0).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_lost_parts_add_up_to_the_missing_miou(seed):
    confusion = random_confusion(seed)
    missed, invented = lost_to_confusions(confusion)
    assert (missed + invented).sum() == pytest.approx(1 - mean_iou(confusion), abs=1e-12)


def test_lost_parts_of_a_confusion_by_hand():
    # Class 0: 6 hits, union 10; class 1: 2 hits, union 6. Three zeros are taken for ones, one the other way.
    missed, invented = lost_to_confusions([[6, 3], [1, 2]])
    np.testing.assert_allclose(missed, [[0, 3 / 10 / 2], [1 / 6 / 2, 0]])
    np.testing.assert_allclose(invented, [[0, 3 / 6 / 2], [1 / 10 / 2, 0]])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_class_s_iou_and_its_lost_parts_are_one(seed):
    confusion = random_confusion(seed)
    table = tabulate_classes(confusion, list("abcdef"))
    whole = table[["iou", "lost_missed", "lost_invented"]].sum(axis=1, skipna=False)
    present = confusion.sum(0) + confusion.sum(1) > 0
    np.testing.assert_allclose(whole[present], 1)
    assert whole[~present].isna().all()
    assert table["pixels"].sum() == confusion.sum()


def test_the_table_of_confusions_is_sorted_by_gain_and_complete():
    confusion = random_confusion(1)
    table = tabulate_confusions(confusion, list("abcdef"))
    assert table["gain"].is_monotonic_decreasing
    assert table["pixels"].sum() == confusion.sum() - np.trace(confusion)
    assert table["lost"].sum() == pytest.approx(1 - mean_iou(confusion))
    first = table.iloc[0]
    true, predicted = "abcdef".index(first["true"]), "abcdef".index(first["predicted"])
    assert first["gain"] == pytest.approx(gain_of_confusions(confusion).max())
    assert first["share"] == confusion[true, predicted] / confusion[true].sum()


def test_an_image_s_gain_is_the_pooled_miou_with_it_made_perfect():
    per_image = np.stack([random_confusion(seed) for seed in range(5)])
    gains = gain_of_images(per_image)
    for index in range(5):
        perfect = per_image.copy()
        perfect[index] = np.diag(perfect[index].sum(1))
        assert gains[index] == pytest.approx(mean_iou(perfect.sum(0)) - mean_iou(per_image.sum(0)))


def test_an_image_without_valid_pixels_has_no_score_and_no_gain():
    table = tabulate_images(np.stack([random_confusion(1), np.zeros((6, 6), int)]), [10, 11])
    assert table["image_id"].tolist() == [10, 11]
    assert np.isnan(table.loc[1, ["miou", "accuracy"]].astype(float)).all()
    assert table.loc[1, "gain"] == 0
    assert table["miou"].mean() == pytest.approx(image_miou([random_confusion(1)]))


def test_a_perfect_matrix_costs_nothing():
    assert not gain_of_confusions(np.diag([3, 4])).any()
    assert len(tabulate_confusions(np.diag([3, 4]), ["a", "b"])) == 0


def test_a_matrix_without_pixels_costs_nothing():
    empty = np.zeros((3, 3), int)
    assert not gain_of_confusions(empty).any()
    assert not sum(lost_to_confusions(empty)).any()

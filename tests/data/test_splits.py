"""Splits: nothing leaks, folds partition the data, stratified folds look like the whole."""

import numpy as np
import pytest
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold

from seglib.data.splits import SPLITS, drop_leaked, make_split
from seglib.errors import InputError

KINDS = [kind for kind in SPLITS if kind not in ("given", "holdout")]


def make_images(count: int = 103, seed: int = 0) -> dict:
    """Imbalanced multi-label images: 3 % are exact duplicates of others, 4 images a group on average."""
    rng = np.random.default_rng(seed)
    content = np.arange(count)
    content[rng.permutation(count)[: max(count // 33, 1)]] = 0
    return {
        "image_hashes": [f"{digest:032x}" for digest in content],
        "groups": [f"street {group}" for group in rng.integers(0, count // 4, count)],
        "classes_present": rng.random((count, 8)) < np.array([1.0, 0.5, 0.3, 0.2, 0.1, 0.08, 0.05, 0.04]),
    }


def all_vals(kind: str, images: dict, folds: int, seed: int = 21) -> list[np.ndarray]:
    return [make_split(kind, **images, folds=folds, fold=fold, seed=seed)[1] for fold in range(folds)]


def frequency_gap(kind: str, images: dict, folds: int, seed: int) -> float:
    """Mean distance of the folds' class frequencies from the whole's."""
    present = images["classes_present"]
    vals = all_vals(kind, images, folds, seed)
    return np.mean([np.abs(present[val].mean(axis=0) - present.mean(axis=0)).mean() for val in vals])


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_validates_in_exactly_one_fold_and_trains_in_the_others(kind):
    images = make_images()
    for fold in range(5):
        train, val = make_split(kind, **images, folds=5, fold=fold, seed=21)
        assert train.dtype == val.dtype == np.int64
        assert np.array_equal(np.union1d(train, val), np.arange(103))
        assert len(train) + len(val) == 103
        assert np.all(np.diff(train) > 0)
        assert np.all(np.diff(val) > 0)
    assert np.array_equal(np.sort(np.concatenate(all_vals(kind, images, 5))), np.arange(103))


@pytest.mark.parametrize("kind", [*KINDS, "holdout"])
def test_copies_of_an_image_are_never_on_both_sides(kind):
    images = make_images()
    train, val = make_split(kind, **images, folds=3, fold=0, seed=1)
    hashes = np.array(images["image_hashes"])
    assert len(np.unique(hashes)) < len(hashes)
    assert not np.intersect1d(hashes[train], hashes[val]).size


@pytest.mark.parametrize("kind", ["group", "stratified_group"])
def test_a_group_is_never_on_both_sides(kind):
    images = make_images()
    groups = np.array(images["groups"])
    for fold in range(4):
        train, val = make_split(kind, **images, folds=4, fold=fold, seed=1)
        assert not np.intersect1d(groups[train], groups[val]).size


def test_groups_joined_by_a_copied_image_stay_together():
    hashes = ["a", "b", "b", "c", "d", "e"]
    groups = ["x", "x", "y", "y", "z", None]
    for fold in range(3):
        _, val = make_split("group", hashes, groups, np.ones((6, 1), bool), folds=3, fold=fold, seed=0)
        assert set(val) in ({0, 1, 2, 3}, {4}, {5})


@pytest.mark.parametrize("nobody", [None, float("nan"), ""])
def test_images_without_a_group_are_separated_from_each_other(nobody):
    groups = ["x", "x", *[nobody] * 8]
    vals = all_vals("group", {**make_images(10), "image_hashes": list("abcdefghij"), "groups": groups}, 5)
    assert [len(val) for val in vals] == [2] * 5


def test_images_of_unknown_content_are_nobodys_duplicates():
    images = {**make_images(10), "image_hashes": [""] * 10}
    assert [len(val) for val in all_vals("kfold", images, 5)] == [2] * 5


@pytest.mark.parametrize("kind", [*KINDS, "holdout"])
def test_the_seed_decides_the_split(kind):
    images = make_images()
    first, again, other = (make_split(kind, **images, folds=5, fold=0, seed=seed)[1] for seed in (21, 21, 42))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_split_is_the_same_on_every_platform_and_version():
    images = {
        "image_hashes": [f"{index // 2 if index < 4 else index}" for index in range(12)],
        "groups": [index // 3 for index in range(12)],
        "classes_present": np.array([[True, index % 2 == 0, index % 5 == 0] for index in range(12)]),
    }
    vals = {kind: make_split(kind, **images, folds=3, fold=0, seed=21)[1].tolist() for kind in KINDS}
    assert vals == {
        "kfold": [2, 3, 5, 9],
        "stratified": [0, 1, 7, 8],
        "group": [0, 1, 2, 3, 4, 5],
        "stratified_group": [0, 1, 2, 3, 4, 5],
    }


@pytest.mark.parametrize(("count", "folds"), [(103, 5), (40, 3), (100, 7), (64, 2)])
def test_fold_sizes_are_those_of_scikit_learn(count, folds):
    images = {**make_images(count), "image_hashes": [""] * count}
    references = {
        "kfold": KFold(folds).split(np.zeros(count)),
        "group": GroupKFold(folds).split(np.zeros(count), groups=images["groups"]),
    }
    for kind, reference in references.items():
        assert sorted(map(len, all_vals(kind, images, folds))) == sorted(len(val) for _, val in reference)


def test_holdout_is_the_first_fold_of_kfold():
    images = make_images()
    _, val = make_split("holdout", **images, folds=5, fold=0, seed=3)
    assert np.array_equal(val, all_vals("kfold", images, 5, seed=3)[0])


@pytest.mark.parametrize(("kind", "random_kind"), [("stratified", "kfold"), ("stratified_group", "group")])
def test_stratified_folds_are_closer_to_the_whole_than_random_ones(kind, random_kind):
    images = make_images(240)
    seeds = range(10)
    stratified = np.mean([frequency_gap(kind, images, 5, seed) for seed in seeds])
    assert stratified < 0.6 * np.mean([frequency_gap(random_kind, images, 5, seed) for seed in seeds])


@pytest.mark.parametrize("seed", range(5))
def test_a_class_of_as_many_images_as_folds_validates_in_every_fold(seed):
    present = np.zeros((100, 4), bool)
    present[:, 0] = True
    present[3:8, 1] = present[20:25, 2] = present[50:60, 3] = True
    images = {"image_hashes": [""] * 100, "groups": [None] * 100, "classes_present": present}
    for val in all_vals("stratified", images, 5, seed):
        assert present[val].sum(axis=0).tolist() == [20, 1, 1, 2]


def test_folds_of_single_label_images_match_scikit_learn():
    labels = np.random.default_rng(0).choice(4, 150, p=[0.5, 0.3, 0.15, 0.05])
    images = {"image_hashes": [""] * 150, "groups": [None] * 150, "classes_present": np.eye(4, dtype=bool)[labels]}
    expected = [np.bincount(labels[val], minlength=4) for _, val in StratifiedKFold(5).split(labels, labels)]
    ours = [np.bincount(labels[val], minlength=4) for val in all_vals("stratified", images, 5)]
    assert np.array_equal(np.sort(ours, axis=0), np.sort(expected, axis=0))


def test_stratified_folds_are_of_like_size():
    for seed in range(5):
        sizes = [len(val) for val in all_vals("stratified", make_images(240, seed), 5, seed)]
        assert max(sizes) - min(sizes) <= 4


def test_images_without_any_class_are_spread_evenly():
    images = {**make_images(100), "image_hashes": [""] * 100, "classes_present": np.zeros((100, 3), bool)}
    assert [len(val) for val in all_vals("stratified", images, 5)] == [20] * 5


def test_train_images_whose_content_is_in_val_are_dropped():
    kept = drop_leaked(["a", "b", "", "c", "b"], ["b", "d", ""])
    assert kept.dtype == np.int64
    assert kept.tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"kind": "stratifed"}, "split: unknown split 'stratifed'; did you mean 'stratified'"),
        ({"fold": 5}, "fold: 0 to 4 where folds is 5, got 5; folds are counted from 0"),
        ({"fold": -1}, "fold: 0 to 4 where folds is 5, got -1"),
        ({"folds": 1}, "folds: at least 2, of which one validates, got 1"),
        ({"folds": 8}, "folds: at most the 7 sets of images that may be separated (duplicates stay together), got 8"),
        (
            {"folds": 5, "kind": "group"},
            "at most the 3 sets of images that may be separated (duplicates and groups stay",
        ),
        ({"kind": "group", "groups": [None] * 8}, "split: the group kinds need images with a group, got none"),
        ({"kind": "holdout", "fold": 1}, "fold: split 'holdout' has fold 0 only, got 1"),
    ],
)
def test_refusals_are_one_line_and_name_the_fix(changed, words):
    given = {
        "kind": "kfold",
        "image_hashes": list("abcdefga"),
        "groups": [0, 0, 1, 1, 2, 2, 3, 3],
        "classes_present": np.ones((8, 2), bool),
        "folds": 5,
        "fold": 0,
        "seed": 0,
    }
    with pytest.raises(InputError) as refusal:
        make_split(**{**given, **changed})
    assert words in str(refusal.value)

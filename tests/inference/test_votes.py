"""Votes against slow arithmetic, pixel by pixel."""

import numpy as np
import pytest

from seglib.errors import InputError
from seglib.inference import votes as module
from seglib.inference.stores import average_stores, describe_store, open_store, write_store
from seglib.inference.votes import (
    add_specialists,
    average_probabilities,
    count_votes,
    follow_confident,
    hard_vote,
    soft_vote,
)

COUNT, SIZE, CLASSES = 3, 6, ["Background", "Paper", "Metal"]


def make_store(folder, seed=0, classes=CLASSES, dtype="uint8", count=COUNT, first_id=0, array=None):
    p = np.random.default_rng(seed).dirichlet(np.full(len(classes), 0.5), (count, SIZE, SIZE)).transpose(0, 3, 1, 2)
    if array is None:
        array = (255 * p).round().astype(np.uint8) if dtype == "uint8" else p.astype(dtype)
    ids = np.arange(count) + first_id
    write_store(folder, describe_store(ids, [f"{i}.jpg" for i in ids], classes, array.shape[-1], array.dtype.name, {}),
                lambda start: iter([array]), count)  # fmt: skip
    return open_store(folder)


def gather(votes):
    return np.stack(list(votes))


def read_all(store):
    return np.stack([store.read_probabilities(place) for place in range(len(store))]).astype(np.float64)


@pytest.fixture
def stores(tmp_path):
    return [make_store(tmp_path / f"m{seed}", seed, dtype=("uint8", "float16")[seed % 2]) for seed in range(3)]


def average_slowly(stores, weights, mean):
    """Image by image, pixel by pixel, in double precision."""
    members, floors = [read_all(store) for store in stores], {"uint8": 0.5 / 255, "float16": 2.0**-25}
    result = np.zeros(members[0].shape)
    for n, y, x in np.ndindex(COUNT, SIZE, SIZE):
        total = np.zeros(len(CLASSES))
        for store, member, weight in zip(stores, members, weights, strict=True):
            p = member[n, :, y, x]
            floor = floors[store.dtype.name]
            total += weight * (np.log(np.maximum(p, floor)) if mean == "geometric" else p)
        if mean == "geometric":
            total = np.exp(total / np.sum(weights, axis=0))
        result[n, :, y, x] = total / total.sum()
    return result


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
@pytest.mark.parametrize("weights", [(1, 1, 1), (0.7, 0, 0.3), [(1, 2, 0.5), (0.2, 1, 1), (1, 0.5, 2)]])
def test_soft_votes_equal_slow_arithmetic(stores, mean, weights):
    slow = average_slowly(stores, np.asarray(weights), mean)
    parts = list(average_probabilities(stores, weights, mean=mean))
    np.testing.assert_allclose(parts, slow, atol=2e-6)
    preds = gather(soft_vote(stores, weights, mean=mean))
    top = np.sort(slow, axis=1)
    clear = top[:, -1] - top[:, -2] > 1e-5
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(preds[clear], slow.argmax(1)[clear])


def test_the_plain_soft_vote_is_the_mean_of_probabilities(stores):
    np.testing.assert_array_equal(gather(soft_vote(stores)), average_slowly(stores, [1] * 3, "arithmetic").argmax(1))


def vote_slowly(preds, weights, decide):
    """Exact votes in whole numbers; `decide(pixel, tied classes)` where several are first."""
    result = np.zeros(preds.shape[1:], np.uint8)
    for pixel in np.ndindex(preds.shape[1:]):
        votes = [sum(w for w, p in zip(weights, preds, strict=True) if p[pixel] == c) for c in range(len(CLASSES))]
        tied = [c for c, vote in enumerate(votes) if vote == max(votes)]
        result[pixel] = tied[0] if len(tied) == 1 else decide(pixel, tied)
    return result


@pytest.mark.parametrize("weights", [(1, 1, 1), (3, 2, 1), (0, 1, 1)])
def test_hard_votes_equal_slow_counting_with_ties_by_confidence(stores, weights):
    members = [read_all(store) for store in stores]
    confidence = sum(weight * member for weight, member in zip(weights, members, strict=True))
    preds = np.stack([member.argmax(1) for member in members])
    slow = vote_slowly(preds, weights, lambda at, tied: max(tied, key=lambda c: confidence[at[0], c, *at[1:]]))
    np.testing.assert_array_equal(gather(hard_vote(stores, weights)), slow)


def test_a_named_member_decides_ties(stores):
    preds = np.stack([read_all(store).argmax(1) for store in stores])
    slow = vote_slowly(preds, (1, 1, 1), lambda at, tied: preds[2][at])  # all differ, so its own is among them
    np.testing.assert_array_equal(gather(hard_vote(stores, tie_break=2)), slow)
    assert (slow != gather(hard_vote(stores, tie_break=0))).any()


def test_who_did_not_vote_for_a_tied_class_does_not_decide():
    preds = np.array([2, 0, 0, 1, 1], np.uint8).reshape(5, 1, 1)
    assert count_votes(preds, np.ones(5), 3, order=[0, 3, 1, 2, 4]).tolist() == [[1]]


def test_tenths_that_add_up_are_a_tie():
    preds = np.array([1, 1, 0], np.uint8).reshape(3, 1, 1)  # 0.1 + 0.2 > 0.3 in binary
    assert count_votes(preds, [0.1, 0.2, 0.3], 2, order=[2, 0, 1]).tolist() == [[0]]


def test_what_does_not_fit_is_refused(stores):
    for vote in (lambda: soft_vote(stores, [1, 2], mean="geometric"), lambda: hard_vote(stores, [1, -1, 1])):
        with pytest.raises(InputError, match="weights: required 3 weights of at least 0"):
            vote()
    with pytest.raises(InputError, match="unknown mean 'geometrc'; did you mean 'geometric'"):
        soft_vote(stores, mean="geometrc")
    with pytest.raises(InputError, match="tie_break: required the place of a member, 0 to 2, got 3"):
        hard_vote(stores, tie_break=3)


def test_specialists_count_for_their_own_classes_by_weight(tmp_path, stores):
    metal = make_store(tmp_path / "metal", 9, ["Background", "Metal"])
    votes = gather(soft_vote(*add_specialists(stores, [1, 2, 1], [metal], [3])))
    total = sum(weight * read_all(store) for weight, store in zip([1, 2, 1], stores, strict=True)) / 4
    total[:, 2] = (4 * total[:, 2] + 3 * read_all(metal)[:, 1]) / 7
    top = np.sort(total, axis=1)
    clear = top[:, -1] - top[:, -2] > 1e-4
    np.testing.assert_array_equal(votes[clear], total.argmax(1)[clear])
    np.testing.assert_array_equal(
        gather(soft_vote(*add_specialists(stores, None, [metal], [1e-9]))), gather(soft_vote(stores))
    )


def test_a_confident_specialist_decides_and_its_background_never_does(tmp_path, stores):
    metal, paper = (
        make_store(tmp_path / name, seed, ["Background", name]) for seed, name in ((8, "Metal"), (9, "Paper"))
    )
    before = gather(soft_vote(stores))
    after = gather(follow_confident(soft_vote(stores), [metal, paper], CLASSES, 0.6))
    p_metal, p_paper = read_all(metal)[:, 1].astype(np.float32), read_all(paper)[:, 1].astype(np.float32)
    chosen = np.where(p_paper > p_metal, 1, 2)
    expected = np.where(np.maximum(p_metal, p_paper) > 0.6, chosen, before)
    np.testing.assert_array_equal(after, expected)
    assert (after != before).any()
    with pytest.raises(InputError, match="probability from 0 to 1, got 2"):
        follow_confident(soft_vote(stores), [metal], CLASSES, 2)


def test_a_specialist_of_folds_is_as_confident_as_their_mean(tmp_path, stores):
    classes, sure, unsure = ["Background", "Metal"], *(np.empty((COUNT, 2, SIZE, SIZE), np.uint8) for _ in range(2))
    sure[:], unsure[:] = np.array([25, 230], np.uint8)[:, None, None], np.array([235, 20], np.uint8)[:, None, None]
    folds = [
        make_store(tmp_path / f"f{n}", classes=classes, array=array) for n, array in enumerate((sure, unsure, unsure))
    ]
    before = gather(soft_vote(stores))
    specialist = average_stores(folds)
    np.testing.assert_array_equal(gather(follow_confident(soft_vote(stores), [specialist], CLASSES, 0.5)), before)
    assert (gather(follow_confident(soft_vote(stores), folds, CLASSES, 0.5)) == 2).all(), "the highest of three decides"
    confident = average_stores(folds[:2])
    assert (gather(follow_confident(soft_vote(stores), [confident], CLASSES, 0.48)) == 2).all()


# Weighted sums, ties included.


def make_member(folder, classes=4, dtype="uint8", seed=0, count=5, size=9, first_id=0):
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(classes, 0.7), (count, size, size)).transpose(0, 3, 1, 2)
    array = (probabilities * 255).round().astype(np.uint8) if dtype == "uint8" else probabilities.astype(dtype)
    names = [f"{number}.jpg" for number in range(count)]
    about = describe_store(np.arange(count) + first_id, names, [f"c{i}" for i in range(classes)], size, dtype, {})
    write_store(folder, about, lambda start: iter([array]), count)
    return open_store(folder)


def read_raw(store):
    return np.stack([store.read(position) for position in range(len(store))]).astype(np.float64)


def weigh_slowly(stores, weights):
    """Weighted sum in exact arithmetic and argmax, pixel by pixel; the lower class where two are equal."""
    weights = np.broadcast_to(np.asarray(weights, np.float64).reshape(len(stores), -1), (len(stores), 4))
    total = sum(read_raw(store) * of_class[:, None, None] for store, of_class in zip(stores, weights, strict=True))
    return total.argmax(1)


def vote(stores, weights=None):
    preds = np.stack(list(soft_vote(stores, weights)))
    assert preds.dtype == np.uint8
    return preds


@pytest.fixture
def members(tmp_path):
    return [make_member(tmp_path / str(seed), seed=seed) for seed in range(3)]


@pytest.mark.parametrize("weights", [(1, 1, 1), (3, 1, 2), (0, 5, 0), (1, 0, 2)])
def test_whole_weights_give_the_exact_vote_ties_included(members, weights):
    np.testing.assert_array_equal(vote(members, weights), weigh_slowly(members, weights))


@pytest.mark.parametrize("weights", [(1, 1, 2), (5, 3, 12), (1, 3, 3)])
def test_fractions_give_the_same_vote_as_whole_weights(members, weights):
    expected = weigh_slowly(members, weights)
    for scale in (0.05, 1 / sum(weights), 3):
        np.testing.assert_array_equal(vote(members, np.array(weights) * scale), expected)


def test_without_weights_all_count_the_same(members):
    np.testing.assert_array_equal(vote(members), weigh_slowly(members, (1, 1, 1)))
    np.testing.assert_array_equal(vote(members, [0.1] * 3), vote(members))


def test_other_weights_give_the_vote_of_slow_arithmetic(members):
    weights = np.random.default_rng(5).random(3)
    np.testing.assert_array_equal(vote(members, weights), weigh_slowly(members, weights))
    np.testing.assert_array_equal(vote(members, weights * 1e6), weigh_slowly(members, weights))


def test_weights_can_differ_by_class(members):
    weights = np.random.default_rng(6).random((3, 4))
    np.testing.assert_array_equal(vote(members, weights), weigh_slowly(members, weights))


def test_equal_sums_go_to_the_lower_class(tmp_path):
    store = make_member(tmp_path / "a", count=1)
    flat = np.full((1, 4, 9, 9), 64, np.uint8)
    about = describe_store(store.image_ids, store.file_names, store.class_names, 9, "uint8", {})
    write_store(tmp_path / "b", about, lambda start: iter([flat]), 1)
    assert (vote([open_store(tmp_path / "b")] * 3, [0.2, 0.3, 0.5]) == 0).all()


def test_the_number_of_threads_makes_no_difference(members, monkeypatch):
    expected = vote(members, [0.2, 0.3, 0.5])
    monkeypatch.setattr(module, "THREADS", 2)
    np.testing.assert_array_equal(vote(members, [0.2, 0.3, 0.5]), expected)


def test_float16_is_voted_as_finely_and_mixes_with_uint8(tmp_path):
    stores = [make_member(tmp_path / "a", dtype="float16"), make_member(tmp_path / "b", seed=1)]
    total = read_raw(stores[0]) * 0.3 + read_raw(stores[1]) / 255 * 0.7
    np.testing.assert_array_equal(vote(stores, [0.3, 0.7]), total.argmax(1))
    np.testing.assert_array_equal(vote(stores[:1]), read_raw(stores[0]).argmax(1))


@pytest.mark.parametrize("classes", [2, 16, 17, 255])
def test_the_largest_sums_fit_for_any_number_of_classes(tmp_path, classes):
    names = [f"c{i}" for i in range(classes)]
    array = np.zeros((1, classes, 2, 2), np.uint8)
    array[0, -1] = 255
    about = describe_store(np.arange(1), ["a"], names, 2, "uint8", {})
    write_store(tmp_path / "s", about, lambda start: iter([array]), 1)
    store = open_store(tmp_path / "s")
    for members in (1, 50):
        assert (vote([store] * members, np.linspace(1, 1000, members)) == classes - 1).all()
        assert (vote([store] * members) == classes - 1).all()


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1, 1], r"weights: required 3 weights of at least 0, one above, or 3 x 4, got \[1.0, 1.0\]"),
        ([1, -1, 1], "weights: required 3 weights of at least 0, one above"),
        ([0, 0, 0], "weights: required 3 weights of at least 0, one above"),
        ([1, np.nan, 1], "weights: required 3 weights of at least 0, one above"),
    ],
)
def test_weights_that_mean_nothing_are_refused(members, weights, words):
    with pytest.raises(InputError, match=words):
        soft_vote(members, weights)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": 3}, r"required the class_names of .* \(c0, c1, c2, c3\), got c0, c1, c2; .*leave this member out"),
        ({"size": 8}, r"required the size of .* \(9\), got 8; predict both alike"),
        ({"count": 4}, r"required the image_ids of .* \(0, 1, 2, 3, 4\), got 0, 1, 2, 3;"),
        ({"first_id": 7}, r"required the image_ids of .* \(0, 1, 2, 3, 4\), got 7, 8, 9, 10, 11;"),
    ],
)
def test_stores_that_do_not_belong_together_are_refused(tmp_path, options, words):
    stores = [make_member(tmp_path / "a"), make_member(tmp_path / "b", **options)]
    with pytest.raises(InputError, match=words):
        soft_vote(stores)


def test_no_store_is_refused():
    with pytest.raises(InputError, match="required at least one store of probabilities, got none"):
        soft_vote([])


def test_damage_is_found_while_voting(members):
    with open(members[1].folder / "probabilities.npy", "r+b") as file:
        file.seek(-1, 2)
        file.write(bytes([int(members[1].read(4)[-1, -1, -1]) ^ 255]))
    with pytest.raises(InputError, match=r"got others for 4\.jpg \(c3\)"):
        vote(members)

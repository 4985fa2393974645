from types import SimpleNamespace

import numpy as np
import pytest

from seglib.errors import InputError
from seglib.inference.ensemble import (
    add_specialists,
    average_probabilities,
    count_votes,
    follow_confident,
    hard_vote,
    soft_vote,
)
from seglib.inference.predict_run import average_folds
from seglib.inference.stores import (
    average_stores,
    describe_store,
    join_stores,
    name_classes,
    open_store,
    take_images,
    write_store,
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
    return np.concatenate([preds for _, preds in votes])


def read_all(store):
    return store.read(0, len(store)).astype(np.float64)


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
            floor = floors[store.data.dtype.name]
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
    assert [start for start, _ in parts] == list(range(COUNT))
    np.testing.assert_allclose(gather(parts), slow, atol=2e-6)
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
    preds = np.array([[2], [0], [0], [1], [1]], np.uint8)
    assert count_votes(preds, np.ones(5), 3, order=[0, 3, 1, 2, 4]).tolist() == [1]


def test_tenths_that_add_up_are_a_tie():
    preds = np.array([[1], [1], [0]], np.uint8)  # 0.1 + 0.2 > 0.3 in binary
    assert count_votes(preds, [0.1, 0.2, 0.3], 2, order=[2, 0, 1]).tolist() == [0]


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


def test_views_read_what_their_stores_hold(tmp_path):
    first, second = make_store(tmp_path / "a", 1, count=2), make_store(tmp_path / "b", 2, count=2, first_id=5)
    joined = join_stores([first, second], np.array([6, 0, 5]))
    np.testing.assert_array_equal(joined.read(0, 3), [second.read(1, 2)[0], first.read(0, 1)[0], second.read(0, 1)[0]])
    np.testing.assert_array_equal(take_images(joined, [2]).read(0, 1), second.read(0, 1))
    wide = name_classes(first, ["Background", "Glass", "Paper", "Metal"]).read(0, 2)
    np.testing.assert_array_equal(wide[:, [0, 2, 3]], first.read(0, 2))
    assert (wide[:, 1] == 0).all()
    np.testing.assert_array_equal(gather(soft_vote([joined, joined])), joined.read(0, 3).argmax(1))


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_averaged_folds_read_as_one_store(tmp_path, dtype):
    folds = [make_store(tmp_path / f"{seed}", seed, dtype=dtype) for seed in range(3)]
    average = average_stores(folds)
    expected = np.mean([read_all(store) for store in folds], axis=0)
    np.testing.assert_allclose(average.read(0, COUNT), expected, atol={"uint8": 0.501 / 255, "float16": 5e-4}[dtype])
    np.testing.assert_array_equal(gather(soft_vote([average])), average.read(0, COUNT).argmax(1))
    np.testing.assert_array_equal(take_images(average, [2]).read(0, 1), average.read(2, 3))
    assert average_stores(folds[:1]) is folds[0]
    with pytest.raises(InputError, match=f"required {dtype} as in"):
        average_stores(
            [folds[0], make_store(tmp_path / "other", dtype={"uint8": "float16", "float16": "uint8"}[dtype])]
        )


def test_a_specialist_of_folds_is_as_confident_as_their_mean(tmp_path, stores):
    classes, sure, unsure = ["Background", "Metal"], *(np.empty((COUNT, 2, SIZE, SIZE), np.uint8) for _ in range(2))
    sure[:], unsure[:] = np.array([25, 230], np.uint8)[:, None, None], np.array([235, 20], np.uint8)[:, None, None]
    folds = [
        make_store(tmp_path / f"f{n}", classes=classes, array=array) for n, array in enumerate((sure, unsure, unsure))
    ]
    before = gather(soft_vote(stores))
    (specialist,) = average_folds([SimpleNamespace(folders=(1, 2, 3))], folds)
    np.testing.assert_array_equal(gather(follow_confident(soft_vote(stores), [specialist], CLASSES, 0.5)), before)
    assert (gather(follow_confident(soft_vote(stores), folds, CLASSES, 0.5)) == 2).all(), "the highest of three decides"
    (confident,) = average_folds([SimpleNamespace(folders=(1, 2))], folds[:2])
    assert (gather(follow_confident(soft_vote(stores), [confident], CLASSES, 0.48)) == 2).all()


def test_an_image_in_two_folds_or_in_none_is_refused(tmp_path):
    first, second = make_store(tmp_path / "a", 1), make_store(tmp_path / "b", 2, first_id=2)
    for ids in ([0, 9], [0, 2]):
        with pytest.raises(InputError, match="each of 2 images in one fold's predictions"):
            join_stores([first, second], np.array(ids))
    with pytest.raises(InputError, match=r"required classes of the ensemble \(Background\), got Paper, Metal"):
        name_classes(first, ["Background"])

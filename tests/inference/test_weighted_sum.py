import numpy as np
import pytest

from seglib.errors import InputError
from seglib.inference import stores as module
from seglib.inference.stores import describe_store, open_store, weighted_argmax, write_store

COUNT, SIZE = 5, 9


def make_store(folder, classes=4, dtype="uint8", seed=0, count=COUNT, size=SIZE, first_id=0):
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(classes, 0.7), (count, size, size)).transpose(0, 3, 1, 2)
    array = (probabilities * 255).round().astype(np.uint8) if dtype == "uint8" else probabilities.astype(dtype)
    names = [f"{number}.jpg" for number in range(count)]
    about = describe_store(np.arange(count) + first_id, names, [f"c{i}" for i in range(classes)], size, dtype, {})
    write_store(folder, about, lambda start: iter([array]), count)
    return open_store(folder)


def vote_slowly(stores, weights):
    """Weighted sum in exact arithmetic and argmax, pixel by pixel; the lower class where two are equal."""
    weights = np.broadcast_to(np.asarray(weights, np.float64).reshape(len(stores), -1), (len(stores), 4))
    total = np.zeros(stores[0].data.shape)
    for store, of_class in zip(stores, weights, strict=True):
        total += np.array(store.data, np.float64) * of_class[None, :, None, None]
    return total.argmax(1)


def vote(stores, weights=None):
    parts = list(weighted_argmax(stores, weights))
    assert [start for start, _ in parts] == list(np.cumsum([0, *(len(preds) for _, preds in parts[:-1])]))
    preds = np.concatenate([preds for _, preds in parts])
    assert preds.dtype == np.uint8
    return preds


@pytest.fixture
def stores(tmp_path):
    return [make_store(tmp_path / str(seed), seed=seed) for seed in range(3)]


@pytest.mark.parametrize("weights", [(1, 1, 1), (3, 1, 2), (0, 5, 0), (1, 0, 2)])
def test_whole_weights_give_the_exact_vote_ties_included(stores, weights):
    np.testing.assert_array_equal(vote(stores, weights), vote_slowly(stores, weights))


@pytest.mark.parametrize("weights", [(1, 1, 2), (5, 3, 12), (1, 3, 3)])
def test_fractions_give_the_same_vote_as_whole_weights(stores, weights):
    expected = vote_slowly(stores, weights)
    for scale in (0.05, 1 / sum(weights), 3):
        np.testing.assert_array_equal(vote(stores, np.array(weights) * scale), expected)


def test_without_weights_all_count_the_same(stores):
    np.testing.assert_array_equal(vote(stores), vote_slowly(stores, (1, 1, 1)))
    np.testing.assert_array_equal(vote(stores, [0.1] * 3), vote(stores))


def test_other_weights_give_the_vote_of_slow_arithmetic(stores):
    weights = np.random.default_rng(5).random(3)
    np.testing.assert_array_equal(vote(stores, weights), vote_slowly(stores, weights))
    np.testing.assert_array_equal(vote(stores, weights * 1e6), vote_slowly(stores, weights))


def test_weights_can_differ_by_class(stores):
    weights = np.random.default_rng(6).random((3, 4))
    np.testing.assert_array_equal(vote(stores, weights), vote_slowly(stores, weights))


def test_equal_sums_go_to_the_lower_class(tmp_path):
    store = make_store(tmp_path / "a", count=1)
    flat = np.full(store.data.shape, 64, np.uint8)
    about = describe_store(store.image_ids, store.file_names, store.class_names, SIZE, "uint8", {})
    write_store(tmp_path / "b", about, lambda start: iter([flat]), 1)
    assert (vote([open_store(tmp_path / "b")] * 3, [0.2, 0.3, 0.5]) == 0).all()


def test_images_come_in_blocks_and_chunks_make_no_difference(stores, monkeypatch):
    expected = vote(stores, [0.2, 0.3, 0.5])
    monkeypatch.setattr(module, "BLOCK", 2)
    monkeypatch.setattr(module, "CHUNK", 10)
    assert [start for start, _ in weighted_argmax(stores)] == [0, 2, 4]
    np.testing.assert_array_equal(vote(stores, [0.2, 0.3, 0.5]), expected)


def test_float16_is_voted_as_finely_and_mixes_with_uint8(tmp_path):
    stores = [make_store(tmp_path / "a", dtype="float16"), make_store(tmp_path / "b", seed=1)]
    total = stores[0].data.astype(np.float64) * 0.3 + stores[1].data.astype(np.float64) / 255 * 0.7
    np.testing.assert_array_equal(vote(stores, [0.3, 0.7]), total.argmax(1))
    np.testing.assert_array_equal(vote(stores[:1]), np.array(stores[0].data).argmax(1))


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
        ([1, 1], r"weights: required 3, one a member, or 3 x 4 for classes of their own, got \(2,\)"),
        ([1, -1, 1], "weights: required numbers of at least 0, one above"),
        ([0, 0, 0], "weights: required numbers of at least 0, one above"),
        ([1, np.nan, 1], "weights: required numbers of at least 0, one above"),
    ],
)
def test_weights_that_mean_nothing_are_refused(stores, weights, words):
    with pytest.raises(InputError, match=words):
        weighted_argmax(stores, weights)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": 3}, "required the classes of .*, got c0, c1, c2 instead of c0, c1, c2, c3; leave this member out"),
        ({"size": 8}, "required 9 px as in .*, got 8 px; predict both at one size"),
        ({"count": 4}, "required the 5 images of .*, got 4 or others"),
        ({"first_id": 7}, "required the 5 images of .*, got 5 or others"),
    ],
)
def test_stores_that_do_not_belong_together_are_refused(tmp_path, options, words):
    stores = [make_store(tmp_path / "a"), make_store(tmp_path / "b", **options)]
    with pytest.raises(InputError, match=words):
        weighted_argmax(stores)


def test_no_store_is_refused():
    with pytest.raises(InputError, match="required at least one store of probabilities, got none"):
        weighted_argmax([])


def test_damage_is_found_while_voting(stores):
    with open(stores[1].folder / "probabilities.npy", "r+b") as file:
        file.seek(-1, 2)
        file.write(bytes([int(stores[1].data[-1, -1, -1, -1]) ^ 255]))
    with pytest.raises(InputError, match=r"got others for 4\.jpg \(c3\)"):
        vote(stores)

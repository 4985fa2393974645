import json
import os
import shutil

import numpy as np
import pytest

from seglib.errors import InputError
from seglib.files import checksums
from seglib.inference.stores import average_stores, describe_store, join_stores, open_store, write_store

COUNT, CLASSES, SIZE, BATCH = 7, 3, 6, 2  # planes of 36 bytes: no whole number of words


def draw(dtype="uint8", seed=0):
    values = np.random.default_rng(seed).random((COUNT, CLASSES, SIZE, SIZE))
    return (values * 255).round().astype(np.uint8) if dtype == "uint8" else values.astype(dtype)


def describe(dtype="uint8", **origin):
    names = [f"{number}.jpg" for number in range(COUNT)]
    return describe_store(np.arange(COUNT) + 10, names, ["Background", "유리", "Metal"], SIZE, dtype, origin)


def read_all(store):
    return np.stack([store.read(position) for position in range(len(store))])


def predict_from(array, stop=COUNT, starts=None):
    """A predictor that gives out `array` and is killed at image `stop`."""

    def predict(start):
        if starts is not None:
            starts.append(start)
        for first in range(start, COUNT, BATCH):
            if first >= stop:
                raise KeyboardInterrupt
            yield array[first : first + BATCH]

    return predict


def write(folder, array=None, **origin):
    array = draw() if array is None else array
    write_store(folder, describe(str(array.dtype), **origin), predict_from(array), BATCH)
    return open_store(folder)


def interrupt(folder, array, stop=4):
    with pytest.raises(KeyboardInterrupt):
        write_store(folder, describe(), predict_from(array, stop), BATCH)


@pytest.mark.parametrize(("dtype", "scale"), [("uint8", 255), ("float16", 1)])
def test_what_is_written_is_read_back(tmp_path, dtype, scale):
    array = draw(dtype)
    store = write(tmp_path / "store", array, tta=["plain@64"])
    assert (len(store), store.size, store.origin) == (COUNT, SIZE, {"tta": ["plain@64"]})
    assert store.class_names == ["Background", "유리", "Metal"]
    assert store.file_names[2] == "2.jpg"
    assert store.image_ids.tolist() == list(range(10, 17)) and store.image_ids.dtype == np.int64
    np.testing.assert_array_equal(read_all(store), array)
    assert store.dtype == dtype
    probabilities = store.read_probabilities(3)
    assert probabilities.dtype == np.float32
    np.testing.assert_array_equal(probabilities, array[3].astype(np.float32) / scale)


def test_progress_counts_images(tmp_path):
    calls = []
    write_store(tmp_path / "store", describe(), predict_from(draw()), BATCH, lambda *call: calls.append(call))
    assert calls == [(2, 7), (4, 7), (6, 7), (7, 7)]


def test_a_killed_writing_goes_on_and_gives_the_same_bytes(tmp_path):
    array, starts = draw(), []
    write(tmp_path / "whole", array)
    interrupt(tmp_path / "store", array)
    assert not (tmp_path / "store").exists()
    write_store(tmp_path / "store", describe(), predict_from(array, starts=starts), BATCH)
    assert starts == [4]
    for name in ("probabilities.npy", "checksums.npy", "store.json"):
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "store.part").exists()


@pytest.mark.parametrize("lost", range(0, 300, 23))
def test_a_batch_that_was_cut_anywhere_is_written_again(tmp_path, lost):
    array, starts = draw(), []
    interrupt(tmp_path / "store", array, stop=6)
    for name, share in (("probabilities.npy", lost), ("checksums.npy", 0 if lost % 2 else lost // 5)):
        path = tmp_path / "store.part" / name
        os.truncate(path, path.stat().st_size - share)
    write_store(tmp_path / "store", describe(), predict_from(array, starts=starts), BATCH)
    np.testing.assert_array_equal(read_all(open_store(tmp_path / "store")), array)
    assert starts[0] % BATCH == 0 and starts[0] >= 2


def test_a_hole_that_a_power_cut_left_is_written_again(tmp_path):
    array, starts = draw(), []
    interrupt(tmp_path / "store", array)
    with open(tmp_path / "store.part" / "probabilities.npy", "r+b") as file:
        file.seek(-150, os.SEEK_END)
        file.write(bytes(40))
    write_store(tmp_path / "store", describe(), predict_from(array, starts=starts), BATCH)
    assert starts == [2]
    np.testing.assert_array_equal(read_all(open_store(tmp_path / "store")), array)


def test_a_writing_that_ended_before_the_renaming_is_only_renamed(tmp_path):
    array = draw()
    write(tmp_path / "store", array).folder.rename(tmp_path / "store.part")
    write_store(tmp_path / "store", describe(), None, BATCH)
    np.testing.assert_array_equal(read_all(open_store(tmp_path / "store")), array)


def test_what_is_left_of_another_description_is_begun_again(tmp_path):
    starts = []
    interrupt(tmp_path / "store", draw(seed=1))
    write_store(tmp_path / "store", describe(device="cuda"), predict_from(draw(), starts=starts), BATCH)
    assert starts == [0]
    np.testing.assert_array_equal(read_all(open_store(tmp_path / "store")), draw())


def test_a_store_is_whole_until_a_new_one_is(tmp_path):
    write(tmp_path / "store", draw(seed=1))
    interrupt(tmp_path / "store", draw())
    np.testing.assert_array_equal(read_all(open_store(tmp_path / "store")), draw(seed=1))
    write(tmp_path / "store", draw())
    np.testing.assert_array_equal(read_all(open_store(tmp_path / "store")), draw())


def test_a_full_disk_is_said_before_the_first_image(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=900))
    with pytest.raises(InputError, match=r"probabilities of 7 images need 0\.0 MB, got 0\.0 MB free; make room"):
        write_store(tmp_path / "store", describe(), None, BATCH)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=924))
    write_store(tmp_path / "store", describe(), predict_from(draw()), BATCH)


def test_a_disk_that_fills_up_meanwhile_is_said_and_keeps_what_was_written(tmp_path):
    def fill(start):
        yield draw()[:2]
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"[GM]B free; make room, or store them as uint8 or at a smaller size"):
        write_store(tmp_path / "store", describe(), fill, BATCH)
    starts = []
    write_store(tmp_path / "store", describe(), predict_from(draw(), starts=starts), BATCH)
    assert starts == [2]


def test_an_unfinished_store_is_refused(tmp_path):
    interrupt(tmp_path / "store", draw())
    for name in ("store", "store.part"):
        with pytest.raises(
            InputError, match="required a finished store of probabilities, got one that is not finished"
        ):
            open_store(tmp_path / name)
    with pytest.raises(InputError, match="got no such folder; predict again"):
        open_store(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["probabilities.npy", "checksums.npy", "store.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "foreign"])
def test_a_damaged_store_is_refused_in_one_line(tmp_path, name, damage):
    path = write(tmp_path / "store").folder / name
    if damage == "cut":
        os.truncate(path, path.stat().st_size - 9)
    elif damage == "gone":
        path.unlink()
    elif name == "store.json":
        path.write_text(json.dumps({"shape": [1]}))
    else:
        np.save(path, np.zeros(3))
    with pytest.raises(InputError, match="required a whole store of probabilities, got a damaged one") as caught:
        open_store(path.parent)
    assert "\n" not in str(caught.value)


def test_bytes_that_changed_are_found_when_they_are_read(tmp_path):
    store = write(tmp_path / "store")
    with open(store.folder / "probabilities.npy", "r+b") as file:
        file.seek(128 + (4 * CLASSES + 1) * SIZE * SIZE + 35)  # the header has 128 bytes
        file.write(bytes([int(draw()[4, 1, 5, 5]) ^ 1]))
    store = open_store(store.folder)
    store.read(3)
    with pytest.raises(InputError, match=r"got others for 4\.jpg \(유리\); the file is damaged: delete the folder"):
        store.read(4)


def test_a_checksum_counts_every_byte():
    planes = np.arange(74, dtype=np.uint8).reshape(2, 37)
    for position in range(37):
        changed = planes.copy()
        changed[1, position] ^= 128
        assert (checksums(changed) != checksums(planes)).tolist() == [False, True]
    assert checksums(np.full((1, 16), 255, np.uint8)).tolist() == [2**64 - 2]


# Views of stores.


def make_member(folder, seed=0, dtype="uint8", count=3, first_id=0):
    p = np.random.default_rng(seed).dirichlet(np.full(3, 0.5), (count, SIZE, SIZE)).transpose(0, 3, 1, 2)
    array = (255 * p).round().astype(np.uint8) if dtype == "uint8" else p.astype(dtype)
    ids, classes = np.arange(count) + first_id, ["Background", "Paper", "Metal"]
    about = describe_store(ids, [f"{number}.jpg" for number in ids], classes, SIZE, dtype, {})
    write_store(folder, about, lambda start: iter([array]), count)
    return open_store(folder)


def read_probabilities(store):
    return np.stack([store.read_probabilities(position) for position in range(len(store))]).astype(np.float64)


def test_views_read_what_their_stores_hold(tmp_path):
    first, second = make_member(tmp_path / "a", 1, count=2), make_member(tmp_path / "b", 2, count=2, first_id=5)
    joined = join_stores([first, second], np.array([6, 0, 5]))
    np.testing.assert_array_equal(read_all(joined), [second.read(1), first.read(0), second.read(0)])
    np.testing.assert_array_equal(joined.take([2]).read(0), second.read(0))
    wide = read_all(first.name_classes(["Background", "Glass", "Paper", "Metal"]))
    np.testing.assert_array_equal(wide[:, [0, 2, 3]], read_all(first))
    assert (wide[:, 1] == 0).all()
    assert joined.file_names == ["6.jpg", "0.jpg", "5.jpg"] and joined.image_ids.tolist() == [6, 0, 5]


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_averaged_folds_read_as_one_store(tmp_path, dtype):
    folds = [make_member(tmp_path / f"{seed}", seed, dtype=dtype) for seed in range(3)]
    average = average_stores(folds)
    expected = np.mean([read_probabilities(store) for store in folds], axis=0)
    np.testing.assert_allclose(
        read_probabilities(average), expected, atol={"uint8": 0.501 / 255, "float16": 5e-4}[dtype]
    )
    np.testing.assert_array_equal(average.take([2]).read(0), average.read(2))
    assert average_stores(folds[:1]) is folds[0]
    with pytest.raises(InputError, match=rf"required the dtype of .* \({dtype}\)"):
        average_stores(
            [folds[0], make_member(tmp_path / "other", dtype={"uint8": "float16", "float16": "uint8"}[dtype])]
        )


def test_an_image_in_two_folds_or_in_none_is_refused(tmp_path):
    first, second = make_member(tmp_path / "a", 1), make_member(tmp_path / "b", 2, first_id=2)
    for ids in ([0, 9], [0, 2]):
        with pytest.raises(InputError, match="each of 2 images in one fold's predictions"):
            join_stores([first, second], np.array(ids))
    with pytest.raises(InputError, match=r"required classes of the ensemble \(Background\), got Paper, Metal"):
        first.name_classes(["Background"])

"""Copies are found though they were re-encoded, resized or brightened; different pictures are not taken for copies."""

import cv2
import numpy as np
import pandas as pd
import pytest

from seglib.data import splits
from seglib.data.eda import tabulate_copies
from seglib.data.splits import MAX_DISTANCE, find_near_duplicates, hash_picture


def picture(seed: int, side: int = 128) -> np.ndarray:
    """Blurred blobs with a little texture, as a photograph has."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.integers(0, 256, (7, 7, 3)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(coarse + rng.normal(0, 8, coarse.shape), 0, 255).astype(np.uint8)


def distance(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.bitwise_count(hash_picture(one) ^ hash_picture(other)))


def encode_again(image):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR)


@pytest.mark.parametrize(
    "change",
    [encode_again, lambda image: cv2.resize(image, (70, 90), interpolation=cv2.INTER_AREA),
     lambda image: cv2.convertScaleAbs(image, alpha=0.8, beta=10), lambda image: cv2.GaussianBlur(image, (5, 5), 0)],
    ids=["encoded again", "resized", "darker", "blurred"],
)  # fmt: skip
def test_a_changed_copy_is_near(change):
    assert max(distance(picture(seed), change(picture(seed))) for seed in range(20)) <= MAX_DISTANCE


def test_different_pictures_are_far():
    hashes = np.array([hash_picture(picture(seed)) for seed in range(60)])
    between = np.bitwise_count(hashes[:, None] ^ hashes)[np.triu_indices(60, 1)]
    assert between.min() > MAX_DISTANCE
    assert 28 < between.mean() < 36


def search(hashes, content, subset, comparable=None):
    comparable = np.ones(len(hashes), bool) if comparable is None else np.array(comparable)
    return find_near_duplicates(np.array(hashes, np.uint64), content, comparable, np.array(subset), max_distance=2)


def test_pairs_across_come_first_then_same_files_then_the_nearest():
    far = 0xFFFF0000FFFF0000
    found = search([0b0, 0b1, far, 0b0, far], ["a", "b", "c", "a", "d"], ["train", "train", "train", "val", "train"])
    assert found.to_dict("records") == [
        {"first": 0, "second": 3, "distance": 0, "exact": True, "across": True},
        {"first": 1, "second": 3, "distance": 1, "exact": False, "across": True},
        {"first": 2, "second": 4, "distance": 0, "exact": False, "across": False},
        {"first": 0, "second": 1, "distance": 1, "exact": False, "across": False},
    ]


def test_pictures_that_show_nothing_are_compared_by_content_alone():
    found = search([0, 0, 0, 0], ["a", "a", "", ""], ["train"] * 4, comparable=[False] * 4)
    assert found[["first", "second", "exact"]].to_numpy().tolist() == [[0, 1, True]]


def test_the_search_does_not_depend_on_its_block_size(monkeypatch):
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**4, 70).astype(np.uint64) * np.uint64(0x0101_0000_0101)
    content, subset = [str(i // 2) for i in range(70)], rng.choice(["train", "val"], 70)
    whole = search(hashes, content, subset)
    monkeypatch.setattr(splits, "_BLOCK", 9)
    pd.testing.assert_frame_equal(whole, search(hashes, content, subset))
    brute = {(i, j) for i in range(70) for j in range(i + 1, 70)
             if bin(int(hashes[i]) ^ int(hashes[j])).count("1") <= 2 or content[i] == content[j]}  # fmt: skip
    assert set(zip(whole["first"], whole["second"], strict=True)) == brute


def test_no_pairs_and_no_images_give_empty_tables_that_can_be_written():
    subset = np.array(["train", "val"])
    assert len(search([], [], [])) == 0
    copies = tabulate_copies(search([0, 2**32 - 1], ["a", "b"], subset), pd.Series(["a.jpg", "b.jpg"]), subset)
    assert copies.empty
    assert {"first", "first_subset", "second", "second_subset"} <= set(copies)


def test_frames_of_one_video_are_near_and_other_streets_are_not(camvid):
    def read(name):
        return hash_picture(cv2.imread(str(camvid / "images" / name))[..., ::-1])

    first, following, elsewhere = (read(f"0016E5_{number}.jpg") for number in ("04830", "04860", "07977"))
    assert np.bitwise_count(first ^ following) <= MAX_DISTANCE < np.bitwise_count(first ^ elsewhere)

"""Overlaps are found pair by pair, in pixels, as boolean masks would."""

import itertools

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as mask_api

from seglib.data.analysis import find_overlaps, tabulate_class_pairs


def table(masks, images, class_ids, scale=0.5):
    """What tabulate_objects would make of these masks."""
    frame = pd.DataFrame({"image": images, "class_id": class_ids, "scale": scale}, index=range(10, 10 + len(masks)))
    frame["class_name"] = [f"class {index}" for index in class_ids]
    frame["mask_area"] = [int(mask.sum()) for mask in masks]
    frame["rle"] = [mask_api.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    return frame


@pytest.mark.parametrize("seed", range(5))
def test_every_pair_is_found_with_its_pixels(seed):
    rng = np.random.default_rng(seed)
    masks = [rng.random((12, 15)) < 0.08 for _ in range(14)]
    masks[3][:] = False
    images, class_ids = [0] * 8 + [1] * 6, rng.integers(1, 4, 14)
    objects = table(masks, images, class_ids)
    found = find_overlaps(objects)
    expected = {}
    for i, j in itertools.combinations(range(14), 2):
        common = (masks[i] & masks[j]).sum()
        if common and images[i] == images[j]:
            expected[frozenset((i + 10, j + 10))] = (common * 0.5, common / min(masks[i].sum(), masks[j].sum()))
    assert {frozenset((row.first, row.second)): (row.pixels, row.share) for row in found.itertuples()} == expected
    assert (found["class_a"] <= found["class_b"]).all()


def test_class_pairs_are_summed_and_the_largest_comes_first():
    square = np.zeros((10, 10), bool)
    square[:4] = True
    objects = table([square, square, square], [0, 0, 0], [2, 1, 2], scale=1.0)
    pairs = tabulate_class_pairs(find_overlaps(objects))
    assert pairs.to_dict("records") == [
        {"class_a": "class 1", "class_b": "class 2", "overlaps": 2, "images": 1, "pixels": 80.0},
        {"class_a": "class 2", "class_b": "class 2", "overlaps": 1, "images": 1, "pixels": 40.0},
    ]


def test_without_overlaps_the_tables_are_empty_and_have_their_columns():
    left, right = np.eye(6, dtype=bool), np.eye(6, k=1, dtype=bool)
    overlaps = find_overlaps(table([left, right], [0, 0], [1, 2]))
    assert overlaps.empty
    assert list(tabulate_class_pairs(overlaps)) == ["class_a", "class_b", "overlaps", "images", "pixels"]
    assert find_overlaps(table([], [], [])).empty

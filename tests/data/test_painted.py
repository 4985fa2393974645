"""Counts over painted masks equal counts of paint_mask's masks, resized."""

import json

import numpy as np
import pytest

from seglib.data.analysis import count_painted, paint_layers, tabulate_objects
from seglib.data.coco import load_coco
from seglib.data.dataset import pool_files
from seglib.data.masks import PAINT_ORDERS, paint_mask
from seglib.data.pixels import resize_mask

SIZE = 24
SIDES = [(60, 40), (20, 33)]  # (width, height) [px]: one image shrinks, one grows


@pytest.fixture
def data(tmp_path):
    """Two images of random overlapping triangles, and one without annotations."""
    rng = np.random.default_rng(4)
    images = [
        {"id": i, "file_name": f"{i}.jpg", "width": w, "height": h} for i, (w, h) in enumerate([*SIDES, (30, 30)])
    ]
    annotations = []
    for number in range(24):
        width, height = SIDES[number % 2]
        polygon = (rng.random((3, 2)) * [width, height]).round(1).ravel().tolist()
        extra = [[0, 0, 1, 0, 1, 1, 0, 1]] if number == 5 else []
        annotations.append({"id": number, "image_id": number % 2, "category_id": int(rng.integers(3)), "area": 5.0 + number,
                            "segmentation": [polygon, *extra]})  # fmt: skip
    annotations[0]["segmentation"] = [[3, 3, 3.2, 3, 3.2, 3.2]]  # no pixel, at any size
    categories = [{"id": i, "name": f"class {i}"} for i in range(3)]
    (tmp_path / "a.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return pool_files([load_coco(tmp_path, "a.json")])


def paint(data, objects, image, policy, background):
    rows = data.annotations.loc[objects.index[objects["image"] == image]].sort_index()
    height, width = data.images.loc[image, ["height", "width"]]
    return resize_mask(paint_mask(rows, height, width, policy, background), SIZE)


@pytest.mark.parametrize("background, empty", [("class", 0), ("ignore", 3 + 1)])
@pytest.mark.parametrize("policy", PAINT_ORDERS)
def test_class_pixels_are_those_of_the_painted_and_resized_masks(data, policy, background, empty):
    objects = tabulate_objects(data, SIZE)
    counts = count_painted(data, objects, SIZE, policy, background)
    for image in (0, 1):
        counted = np.bincount(paint(data, objects, image, policy, background).ravel(), minlength=256)
        assert counts.class_pixels[image].tolist() == [*counted[:4], counted[255]]
    assert counts.class_pixels[2, empty] == SIZE**2 == counts.class_pixels[2].sum()


def test_disputed_pixels_are_those_in_which_the_policies_differ(data):
    objects = tabulate_objects(data, SIZE)
    counts = count_painted(data, objects, SIZE, "area", "class")
    for image in (0, 1):
        first, *others = (paint(data, objects, image, policy, "class") for policy in PAINT_ORDERS)
        disputed = (others[0] != first) | (others[1] != first)
        assert counts.disputed[image] == disputed.sum() > 0
        depth, painted = paint_layers(data, objects, image, SIZE, "class")
        assert counts.covered[image] == np.count_nonzero(depth) == np.count_nonzero(first)
        assert disputed.sum() <= np.count_nonzero(depth > 1)
        assert np.array_equal(painted["class_id"], first)
    assert counts.disputed[2] == counts.covered[2] == 0


def test_pixels_left_of_an_object_are_those_of_its_own_resized_mask(data):
    objects = tabulate_objects(data, SIZE)
    left = count_painted(data, objects, SIZE, "area", "class", sizes=(8, 4)).left
    assert left.columns.tolist() == [SIZE, 8, 4]
    for index, row in objects.iterrows():
        height, width = data.images.loc[row["image"], ["height", "width"]]
        alone = paint_mask(data.annotations.loc[[index]], height, width, "area", "class")
        assert left.loc[index].tolist() == [np.count_nonzero(resize_mask(alone, size)) for size in (SIZE, 8, 4)]
    assert (left[4] == 0).sum() > (left[SIZE] == 0).sum() == 0


def test_without_annotations_all_is_background(data):
    counts = count_painted(data, tabulate_objects(data, SIZE).iloc[:0], SIZE, "area", "class")
    assert counts.class_pixels[:, 0].tolist() == [SIZE**2] * 3
    assert counts.left.empty

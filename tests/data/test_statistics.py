"""The tables say what a few lines by hand say."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import entropy

from seglib.data.coco import load_coco
from seglib.data.eda import (
    ALL,
    compare_subsets,
    compute_divergence,
    count_cooccurrence,
    find_present,
    tabulate_classes,
    tabulate_files,
    tabulate_sizes,
    tabulate_vanished,
)

NAMES = ("Background", "Paper", "Glass", "Metal")


@pytest.fixture
def objects() -> pd.DataFrame:
    """Four objects in images 0 and 2 of three: Paper 4, 8 and 33 px, Glass 20 px across; no Metal."""
    frame = pd.DataFrame(
        {"image": [0, 0, 2, 2], "class_id": [1, 2, 1, 1], "size": [4.0, 20.0, 8.0, 33.0]}, [7, 8, 9, 4]
    )
    return frame.assign(class_name=np.array(NAMES, object)[frame["class_id"]], mask_area=[9, 400, 64, 1089])


PIXELS = np.array([[80, 10, 10, 0, 0], [100, 0, 0, 0, 0], [0, 90, 0, 0, 10]])  # 3 images; the last column is ignored


def test_classes_are_counted_in_annotations_images_and_pixels(objects):
    table = tabulate_classes(objects, PIXELS, NAMES)
    assert table.index.tolist() == list(NAMES)
    assert table["annotations"].tolist() == [0, 3, 1, 0]
    assert table["images"].tolist() == [2, 2, 1, 0]
    assert table["pixels"].tolist() == [180, 100, 10, 0]
    assert table["pixel_share"].tolist() == pytest.approx([180 / 290, 100 / 290, 10 / 290, 0])
    assert table.loc["Paper", "median_size"] == 8


def test_an_object_of_the_limit_is_at_or_under_it(objects):
    table = tabulate_sizes(objects)
    assert table.index.tolist() == [ALL, "Paper", "Glass"]
    assert table.loc[ALL, ["<=8", "<=20", "<=32", "<=96"]].tolist() == [0.5, 0.75, 0.75, 1]
    assert table.loc["Paper", ["objects", "median", "<=8"]].tolist() == [3, 8, pytest.approx(2 / 3)]


def test_objects_without_a_pixel_left_have_vanished(objects):
    left = pd.DataFrame({256: [3, 100, 1, 9], 128: [0, 25, 0, 2]}, objects.index)
    table = tabulate_vanished(objects, left)
    assert table.index.tolist() == [ALL, "Paper", "Glass"]
    assert table["objects"].tolist() == [4, 3, 1]
    assert table["vanish at 128"].tolist() == [2, 2, 0]
    assert table["vanish at 256"].tolist() == [0, 0, 0]
    assert table["share at 128"].tolist() == pytest.approx([1 / 2, 2 / 3, 0])


def test_cooccurrence_counts_images(objects):
    present = find_present(objects, num_images=3, num_classes=4)
    assert present.tolist() == [[False, True, True, False], [False] * 4, [False, True, False, False]]
    assert count_cooccurrence(present, NAMES).to_numpy().tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_subsets_are_compared_by_annotations_and_by_pixels(objects):
    compared = compare_subsets(objects, PIXELS, np.array(["train", "train", "val"]), NAMES)
    assert compared["annotations"].to_numpy().tolist() == [[0, 0], [1, 2], [1, 0], [0, 0]]
    assert compared["pixels"].to_numpy().tolist() == [[180, 0], [10, 90], [10, 0], [0, 0]]
    assert compared["pixel_share", "val"].tolist() == [0, 1, 0, 0]


def test_divergence_is_the_mean_relative_entropy_to_the_mixture(objects):
    compared = compare_subsets(objects, PIXELS, np.array(["train", "train", "val"]), NAMES)
    p, q = np.array([0.5, 0.5, 0]), np.array([1, 0, 0])
    expected = (entropy(p, (p + q) / 2, base=2) + entropy(q, (p + q) / 2, base=2)) / 2
    assert compute_divergence(compared, "annotations") == pytest.approx(expected)
    assert compute_divergence(compared, "pixels") == pytest.approx(expected)  # the background does not count


def test_divergence_is_0_for_the_same_1_for_nothing_in_common_and_nan_for_an_empty_set():
    def diverge(train, val):
        columns = pd.MultiIndex.from_product([["pixels"], ["train", "val"]])
        return compute_divergence(pd.DataFrame(np.transpose([train, val]), columns=columns), "pixels")

    assert diverge([9, 1, 2], [1, 10, 20]) == pytest.approx(0, abs=1e-12)
    assert diverge([0, 5, 0], [0, 0, 3]) == pytest.approx(1)
    assert np.isnan(diverge([0, 5, 0], [7, 0, 0]))


def test_files_are_described(tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 8, "height": 8} for i in range(4)]
    annotations = [{"id": i, "image_id": 1, "category_id": 2, "iscrowd": i, "segmentation": []} for i in range(2)]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    (tmp_path / "a.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    (row,) = tabulate_files([load_coco(tmp_path, "a.json")]).to_dict("records")
    assert row == {"images": 4, "annotations": 2, "categories": 2, "categories used": 1, "images without annotations": 3,
                   "annotations per image": 0.5, "crowds": 1}  # fmt: skip

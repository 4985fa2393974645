"""Several files become one collection whose images stay apart, divided as training divides them."""

import json

import numpy as np
import pytest

from seglib.data.analysis import tabulate_objects
from seglib.data.coco import load_coco
from seglib.data.dataset import assign_subsets, open_data, pool_files
from seglib.data.eda import find_present
from seglib.errors import InputError
from seglib.files import hash_files


def write(folder, name, image_ids, categories=("a", "b")):
    content = {
        "images": [{"id": i, "file_name": f"{name}{i}.jpg", "width": 8, "height": 8} for i in image_ids],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "segmentation": []} for i in image_ids],
        "categories": [{"id": i, "name": text} for i, text in enumerate(categories)],
    }
    (folder / f"{name}.json").write_text(json.dumps(content))
    return load_coco(folder, f"{name}.json")


def test_equal_ids_of_two_files_stay_two_images(tmp_path):
    data = pool_files([write(tmp_path, "train", [3, 5]), write(tmp_path, "val", [5, 6])])
    assert data.images["image_id"].is_unique
    assert data.images["file"].tolist() == [0, 0, 1, 1]
    named = data.annotations.merge(data.images, on="image_id")["file_name"]
    assert named.tolist() == ["train3.jpg", "train5.jpg", "val5.jpg", "val6.jpg"]


def test_ids_that_do_not_collide_are_kept(tmp_path):
    data = pool_files([write(tmp_path, "train", [3, 5]), write(tmp_path, "val", [7])])
    assert data.images["image_id"].tolist() == [3, 5, 7]


def test_a_repeated_image_id_in_one_file_is_read_once(tmp_path):
    assert pool_files([write(tmp_path, "train", [3, 3, 4])]).images["image_id"].tolist() == [3, 4]


def test_files_of_different_categories_are_refused(tmp_path):
    files = [write(tmp_path, "train", [1]), write(tmp_path, "val", [2], categories=("a", "c"))]
    with pytest.raises(InputError, match=r"val\.json: required the categories of train\.json \(a, b\), got a, c"):
        pool_files(files)


def test_missing_files_and_names_that_lead_out_have_no_hash(tmp_path):
    data = write(tmp_path, "train", [1, 2])
    (tmp_path / "train1.jpg").write_bytes(b"content")
    data.images.loc[1, "file_name"] = "../outside.jpg"
    first, second = hash_files(data.images["path"])
    assert len(first) == 32
    assert second == ""


@pytest.mark.parametrize("split", ["kfold", "stratified", "group"])
def test_subsets_are_those_that_training_makes(small_data, split):
    data = pool_files([load_coco(small_data, "train.json")])
    present = find_present(tabulate_objects(data, 32), len(data.images), data.num_classes)
    subset = assign_subsets(data, hash_files(data.images["path"]), present, split, folds=4, fold=1, seed=3)
    options = {"paint_order": "class_id", "background": "class", "image_size": 32, "cache": False}
    train, val = open_data(str(small_data), "train.json", "", split=split, folds=4, fold=1, seed=3, **options)
    assert np.array_equal(np.flatnonzero(subset == "train"), train.indices)
    assert np.array_equal(np.flatnonzero(subset == "val"), val.indices)


def test_given_files_are_the_subsets(tmp_path):
    data = pool_files([write(tmp_path, "train", [1, 2]), write(tmp_path, "val", [3])])
    assert assign_subsets(data, ["", "", ""], None, "given", 5, 0, 0).tolist() == ["train", "train", "val"]

"""Training and validation images: classes and copies checked across the split, pixels counted."""

import json
import shutil

import numpy as np
import pytest

from seglib.data.dataset import count_pixels, find_classes_present, open_data
from seglib.errors import InputError, InputErrors

OPTIONS = {"split": "given", "folds": 4, "fold": 0, "seed": 1, "paint_order": "class_id", "background": "class",
           "image_size": 64, "cache": False}  # fmt: skip


def open_small(folder, **changes):
    return open_data(str(folder), "train.json", "val.json", **(OPTIONS | changes))


@pytest.mark.parametrize("split", ["holdout", "kfold", "stratified", "group", "stratified_group"])
def test_splits_of_one_file_share_no_image_and_lose_none(small_data, split):
    train, val = open_small(small_data, split=split)
    assert not set(train.image_ids) & set(val.image_ids)
    assert len(train) + len(val) == len(train.data.images)


def test_copies_of_validation_images_are_left_out_of_training(small_data, tmp_path, capsys):
    folder = shutil.copytree(small_data, tmp_path / "data")
    train = json.loads((folder / "train.json").read_text())
    val = json.loads((folder / "val.json").read_text())
    shutil.copy(folder / val["images"][0]["file_name"], folder / "images" / "copy.jpg")
    train["images"].append(val["images"][0] | {"id": 9999, "file_name": "images/copy.jpg"})
    (folder / "train.json").write_text(json.dumps(train))
    opened, _ = open_small(folder)
    assert 9999 not in opened.image_ids
    assert "1 training images are copies of validation images" in capsys.readouterr().out


def test_errors_of_the_annotations_are_refused_one_line_each(small_data, tmp_path):
    folder = shutil.copytree(small_data, tmp_path / "data")
    content = json.loads((folder / "train.json").read_text())
    content["annotations"][0]["category_id"] = 77
    (folder / content["images"][0]["file_name"]).unlink()
    (folder / "train.json").write_text(json.dumps(content))
    with pytest.raises(InputErrors) as caught:
        open_small(folder)
    assert len(caught.value.lines) == 2
    assert any("77" in line for line in caught.value.lines)


def test_files_with_other_categories_are_refused(small_data, tmp_path):
    folder = shutil.copytree(small_data, tmp_path / "data")
    content = json.loads((folder / "val.json").read_text())
    content["categories"][0]["name"] = "Something else"
    (folder / "val.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"val\.json: required the categories of train\.json"):
        open_small(folder)


def test_counted_pixels_are_those_of_the_masks(small_data):
    _, val = open_small(small_data)
    masks = np.stack([val.read(position)[1] for position in range(len(val))])
    counts = count_pixels(val)
    assert counts.sum() == masks.size
    assert all(counts.iloc[index] == (masks == index).sum() for index in range(val.data.num_classes))


def test_unannotated_pixels_are_ignored_where_asked(small_data):
    _, val = open_small(small_data, background="ignore")
    counts = count_pixels(val)
    assert counts["Background"] == 0
    assert counts["(ignored)"] > 0


def test_classes_present_are_those_annotated(small_data):
    _, val = open_small(small_data)
    present = find_classes_present(val.data)
    for row, image_id in enumerate(val.data.images["image_id"]):
        of_image = val.data.annotations["class_id"][val.data.annotations["image_id"] == image_id]
        assert set(np.flatnonzero(present[row])) == set(of_image)


def test_the_debug_share_is_small_and_spread(small_data):
    train, _ = open_small(small_data)
    share = train.take_debug_share()
    assert len(share) == 8
    assert share.indices[0] == train.indices[0]
    assert share.indices[-1] == train.indices[-1]


def change(small_data, tmp_path, name, edit):
    folder = shutil.copytree(small_data, tmp_path / "data")
    content = json.loads((folder / name).read_text())
    edit(content["annotations"])
    (folder / name).write_text(json.dumps(content))
    return folder


def empty(annotations):
    for each in annotations:
        each["segmentation"] = []


@pytest.mark.parametrize(
    ("name", "edit", "words"),
    [
        (
            "train.json",
            empty,
            r"train\.json \(training\): must have annotations that paint pixels, got \d+ that paint none",
        ),
        (
            "val.json",
            empty,
            r"val\.json \(validation\): must have annotations that paint pixels, got \d+ that paint none",
        ),
        ("train.json", list.clear, r"train\.json \(training\): must have annotations of objects, got none"),
    ],
)
def test_a_set_that_paints_nothing_is_refused(small_data, tmp_path, name, edit, words):
    with pytest.raises(InputError, match=words):
        open_small(change(small_data, tmp_path, name, edit))


def test_a_share_that_paints_nothing_is_said_and_counted(small_data, tmp_path, capsys):
    folder = change(small_data, tmp_path, "train.json", lambda annotations: empty(annotations[:3]))
    train, _ = open_small(folder)
    assert "annotations paint nothing" in capsys.readouterr().out
    counts = train.count_painted().values()
    assert sum(each["annotations"] - each["objects"] for each in counts) == 3


def test_validation_images_without_objects_are_said(small_data, tmp_path, capsys):
    open_small(change(small_data, tmp_path, "val.json", list.clear))
    assert "val.json (validation): warning: no object is annotated" in capsys.readouterr().out


def test_a_training_set_of_copies_of_the_validation_images_is_refused(small_data):
    with pytest.raises(InputError, match="must have images that are no copies of validation images, got"):
        open_data(str(small_data), "train.json", "train.json", **OPTIONS)

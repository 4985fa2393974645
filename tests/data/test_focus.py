"""Class specialists: masks compared with all-class masks, tables that agree with them, splits that stay."""

import json
import shutil

import numpy as np
import pytest

from seglib.data.dataset import count_pixels, find_classes_present, open_data
from seglib.data.loader import SampleMixing
from seglib.errors import InputError
from seglib.evaluation.errors import measure_objects
from seglib.files import cache_dir
from seglib.inference.runs import _take_arguments

OPTIONS = {"split": "given", "folds": 4, "fold": 0, "seed": 1, "paint_order": "class_id", "background": "class",
           "image_size": 64, "cache": False}  # fmt: skip
FOCUS = ("Plastic", "General trash", "Paper")


def open_small(folder, *focus_classes, **changes):
    return open_data(str(folder), "train.json", "val.json", **(OPTIONS | changes), focus_classes=focus_classes)


def read_masks(subset):
    return np.stack([subset.read(position)[1] for position in range(len(subset))])


@pytest.mark.parametrize("paint_order", ["class_id", "area"])
@pytest.mark.parametrize("background", ["class", "ignore"])
def test_masks_are_those_of_all_classes_with_the_others_as_background(small_data, paint_order, background):
    policy = {"paint_order": paint_order, "background": background}
    whole, folded = open_small(small_data, **policy)[0], open_small(small_data, *FOCUS, **policy)[0]
    masks, names = read_masks(whole), whole.data.class_names
    expected = np.zeros_like(masks)
    for class_id, name in enumerate(folded.data.class_names[1:], start=1):
        expected[masks == names.index(name)] = class_id
    expected[masks == 255] = 255
    assert np.array_equal(read_masks(folded), expected)
    assert (masks == 255).any() == (background == "ignore")
    assert np.array_equal(folded.read(3)[0], whole.read(3)[0])


def test_classes_are_the_background_and_the_focused_ones_by_id(small_data):
    train, val = open_small(small_data, *FOCUS)
    assert train.data.class_names == val.data.class_names == ("Background", "General trash", "Paper", "Plastic")
    assert train.data.num_classes == 4
    assert train.data.category_ids == (2, 3, 7)


def test_annotations_are_those_of_the_focused_classes_with_their_new_ids(small_data):
    whole, folded = open_small(small_data)[0].data, open_small(small_data, *FOCUS)[0].data
    names = np.array(whole.class_names, object)[whole.annotations["class_id"]]
    expected = whole.annotations["annotation_id"][np.isin(names, FOCUS)]
    assert folded.annotations["annotation_id"].tolist() == expected.tolist()
    folded_names = np.array(folded.class_names, object)[folded.annotations["class_id"]]
    assert folded_names.tolist() == [name for name in names if name in FOCUS]
    assert folded.annotations.index.tolist() == list(range(len(expected)))


def test_what_reads_masks_and_tables_together_agrees(small_data):
    _, val = open_small(small_data, *FOCUS)
    counts, masks = count_pixels(val), read_masks(val)
    assert counts.index.tolist() == [*val.data.class_names, "(ignored)"]
    assert counts["Paper"] == (masks == 2).sum() > 0
    objects = measure_objects(val.data, val.image_ids, ((mask, mask) for mask in masks))
    assert set(objects["class_id"]) <= {1, 2, 3}
    assert objects["found"][objects["visible"] > 0].all()
    assert objects.groupby("class_id")["visible"].sum()[2] >= counts["Paper"]
    assert find_classes_present(val.data).shape == (len(val.data.images), 4)


def test_copy_paste_pastes_focused_classes_alone(small_data):
    train, _ = open_small(small_data, "Paper", "Battery")
    assert train.data.class_names == ("Background", "Paper", "Battery")
    mixing = SampleMixing({"copy_paste": {"p": 1.0, "classes": ["Paper"]}}, train)
    image, mask = train.read(0)
    pasted = [mixing(image, mask, 1, 1, index)[1] for index in range(8)]
    assert any((each == 1).sum() > (mask == 1).sum() for each in pasted)
    assert all(set(np.unique(each)) <= {0, 1, 2} for each in pasted)
    with pytest.raises(InputError, match=r"mixing\.copy_paste\.classes: unknown class 'Glass'"):
        SampleMixing({"copy_paste": {"classes": ["Glass"]}}, train)


def test_specialists_share_the_painted_masks(small_data, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGLIB_CACHE", str(tmp_path))
    folded = [open_small(small_data, *names, cache=True)[1] for names in ((), FOCUS, ("Battery",))]
    assert len([path for path in (cache_dir() / "pixels").iterdir() if path.is_dir()]) == 2  # train and val
    assert np.array_equal(read_masks(folded[1]), read_masks(open_small(small_data, *FOCUS)[1]))


@pytest.mark.parametrize("split", ["kfold", "stratified"])
def test_a_specialist_validates_on_the_images_of_the_other_models(small_data, split):
    whole, folded = (open_small(small_data, *names, split=split, fold=2) for names in ((), ("Battery",)))
    assert all(np.array_equal(a.image_ids, b.image_ids) for a, b in zip(whole, folded, strict=True))


def test_the_debug_share_keeps_the_focus(small_data):
    share = open_small(small_data, *FOCUS)[0].take_debug_share()
    assert set(np.unique(read_masks(share))) <= {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("Batery",), "unknown class in focus_classes 'Batery'; did you mean 'Battery'"),
        (("Background",), "focus_classes must be classes of objects, got 'Background'"),
        (("Paper", "Battery", "Paper"), "focus_classes must name a class once, got 'Paper' twice"),
    ],
)
def test_classes_that_cannot_be_focused_on_are_refused_before_painting(small_data, tmp_path, monkeypatch, names, words):
    monkeypatch.setenv("SEGLIB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=words):
        open_small(small_data, *names, cache=True)
    assert not (tmp_path / "pixels").exists()


def test_a_finished_run_is_opened_with_its_focus(small_data):
    params = OPTIONS | {"data_dir": str(small_data), "train_json": "train.json", "val_json": "val.json",
                        "focus_classes": ["Battery"], "lr": 0.1}  # fmt: skip
    _, val = open_data(**_take_arguments(open_data, params))
    assert val.data.class_names == ("Background", "Battery")


def test_category_ids_from_zero_are_folded_too(small_data, tmp_path):
    folder = shutil.copytree(small_data, tmp_path / "data")
    for name in ("train.json", "val.json"):
        content = json.loads((folder / name).read_text())
        for entry in content["categories"]:
            entry["id"] -= 1
        for entry in content["annotations"]:
            entry["category_id"] -= 1
        (folder / name).write_text(json.dumps(content))
    masks = [read_masks(open_small(data, *FOCUS)[1]) for data in (small_data, folder)]
    assert np.array_equal(*masks)

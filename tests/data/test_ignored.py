"""Classes, crowds and annotations that are left out of loss and scores: painted 255, above all, and no classes any more."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from seglib.data.analysis import DataAnalysis
from seglib.data.coco import load_coco
from seglib.data.dataset import count_pixels, open_data
from seglib.data.extra_data import find_refusal, join_extra
from seglib.data.masks import paint_mask, segmentation_to_rle
from seglib.errors import InputError
from seglib.inference.runs import _take_arguments

POLICY = {"paint_order": "class_id", "background": "class"}
OPTIONS = {"split": "given", "folds": 4, "fold": 0, "seed": 1, "image_size": 64, "cache": False} | POLICY


@pytest.fixture(scope="module")
def folder(small_data, tmp_path_factory):
    """The small set, of which every fifth annotation is a crowd in RLE and every seventh is marked `ignore`."""
    folder = shutil.copytree(small_data, tmp_path_factory.mktemp("marked") / "data")
    for name in ("train.json", "val.json"):
        content = json.loads((folder / name).read_text())
        for number, entry in enumerate(content["annotations"]):
            entry["iscrowd"], entry["ignore"] = int(number % 5 == 0), int(number % 7 == 0)
            if entry["iscrowd"]:
                rle = segmentation_to_rle(entry["segmentation"], 64, 64)
                entry["segmentation"] = rle | {"counts": rle["counts"].decode()}
        (folder / name).write_text(json.dumps(content))
    return folder


def open_marked(folder, *ignore_classes, **changes):
    options = OPTIONS | {"ignore_classes": ignore_classes} | changes
    return open_data(str(folder), "train.json", "val.json", **options)


def read_masks(subset):
    return np.stack([subset.read(position)[1] for position in range(len(subset))])


def paint_expected(folder, ignore_classes):
    """Masks of train.json: what is left, painted as ever, and 255 where an ignored annotation lies."""
    data, masks = load_coco(folder, "train.json"), []
    names = np.array(data.class_names)[data.annotations["class_id"]]
    is_ignored = np.isin(names, ignore_classes)
    for mark in {"iscrowd", "ignore"} & {*ignore_classes}:
        is_ignored |= data.annotations[mark].to_numpy() == 1
    kept = [name for name in data.class_names if name not in ignore_classes]
    for image_id in data.images["image_id"]:
        own = data.annotations["image_id"].to_numpy() == image_id
        rows = data.annotations[own & ~is_ignored]
        class_ids = [kept.index(name) for name in names[own & ~is_ignored]]
        mask = paint_mask(rows.assign(class_id=class_ids), 64, 64, **POLICY)
        hidden = paint_mask(data.annotations[own & is_ignored].assign(class_id=1), 64, 64, **POLICY)
        masks.append(np.where(hidden, 255, mask))
    return kept, np.stack(masks)


@pytest.mark.parametrize(
    "ignored", [("Paper",), ("UNKNOWN", "Battery"), ("iscrowd",), ("ignore",), ("Plastic", "iscrowd", "ignore")]
)
@pytest.mark.parametrize("cache", [False, True])
def test_ignored_annotations_are_255_above_all_and_no_class(folder, ignored, cache):
    train, val = open_marked(folder, *ignored, cache=cache)
    class_names, masks = paint_expected(folder, ignored)
    assert list(train.data.class_names) == list(val.data.class_names) == class_names
    assert len(train.data.category_ids) == len(class_names) - 1
    assert np.array_equal(read_masks(train), masks[train.indices])
    assert (masks == 255).any() and count_pixels(train)["(ignored)"] == (masks[train.indices] == 255).sum()


def test_without_them_crowds_and_marked_annotations_are_painted_like_the_rest(folder, small_data):
    for first, second in zip(open_marked(folder), open_marked(small_data), strict=True):
        assert np.array_equal(read_masks(first), read_masks(second))
        assert first.data.ignored is None and first.built_from["ignore_classes"] == []


def test_the_focus_is_on_what_is_left(folder):
    train, _ = open_marked(folder, "Paper", focus_classes=("Battery",))
    assert train.data.class_names == ("Background", "Battery")
    assert (read_masks(train) == 255).any()
    with pytest.raises(InputError, match="unknown class in focus_classes 'Paper'"):
        open_marked(folder, "Paper", focus_classes=("Paper",))


def test_a_class_that_is_called_as_a_mark_goes_with_it(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    for name in ("train.json", "val.json"):
        path = tmp_path / "data" / name
        path.write_text(path.read_text().replace('"Battery"', '"ignore"'))
    train, _ = open_marked(tmp_path / "data", "ignore")
    assert "ignore" not in train.data.class_names
    class_names, masks = paint_expected(tmp_path / "data", ("ignore",))
    assert class_names == list(train.data.class_names) and np.array_equal(read_masks(train), masks[train.indices])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("Batery",), "unknown class in ignore_classes 'Batery'; did you mean 'Battery'"),
        (("is_crowd",), "unknown class in ignore_classes 'is_crowd'; did you mean 'iscrowd'"),
        (("Background",), "ignore_classes must be classes of objects, got 'Background'; set background to ignore"),
        (("Paper", "Paper"), "ignore_classes must name a class once, got 'Paper' twice"),
        (None, "ignore_classes must leave a class, got all"),
    ],
)
def test_what_cannot_be_ignored_is_refused_by_the_dry_run_too(folder, names, words):
    names = names or load_coco(folder, "train.json").class_names[1:]
    with pytest.raises(InputError, match=words):
        open_marked(folder, *names)
    refusal = find_refusal(str(folder), "train.json", "val.json", "given", 5, 0, 1, [], [], names)
    assert words in refusal and "\n" not in refusal


def test_a_finished_run_is_opened_with_what_it_ignored(folder):
    params = OPTIONS | {"data_dir": str(folder), "train_json": "train.json", "val_json": "val.json", "lr": 0.1}
    old, new = (_take_arguments(open_data, params | more) for more in ({}, {"ignore_classes": ["Paper", "iscrowd"]}))
    assert "ignore_classes" not in old and "Paper" in open_data(**old)[1].data.class_names  # a record of before
    assert np.array_equal(read_masks(open_data(**new)[1]), read_masks(open_marked(folder, "Paper", "iscrowd")[1]))


@pytest.mark.parametrize("mapped", [False, True])
def test_extra_sets_ignore_the_same(folder, tmp_path, mapped):
    extra = shutil.copytree(folder, tmp_path / "more")
    for number, path in enumerate(sorted((extra / "images").iterdir())):  # no copies of the validation images
        image = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        __import__("cv2").imwrite(str(path), image)
    train, val = open_marked(folder, "Paper", "iscrowd")
    names = train.data.class_names[1:]
    entry = {"data_dir": str(extra), "json": "train.json"}
    entry |= {"classes": {name: name for name in names}} if mapped else {}
    joined = join_extra(train, val, [entry], **POLICY, cache=False)
    _, masks = paint_expected(folder, ("Paper", "iscrowd"))
    assert np.array_equal(read_masks(joined)[len(train) :] == 255, (masks == 255) | read_ignored(extra, masks))
    assert (
        find_refusal(str(folder), "train.json", "val.json", "given", 5, 0, 1, [], [entry], ["Paper", "iscrowd"]) == ""
    )


def read_ignored(folder, masks):
    """Where extra sets ignore more: annotations that are marked `ignore`."""
    return paint_expected(folder, ("Paper", "iscrowd", "ignore"))[1] == 255


def test_eda_paints_what_training_sees(folder):
    p = SimpleNamespace(data_dir=str(folder), train_json="train.json", val_json="val.json", **OPTIONS,
                        augmentation="none", ignore_classes=["Paper", "iscrowd"])  # fmt: skip
    data = DataAnalysis(p)
    class_names, masks = paint_expected(folder, ("Paper", "iscrowd"))
    assert list(data.class_names) == class_names and "Paper" not in data.tables["classes"].index
    assert np.array_equal(np.stack([data.images.read(i)[1] for i in range(len(masks))]), masks)
    counted = data.counts.class_pixels[: len(masks), : len(class_names)].sum(axis=0)
    assert counted.tolist() == [int((masks == class_id).sum()) for class_id in range(len(class_names))]

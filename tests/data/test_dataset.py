"""Batches: the same for any number of workers, whole epochs, classes and copies checked across the split."""

import json
import shutil

import numpy as np
import pytest
import torch

from seglib.data.dataset import EpochBatches, build_loader, count_pixels, find_classes_present, open_data
from seglib.errors import InputError, InputErrors

OPTIONS = {"split": "given", "folds": 4, "fold": 0, "seed": 1, "paint_order": "class_id", "background": "class",
           "image_size": 64, "cache": False}  # fmt: skip


def open_small(folder, **changes):
    return open_data(str(folder), "train.json", "val.json", **(OPTIONS | changes))


def batches(subset, workers, epoch, seed=1):
    loader = build_loader(subset, 4, shuffle=True, augmentation="flips", seed=seed, num_workers=workers)
    loader.batch_sampler.epoch = epoch
    return [torch.cat([images.flatten(), masks.flatten()]) for images, masks in loader]


def test_batches_are_uint8_channels_last_with_their_masks(small_data):
    train, _ = open_small(small_data)
    loader = build_loader(train, 4, shuffle=False, augmentation="none", seed=1, num_workers=0)
    images, masks = next(iter(loader))
    image, mask = train.read(0)
    assert images.shape == (4, 3, 64, 64)
    assert images.dtype == masks.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(images[0].permute(1, 2, 0), image)
    assert np.array_equal(masks[0], mask)


def test_samples_do_not_depend_on_the_number_of_workers(small_data):
    train, _ = open_small(small_data)
    expected = batches(train, 0, epoch=3)
    for workers in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(expected, batches(train, workers, epoch=3), strict=True))


def test_epochs_differ_and_repeat(small_data):
    train, _ = open_small(small_data)
    first, again, second = batches(train, 0, 1), batches(train, 0, 1), batches(train, 0, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("count, batch_size, sizes", [(10, 4, [4, 4, 2]), (9, 4, [4, 4]), (1, 4, [1]), (3, 1, [1, 1, 1])])
def test_a_lonely_last_image_is_left_out_of_training(count, batch_size, sizes):
    assert [len(batch) for batch in EpochBatches(count, batch_size, seed=1, shuffle=True)] == sizes


def test_validation_keeps_every_image_in_order():
    batches = list(EpochBatches(9, 4, seed=1, shuffle=False))
    assert [position for batch in batches for _, position in batch] == list(range(9))


def test_each_image_comes_once_in_an_epoch():
    batches = list(EpochBatches(10, 4, seed=1, shuffle=True))
    assert sorted(position for batch in batches for _, position in batch) == list(range(10))


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

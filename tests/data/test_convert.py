"""`python -m seglib convert`: masks as COCO and back, COCO as masks, equal to the pixel; nothing is overwritten."""

import json
import os
import shutil

import numpy as np
import pytest
from pycocotools.mask import decode

from seglib.__main__ import main
from seglib.data.coco import load_coco
from seglib.data.dataset import open_data
from seglib.data.masks import paint_mask, segmentation_to_rle


def paint(folder, name, paint_order="class_id", background="class"):
    data = load_coco(folder, name)
    rows = data.painted.groupby("image_id").indices
    return data.class_names, [
        paint_mask(data.painted.iloc[rows.get(row.image_id, [])], row.height, row.width, paint_order, background)
        for row in data.images.itertuples()
    ]


def assert_same(first, second):
    assert first[0] == second[0]
    assert len(first[1]) == len(second[1]) > 0
    assert all(map(np.array_equal, first[1], second[1]))


@pytest.mark.parametrize("paint_order", ["class_id", "longest", "area"])
@pytest.mark.parametrize("background", ["class", "ignore"])
def test_coco_to_masks_to_coco_is_equal_to_the_pixel(small_data, tmp_path, paint_order, background, capsys):
    sources = [str(small_data / name) for name in ("train.json", "val.json")]
    policy = ["--paint-order", paint_order, "--background", background]
    assert main(["convert", *sources, str(tmp_path / "masks"), "--to", "masks", *policy]) == 0
    assert "32 images" in capsys.readouterr().out
    for name in ("train", "val"):
        target = tmp_path / "masks" / f"{name}.json"
        assert main(["convert", str(tmp_path / f"masks/{name}.txt"), str(target), "--to", "coco"]) == 0
        expected = paint(small_data, f"{name}.json", paint_order, background)
        assert_same(expected, paint(tmp_path / "masks", f"{name}.txt"))
        assert_same(expected, paint(tmp_path / "masks", f"{name}.json"))


def test_a_set_and_its_masks_train_on_the_same_pairs(small_data, tmp_path):
    sources = [str(small_data / name) for name in ("train.json", "val.json")]
    assert main(["convert", *sources, str(tmp_path / "masks"), "--to", "masks"]) == 0
    options = {"split": "given", "folds": 5, "fold": 0, "seed": 1, "paint_order": "class_id", "background": "class"}
    options |= {"image_size": 32, "cache": True}
    coco = open_data(str(small_data), "train.json", "val.json", **options)
    masks = open_data(str(tmp_path / "masks"), "train.txt", "val.txt", **options)
    for first, second in zip(coco, masks, strict=True):
        assert len(first) == len(second)
        for position in range(len(first)):
            assert all(map(np.array_equal, first.read(position), second.read(position)))


def test_nothing_is_overwritten_or_left_behind(small_data, tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for to in ("coco", "masks"):
        assert main(["convert", str(small_data / "train.json"), str(taken), "--to", to]) == 2
        assert "must be new, got one that is there" in capsys.readouterr().err
    assert taken.read_text() == "mine"
    content = json.loads((small_data / "train.json").read_text())
    content["images"][-1]["file_name"] = "nowhere.jpg"
    (tmp_path / "broken.json").write_text(json.dumps(content))
    arguments = [str(tmp_path / "broken.json"), str(tmp_path / "new"), "--to", "masks", "--data-dir", str(small_data)]
    assert main(["convert", *arguments]) == 2
    assert "missing-image" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["broken.json", "taken"]


def test_images_of_one_mask_are_refused(small_data, tmp_path, capsys):
    from PIL import Image

    for ending in ("png", "bmp"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"a.{ending}")
    images = [{"id": i, "file_name": f"a.{each}", "width": 8, "height": 8} for i, each in enumerate(("png", "bmp"))]
    square = {"id": 1, "image_id": 0, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}
    content = {"images": images, "annotations": [square], "categories": [{"id": 1, "name": "A"}]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    assert main(["convert", str(tmp_path / "train.json"), str(tmp_path / "new"), "--to", "masks"]) == 2
    assert "two images would have the mask a.png" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["compressed", "uncompressed"])
def test_rle_and_ignored_regions_become_masks_and_come_back(small_data, tmp_path, kind):
    folder = shutil.copytree(small_data, tmp_path / "data")
    content = json.loads((folder / "train.json").read_text())
    content["categories"][2]["ignore"] = 1
    for entry in content["annotations"]:
        rle = segmentation_to_rle(entry["segmentation"], 64, 64)
        runs = np.flatnonzero(np.diff(decode(rle).T.ravel(), prepend=0))
        counts = np.diff(runs, prepend=0, append=64 * 64).tolist()
        entry["segmentation"] = {"size": [64, 64], "counts": rle["counts"].decode() if kind == "compressed" else counts}
    (folder / "train.json").write_text(json.dumps(content))
    expected = paint(folder, "train.json")
    assert any((mask == 255).any() for mask in expected[1])
    assert content["categories"][2]["name"] not in expected[0]
    assert main(["convert", str(folder / "train.json"), str(tmp_path / "masks"), "--to", "masks"]) == 0
    assert_same(expected, paint(tmp_path / "masks", "train.txt"))
    back = [str(tmp_path / "masks" / name) for name in ("train.txt", "back.json")]
    assert main(["convert", *back, "--to", "coco"]) == 0
    assert_same(expected, paint(tmp_path / "masks", "back.json"))

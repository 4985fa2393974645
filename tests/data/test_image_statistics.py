"""Colour statistics are numpy's over all pixels; black, constant and unreadable images are named."""

import json

import cv2
import numpy as np
import pytest

from seglib.data.coco import load_coco
from seglib.data.dataset import pool_files
from seglib.data.eda import compute_colour_statistics, measure_images


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    pictures = {
        "noise.png": rng.integers(0, 256, (32, 32, 3), np.uint8),
        "dim.png": rng.integers(20, 90, (32, 32, 3), np.uint8),
        "black.png": np.full((32, 32, 3), 3, np.uint8),
        "red.png": np.full((32, 32, 3), (30, 20, 200), np.uint8),
        "gone.png": None,
    }
    for name, picture in pictures.items():
        if picture is not None:
            cv2.imwrite(str(tmp_path / name), picture)
    (tmp_path / "cut.png").write_bytes((tmp_path / "noise.png").read_bytes()[:100])
    names = [*pictures, "cut.png"]
    images = [{"id": i, "file_name": name, "width": 32, "height": 32} for i, name in enumerate(names)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    return tmp_path


def test_strange_images_are_named(folder):
    data = pool_files([load_coco(folder, "a.json")])
    measured = measure_images(data, 32).set_index(data.images["file_name"])
    assert measured.index[measured["black"]].tolist() == ["black.png"]
    assert measured.index[measured["constant"]].tolist() == ["black.png", "red.png"]
    assert measured.index[measured["error"] != ""].tolist() == ["gone.png", "cut.png"]
    assert "no such file" in measured.loc["gone.png", "error"]


def test_mean_and_std_are_those_of_all_readable_pixels_of_the_subset(folder):
    data = pool_files([load_coco(folder, "a.json")])
    subset = np.array(["train", "train", "val", "val", "train", "train"])
    colours = compute_colour_statistics(measure_images(data, 32), subset)
    pixels = np.stack([cv2.imread(str(folder / name))[..., ::-1] for name in ("noise.png", "dim.png")]) / 255
    assert colours.loc["train"].tolist() == pytest.approx([*pixels.mean((0, 1, 2)), *pixels.std((0, 1, 2))])
    assert colours.index.tolist() == ["train", "val"]


def test_images_are_measured_at_the_training_resolution(folder):
    data = pool_files([load_coco(folder, "a.json")])
    small = measure_images(data, 8)
    noise = cv2.imread(str(folder / "noise.png"))[..., ::-1]
    resized = cv2.resize(noise, (8, 8), interpolation=cv2.INTER_AREA).astype(float)
    assert small.loc[0, "red_square"] == pytest.approx(np.square(resized[..., 0]).mean())

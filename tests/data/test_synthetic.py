"""The embedded data set: the competition's layout, litter's statistics, the same bytes for the same seed."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from seglib.data.synthetic import CLASSES, make_synthetic, open_synthetic
from seglib.errors import InputError

SPLITS = ("train", "val", "train_all", "test")


def load(folder: Path, split: str) -> dict:
    return json.loads((folder / f"{split}.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def decode(annotation: dict, image_size: int) -> np.ndarray:
    rles = coco_mask.frPyObjects(annotation["segmentation"], image_size, image_size)
    return coco_mask.decode(coco_mask.merge(rles)).astype(bool)


@pytest.fixture(scope="module")
def default_set(tmp_path_factory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("synthetic") / "default")


@pytest.fixture(scope="module")
def masks_by_image(default_set) -> dict[int, list[np.ndarray]]:
    masks = {}
    for annotation in load(default_set, "val")["annotations"]:
        masks.setdefault(annotation["image_id"], []).append(decode(annotation, 256))
    return masks


def test_layout_and_categories_are_the_competitions(default_set):
    assert sorted(p.name for p in default_set.iterdir()) == ["images", *sorted(f"{split}.json" for split in SPLITS)]
    for split in SPLITS:
        data = load(default_set, split)
        assert [(c["id"], c["name"]) for c in data["categories"]] == list(enumerate(CLASSES, start=1))
        for image in data["images"]:
            assert cv2.imread(str(default_set / image["file_name"])).shape == (image["height"], image["width"], 3)
            assert set(image) == {"id", "file_name", "width", "height", "group"}
    assert load(default_set, "test")["annotations"] == []


def test_splits_are_64_16_20_percent_and_train_all_is_train_and_val(default_set):
    images = {split: [image["id"] for image in load(default_set, split)["images"]] for split in SPLITS}
    assert [len(images[split]) for split in SPLITS] == [154, 38, 192, 48]
    assert images["train_all"] == images["train"] + images["val"]
    assert len(set(images["train_all"] + images["test"])) == 240
    annotations = {split: [a["id"] for a in load(default_set, split)["annotations"]] for split in SPLITS}
    assert annotations["train_all"] == annotations["train"] + annotations["val"]
    assert len(set(annotations["train_all"])) == len(annotations["train_all"])


def test_images_of_a_scene_stay_on_one_side(default_set):
    groups = {split: Counter(image["group"] for image in load(default_set, split)["images"]) for split in SPLITS}
    assert not groups["train"].keys() & groups["val"].keys()
    assert not groups["train_all"].keys() & groups["test"].keys()
    assert 3 <= np.mean(list(groups["train_all"].values())) <= 4


def test_images_of_a_scene_look_alike(default_set):
    images = load(default_set, "train")["images"]
    colour = {i["id"]: np.median(cv2.imread(str(default_set / i["file_name"])), axis=(0, 1)) for i in images}
    scenes = [[colour[i["id"]] for i in images if i["group"] == group] for group in {i["group"] for i in images}]
    within = np.mean([np.std(scene, axis=0) for scene in scenes])
    assert within < 0.5 * np.std(list(colour.values()), axis=0).mean()


def test_about_half_of_the_objects_are_under_20_px_across(default_set):
    areas = np.array([a["area"] for a in load(default_set, "train_all")["annotations"]])
    assert 0.4 < (np.sqrt(areas) < 20).mean() < 0.6


def test_classes_are_imbalanced_and_each_is_in_train_and_in_val(default_set):
    counts = {split: Counter(a["category_id"] for a in load(default_set, split)["annotations"]) for split in SPLITS}
    assert set(counts["train"]) == set(counts["val"]) == set(range(1, 12))
    assert max(counts["train_all"].values()) >= 8 * min(counts["train_all"].values())
    common = {CLASSES[category - 1] for category, _ in counts["train_all"].most_common(3)}
    assert common == {"Plastic bag", "Paper", "General trash"}


def test_some_objects_are_cut_into_several_polygons(default_set):
    annotations = load(default_set, "train_all")["annotations"]
    assert 0.03 < np.mean([len(a["segmentation"]) > 1 for a in annotations]) < 0.3


def test_about_a_tenth_of_the_annotations_overlap_another(masks_by_image):
    overlaps = []
    for masks in masks_by_image.values():
        painted = np.sum(masks, axis=0)
        overlaps += [(painted[mask] > 1).sum() > 0.03 * mask.sum() for mask in masks]
    assert 0.03 < np.mean(overlaps) < 0.25


def test_polygons_lie_in_the_image_and_agree_with_area_and_box(default_set):
    for annotation in load(default_set, "val")["annotations"]:
        for polygon in annotation["segmentation"]:
            assert len(polygon) >= 6
            assert 0 <= min(polygon) <= max(polygon) <= 256
        mask = decode(annotation, 256)
        rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
        assert annotation["area"] == mask.sum() > 0
        assert annotation["iscrowd"] == 0
        assert annotation["bbox"] == [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]


def test_masks_end_where_the_drawn_objects_end(default_set, masks_by_image):
    """The image changes most across the masks' borders themselves, less across the same borders moved by 4 px."""
    change = Counter()
    for image_id, masks in masks_by_image.items():
        grey = cv2.imread(str(default_set / f"images/{image_id:04d}.jpg"), cv2.IMREAD_GRAYSCALE)
        gradient = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
        for mask in masks:
            border = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3))).astype(bool)
            for move in ((0, 0), (0, 4), (0, -4), (4, 0), (-4, 0)):
                change[move] += gradient[np.roll(border, move, (0, 1))].mean()
    assert change[0, 0] > 1.4 * max(value for move, value in change.items() if move != (0, 0))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path):
    first, again, other = (
        contents(make_synthetic(tmp_path / name, 8, 64, seed)) for name, seed in (("a", 21), ("b", 21), ("c", 22))
    )
    assert first == again
    assert first.keys() == other.keys()
    assert not any(first[name] == other[name] for name in first if name != "test.json")


@pytest.mark.parametrize("image_size", [32, 96])
def test_small_sets_have_every_split_and_sound_polygons(tmp_path, image_size):
    folder = make_synthetic(tmp_path / "small", num_images=9, image_size=image_size)
    assert all(load(folder, split)["images"] for split in SPLITS)
    for annotation in load(folder, "train_all")["annotations"]:
        assert decode(annotation, image_size).sum() == annotation["area"] > 0


def test_progress_is_reported_after_each_image(tmp_path):
    reported = []
    make_synthetic(tmp_path / "set", 8, 32, progress=lambda done, total: reported.append((done, total)))
    assert reported == [(done, 8) for done in range(1, 9)]


def test_interrupted_drawing_leaves_nothing(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_synthetic(tmp_path / "set", 8, 32, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_images": 7}, "synthetic data: num_images must be at least 8, got 7"),
        ({"image_size": 31}, "synthetic data: image_size must be at least 32, got 31"),
        ({"seed": -1}, "synthetic data: seed must be at least 0, got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, arguments, words):
    with pytest.raises(InputError, match=words):
        make_synthetic(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


def test_folder_with_files_is_refused_and_an_empty_one_is_used(tmp_path):
    (tmp_path / "empty").mkdir()
    assert (make_synthetic(tmp_path / "empty", 8, 32) / "train.json").exists()
    with pytest.raises(InputError, match=r"folder must be absent or empty, got .*empty; name another one"):
        make_synthetic(tmp_path / "empty", 8, 32)


def test_four_processes_at_once_share_one_complete_folder(tmp_path):
    code = "from seglib.data.synthetic import open_synthetic; print(open_synthetic(8, 64))"
    environment = {**os.environ, "SEGLIB_CACHE": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    assert len(set(answers)) == 1
    folder = Path(answers[0])
    assert contents(folder) == contents(make_synthetic(tmp_path / "reference", 8, 64))
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, f"{folder.name}.lock", "reference"}


def test_second_call_does_not_draw_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGLIB_CACHE", str(tmp_path))
    before = (open_synthetic(8, 32) / "train.json").stat()
    after = (open_synthetic(8, 32) / "train.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert open_synthetic(8, 32, seed=1) != open_synthetic(8, 32)


def test_drawing_does_not_need_torch():
    code = "import sys, seglib.data.synthetic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

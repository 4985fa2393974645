"""Images are found in every usual layout, where one file fits; else the refusal names the cause and the nearest file."""

import os
import unicodedata
from pathlib import Path

import pytest

from seglib.data.layouts import TRUST_LINKS, ImageFinder, fingerprint_data


def write(folder: Path, *names: str) -> Path:
    for name in names:
        folder.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        folder.joinpath(name).write_text(name)
    return folder


def find(folder: Path, json_name: str, name: str) -> str:
    """Path seen from the folder, or the problem."""
    path, problem = ImageFinder(folder, json_name).find(name)
    return problem or str(Path(path).relative_to(folder.resolve()))


def explain(folder: Path, json_name: str, name: str) -> str:
    return ImageFinder(folder, json_name).explain(name)


NFC, NFD = (unicodedata.normalize(form, "사진_é.jpg") for form in ("NFC", "NFD"))
LAYOUTS = {
    "Roboflow": ("train/_annotations.coco.json", "a.jpg", ["train/a.jpg", "valid/a.jpg"], "train/a.jpg"),
    "CVAT": ("annotations/instances_default.json", "a.jpg", ["images/a.jpg"], "images/a.jpg"),
    "CVAT 2": ("annotations/instances_default.json", "a.jpg", ["images/default/a.jpg"], "images/default/a.jpg"),
    "CVAT 3": ("annotations/instances_val.json", "s/a.jpg", ["images/val/s/a.jpg", "images/train/s/a.jpg"],
               "images/val/s/a.jpg"),
    "MS-COCO": ("annotations/instances_train2017.json", "a.jpg", ["train2017/a.jpg", "val2017/a.jpg"],
                "train2017/a.jpg"),
    "MS-COCO in images": ("annotations/instances_val2017.json", "a.jpg", ["images/train2017/a.jpg",
                          "images/val2017/a.jpg"], "images/val2017/a.jpg"),
    "two image folders": ("val.json", "a.jpg", ["train_images/a.jpg", "valid_images/a.jpg"], "valid_images/a.jpg"),
    "batches": ("train.json", "a.jpg", ["batch_1/a.jpg", "batch_2/b.jpg"], "batch_1/a.jpg"),
    "FiftyOne": ("labels.json", "a.jpg", ["data/a.jpg", "labels/a.jpg"], "data/a.jpg"),
    "masks of the same name": ("train.json", "a.png", ["images/a.png", "masks/a.png"], "images/a.png"),
    "the data folder first": ("train/a.json", "a.jpg", ["a.jpg", "train/a.jpg", "images/a.jpg"], "a.jpg"),
    "beside the file in a folder": ("train/a.json", "a.jpg", ["train/images/a.jpg", "val/images/a.jpg"],
                                    "train/images/a.jpg"),
    "NFC in the file, NFD on the disk": ("train.json", f"images/{NFC}", [f"images/{NFD}"], f"images/{NFD}"),
    "NFD in the file, NFC on the disk": ("train.json", NFD, [f"images/{NFC}"], f"images/{NFC}"),
    "backslashes": ("train.json", "images\\s\\a.jpg", ["images/s/a.jpg"], "images/s/a.jpg"),
    "percent-encoded in the file": ("train.json", "images/a%20%281%29.jpg", ["images/a (1).jpg"], "images/a (1).jpg"),
    "percent-encoded on the disk": ("train.json", "a b.jpg", ["a%20b.jpg"], "a%20b.jpg"),
    "another case": ("train.json", "Images/A.JPG", ["images/a.jpg"], "images/a.jpg"),
    "the spelling that is the same": ("train.json", "A.jpg", ["images/a.jpg", "images/A.jpg"], "images/A.jpg"),
    "two that differ in case": ("train.json", "a.JPG", ["images/a.jpg", "images/A.jpg"], "ambiguous-image"),
    "two of many folders": ("train.json", "a.jpg", ["b1/a.jpg", "b2/a.jpg"], "ambiguous-image"),
    "masks alone are no images": ("train.json", "a.png", ["masks/a.png"], "missing-image"),
    "another folder of the same name's": ("train.json", "cam1/a.jpg", ["cam2/a.jpg"], "missing-image"),
    "hidden": ("train.json", "a.jpg", [".cache/a.jpg"], "missing-image"),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_an_image_is_found_where_one_file_fits(tmp_path, case):
    json_name, name, files, found = LAYOUTS[case]
    assert find(write(tmp_path, json_name, *files), json_name, name) == found


def test_images_beside_a_file_elsewhere_are_found(tmp_path):
    folder = write(tmp_path, "data/images/a.jpg", "export/labels.json", "export/b.jpg", "export/images/c.jpg") / "data"
    finder = ImageFinder(folder, tmp_path / "export/labels.json")
    found = [os.path.relpath(finder.find(name)[0], tmp_path) for name in ("a.jpg", "b.jpg", "c.jpg")]
    assert found == ["data/images/a.jpg", "export/b.jpg", "export/images/c.jpg"]


def test_the_refusal_names_the_nearest_file(tmp_path):
    write(tmp_path, "images/photo_0001.jpeg", "cam2/b.jpg", "b1/a.jpg", "b2/a.jpg")
    assert "got none at" in explain(tmp_path, "train.json", "images/photo_0001.jpg")
    assert explain(tmp_path, "train.json", "images/photo_0001.jpg").endswith("nearest is images/photo_0001.jpeg")
    assert explain(tmp_path, "train.json", "images/photo_0002.jpeg").endswith("nearest is images/photo_0001.jpeg")
    assert explain(tmp_path, "train.json", "cam1/b.jpg").endswith("nearest is cam2/b.jpg")
    assert "nearest" not in explain(tmp_path, "train.json", "something_else.png")
    assert explain(tmp_path, "train.json", "a.jpg") == "one file must fit the name, got 2: b1/a.jpg, b2/a.jpg"


def test_links_within_the_folder_are_followed(tmp_path):
    write(tmp_path, "images/a.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "images/a.jpg")
    (tmp_path / "again").symlink_to(tmp_path / "images")
    (tmp_path / "images/loop").symlink_to(tmp_path)
    for name in ("images/../images/a.jpg", "link.jpg", "again/a.jpg", "A.JPG"):
        assert find(tmp_path, "train.json", name) == "images/a.jpg"


@pytest.mark.parametrize("name", ["../a.jpg", "images/../../a.jpg", "{outside}", "link.jpg", "folder/a.jpg", "a\0.jpg"])
def test_a_path_that_leaves_the_data_folder_is_refused(tmp_path, name):
    outside = write(tmp_path, "outside/a.jpg") / "outside"
    data_dir = write(tmp_path / "data", "train.json")
    (data_dir / "link.jpg").symlink_to(outside / "a.jpg")
    (data_dir / "folder").symlink_to(outside)
    name = name.format(outside=outside / "a.jpg")
    assert find(data_dir, "train.json", name) == "outside-folder"
    assert "must" in explain(data_dir, "train.json", name)
    assert find(data_dir, "train.json", "a.jpg") == "missing-image"  # and nothing is looked for behind the link


def test_an_absolute_path_is_refused_even_inside(tmp_path):
    assert find(write(tmp_path, "a.jpg"), "train.json", str(tmp_path / "a.jpg")) == "outside-folder"


def test_links_that_lead_out_are_followed_by_permission_which_the_refusal_names(tmp_path, monkeypatch):
    outside = write(tmp_path, "photos/batch/a.jpg", "secret/a.jpg") / "photos"
    data_dir = write(tmp_path / "data", "train.json")
    (data_dir / "images").symlink_to(outside)
    (data_dir / "other").symlink_to(tmp_path / "secret")
    assert f"{TRUST_LINKS}={outside.resolve()})" in explain(data_dir, "train.json", "images/batch/a.jpg")
    before = fingerprint(data_dir)
    monkeypatch.setenv(TRUST_LINKS, str(outside))
    for name in ("images/batch/a.jpg", "batch/A.jpg"):
        assert ImageFinder(data_dir, "train.json").find(name) == (str(outside.resolve() / "batch/a.jpg"), "")
    assert find(data_dir, "train.json", "other/a.jpg") == "outside-folder"
    assert fingerprint(data_dir) != before


def fingerprint(data_dir: Path) -> str:
    data_dir.joinpath("train.json").write_text('{"images": [{"file_name": "images/batch/a.jpg"}]}')
    return fingerprint_data(data_dir, ["train.json"])


def test_the_fingerprint_sees_images_of_one_name_in_two_folders(tmp_path):
    images = '{"images": [{"file_name": "a.jpg"}]}'
    for name in ("train", "valid"):
        write(tmp_path, f"{name}/a.jpg").joinpath(name, "_annotations.coco.json").write_text(images)
    jsons = ["train/_annotations.coco.json", "valid/_annotations.coco.json"]
    before = fingerprint_data(tmp_path, jsons)
    tmp_path.joinpath("valid/a.jpg").write_text("another")
    assert fingerprint_data(tmp_path, jsons) != before

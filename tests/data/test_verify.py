"""Every broken input has its row, its severity, words and a fix; errors stop a training, warnings do not."""

import copy
import json
import pickle
import random
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from seglib.data.coco import load_coco
from seglib.data.masks import PAINT_ORDERS, paint_mask
from seglib.data.verify import (
    FIXES,
    describe_unpainted,
    find_turns,
    load_verified,
    refuse_errors,
    refuse_unpainted,
    tabulate_painted,
    verify_coco,
)
from seglib.data.verify import WARNINGS as WARNED
from seglib.errors import InputError, InputErrors

SHARED = Path(__file__).parents[2].parent / "shared/data"
SQUARE = [5, 5, 20, 5, 20, 20, 5, 20]
CONTENT = {
    "images": [
        {"id": 12, "file_name": "images/a.jpg", "width": 64, "height": 48},
        {"id": 13, "file_name": "images/b.jpg", "width": 64, "height": 48},
        {"id": 14, "file_name": "images/unannotated.png", "width": 64, "height": 48},
    ],
    "categories": [{"id": 1, "name": "Paper"}, {"id": 2, "name": "Glass"}],
    "annotations": [
        {"id": 7, "image_id": 12, "category_id": 1, "area": 225, "segmentation": [SQUARE, [-1, 0, 65, 0, 30, 49]]},
        {"id": 8, "image_id": 12, "category_id": 2, "segmentation": {"size": [48, 64], "counts": [100, 20, 2952]}},
        {"id": 9, "image_id": 13, "category_id": 2, "segmentation": {"size": [48, 64], "counts": "T3d0Xl2"}},
    ],
}


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "data/images").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "unannotated.png"):
        Image.fromarray(np.full((48, 64, 3), 99, np.uint8)).save(tmp_path / "data/images" / name)
    return tmp_path / "data"


def verify(folder: Path, content: dict, read_pixels: bool = False):
    folder.joinpath("train.json").write_text(json.dumps(content), encoding="utf-8")
    return verify_coco(load_coco(folder, "train.json"), read_pixels)


def test_valid_data_has_no_problems_and_images_without_annotations_are_none(folder):
    for read_pixels in (False, True):
        problems = verify(folder, CONTENT, read_pixels)
        assert problems.columns.tolist() == ["severity", "problem", "where", "detail", "fix"]
        assert len(problems) == 0
    refuse_errors(problems, folder / "train.json")


def segmentation(value: object):
    return lambda content, folder: content["annotations"][0].update(segmentation=value)


def image(**values):
    return lambda content, folder: content["images"][0].update(values)


def annotation(**values):
    return lambda content, folder: content["annotations"][0].update(values)


def category(**values):
    return lambda content, folder: content["categories"][1].update(values)


def repeat(what: str, **values):
    return lambda content, folder: content[what].append(content[what][0] | values)


def file(content_of_file: bytes):
    return lambda content, folder: (folder / "images/a.jpg").write_bytes(content_of_file)


def store(height: int, width: int, orientation: int = 1):
    def change(content, folder):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.full((height, width, 3), 99, np.uint8)).save(folder / "images/a.jpg", exif=exif)

    return change


def store_array(array: np.ndarray):
    def change(content, folder):
        content["images"][0]["file_name"] = "images/a.tif"
        cv2.imwrite(str(folder / "images/a.tif"), array)

    return change


def shares(content, folder):
    content["annotations"][0]["segmentation"] = [[0.1, 0.1, 0.4, 0.1, 0.4, 1.0]]


def super_category(content, folder):
    content["categories"].append({"id": 0, "name": "Litter", "supercategory": "none"})


def link_out(content, folder):
    (folder / "images/a.jpg").rename(folder.parent / "a.jpg")
    (folder / "images/a.jpg").symlink_to(folder.parent / "a.jpg")


def two_of_one_name(content, folder):
    for name in ("left", "right"):
        (folder / name).mkdir()
        (folder / name / "z.jpg").write_bytes(b"")
    content["images"][0]["file_name"] = "z.jpg"


def rle(**values):
    return segmentation({"size": [48, 64], "counts": [100, 20, 2952]} | values)


A, TIFF, ANNOTATION = "image 12 (images/a.jpg)", "image 12 (images/a.tif)", "annotation 7 (image 12)"
ERRORS = [
    (lambda content, folder: content.update(images=[], annotations=[]), "no-images", "images", "an image or more"),
    (repeat("categories", name="Metal"), "duplicate-category-id", "category 1", "got 2 of this one"),
    (category(name="Paper"), "duplicate-category-name", "category Paper", "got 2 of this one"),
    (repeat("images", file_name="images/c.jpg"), "duplicate-image-id", "image 12 (images/c.jpg)", "images[0] and"),
    (repeat("images", id=99), "duplicate-file-name", "image 99 (images/a.jpg)", "got images[0] and images[3]"),
    (image(file_name="images/../images/b.jpg"), "duplicate-file-name", "image 13 (images/b.jpg)", "images[0] and"),
    (image(file_name="../outside.jpg"), "outside-folder", "image 12 (../outside.jpg)", "inside the data folder"),
    (image(file_name="/etc/hostname"), "outside-folder", "image 12 (/etc/hostname)", "inside the data folder"),
    (link_out, "outside-folder", A, "inside the data folder, got one that leads to"),
    (two_of_one_name, "ambiguous-image", "image 12 (z.jpg)", "got 2: left/z.jpg, right/z.jpg"),
    (image(file_name="images/a.png"), "missing-image", "image 12 (images/a.png)", "must exist, got none at"),
    (image(file_name="a.jpeg"), "missing-image", "image 12 (a.jpeg)", "; the nearest is images/a.jpg"),
    (image(file_name="images"), "missing-image", "image 12 (images)", "must be a file, got a folder at"),
    (image(file_name="a" * 300), "missing-image", "image 12 (aaa", "must exist, got none at"),
    (image(file_name="images/\nc.jpg", width=None), "missing-image", "image 12 (images/ c.jpg)", "must exist"),
    (file(b""), "unreadable-image", A, "must be an image that can be read, got: not an image"),
    (file(b"<html>404 not found</html>"), "unreadable-image", A, "got: not an image"),
    (store(32, 64), "size-differs", A, "must be 64x48 px (width x height) as the JSON says, got 64x32"),
    (store(64, 48), "size-differs", A, "got 48x64"),
    (store(64, 48, orientation=3), "size-differs", A, "got 48x64"),
    (annotation(image_id=999), "unknown-image", "annotation 7 (image 999)", "one of the images, got 999"),
    (annotation(category_id=3), "unknown-category", ANNOTATION, "one of the categories, got 3"),
    (segmentation("polygon"), "unknown-segmentation", ANNOTATION, "polygons [[x1, y1, x2, y2, ...], ...], got str"),
    (segmentation(SQUARE), "unknown-segmentation", ANNOTATION, "got a list of something else"),
    (segmentation([SQUARE, [1, 2, None, 4, 5, 6]]), "unreadable-coordinates", ANNOTATION, "polygon 2 of 2 must be"),
    (segmentation([["1", "2", "3", "4", "5", "6"]]), "unreadable-coordinates", ANNOTATION, "got something else"),
    (segmentation([[1, 2, float("nan"), 4, 5, 6]]), "non-finite-coordinates", ANNOTATION, "got nan"),
    (segmentation([[1, 2, 3, float("inf"), 5, 6]]), "non-finite-coordinates", ANNOTATION, "got inf"),
    (segmentation([SQUARE[:-1]]), "odd-coordinates", ANNOTATION, "x and y of each point, got 7 coordinates"),
    (segmentation([[0, 0, 1e9, 0, 5, 5]]), "far-coordinates", ANNOTATION, "got x 0 to 1e+09, y 0 to 5"),
    (shares, "normalised-coordinates", ANNOTATION, "must be in px, got shares of the image, all within 0 to 1"),
    (
        store_array(np.full((48, 64, 3), 0.5, np.float32)),
        "unknown-depth",
        TIFF,
        "8 or 16 bits per channel, got float32",
    ),
    (store_array(np.full((48, 64), 5, np.int32)), "unknown-depth", TIFF, "8 or 16 bits per channel, got int32"),
    (
        store_array(np.full((48, 64), 4000, np.uint16)),
        "unused-range",
        TIFF,
        "got 12 bits: no value of 1 such images is above 4,000",
    ),
    (rle(size=[64, 48]), "rle-size", ANNOTATION, "must be [48, 64], the image's height and width, got [64, 48]"),
    (rle(size=None), "rle-size", ANNOTATION, "got None"),
    (rle(size=[2**40, 2**40]), "rle-size", ANNOTATION, "got [1099511627776, 1099511627776]"),
    (rle(counts=None), "rle-corrupt", ANNOTATION, "got neither"),
    (rle(counts=[-1, 3073]), "rle-corrupt", ANNOTATION, "whole numbers from 0"),
    (rle(counts="T3d0Xl"), "rle-corrupt", ANNOTATION, "or their compressed text"),
    (rle(counts="\x00\x01"), "rle-corrupt", ANNOTATION, "or their compressed text"),
    (rle(counts=[100, 20]), "rle-sum", ANNOTATION, "add up to height x width = 3072, got 120"),
    (rle(counts="T3d0"), "rle-sum", ANNOTATION, "= 3072, got 120"),
]
WARNINGS = [
    (store(48, 64, orientation=6), "exif-rotated", A, "got 6; read as stored, as width and height say"),
    (store(64, 48, orientation=6), "exif-rotated", A, "got 6; turned when read, as width and height say"),
    (store(48, 64, orientation=3), "exif-rotated", A, "turned when read, by exif: apply, which they do not say"),
    (category(name="_background_"), "background-category", "category _background_", "this one is read as class 0"),
    (super_category, "unused-category", "category 0 (Litter)", "it looks like a super-category, and is class 1"),
    (repeat("annotations"), "duplicate-annotation-id", ANNOTATION, "got this one before"),
    (segmentation(None), "empty-segmentation", ANNOTATION, "must hold a polygon or an RLE, got nothing"),
    (segmentation([]), "empty-segmentation", ANNOTATION, "must hold a polygon or an RLE, got nothing"),
    (segmentation([SQUARE, [1, 2, 3, 4]]), "too-few-points", ANNOTATION, "2 of 2 must have 3 points or more, got 2"),
    (segmentation([[]]), "too-few-points", ANNOTATION, "must have 3 points or more, got 0"),
    (segmentation([[5, 5, 66.5, 5, 9, 9]]), "outside-image", ANNOTATION, "got x 5 to 66.5, y 5 to 9"),
    (segmentation([[5, -2, 60, 5, 9, 9]]), "outside-image", ANNOTATION, "must lie in the image of 64x48 px"),
]


@pytest.mark.parametrize(
    ("severity", "change", "problem", "where", "detail"),
    [("error", *case) for case in ERRORS] + [("warning", *case) for case in WARNINGS],
)
def test_a_broken_input_has_its_row(folder, severity, change, problem, where, detail):
    content = copy.deepcopy(CONTENT)
    change(content, folder)
    problems = verify(folder, content)
    row = problems[problems["problem"] == problem].iloc[0]
    assert row["severity"] == severity
    assert row["where"].startswith(where)
    assert detail in row["detail"]
    assert row["fix"] == FIXES[problem]
    if severity == "error":
        with pytest.raises(InputErrors, match=re.escape(f"train.json [{row['where']}]: {problem}: ")):
            refuse_errors(problems, folder / "train.json")
    else:
        assert problems["severity"].tolist() == ["warning"]
        refuse_errors(problems, folder / "train.json")


def test_a_polygon_in_the_corner_among_many_is_no_share(folder):
    content = copy.deepcopy(CONTENT)
    content["annotations"] += [content["annotations"][0] | {"id": 100 + i} for i in range(200)]
    shares(content, folder)
    assert len(verify(folder, content)) == 0


def test_images_of_16_bits_of_which_one_uses_them_are_sound(folder):
    content = copy.deepcopy(CONTENT)
    for name, value in (("a", 4000), ("b", 60000)):
        Image.fromarray(np.full((48, 64), value, np.uint16)).save(folder / f"images/{name}.png")
        content["images"]["ab".index(name)]["file_name"] = f"images/{name}.png"
    assert len(verify(folder, content)) == 0


def test_every_problem_is_tested_with_the_severity_that_it_has_and_each_warning_is_in_the_docstring():
    assert {case[1] for case in ERRORS} == FIXES.keys() - WARNED
    assert {case[1] for case in WARNINGS} == WARNED
    assert set(re.findall(r"`([a-z]+-[a-z-]+)`", verify_coco.__doc__)) == WARNED


def test_pixels_are_decoded_only_when_asked_for(folder):
    path = folder / "images/a.jpg"
    path.write_bytes(path.read_bytes()[:-30])
    assert len(verify(folder, CONTENT)) == 0
    problems = verify(folder, CONTENT, read_pixels=True)
    assert problems["problem"].tolist() == ["unreadable-image"]
    assert "truncated" in problems["detail"][0]


@pytest.mark.parametrize(("exif", "done"), [("apply", "turned when read"), ("ignore", "read as stored")])
def test_a_square_image_is_turned_by_the_policy(folder, exif, done):
    content = copy.deepcopy(CONTENT) | {"annotations": [], "exif": exif}
    content["images"][0]["width"] = 48
    store(48, 48, orientation=6)(content, folder)
    assert verify(folder, content)["detail"].str.endswith(
        f"{done}, by exif: {exif}, which they do not say"
    ).tolist() == [True]
    assert find_turns(load_coco(folder, "train.json")) == [6 if exif == "apply" else 0, 0, 0]


BOX = {"id": 1, "image_id": 12, "category_id": 1, "segmentation": []}


def paint_nothing(folder: Path, *annotations: dict):
    content = CONTENT | {"annotations": [BOX | {"id": i} | each for i, each in enumerate(annotations)]}
    folder.joinpath("train.json").write_text(json.dumps(content), encoding="utf-8")
    return tabulate_painted(load_verified(folder, "train.json"))


def test_what_annotations_paint_is_counted_by_class(folder, capsys):
    table = paint_nothing(folder, {}, {"segmentation": [SQUARE]}, {"segmentation": [[1, 1, 5, 9]]}, {"category_id": 2, "segmentation": [SQUARE]})  # fmt: skip
    assert table.loc["Paper"].tolist() == [3, 1, 225]
    assert table.loc["Glass"].tolist() == [1, 1, 225]
    assert describe_unpainted(table) == "2 of 4 annotations paint nothing (Paper 2 of 3)"
    refuse_unpainted(table, "train.json")
    assert "train.json: warning: empty-segmentation: annotation 0 (image 12)" in capsys.readouterr().out


def test_a_set_or_a_class_that_paints_nothing_is_refused_by_name(folder):
    with pytest.raises(
        InputErrors, match=r"^here: must have .*, got 2 that paint none; were only boxes exported\? export"
    ):
        refuse_unpainted(paint_nothing(folder, {}, {"category_id": 2}), "here")
    with pytest.raises(InputErrors, match=r"^here \[Glass\]: a class must have .* pixels, got 1 that paint none"):
        refuse_unpainted(paint_nothing(folder, {"segmentation": [SQUARE]}, {"category_id": 2}), "here")


def test_what_was_found_is_remembered_until_file_or_images_change(folder, monkeypatch):
    table = paint_nothing(folder, {"segmentation": [SQUARE]})
    monkeypatch.setattr("seglib.data.verify.verify_coco", lambda data: 1 / 0)
    assert tabulate_painted(load_verified(folder, "train.json")).equals(table)
    (folder / "images/a.jpg").unlink()
    with pytest.raises(ZeroDivisionError):
        load_verified(folder, "train.json")


def test_an_image_of_unknown_size_is_reported_once_and_not_its_annotations(folder):
    content = copy.deepcopy(CONTENT)
    content["images"][0] = {"id": 12, "file_name": "nowhere.jpg"}
    assert verify(folder, content)["problem"].tolist() == ["missing-image"]


def test_errors_come_first_and_each_refusal_is_a_line(folder):
    content = copy.deepcopy(CONTENT)
    content["annotations"][0]["segmentation"] = []
    content["annotations"][1]["category_id"] = 5
    content["annotations"][2]["image_id"] = 5
    problems = verify(folder, content)
    assert problems["severity"].tolist() == ["error", "error", "warning"]
    with pytest.raises(InputErrors) as caught:
        refuse_errors(problems, "data/train.json")
    assert caught.value.lines == [
        "data/train.json [annotation 8 (image 12)]: unknown-category: category_id must be one of the categories, "
        "got 5; add the category, or remove the annotation",
        "data/train.json [annotation 9 (image 5)]: unknown-image: image_id must be one of the images, got 5; "
        "remove the annotation, or add its image",
    ]
    assert str(caught.value).splitlines() == caught.value.lines
    assert isinstance(caught.value, InputError)


def test_a_refusal_survives_the_way_out_of_a_worker_process():
    error = pickle.loads(pickle.dumps(InputErrors(["first\n line", "second"])))
    assert str(error) == "first line\nsecond"
    assert error.lines == ["first line", "second"]


def test_a_wrong_folder_does_not_fill_the_page(folder):
    content = copy.deepcopy(CONTENT)
    content["images"] = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(500)]
    content["annotations"] = []
    problems = verify(folder, content)
    assert len(problems) == 500
    with pytest.raises(InputErrors, match=r"500 errors in all \(missing-image 500\); verify_coco lists them") as caught:
        refuse_errors(problems, folder / "train.json")
    assert len(caught.value.lines) == 101


JUNK = [None, True, -1, 2**31, 10**30, 1e308, float("nan"), float("inf"), 0.5, "", "x", "\ud800", "\0", "../..", ".",
        [], [[]], [[[1]]], {}, [None], ["1", "2"], "n\nl", "~" * 50]  # fmt: skip


def slots(value: object) -> list[tuple]:
    """Every (container, key) inside a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [slot for key in keys for slot in [(value, key), *slots(value[key])]]


@pytest.mark.parametrize("seed", range(8))
def test_hostile_files_give_rows_or_one_line_and_what_has_no_error_can_be_painted(folder, seed):
    random_ = random.Random(seed)
    for _ in range(25):
        content = copy.deepcopy(CONTENT)
        for _ in range(random_.choice([1, 1, 3])):
            container, key = random_.choice(slots(content))
            if random_.random() < 0.2:
                del container[key]
            else:
                container[key] = copy.deepcopy(random_.choice(JUNK))
        folder.joinpath("train.json").write_text(json.dumps(content))
        try:
            data = load_coco(folder, "train.json")
        except InputError as error:
            assert "\n" not in str(error)
            continue
        problems = verify_coco(data)
        assert problems["fix"].notna().all()
        if not (problems["severity"] == "error").any():
            for row in data.images.itertuples():
                annotations = data.annotations[data.annotations["image_id"] == row.image_id]
                paint_mask(annotations, row.height, row.width, random_.choice(PAINT_ORDERS), "class")


@pytest.mark.skipif(not (SHARED / "camvid").is_dir(), reason="the real photographs are not here")
def test_real_photographs_have_no_problems():
    assert len(verify_coco(load_coco(SHARED / "camvid", "val.json"), read_pixels=True)) == 0


@pytest.mark.skipif(not (SHARED / "taco").is_dir(), reason="the real annotations are not here")
def test_real_annotations_without_pixels_miss_every_image():
    problems = verify_coco(load_coco(SHARED / "taco", "annotations.json"))
    assert problems["problem"].value_counts().to_dict() == {"missing-image": 1500, "duplicate-annotation-id": 2}

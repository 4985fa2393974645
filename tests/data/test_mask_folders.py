"""Folders of index masks are read as the pixels that they hold, in every usual layout; a bad mask is refused by name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seglib.__main__ import main
from seglib.data.analysis import DataAnalysis
from seglib.data.coco import load_coco
from seglib.data.dataset import open_data
from seglib.data.layouts import fingerprint_data
from seglib.data.mask_folders import read_description, read_mask
from seglib.data.masks import paint_mask
from seglib.data.verify import verify_coco
from seglib.errors import InputError

HEIGHT, WIDTH = 48, 64
NAMES = ["background", "road", "car"]
COLOURS = np.array([[0, 0, 0], [128, 64, 128], [0, 0, 142]], np.uint8)


def draw(seed: int) -> np.ndarray:
    """(48, 64) uint8 class ids 0 to 2, and 255, in blobs and single pixels."""
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.choice([0, 0, 1, 2, 255], (6, 8)), np.ones((8, 8))).astype(np.uint8)
    mask[rng.random(mask.shape) < 0.02] = 2
    return mask


def save(path: Path, array: np.ndarray, mode: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if mode == "P":
        image.putpalette(COLOURS.tobytes().ljust(768, b"\1"))
    image.save(path)


def make(
    folder: Path, image: str = "images/{}.jpg", mask: str = "masks/{}.png", classes=NAMES, encode=lambda m: m, **options
):
    """Two images and masks for each of train and val, `classes.json`, and lists."""
    for split, stems in (("train", ("a", "b")), ("val", ("c", "d"))):
        for stem in stems:
            pixels = np.random.default_rng(ord(stem)).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            save(folder / image.format(stem, split=split), pixels)
            save(folder / mask.format(stem, split=split), encode(draw(ord(stem))), **options)
        (folder / f"{split}.txt").write_text("\n".join(stems) + "\n")
    (folder / "classes.json").write_text(json.dumps(classes))
    return folder


def paint(folder: Path, name: str, background: str = "class") -> list[np.ndarray]:
    data = load_coco(folder, name)
    assert len(verify_coco(data)) == 0
    rows = data.painted.groupby("image_id").indices
    return [
        paint_mask(data.painted.iloc[rows.get(row.image_id, [])], row.height, row.width, "area", background)
        for row in data.images.itertuples()
    ]


def assert_read(folder: Path, name: str = "train.txt", stems: str = "ab") -> None:
    masks = paint(folder, name)
    assert len(masks) == len(stems)
    assert all(np.array_equal(mask, draw(ord(stem))) for mask, stem in zip(masks, stems, strict=True))


LAYOUTS = {
    "lists": ({}, "train.txt"),
    "one folder": ({}, "images"),
    "folders in images and masks": ({"image": "images/{split}/{}.jpg", "mask": "masks/{split}/{}.png"}, "train"),
    "their path": ({"image": "images/{split}/{}.jpg", "mask": "masks/{split}/{}.png"}, "images/train"),
    "images and masks in folders": ({"image": "{split}/images/{}.jpg", "mask": "{split}/masks/{}.png"}, "train"),
    "VOC": ({"image": "JPEGImages/{}.jpg", "mask": "SegmentationClass/{}.png"}, "train.txt"),
    "ADE": ({"image": "images/{split}/{}.jpg", "mask": "annotations/{split}/{}.png"}, "train"),
    "Kaggle": ({"mask": "masks/{}_mask.png"}, "train.txt"),
    "CamVid": ({"image": "{split}/{}.png", "mask": "{split}annot/{}.png",
                "classes": {"classes": NAMES, "image_dir": "{split}", "mask_dir": "{split}annot"}}, "train"),
    "Cityscapes": ({"image": "leftImg8bit/{split}/x/{}_leftImg8bit.png", "mask": "gtFine/{split}/x/{}_gtFine_labelTrainIds.png",
                    "classes": {"classes": NAMES, "image_suffix": "_leftImg8bit", "mask_suffix": "_gtFine_labelTrainIds"}},
                   "train"),
    "named": ({"image": "photos/{}.jpg", "mask": "labels of/{}.tif",
               "classes": {"class_names": NAMES, "image_dir": "photos", "mask_dir": "labels of"}}, "photos"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_usual_layout_is_read(tmp_path, layout):
    options, name = LAYOUTS[layout]
    assert_read(make(tmp_path, **options), name, "abcd" if name in ("images", "photos") else "ab")


def recode(values: dict[int, object]):
    """Masks whose 0, 1, 2 and 255 are other values or colours."""
    return lambda mask: np.select(
        [(mask == old)[..., None] if np.ndim(new) else mask == old for old, new in values.items()],
        [np.array(new, np.int32) for new in values.values()],
    ).astype(np.uint8 if np.max([*map(np.max, values.values())]) < 256 else np.uint16)


CODES = {
    "grey": (NAMES, {0: 0, 1: 1, 2: 2, 255: 255}),
    "without a background": ({"classes": {"0": "_", "1": "background", "7": "road", "9": "car"}, "ignore_index": 200,
                              "ignore_classes": ["_"]}, {0: 1, 1: 7, 2: 9, 255: 0}),
    "void is 0": ({"classes": {"3": "background", "1": "road", "2": "car"}, "ignore_index": 0}, {0: 3, 1: 1, 2: 2, 255: 0}),
    "void is 11": ({"classes": NAMES, "ignore_index": 11}, {0: 0, 1: 1, 2: 2, 255: 11}),
    "two voids": ({"classes": NAMES, "ignore_index": [11, 12]}, {0: 0, 1: 1, 2: 2, 255: 12}),
    "255 is a class": ({"classes": {"0": "background", "4": "road", "255": "car"}, "ignore_index": 3}, {0: 0, 1: 4, 2: 255, 255: 3}),
    "a void class": ({"classes": [*NAMES, "void"], "ignore_classes": ["void"]}, {0: 0, 1: 1, 2: 2, 255: 3}),
    "16 bit": ({"classes": {"0": "background", "700": "road", "900": "car"}, "ignore_index": 65535},
               {0: 0, 1: 700, 2: 900, 255: 65535}),
    "colours": ({"classes": {"background": [0, 0, 0], "road": [128, 64, 128], "car": [0, 0, 142]},
                 "ignore_index": [224, 224, 192]}, {0: (0, 0, 0), 1: (128, 64, 128), 2: (0, 0, 142), 255: (224, 224, 192)}),
    "colours of entries": ({"classes": [{"name": "background", "color": [0, 0, 0]}, {"name": "road", "color": [1, 2, 3]},
                            {"name": "car", "color": [3, 2, 1]}, {"name": "void", "color": [9, 9, 9]}],
                            "ignore_classes": ["void"]}, {0: (0, 0, 0), 1: (1, 2, 3), 2: (3, 2, 1), 255: (9, 9, 9)}),
    "grey in three channels": (NAMES, {0: (0, 0, 0), 1: (1, 1, 1), 2: (2, 2, 2), 255: (255, 255, 255)}),
}  # fmt: skip


@pytest.mark.parametrize("code", CODES)
def test_values_and_colours_mean_what_the_file_says(tmp_path, code):
    classes, values = CODES[code]
    make(tmp_path, classes=classes, encode=recode(values))
    assert_read(tmp_path)
    assert load_coco(tmp_path, "train.txt").class_names == ("Background", "road", "car")


def test_a_palette_is_read_by_its_numbers(tmp_path):
    assert_read(make(tmp_path, mode="P"))


def test_a_palette_is_read_by_its_colours_where_these_are_named(tmp_path):
    classes = {
        name: colour.tolist() for name, colour in zip(["background", "car", "road"], COLOURS[[0, 2, 1]], strict=True)
    }
    folder = make(
        tmp_path, classes=classes, encode=lambda mask: np.where(mask == 255, 0, mask).astype(np.uint8), mode="P"
    )
    expected = np.array([0, 2, 1], np.uint8)[np.where(draw(97) == 255, 0, draw(97))]
    assert np.array_equal(paint(folder, "train.txt")[0], expected)


def test_without_a_background_nothing_is_uncovered(tmp_path):
    names = ["sky", "road", "car"]
    masks = {each: paint(make(tmp_path, classes=names), "train.txt", each)[0] for each in ("class", "ignore")}
    assert np.array_equal(masks["class"], masks["ignore"])
    assert np.array_equal(masks["class"], np.where(draw(97) == 255, 255, draw(97) + 1))


@pytest.mark.parametrize(
    "lines", ["a\nb", "images/a.jpg\nimages/b.jpg\n", "/x/images/a.jpg /x/masks/a.png\nb.jpg b.png", "a 1\nb -1"]
)
def test_lists_name_images_in_many_ways(tmp_path, lines):
    make(tmp_path).joinpath("train.txt").write_text(lines)
    assert_read(tmp_path)


def test_objects_are_the_connected_components(tmp_path):
    from scipy.ndimage import label

    data = load_coco(make(tmp_path), "train.txt")
    assert len(data.annotations) == sum(
        label(draw(stem) == value, np.ones((3, 3)))[1] for stem in b"ab" for value in (1, 2)
    )
    assert data.annotations["area"].sum() == sum(np.isin(draw(stem), (1, 2)).sum() for stem in b"ab")
    assert set(data.ignored["class_id"]) == {255}


def open_both(folder: Path, *names: str, background: str = "class"):
    return open_data(str(folder), *names, split="given", folds=5, fold=0, seed=1, paint_order="class_id", background=background,
                     image_size=32, cache=True)  # fmt: skip


def test_the_pairs_are_those_of_a_coco_set_of_the_same_pixels(tmp_path):
    from pycocotools import mask as mask_api

    folder = make(tmp_path, classes=["road", "car"], encode=recode({0: 0, 1: 0, 2: 1, 255: 255}))
    for split, stems in (("train", "ab"), ("val", "cd")):
        images, annotations = [], []
        for number, stem in enumerate(stems):
            images.append({"id": number, "file_name": f"images/{stem}.jpg", "width": WIDTH, "height": HEIGHT})
            for category, values in ((5, (0, 1)), (9, (2,))):
                rle = mask_api.encode(np.asfortranarray(np.isin(draw(ord(stem)), values), np.uint8))
                rle["counts"] = rle["counts"].decode()
                entry = {"id": len(annotations), "image_id": number, "category_id": category, "segmentation": rle}
                annotations.append(entry)
        content = {"images": images, "annotations": annotations}
        content["categories"] = [{"id": 5, "name": "road"}, {"id": 9, "name": "car"}]
        (folder / f"{split}.json").write_text(json.dumps(content))
    coco = open_both(folder, "train.json", "val.json", background="ignore")
    masks = open_both(folder, "train.txt", "val.txt")
    for first, second in zip(coco, masks, strict=True):
        assert first.data.class_names == second.data.class_names
        for position in range(len(first)):
            assert all(map(np.array_equal, first.read(position), second.read(position)))


def test_eda_counts_the_pixels_of_the_masks(tmp_path):
    folder, size = make(tmp_path), 32

    class P:
        data_dir, train_json, val_json, split, folds, fold, seed = str(folder), "train.txt", "val.txt", "given", 5, 0, 1
        image_size, paint_order, background, augmentation = size, "class_id", "class", "none"

    analysis = DataAnalysis(P)
    train, val = open_both(folder, "train.txt", "val.txt")
    masks = [subset.read(position)[1] for subset in (train, val) for position in range(len(subset))]
    expected = [np.bincount(mask.ravel(), minlength=256)[[0, 1, 2, 255]] for mask in masks]
    assert np.array_equal(analysis.counts.class_pixels, expected)
    assert len(analysis.tables["problems"]) == 0


def test_the_fingerprint_follows_masks_and_their_meaning(tmp_path):
    folder, seen = make(tmp_path), set()
    for change in (
        lambda: None,
        lambda: save(folder / "masks/a.png", draw(1)),
        lambda: (folder / "classes.json").write_text(json.dumps(["background", "car", "road"])),
        lambda: (folder / "train.txt").write_text("a\n"),
        lambda: (folder / "images/a.jpg").write_bytes((folder / "images/b.jpg").read_bytes()),
    ):
        change()
        seen.add(fingerprint_data(folder, ["train.txt", "val.txt"]))
    assert len(seen) == 5


def change_mask(array: np.ndarray, name: str = "a.png"):
    return lambda folder: save(folder / "masks" / name, array)


def store_jpeg(folder: Path) -> None:
    Image.fromarray(draw(97)).save(folder / "masks/a.png", format="JPEG")


def write_classes(content: object):
    return lambda folder: (folder / "classes.json").write_text(json.dumps(content))


BAD = {
    "an id outside": (change_mask(np.full((HEIGHT, WIDTH), 7, np.uint8)), r"masks/a.png: values must be .*, got 7 on 3072 px"),
    "a size": (change_mask(np.zeros((24, 32), np.uint8)), r"masks/a.png: must be 64x48 px .* as images/a.jpg, got 32x24"),
    "no mask": (lambda folder: (folder / "masks/b.png").unlink(), r"images/b.jpg: must have a mask masks/b.png, got none"),
    "another name": (lambda folder: (folder / "masks/b.png").rename(folder / "masks/b_m.png"), "but masks/b_m.png; .*mask_suffix"),
    "colours": (change_mask(np.dstack([draw(97)] * 2 + [draw(98)])), r"masks/a.png: .* one channel, got colours; write a table"),
    "JPEG": (store_jpeg, r"masks/a.png: a mask must be stored to the exact values, got JPEG"),
    "no image": (lambda folder: (folder / "masks/a.png").write_text("x"), r"masks/a.png: a mask must be an image"),
    "a list": (lambda folder: (folder / "train.txt").write_text("a\nz"), r"train.txt \[line 2\]: must name one image, got 'z'"),
    "an empty list": (lambda folder: (folder / "train.txt").write_text(""), r"images: must have images, got none"),
    "no description": (lambda folder: (folder / "classes.json").unlink(), r"classes.json: masks need a file that names"),
    "no JSON": (lambda folder: (folder / "classes.json").write_text("{"), r"classes.json: must be readable"),
    "an option": (write_classes({"classes": NAMES, "mask_folder": "m"}), r"unknown option 'mask_folder'"),
    "no classes": (write_classes([]), r"\[classes\]: must be a list of names"),
    "one value twice": (write_classes({"a": [1, 2, 3], "b": [1, 2, 3]}), r"must have a value of its own"),
    "one name twice": (write_classes(["a", "b", "a"]), r"must have a name of its own, got a twice"),
    "values and colours": (write_classes({"a": [1, 2, 3], "b": 1}), r"got both"),
    "ignored is a class": (write_classes({"classes": NAMES, "ignore_index": 1}), r"ignore_index must be no class's value, got that of road"),
    "ignored is no value": (write_classes({"classes": NAMES, "ignore_index": "x"}), r"\[ignore_index\]: must be whole numbers"),
    "an unknown class": (write_classes({"classes": NAMES, "ignore_classes": ["cra"]}), r"unknown class in ignore_classes 'cra'"),
    "too many": (write_classes([f"c{number}" for number in range(255)]), r"must be 254 at most .*, got 255"),
    "all objects at 255": (lambda folder: [save(folder / f"masks/{stem}.png", np.where(draw(97) == 1, 255, 0).astype(np.uint8))
                                           for stem in "ab"], r"must show a class, got none but 255, which is ignored; name the value"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_masks_are_refused_by_name_with_the_fix(tmp_path, case):
    change, words = BAD[case]
    folder = make(tmp_path)
    change(folder)
    with pytest.raises(InputError, match=words) as caught:
        load_coco(folder, "train.txt")
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_of_unknown_shape_is_refused_with_the_fix(tmp_path):
    folder = make(tmp_path, image="photos/{}.jpg", mask="truth/{}.png")
    with pytest.raises(
        InputError, match=r"'photos' must be a list of images .* write image_dir and mask_dir into classes.json"
    ):
        load_coco(folder, "photos")


def test_masks_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGLIB_CACHE", str(tmp_path / "cache"))
    folder = make(tmp_path / "data")
    first = load_coco(folder, "train.txt")
    with monkeypatch.context() as patch:
        patch.setattr("seglib.data.mask_folders.read_mask", None)
        assert load_coco(folder, "train.txt").annotations.equals(first.annotations)
    for kept in (tmp_path / "cache/masks").iterdir():
        kept.write_text("damaged")
    assert load_coco(folder, "train.txt").annotations.equals(first.annotations)
    shutil.copytree(folder, tmp_path / "copy")
    with monkeypatch.context() as patch:
        patch.setattr("seglib.data.mask_folders.read_mask", None)
        assert load_coco(tmp_path / "copy", "train.txt").annotations.equals(first.annotations)


def test_one_mask_alone_can_be_read(tmp_path):
    folder = make(tmp_path)
    assert np.array_equal(read_mask(read_description(folder), folder / "masks/a.png"), draw(97))


def test_the_labelmap_of_cvat_names_the_classes_by_colour(tmp_path):
    make(tmp_path, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", encode=lambda mask: COLOURS[mask % 255])
    (tmp_path / "classes.json").unlink()
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", "road:128,64,128::", "car:0,0,142::"]
    (tmp_path / "labelmap.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "train.txt").rename(tmp_path / "ImageSets/Segmentation/default.txt")
    masks = paint(tmp_path, "ImageSets/Segmentation/default.txt")
    assert all(np.array_equal(mask, draw(ord(stem)) % 255) for mask, stem in zip(masks, "ab", strict=True))
    source = str(tmp_path / "ImageSets/Segmentation/default.txt")
    assert main(["convert", source, str(tmp_path / "train.json"), "--to", "coco"]) == 0
    assert all(map(np.array_equal, paint(tmp_path, "train.json"), masks))
    (tmp_path / "labelmap.txt").write_text("road:1,x,2::")
    with pytest.raises(InputError, match=r"labelmap\.txt: must be readable"):
        load_coco(tmp_path, "ImageSets/Segmentation/default.txt")

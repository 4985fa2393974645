"""Other formats than COCO's are recognised by their content: read to the same masks, or refused by their names."""

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.mask import decode

from seglib.__main__ import main
from seglib.data.coco import load_coco
from seglib.data.dataset import mark_ignored, open_data
from seglib.data.layouts import fingerprint_data
from seglib.data.mask_folders import find_objects
from seglib.data.masks import paint_mask, segmentation_to_rle
from seglib.data.sources import decode_brush, hash_annotations
from seglib.data.verify import load_verified, refuse_unpainted, tabulate_painted, verify_coco
from seglib.errors import InputError

HEIGHT, WIDTH = 48, 64
NAMES = ["road", "car"]  # not sorted: the order is the file's or the list's
SHAPES = {  # image -> (class, corners x, y in whole px)
    "a": [("road", [(0, 30), (63, 30), (63, 47), (0, 47)]), ("car", [(10, 20), (30, 20), (30, 40), (10, 40)])],
    "b": [("car", [(5, 5), (20, 5), (12, 25)])],
}
IDS = {name: number for number, name in enumerate(NAMES, 1)}


def draw(name: str) -> np.ndarray:
    """(48, 64) uint8 class ids, as polygons are painted, the later over the earlier."""
    import pandas as pd

    rows = [
        (n, IDS[label], [[float(c) for point in points for c in point]])
        for n, (label, points) in enumerate(SHAPES[name])
    ]
    table = pd.DataFrame(rows, columns=["annotation_id", "class_id", "segmentation"])
    return paint_mask(table, HEIGHT, WIDTH, "class_id", "class")


def save_images(folder: Path, place: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHAPES:
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{place.format(ord(name)) or name}.png")


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def coco(
    place: str = "images/{}.png", segment: Callable = lambda points: [[c for point in points for c in point]]
) -> dict:
    """COCO content of the shapes."""
    images, annotations = [], []
    for number, (name, shapes) in enumerate(SHAPES.items(), 1):
        images.append({"id": number, "file_name": place.format(name), "width": WIDTH, "height": HEIGHT})
        for label, points in shapes:
            own = {"id": len(annotations) + 1, "image_id": number, "category_id": IDS[label], "iscrowd": 0}
            annotations.append({**own, "segmentation": segment(points), "bbox": [0, 0, 1, 1], "area": 1.0})
    categories = [{"id": number, "name": name, "supercategory": ""} for name, number in IDS.items()]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def make_roboflow(folder: Path) -> str:
    """Images beside the file, a super-category as category 0 that nothing uses, areas of the boxes."""
    save_images(folder / "train")
    content = coco("{}.png") | {"info": {"year": "2024", "version": "1", "contributor": ""}}
    parent = {"id": 0, "name": "litter", "supercategory": "none"}
    content["categories"] = [parent, *({**each, "supercategory": "litter"} for each in content["categories"])]
    for number, image in enumerate(content["images"]):
        image |= {"license": 1, "date_captured": "2024-05-02T11:17:35+00:00", "extra": {"name": f"{number}.jpg"}}
    write(folder / "train/_annotations.coco.json", content)
    return "train/_annotations.coco.json"


def make_cvat(folder: Path) -> str:
    """Polygons, and masks as uncompressed RLE that are marked as crowds."""
    save_images(folder / "images/default")

    def segment(points: list) -> dict:
        polygon = [[float(c) for point in points for c in point]]
        runs = np.flatnonzero(np.diff(decode(segmentation_to_rle(polygon, HEIGHT, WIDTH)).T.ravel(), prepend=0))
        counts = np.diff(runs, prepend=0, append=HEIGHT * WIDTH)
        return {"size": [HEIGHT, WIDTH], "counts": counts.tolist()}

    content, masks = coco("{}.png"), coco("{}.png", segment)["annotations"]
    for number, (entry, other) in enumerate(zip(content["annotations"], masks, strict=True)):
        entry |= {"attributes": {"occluded": False}} | (
            {"segmentation": other["segmentation"], "iscrowd": 1} if number else {}
        )
    for image in content["images"]:
        image |= {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0}
    write(folder / "annotations/instances_default.json", content)
    return "annotations/instances_default.json"


def make_ms_coco(folder: Path) -> str:
    """Ids with gaps, twelve digits, addresses, a crowd."""
    save_images(folder / "train2017", "{:012d}")
    content = coco("{}.png")
    for image in content["images"]:
        name = f"{ord(image['file_name'][0]):012d}.png"
        image |= {"file_name": name, "coco_url": f"http://images.cocodataset.org/train2017/{name}", "license": 3}
    ids = {1: 3, 2: 90}
    for entry in [*content["annotations"], *content["categories"]]:
        key = "category_id" if "category_id" in entry else "id"
        entry[key] = ids[entry[key]]
    write(folder / "annotations/instances_train2017.json", content)
    return "annotations/instances_train2017.json"


def make_voc(folder: Path) -> str:
    """Palette PNGs with a void of 255, a list without endings."""
    save_images(folder / "JPEGImages")
    for name in SHAPES:
        image = Image.fromarray(draw(name))
        image.putpalette(bytes(range(256)) * 3)
        (folder / "SegmentationClass").mkdir(exist_ok=True)
        image.save(folder / f"SegmentationClass/{name}.png")
    write(folder / "ImageSets/Segmentation/train.txt", "a\nb\n")
    write(folder / "classes.json", ["background", *NAMES])
    return "ImageSets/Segmentation/train.txt"


def make_lvis(folder: Path) -> str:
    save_images(folder / "train2017")
    content = coco("http://images.cocodataset.org/train2017/{}.png")
    content["images"] = [{"coco_url": image.pop("file_name"), **image} for image in content["images"]]
    write(folder / "lvis_v1_train.json", content)
    return "lvis_v1_train.json"


def make_panoptic(folder: Path) -> str:
    save_images(folder / "train2017")
    content, annotations = coco("{}.png"), []
    for number, name in enumerate(SHAPES, 1):
        mask, segments = draw(name), []
        colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        for class_id in np.unique(mask[mask > 0]).tolist():
            code = 70_000 * class_id + number
            colours[mask == class_id] = [code % 256, code // 256 % 256, code // 65536]
            segments.append({"id": code, "category_id": class_id, "iscrowd": 0, "area": 1, "bbox": []})
        (folder / "annotations/panoptic_train2017").mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours).save(folder / f"annotations/panoptic_train2017/{name}.png")
        annotations.append({"image_id": number, "file_name": f"{name}.png", "segments_info": segments})
    write(folder / "annotations/panoptic_train2017.json", content | {"annotations": annotations})
    return "annotations/panoptic_train2017.json"


def compose_task(name: str, results: list, url: str = "/data/upload/1/0a1b2c3d-{}.png") -> dict:
    answers = [{"id": 1, "was_cancelled": True, "result": []}, {"id": 2, "created_at": "2024-01-01", "result": results}]
    return {"id": ord(name), "annotations": answers, "predictions": [], "data": {"image": url.format(name), "by": "me"}}


def make_label_studio(folder: Path, brush: bool = False) -> str:
    save_images(folder / "images")
    write(folder / "labels.txt", "\n".join(NAMES))
    tasks = []
    for name, shapes in SHAPES.items():
        results = []
        for label, points in shapes:
            value = {"points": [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in points], "closed": True}
            if brush:
                value = {"format": "rle", "rle": encode_brush(draw(name) == IDS[label])}
            kind = "brushlabels" if brush else "polygonlabels"
            own = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0, "type": kind, "id": "x"}
            results.append({**own, "value": value | {kind: [label]}})
        results.append({"type": "choices", "value": {"choices": ["sunny"]}, "id": "y"})
        tasks.append(compose_task(name, results))
    tasks.append({"id": 9, "annotations": [], "data": {"image": "/data/upload/1/0a1b2c3d-not_yet.png"}})
    write(folder / "project-1.json", tasks)
    return "project-1.json"


@pytest.mark.parametrize("number, refused", [("x", False), ("z", True)])
def test_a_region_of_label_studio_that_nobody_labelled_is_refused(tmp_path, number, refused):
    path = tmp_path / make_label_studio(tmp_path)
    tasks = json.loads(path.read_text())
    results = max((answer["result"] for answer in tasks[0]["annotations"]), key=len)
    bare = {"points": results[0]["value"]["points"]}  # of "x" there is a label in another result
    results.append(results[0] | {"id": number, "type": "polygon", "value": bare})
    write(path, tasks)
    if refused:
        with pytest.raises(InputError, match="regions must have a label, got 1 without; label or delete them"):
            load_coco(tmp_path, path.name)
    else:
        assert len(load_coco(tmp_path, path.name).annotations) == len(SHAPES["a"]) + len(SHAPES["b"])


def encode_brush(mask: np.ndarray) -> list[int]:
    """As the encoder of Label Studio's canvas does, with runs and with single values."""
    values = np.repeat((mask * 255).ravel(), 4).tolist()
    bits, at = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16)), 0
    while at < len(values):
        own = next((n for n in range(1, len(values) - at) if values[at + n] != values[at]), len(values) - at)
        length = min(own, 2**16)
        place = next(i for i, size in enumerate((3, 4, 8, 16)) if length - 1 < 2**size)
        single = length == 4
        values_bits = f"{values[at]:08b}" * (length if single else 1)
        bits += f"{not single:b}{place:02b}{length - 1:0{(3, 4, 8, 16)[place]}b}{values_bits}"
        at += length
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def make_label_studio_coco(folder: Path) -> str:
    save_images(folder / "images")
    content = coco("../../label-studio/data/media/upload/1/0a1b2c3d-{}.png")
    content["images"][0]["file_name"] = "images\\0a1b2c3d-a.png"
    write(folder / "result.json", content)
    return "result.json"


def make_labelme(folder: Path) -> str:
    save_images(folder / "photos")
    write(folder / "labels.txt", "__ignore__\n_background_\nroad\ncar\n")
    for name, shapes in SHAPES.items():
        entries = [
            {"label": label, "points": points, "group_id": None, "shape_type": "polygon", "flags": {}}
            for label, points in shapes
        ]
        content = {"version": "5.4.1", "flags": {}, "shapes": entries, "imagePath": f"..\\photos\\{name}.png"}
        write(folder / f"train/{name}.json", content | {"imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH})
    return "train"


def make_yolo(folder: Path) -> str:
    save_images(folder / "images/train")
    save_images(folder / "images/val")
    write(folder / "data.yaml", "train: images/train\nval: images/val\nnames:\n  0: road\n  1: car\n")
    for name, shapes in SHAPES.items():
        lines = [
            " ".join(
                [
                    str(IDS[label] - 1),
                    *(str(c / side) for point in points for c, side in zip(point, (WIDTH, HEIGHT), strict=True)),
                ]
            )
            for label, points in shapes
        ]
        write(folder / f"labels/train/{name}.txt", "\n".join(lines) + "\n")
    return "labels/train"


FORMATS = {
    "Roboflow": make_roboflow,
    "CVAT": make_cvat,
    "MS-COCO": make_ms_coco,
    "VOC": make_voc,
    "LVIS": make_lvis,
    "panoptic": make_panoptic,
    "Label Studio's polygons": make_label_studio,
    "Label Studio's brush": lambda folder: make_label_studio(folder, brush=True),
    "Label Studio's COCO": make_label_studio_coco,
    "labelme": make_labelme,
    "YOLO": make_yolo,
}


def paint(folder: Path, name: str) -> tuple[tuple[str, ...], list[np.ndarray]]:
    data = mark_ignored(load_verified(folder, name), ["litter"])  # Roboflow's super-category
    rows = data.painted.groupby("image_id").indices
    return data.class_names, [
        paint_mask(data.painted.iloc[rows.get(row.image_id, [])], row.height, row.width, "class_id", "class")
        for row in data.images.itertuples()
    ]


@pytest.mark.parametrize("case", FORMATS)
def test_a_format_is_read_to_the_masks_that_it_holds(tmp_path, case):
    name = FORMATS[case](tmp_path)
    class_names, masks = paint(tmp_path, name)
    assert class_names == ("Background", *NAMES)
    assert len(masks) == 2
    assert all(map(np.array_equal, masks, map(draw, SHAPES)))
    assert {*verify_coco(load_coco(tmp_path, name), read_pixels=True)["problem"]} <= {"unused-category"}


@pytest.mark.parametrize("case", FORMATS)
def test_its_hash_sees_annotations_and_images_and_not_where_it_lies(tmp_path, case):
    name = FORMATS[case](tmp_path / "first")
    hashes = [fingerprint_data(tmp_path / "first", [name])]
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    assert fingerprint_data(tmp_path / "second", [name]) == hashes[0]
    for path in sorted((tmp_path / "second").rglob("*.*")):
        if "val" not in path.parts and path.name not in (
            "train.txt",
            "classes.json",
        ):  # whose names count, not the bytes
            path.write_bytes(path.read_bytes() + b"\n")
            hashes.append(fingerprint_data(tmp_path / "second", [name]))
    assert len(hashes) == len({*hashes}) > 2


@pytest.mark.parametrize("case", FORMATS)
def test_it_trains_as_a_coco_set_does(tmp_path, case):
    name = FORMATS[case](tmp_path)
    save_images(tmp_path / "images")
    write(tmp_path / "coco/train.json", coco())
    options = {"split": "holdout", "folds": 2, "fold": 0, "seed": 1, "paint_order": "class_id", "background": "class"}
    options |= {"image_size": 32, "cache": True}
    pairs = []
    for json_name in (name, "coco/train.json"):
        ignored = ["litter"] if "_annotations" in json_name else []
        subsets = open_data(str(tmp_path), json_name, "", **options, ignore_classes=ignored)
        pairs.append([subset.read(0) for subset in subsets])
    for pair in zip(*pairs, strict=True):
        assert all(map(np.array_equal, *pair))


@pytest.mark.parametrize("case", FORMATS)
def test_it_becomes_a_coco_file_and_masks(tmp_path, case, capsys):
    folder = tmp_path / "set"
    source, target = str(folder / FORMATS[case](folder)), str(folder / "new.json")
    assert main(["convert", source, target, "--to", "coco"]) == 0
    assert "2 images, 3 annotations" in capsys.readouterr().out
    assert main(["convert", target, str(tmp_path / "masks"), "--to", "masks"]) == 0
    for place, name in ((folder, "new.json"), (tmp_path / "masks", "new.txt")):
        class_names, masks = paint(place, name)
        assert class_names == ("Background", *NAMES)
        assert all(map(np.array_equal, masks, map(draw, SHAPES)))


def test_labelme_draws_rectangles_circles_and_masks(tmp_path):
    make_labelme(tmp_path)
    write(tmp_path / "labels.txt", "__ignore__\n_background_\nroad\ncar\n")
    path = tmp_path / "train/b.json"
    part = np.zeros((6, 9), bool)
    part[1:5, 2:7] = True
    buffer = io.BytesIO()
    Image.fromarray(part).save(buffer, "PNG")
    shapes = [
        {"label": "road", "points": [[40, 4], [20, 14]], "shape_type": "rectangle"},
        {"label": "car", "points": [[30, 30], [30, 36]], "shape_type": "circle"},
        {
            "label": "road",
            "points": [[50, 40], [58, 45]],
            "shape_type": "mask",
            "mask": base64.b64encode(buffer.getvalue()).decode(),
        },
        {"label": "__ignore__", "points": [[0, 0], [4, 0], [4, 4], [0, 4]], "shape_type": "polygon"},
        {"label": "_background_", "points": [[8, 8], [10, 8], [10, 10]], "shape_type": "polygon"},
        {"label": "car", "points": [[1, 40], [9, 40]], "shape_type": "line"},
    ]
    write(path, json.loads(path.read_text()) | {"shapes": shapes})
    class_names, (_, mask) = paint(tmp_path, "train")
    assert class_names == ("Background", *NAMES)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[4:14, 20:40] = 1
    expected[41:45, 52:57] = 1
    expected[0:4, 0:4] = 255
    circle = cv2.circle(np.zeros((HEIGHT, WIDTH), np.uint8), (30, 30), 6, 2, -1)
    assert np.array_equal(mask * (mask != 2), expected)
    assert abs(int((mask == 2).sum()) - np.pi * 36) < 6 and (circle[mask == 2] == 2).mean() > 0.9
    table = tabulate_painted(load_coco(tmp_path, "train"))
    assert table.loc["car", ["annotations", "objects"]].tolist() == [3, 2]  # the line paints nothing, and is counted


def test_labels_that_no_list_orders_are_sorted_and_those_that_a_list_lacks_refused(tmp_path):
    make_labelme(tmp_path)
    (tmp_path / "labels.txt").unlink()
    assert load_coco(tmp_path, "train").class_names == ("Background", "car", "road")
    write(tmp_path / "labels.txt", "road\ncars\n")
    with pytest.raises(InputError, match=r"train: unknown label, by labels.txt, 'car'; did you mean 'cars'"):
        load_coco(tmp_path, "train")


def test_labelme_images_that_were_moved_are_found_by_name(tmp_path):
    make_labelme(tmp_path)
    for number, path in enumerate(sorted((tmp_path / "train").iterdir())):
        place = ("{}.png", "C:\\Users\\me\\{}.png")[number].format(path.stem)
        write(path, json.loads(path.read_text()) | {"imagePath": place})
    assert all(map(np.array_equal, paint(tmp_path, "train")[1], map(draw, SHAPES)))


def test_label_studio_takes_the_ground_truth_else_the_last_answer_and_its_labels_may_stand_apart(tmp_path):
    make_label_studio(tmp_path)
    shape = {"points": [[0, 0], [50, 0], [50, 50]]}
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    answers = [
        {"created_at": "2024-01-03", "result": []},
        {"created_at": "2024-01-01", "ground_truth": True, "result": [
            {"id": "r", "type": "polygon", "value": shape, **size},
            {"id": "r", "type": "labels", "value": shape | {"labels": ["car"]}, **size},
        ]},
    ]  # fmt: skip
    task = {"id": 1, "annotations": answers, "data": {"image": "/data/local-files/?d=photos%20of/images/a.png"}}
    write(tmp_path / "one.json", [task])
    data = load_verified(tmp_path, "one.json")
    assert data.images["file_name"].tolist() == ["a.png"]
    assert data.annotations["segmentation"].tolist() == [[[0, 0, 32, 0, 32, 24]]]


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (40, 17)])
def test_a_brush_stroke_is_decoded_to_the_pixel(shape):
    mask = np.random.default_rng(0).random(shape) < 0.4
    assert np.array_equal(decode_brush(encode_brush(mask), *shape), mask)


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/passwd"])
def test_panoptic_reads_no_file_outside_of_its_folder(tmp_path, name):
    path = tmp_path / make_panoptic(tmp_path)
    content = json.loads(path.read_text())
    content["annotations"][0]["file_name"] = name
    write(path, content)
    with pytest.raises(InputError, match="must stay inside the data folder"):
        load_coco(tmp_path, "annotations/panoptic_train2017.json")


def test_panoptic_segments_are_those_of_the_file(tmp_path):
    name = make_panoptic(tmp_path)
    png = tmp_path / "annotations/panoptic_train2017/b.png"
    before = hash_annotations(tmp_path, name)
    pixels = np.asarray(Image.open(png)).copy()
    pixels[0, 0] = 9
    Image.fromarray(pixels).save(png)
    assert hash_annotations(tmp_path, name) != before
    with pytest.raises(InputError, match=r"b.png: ids must be those of segments_info, got 592137"):
        load_coco(tmp_path, name)
    png.unlink()
    with pytest.raises(InputError, match=r"b.png: the segments of an image must be a PNG that can be read"):
        load_coco(tmp_path, name)


def test_yolo_labels_without_images_boxes_and_lines_that_are_none_are_refused(tmp_path):
    make_yolo(tmp_path)
    for name in ("labels/train", "images/train", "train"):
        assert len(load_coco(tmp_path, name).images) == 2
    write(tmp_path / "labels/train/c.txt", "0 0.5 0.5 0.2 0.2\n")
    problems = verify_coco(load_coco(tmp_path, "labels/train"))
    assert "images/train/c.jpg" in problems.loc[problems["problem"] == "missing-image", "where"].item()
    (tmp_path / "images/train/a.png").rename(tmp_path / "images/train/c.png")
    (tmp_path / "labels/train/a.txt").unlink()
    data = load_coco(tmp_path, "labels/train")
    assert data.annotations["segmentation"].tolist()[-1] == []
    with pytest.raises(InputError, match=r"\[road\]: .* got 1 that paint none; were only boxes exported\?"):
        refuse_unpainted(tabulate_painted(data), "labels/train")
    for line, words in (
        ("2 0 0 1 1 1 0", "class must be 0 to 1 as in data.yaml, got 2"),
        ("0 a b", "must be a class and"),
    ):
        write(tmp_path / "labels/train/c.txt", line)
        with pytest.raises(InputError, match=rf"c.txt \[line 1\]: {words}"):
            load_coco(tmp_path, "labels/train")
    write(tmp_path / "data.yaml", "names: {1: car, 0: road}")
    (tmp_path / "labels/train/c.txt").unlink()
    assert load_coco(tmp_path, "labels/train").class_names == ("Background", *NAMES)
    for text, words in (("names: {1: car}", "must be numbered from 0 on"), ("names: [", "must be as YOLO writes it"),
                        ("kpt_shape: [17, 3]\nnames: [a]", "got its keypoints")):  # fmt: skip
        write(tmp_path / "data.yaml", text)
        with pytest.raises(InputError, match=words):
            load_coco(tmp_path, "labels/train")
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(InputError, match="need a file that names the classes"):
        load_coco(tmp_path, "labels/train")


BOX = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}
REFUSED = {
    "captions": (coco() | {"annotations": [{"id": 1, "image_id": 1, "caption": "A road."}]}, "got captions; name the file"),
    "keypoints": (coco() | {"annotations": [BOX | {"keypoints": [1, 1, 2]}]}, "got keypoints without outlines; export"),
    "detections": ([BOX | {"score": 0.5}], "got detections without images and categories; put them as `annotations`"),
    "JSON-MIN": ([{"image": "a.png", "id": 1, "annotator": 1, "label": []}], "got Label Studio's JSON-MIN; export it as"),
    "CreateML": ([{"image": "a.png", "annotations": [{"label": "car"}]}], "got CreateML's boxes; export polygons"),
    "labelme's file": ({"shapes": [], "imagePath": "a.png"}, "got one image of labelme; name the folder"),
    "Cityscapes": ({"imgHeight": 1, "imgWidth": 1, "objects": []}, "got one image of Cityscapes; use the masks"),
    "VIA": ({"a.png12": {"filename": "a.png", "regions": []}}, "got VGG Image Annotator; export it there as COCO"),
    "a broken task": ([{"data": {"image": "a.png"}, "annotations": [{"result": 3}]}], "must be as Label Studio writes it"),
    "a list": ([3], "must hold a JSON object with `images` and `categories`, got"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_formats_without_outlines_are_refused_by_name_in_one_line(tmp_path, case):
    content, words = REFUSED[case]
    write(tmp_path / "train.json", content)
    for read in (load_coco, lambda folder, name: fingerprint_data(folder, [name])):
        with pytest.raises(InputError) as caught:
            read(tmp_path, "train.json")
        assert str(caught.value).startswith(f"{tmp_path / 'train.json'}: ") and words in str(caught.value)
        assert "\n" not in str(caught.value)


def list_places(node, place=()):
    """The way to each entry of a JSON value."""
    yield from [place] if place else []
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from list_places(value, (*place, key))


@pytest.mark.parametrize("case", ["LVIS", "panoptic", "Label Studio's polygons", "Label Studio's brush", "labelme"])
def test_what_is_broken_in_a_file_is_refused_in_lines_or_read(tmp_path, case):
    name, rng = FORMATS[case](tmp_path), np.random.default_rng(0)
    path = tmp_path / name if name.endswith(".json") else tmp_path / "train/a.json"
    content = json.loads(path.read_text())
    places = [place for place in list_places(content) if len(place) < 9]
    for number in rng.choice(len(places), 12):
        for value in (None, {}, [3], "x", -1.5, "gone"):
            *way, last = places[number]
            broken = parent = json.loads(json.dumps(content))
            for key in way:
                parent = parent[key]
            parent[last] = value
            if value == "gone":
                del parent[last]
            write(path, broken)
            for read in (load_verified, lambda folder, name: fingerprint_data(folder, [name])):
                try:
                    read(tmp_path, name)
                except InputError as error:
                    assert str(tmp_path) in str(error)


def test_files_that_are_no_json_name_what_they_are(tmp_path):
    write(tmp_path / "annotations.xml", "<annotations/>")
    write(tmp_path / "data.yaml", "names: [a]")
    for name, words in (
        ("annotations.xml", "got XML, as CVAT and Pascal VOC write; export"),
        ("data.yaml", "name the folder"),
    ):
        with pytest.raises(InputError, match=words):
            load_coco(tmp_path, name)


@pytest.mark.parametrize(
    ("name", "words"), [("a.xml", "got XML, as Pascal VOC"), ("a.json", "JSON files that are not")]
)
def test_a_folder_of_other_files_names_what_they_are(tmp_path, name, words):
    write(tmp_path / "Annotations" / name, "{}")
    with pytest.raises(InputError, match=words):
        load_coco(tmp_path, "Annotations")


def test_local_files_of_label_studio_are_found(tmp_path):
    save_images(tmp_path / "images")
    write(tmp_path / "result.json", coco("/data/local-files/?d=images/{}.png"))
    assert all(map(np.array_equal, paint(tmp_path, "result.json")[1], map(draw, SHAPES)))


def test_keypoints_with_outlines_are_read_as_instances(tmp_path):
    save_images(tmp_path / "images")
    content = coco()
    for entry in content["annotations"]:
        entry |= {"keypoints": [1, 1, 2], "num_keypoints": 1}
    write(tmp_path / "person_keypoints.json", content)
    assert all(map(np.array_equal, paint(tmp_path, "person_keypoints.json")[1], map(draw, SHAPES)))


def test_objects_of_a_mask_are_found_as_ever():
    mask = np.zeros((4, 5), np.uint8)
    mask[0, :2], mask[3, 4], mask[2, 0] = 1, 1, 255
    assert [(class_id, area) for class_id, _, area in find_objects(mask, 7)] == [(1, 2), (1, 1), (7, 1)]

"""Reading a COCO folder: any ids, any pixel format, and one line for a file that no table can be made of."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from seglib.data.coco import load_coco
from seglib.data.images import choose_turn, read_header, read_image
from seglib.errors import InputError

CONTENT = {
    "images": [
        {"id": 70, "file_name": "images/b.jpg", "width": 64, "height": 48, "group": 5},
        {"id": -3, "file_name": "images/a.jpg", "width": 64, "height": 48},
    ],
    "categories": [{"id": 9, "name": "Glass"}, {"id": 0, "name": "종이"}, {"id": 4, "name": "Metal"}],
    "annotations": [
        {"id": 1, "image_id": 70, "category_id": 9, "area": 12, "iscrowd": 1, "segmentation": [[1, 1, 5, 1, 5, 5]]},
        {"id": 2, "image_id": -3, "category_id": 0, "segmentation": {"size": [48, 64], "counts": [3072]}},
        {"id": 3, "image_id": -3, "category_id": 8, "segmentation": [[1, 1, 5, 1, 5, 5]]},
    ],
}
CAMVID = Path(__file__).parents[2].parent / "shared/data/camvid"


def write(folder: Path, content: object, name: str = "train.json") -> Path:
    folder.joinpath(name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def photograph(height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth (height, width, 3) uint8 picture, which JPEG keeps nearly as it is."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def save(path: Path, image: np.ndarray, **options) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def test_classes_follow_the_category_ids_wherever_these_start_and_with_gaps(tmp_path):
    data = load_coco(write(tmp_path, CONTENT), "train.json")
    assert data.category_ids == (0, 4, 9)
    assert data.class_names == ("Background", "종이", "Metal", "Glass")
    assert data.num_classes == 4
    assert data.annotations["class_id"].tolist() == [3, 1, -1]  # the last one's category is unknown


def test_rows_keep_the_order_and_the_content_of_the_file(tmp_path):
    data = load_coco(write(tmp_path, CONTENT), "train.json")
    assert data.images["image_id"].tolist() == [70, -3]
    assert data.images["file_name"].tolist() == ["images/b.jpg", "images/a.jpg"]
    assert data.images["group"].tolist() == [5, None]
    assert data.annotations["area"].tolist()[0] == 12
    assert data.annotations["area"].isna().tolist() == [False, True, True]
    assert data.annotations["iscrowd"].tolist() == [1, 0, 0]
    assert [row["segmentation"] for row in CONTENT["annotations"]] == data.annotations["segmentation"].tolist()
    assert data.json_path == tmp_path / "train.json"


def test_a_test_set_without_annotations_has_an_empty_table_of_the_same_columns(tmp_path):
    test_set = {name: CONTENT[name] for name in ("images", "categories")}
    with_rows = load_coco(write(tmp_path, CONTENT), "train.json").annotations
    without = load_coco(write(tmp_path, test_set, "test.json"), "test.json").annotations
    assert len(without) == 0
    assert without.dtypes.to_dict() == with_rows.dtypes.to_dict()


@pytest.mark.parametrize("rest", [{}, {"categories": []}, {"annotations": []}])
def test_a_list_of_images_alone_needs_no_categories(tmp_path, rest):
    data = load_coco(write(tmp_path, {"images": CONTENT["images"], **rest}, "test.json"), "test.json")
    assert (data.class_names, data.category_ids) == (("Background",), ())
    assert data.images["file_name"].tolist() == ["images/b.jpg", "images/a.jpg"]


def test_a_size_that_the_file_leaves_out_is_read_from_the_image(tmp_path):
    content = copy.deepcopy(CONTENT)
    for image in content["images"]:
        del image["width"]
        image["height"] = None
    save(tmp_path / "images/b.jpg", photograph(30, 40))
    images = load_coco(write(tmp_path, content), "train.json").images
    assert images[["width", "height"]].to_numpy().tolist() == [[40, 30], [0, 0]]  # the second image is missing


PAIRS = [[1, 2], [9, 2], [9, 8]]


@pytest.mark.parametrize(
    ("segmentation", "polygons"),
    [
        (PAIRS, [[1, 2, 9, 2, 9, 8]]),
        ([PAIRS, PAIRS[::-1]], [[1, 2, 9, 2, 9, 8], [9, 8, 9, 2, 1, 2]]),
        ([PAIRS, [0, 0, 4, 0, 4, 4]], [[1, 2, 9, 2, 9, 8], [0, 0, 4, 0, 4, 4]]),
        (PAIRS[:2], PAIRS[:2]),  # two points are no polygon, in either way to write them
        ([[1, 2, 3, 4]], [[1, 2, 3, 4]]),
        ([["1", "2"]] * 3, [["1", "2"]] * 3),
    ],
)
def test_points_as_pairs_are_the_polygon_that_they_are(tmp_path, segmentation, polygons):
    content = copy.deepcopy(CONTENT)
    content["annotations"][0]["segmentation"] = segmentation
    assert load_coco(write(tmp_path, content), "train.json").annotations["segmentation"][0] == polygons


@pytest.mark.parametrize("name", ["background", "_background_", "__Background__", " BACKGROUND "])
def test_a_category_that_is_background_by_its_name_is_class_0(tmp_path, name):
    content = copy.deepcopy(CONTENT)
    content["categories"].append({"id": -1, "name": name})
    content["annotations"][0]["category_id"] = -1
    data, plain = (load_coco(write(tmp_path, each), "train.json") for each in (content, CONTENT))
    assert (data.class_names, data.category_ids) == (plain.class_names, plain.category_ids)
    assert data.annotations["class_id"].tolist() == [0, *plain.annotations["class_id"].tolist()[1:]]
    assert data.background_names == (name,)


def test_254_categories_and_a_background_fit(tmp_path):
    content = copy.deepcopy(CONTENT)
    content["categories"] = [{"id": i, "name": f"c{i}"} for i in range(254)] + [{"id": 254, "name": "background"}]
    assert load_coco(write(tmp_path, content), "train.json").num_classes == 255


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    tmp_path.joinpath("train.json").write_text(json.dumps(CONTENT), encoding="utf-8-sig")
    assert load_coco(tmp_path, "train.json").num_classes == 4


def spell(ids):
    """CONTENT with its ids as `ids(kind, number)` spells them."""
    content = copy.deepcopy(CONTENT)
    for kind in ("images", "categories", "annotations"):
        for entry in content[kind]:
            entry["id"] = ids(kind, entry["id"])
    for entry in content["annotations"]:
        entry["image_id"] = ids("images", entry["image_id"])
        entry["category_id"] = ids("categories", entry["category_id"])
    return content


@pytest.mark.parametrize("ids", [lambda kind, number: str(number), lambda kind, number: float(number)])
def test_texts_that_spell_numbers_are_these_numbers(tmp_path, ids):
    plain, data = (load_coco(write(tmp_path, content), "train.json") for content in (CONTENT, spell(ids)))
    assert data.images.equals(plain.images)
    assert data.annotations.equals(plain.annotations)
    assert (data.category_ids, data.class_names) == (plain.category_ids, plain.class_names)
    mixed = copy.deepcopy(CONTENT)
    mixed["annotations"][0]["image_id"] = "70"
    assert load_coco(write(tmp_path, mixed), "train.json").annotations.equals(plain.annotations)


@pytest.mark.parametrize("ids", [lambda kind, number: f"{kind}-{number:03}", lambda kind, number: 10**40 + number])
def test_other_texts_and_numbers_beyond_64_bits_are_numbered_by_their_places(tmp_path, ids):
    content = spell(ids)
    content["annotations"].pop()  # its category is none of the file's
    data = load_coco(write(tmp_path, content), "train.json")
    assert data.images["image_id"].tolist() == [1, 2]
    assert data.annotations["annotation_id"].tolist() == [1, 2]
    assert data.annotations["image_id"].tolist() == [1, 2]
    assert (data.category_ids, data.class_names) == ((1, 2, 3), ("Background", "종이", "Metal", "Glass"))
    assert data.annotations["class_id"].tolist() == [3, 1]


def test_annotations_without_ids_are_numbered(tmp_path):
    content = copy.deepcopy(CONTENT)
    for entry in content["annotations"]:
        del entry["id"]
    assert load_coco(write(tmp_path, content), "train.json").annotations["annotation_id"].tolist() == [1, 2, 3]


def broken(change) -> dict:
    content = copy.deepcopy(CONTENT)
    change(content)
    return content


BROKEN = [
    ([1, 2], r"must hold a JSON object with `images` and `categories`, got \[1, 2\]"),
    (broken(lambda c: c.pop("images")), r"\[images\]: must be a list of objects, got nothing; is this a COCO file\?"),
    (broken(lambda c: c.update(images={})), r"\[images\]: must be a list of objects, got \{\}"),
    (broken(lambda c: c.pop("categories")), r"\[categories\]: must be a list of objects, got nothing"),
    (broken(lambda c: c.update(categories=[])), r"\[categories\]: must list 1 to 254 categories .*, got 0"),
    (broken(lambda c: c.update(categories=[{"id": i, "name": f"c{i}"} for i in range(255)])), "got 255; merge some"),
    (broken(lambda c: c.update(annotations=None)), r"\[annotations\]: must be a list of objects, got None"),
    (broken(lambda c: c["images"].append("a.jpg")), r"\[images\[2\]\]: must be an object, got 'a.jpg'"),
    (broken(lambda c: c["annotations"].insert(1, [])), r"\[annotations\[1\]\]: must be an object, got \[\]"),
    (
        broken(lambda c: c["images"][1].pop("id")),
        r"\[images\[1\]\]: `id` must be a whole number or a text, got nothing",
    ),
    (
        broken(lambda c: c["images"][1].update(id=" ")),
        r"\[images\[1\]\]: `id` must be a whole number or a text, got ' '",
    ),
    (broken(lambda c: c["images"][1].update(id=float("nan"))), r"`id` must be a whole number or a text, got nan"),
    (broken(lambda c: c["images"][1].update(id=True)), r"`id` must be a whole number or a text, got True"),
    (broken(lambda c: c["images"][1].update(id=1e999)), r"`id` must be a whole number or a text, got inf"),
    (broken(lambda c: c["images"][0].pop("file_name")), r"\[images\[0\]\]: `file_name` must be a text, got nothing"),
    (broken(lambda c: c["images"][0].update(file_name=3)), r"`file_name` must be a text, got 3"),
    (broken(lambda c: c["images"][0].update(file_name="\ud800")), r"`file_name` must be a text, got '\\ud800'"),
    (broken(lambda c: c["images"][0].update(width="512")), r"images\[0\]\]: `width` must be a whole number, got '512'"),
    (broken(lambda c: c["images"][0].update(height=-5)), r"`height` must be 1 to 65535 px, got -5"),
    (broken(lambda c: c["images"][0].update(group=[1])), r"`group` must be a whole number, got \[1\]"),
    (
        broken(lambda c: c["categories"][2].update(id=1.5)),
        r"\[categories\[2\]\]: `id` must be a whole number or a text, got 1.5",
    ),
    (broken(lambda c: c["categories"][2].update(name="")), r"\[categories\[2\]\]: `name` must be a text, got ''"),
    (
        broken(lambda c: c["annotations"][0].update(id=[1])),
        r"annotations\[0\]\]: `id` must be a whole number or a text",
    ),
    (
        broken(lambda c: c["annotations"][0].update(image_id=None)),
        r"`image_id` must be a whole number or a text, got None",
    ),
    (
        broken(lambda c: c["annotations"][0].update(category_id="a")),
        r"`category_id` must be one of the file's, got 'a'",
    ),
    (broken(lambda c: c["annotations"][0].update(image_id=10**40)), r"`image_id` must be one of the file's, got 1000"),
    (broken(lambda c: c.update(exif="aply")), "unknown exif 'aply'; did you mean 'apply'"),
]


@pytest.mark.parametrize(("content", "words"), BROKEN)
def test_a_file_that_no_table_can_be_made_of_is_refused_in_one_line(tmp_path, content, words):
    with pytest.raises(InputError, match=words) as caught:
        load_coco(write(tmp_path, content), "train.json")
    assert str(caught.value).startswith(str(tmp_path / "train.json"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"images": [],\n  "categories" []}', r"must be JSON, .* breaks at line 2 column 16 \(Expecting ':'"),
        ("", "breaks at line 1 column 1"),
        ("\xff\xfe\xfd", "must be a JSON file that can be read"),
        ("[" * 100_000, "nested too deep"),
        ('{"images": ' + "9" * 5000 + "}", "must be a JSON file that can be read"),
    ],
)
def test_a_file_that_is_not_json_is_refused_with_its_place(tmp_path, text, words):
    tmp_path.joinpath("train.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=words):
        load_coco(tmp_path, "train.json")


def test_a_missing_json_is_refused_with_the_names_nearby(tmp_path):
    write(tmp_path, CONTENT, "train_all.json")
    with pytest.raises(InputError, match=r"unknown JSON file 'train_al.json'; did you mean 'train_all.json'\?"):
        load_coco(tmp_path, "train_al.json")
    with pytest.raises(InputError, match="nowhere: the data folder must exist"):
        load_coco(tmp_path / "nowhere", "train.json")


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "bmp"])
def test_pixels_are_rgb_in_every_format(tmp_path, extension):
    image = photograph()
    read = read_image(save(tmp_path / f"a.{extension}", image), (64, 48))
    assert (read.shape, read.dtype) == ((48, 64, 3), np.uint8)
    assert np.abs(read.astype(int) - image).mean() < 8
    assert extension not in ("png", "bmp") or np.array_equal(read, image)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_grey_transparent_and_palette_images_become_rgb(tmp_path, mode):
    original = Image.fromarray(photograph()).convert(mode)
    original.save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", None), np.asarray(original.convert("RGB")))


def test_sixteen_bits_become_eight(tmp_path):
    grey = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    read = read_image(save(tmp_path / "a.png", grey), None)
    assert read.dtype == np.uint8
    assert np.abs(read[..., 0].astype(int) - grey // 256).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_an_image_is_turned_as_pillow_turns_it(tmp_path, extension, orientation):
    options = {"exif": oriented(orientation), "lossless": True, "quality": 95}
    path = save(tmp_path / f"a.{extension}", photograph(), **options)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    read = read_image(path, None)
    assert read.shape == expected.shape
    assert np.abs(read.astype(int) - expected).mean() < 2
    assert np.array_equal(read_image(path, expected.shape[1::-1]), read)


@pytest.mark.parametrize(
    ("stored", "orientation", "size", "exif", "turn"),
    [
        ((64, 48), 6, (64, 48), "apply", 1),
        ((64, 48), 6, (48, 64), "ignore", 6),
        ((64, 48), 6, None, "apply", 6),
        ((64, 48), 6, None, "ignore", 1),
        ((64, 64), 6, (64, 64), "apply", 6),
        ((64, 64), 6, (64, 64), "ignore", 1),
        ((64, 48), 3, (64, 48), "apply", 3),
        ((64, 48), 3, (64, 48), "ignore", 1),
        ((64, 48), 1, (64, 48), "apply", 1),
    ],
)
def test_the_size_decides_and_the_policy_where_it_does_not_tell(stored, orientation, size, exif, turn):
    assert choose_turn(stored, orientation, size, exif) == turn


@pytest.mark.parametrize(("exif", "size"), [(None, [30, 40]), ("ignore", [40, 30])])
def test_a_missing_size_is_that_of_the_image_as_it_is_read(tmp_path, exif, size):
    content = copy.deepcopy(CONTENT) | ({"exif": exif} if exif else {})
    del content["images"][0]["width"]
    save(tmp_path / "images/b.jpg", photograph(30, 40), exif=oriented(6))
    images = load_coco(write(tmp_path, content), "train.json").images
    assert images.loc[0, ["width", "height"]].tolist() == size
    assert images["exif"].tolist() == [exif or "apply"] * 2


@pytest.mark.parametrize(("dtype", "name"), [(np.float32, "a.tif"), (np.int32, "a.tif"), (np.float32, "a.pfm")])
def test_floats_and_32_bits_are_refused_by_their_type(tmp_path, dtype, name):
    path = save(tmp_path / name, (photograph()[..., 0] / 255).astype(dtype))
    with pytest.raises(InputError, match=f"must hold 8 or 16 bits per channel, got {np.dtype(dtype)}; scale"):
        read_image(path, None)


def test_an_image_of_another_size_than_the_json_says_is_refused(tmp_path):
    path = save(tmp_path / "a.jpg", photograph())
    with pytest.raises(InputError, match=r"must be 48x64 px \(width x height\) as the JSON says, got 64x48"):
        read_image(path, (48, 64))


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "bmp"])
@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_a_truncated_image_is_refused(tmp_path, extension, kept):
    path = save(tmp_path / f"a.{extension}", photograph(256, 256))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(InputError, match=f"a.{extension}: must be"):
        read_image(path, None)


def test_a_download_that_stopped_in_a_jpeg_of_full_length_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    path = save(tmp_path / "a.jpg", noise, exif=oriented(1))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) // 2))
    with pytest.raises(InputError, match="truncated"):
        read_image(path, None)


def test_bytes_behind_the_end_of_a_jpeg_do_no_harm(tmp_path):
    path = save(tmp_path / "a.jpg", photograph())
    path.write_bytes(path.read_bytes() + b"a camera's own data\xff\xda\x00")
    assert read_image(path, (64, 48)).shape == (48, 64, 3)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\xff\xd8\xff\xd9"])
def test_a_file_that_is_no_image_is_refused(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for read in (read_header, lambda path: read_image(path, None)):
        with pytest.raises(InputError, match=r"a.jpg: must be .*image.*; copy"):
            read(path)


def test_a_missing_image_is_refused(tmp_path):
    for path in (tmp_path / "a.jpg", tmp_path, tmp_path / ("a" * 3000)):
        with pytest.raises(InputError, match="the image must exist"):
            read_image(path, None)


def test_tables_travel_to_worker_processes(tmp_path):
    data = load_coco(write(tmp_path, CONTENT), "train.json")
    assert pickle.loads(pickle.dumps(data)).annotations.equals(data.annotations)


def test_reading_needs_no_torch():
    code = "import sys, seglib.data.coco, seglib.data.masks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not CAMVID.is_dir(), reason="the real photographs are not here")
def test_real_photographs_load(tmp_path):
    data = load_coco(CAMVID, "train.json")
    assert (len(data.images), len(data.annotations), data.num_classes) == (367, 19917, 12)
    first = data.images.iloc[0]
    image = read_image(first.path, (first.width, first.height))
    assert image.shape == (360, 480, 3)
    assert image.std() > 20

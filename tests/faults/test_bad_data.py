"""Data sets from outside: COCO files, images, folders of masks. See `test_bad_inputs.py`."""

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seglib.data.extra_data import find_refusal
from seglib.data.pixels import open_pixels
from seglib.data.verify import load_verified
from seglib.files import PROJECT
from seglib.parameters import read_schema
from seglib.rules import check_parameters
from seglib.runs.check import find_class_problems

SIDE = 16
GIVEN = {"split": "given", "folds": 5, "fold": 0, "split_seed": 0, "focus_classes": []}
SQUARE = [[1, 1, 9, 1, 9, 9, 1, 9]]
LONG = [[0, 0, *(each for n in range(500_000) for each in (n % 16, n % 7))]]


def ask(folder, name="train.json", val="val.json", ignore_classes=(), extra_data=()):
    """What the check of a grid says, and then what reading every pixel says."""
    refusal = find_refusal(str(folder), name, val, **GIVEN, extra_data=list(extra_data), ignore_classes=ignore_classes)
    if refusal:
        return 2, refusal
    pixels = open_pixels(load_verified(folder, name), 8, "class_id", "class", cache=False)
    for place in range(len(pixels)):
        image, mask = pixels.read(place)
        assert image.shape == (8, 8, 3) and mask.shape == (8, 8)
    return None


def make(folder):
    """Two images with an object each; the COCO content, not written yet. val.json is sound."""
    draw = np.random.default_rng(0)
    for name in ("a", "b", "v"):
        Image.fromarray(draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(folder / f"{name}.png")
    names = enumerate(("a.png", "b.png"), 1)
    images = [{"id": number, "file_name": name, "width": SIDE, "height": SIDE} for number, name in names]
    objects = [{"id": n, "image_id": n, "category_id": n, "segmentation": SQUARE, "iscrowd": 0} for n in (1, 2)]
    content = {
        "images": images,
        "annotations": objects,
        "categories": [{"id": 1, "name": "Can"}, {"id": 2, "name": "Bag"}],
    }
    val = content | {"images": [images[0] | {"file_name": "v.png"}], "annotations": objects[:1]}
    (folder / "val.json").write_text(json.dumps(val))
    return content


def put(path, value):
    """A change of the content: `put("images.0.width", -1)`; no value takes it out."""

    def change(content):
        *way, last = (int(each) if each.isdecimal() else each for each in path.split("."))
        for step in way:
            content = content[step]
        content[last] = value

    return change


def outline(value):
    return put("annotations.0.segmentation", value)


def rle(counts, size=(SIDE, SIDE), **more):
    return outline({"size": list(size), "counts": counts, **more})


COCO = {  # a change of the content, or the whole text; what the line must hold, "" where it is taken
    "nothing wrong": (lambda content: None, ""),
    "empty": ("", "must be JSON"), "null": ("null", "must hold a JSON object"), "a number": ("3", "must hold a JSON object"),
    "a list": ("[]", "must hold a JSON object"), "a text": ('"a"', "must hold a JSON object"), "an object": ("{}", "is this a COCO file?"),
    "cut": ('{"images": [', "breaks at line 1"), "HTML": ("<html>", "must be JSON"), "deep": ("[" * 100_000, "nested too deep"),
    "deep objects": ('{"a":' * 100_000, "nested too deep"), "NUL": ("\0" * 100, "must be JSON"), "UTF-16": ("{}".encode("utf-16"), "is this a COCO file?"),
    "BOM": ("\ufeff{}".encode(), "is this a COCO file?"), "latin-1": ('{"é": 1}'.encode("latin-1"), "must be a JSON file that can be read"),
    "5,000 digits": (f'{{"images": {"9" * 5000}}}', "must be a JSON file that can be read"),
    "images null": (put("images", None), "[images]: must be a list of objects, got None"),
    "images a map": (put("images", {"1": {}}), "[images]: must be a list of objects"),
    "images empty": (put("images", []), "no-images"), "image null": (put("images.0", None), "[images[0]]: must be an object"),
    "image a list": (put("images.0", [1]), "must be an object"), "categories null": (put("categories", None), "[categories]: must be a list"),
    "categories empty": (put("categories", []), "got 0; export them"), "category null": (put("categories.0", None), "must be an object"),
    "300 categories": (put("categories", [{"id": n, "name": f"c{n}"} for n in range(300)]), "1 to 254 categories"),
    "annotations a map": (put("annotations", {"a": 1}), "[annotations]: must be a list"), "annotation a list": (put("annotations.0", []), "must be an object"),
    "id null": (put("images.0.id", None), "`id` must be a whole number or a text, got None"), "id NaN": (put("images.0.id", float("nan")), "`id` must be"),
    "id inf": (put("images.0.id", float("inf")), "`id` must be"), "id bool": (put("images.0.id", True), "`id` must be"), "id list": (put("images.0.id", [1]), "`id` must be"),
    "id half": (put("images.0.id", 1.5), "`id` must be"), "id text": (put("images.0.id", "x"), "must be one of the file's"), "id huge": (put("images.0.id", 10**30), "must be one of the file's"),
    "id twice": (put("images.1.id", 1), "duplicate-image-id"), "annotation id twice": (put("annotations.1.id", 1), ""),
    "annotation id null": (put("annotations.1.id", None), ""), "annotation id NaN": (put("annotations.1.id", float("nan")), "`id` must be"),
    "image_id null": (put("annotations.0.image_id", None), "`image_id` must be"), "image_id unknown": (put("annotations.0.image_id", 77), "unknown-image"),
    "image_id inf": (put("annotations.0.image_id", float("inf")), "`image_id` must be"), "category float": (put("annotations.0.category_id", 1.0), ""),
    "category half": (put("annotations.0.category_id", 1.5), "`category_id` must be"), "category -1": (put("annotations.0.category_id", -1), "unknown-category"),
    "category_id null": (put("annotations.0.category_id", None), "`category_id` must be"), "category twice": (put("categories.1.id", 1), "duplicate-category-id"),
    "name twice": (put("categories.1.name", "Can"), "duplicate-category-name"), "name null": (put("categories.0.name", None), "`name` must be a text"),
    "name number": (put("categories.0.name", 3), "`name` must be a text"), "name blank": (put("categories.0.name", " "), "`name` must be a text"),
    "name half a character": (put("categories.0.name", "\ud800"), "`name` must be a text"), "name NUL": (put("categories.0.name", "a\0"), ""),
    "width null": (put("images.0.width", None), ""), "width 0": (put("images.0.width", 0), "`width` must be 1 to"), "width -1": (put("images.0.width", -1), "`width` must be 1 to"),
    "width 10^9": (put("images.0.width", 10**9), "`width` must be 1 to"), "width 10^30": (put("images.0.width", 10**30), "`width` must be"),
    "width NaN": (put("images.0.width", float("nan")), "`width` must be"), "width text": (put("images.0.width", "16"), "`width` must be"), "width bool": (put("images.0.width", True), "`width` must be"),
    "width half": (put("images.0.width", 16.5), "`width` must be"), "width float": (put("images.0.width", 16.0), ""), "width other": (put("images.0.width", 17), "size-differs"),
    "file null": (put("images.0.file_name", None), "`file_name` must be a text"), "file list": (put("images.0.file_name", ["a.png"]), "`file_name`"), "file blank": (put("images.0.file_name", ""), "`file_name`"),
    "file NUL": (put("images.0.file_name", "a\0.png"), "NUL character"), "file absolute": (put("images.0.file_name", "/etc/passwd"), "outside-folder"),
    "file above": (put("images.0.file_name", "../../../etc/passwd"), "outside-folder"), "file missing": (put("images.0.file_name", "c.png"), "missing-image"),
    "file of 5,000": (put("images.0.file_name", "x" * 5000), "missing-image"), "file half a character": (put("images.0.file_name", "\ud800.png"), "`file_name` must be a text"),
    "file escapes": (put("images.0.file_name", "\x1b[31m.png"), "\\x1b[31m"), "file newline": (put("images.0.file_name", "a\nb.png"), "missing-image"),
    "file twice": (put("images.1.file_name", "a.png"), "duplicate-file-name"), "file a folder": (put("images.0.file_name", "."), "got a folder"),
    "file a URL": (put("images.0.file_name", "http://x/a.png"), "the nearest is a.png"), "group a list": (put("images.0.group", [1]), "`group` must be"), "group NaN": (put("images.0.group", float("nan")), "`group` must be"),
    "exif wrong": (put("exif", "turn"), "unknown exif 'turn'"), "exif a list": (put("exif", ["apply"]), "unknown exif"),
    "no outline": (outline(None), "must have annotations that paint pixels"), "empty outline": (outline([]), "that paint none"), "outline a text": (outline("a"), "unknown-segmentation"), "outline a number": (outline(3), "unknown-segmentation"),
    "1 point": (outline([[1, 1]]), "that paint none"), "odd": (outline([[1, 1, 2, 2, 3, 3, 4]]), "odd-coordinates"), "NaN": (outline([[1, 1, 2, 2, float("nan"), 3]]), "non-finite-coordinates"),
    "inf": (outline([[1, 1, 2, 2, float("inf"), 3]]), "non-finite-coordinates"), "1e308": (outline([[1, 1, 2, 2, 1e308, 3]]), "far-coordinates"), "10^400": (outline([[1, 1, 2, 2, 10**400, 3]]), "-coordinates"),
    "texts": (outline([["1", "1", "2", "2", "3", "3"]]), "unreadable-coordinates"), "nulls": (outline([[None] * 6]), "unreadable-coordinates"), "bools": (outline([[True, False] * 3]), "unreadable-coordinates"),
    "lists in it": (outline([[[1], [2, 3], 4, 5]]), "unreadable-coordinates"), "deep in it": (outline([[[[1, 1, 2, 2, 3, 3]]]]), "-coordinates"), "maps": (outline([{"x": 1}]), "unknown-segmentation"), "far": (outline([[1, 1, 10**6, 1, 9, 9]]), "far-coordinates"),
    "500,000 points": (outline(LONG), "far-coordinates"), "outside": (outline([[100, 100, 120, 100, 120, 120]]), "that paint none"),
    "shares": (lambda content: [each.update(segmentation=[[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]]) for each in content["annotations"]], "normalised-coordinates"),
    "bbox only": (lambda content: [each.pop("segmentation") or each.update(bbox=[1, 1, 8, 8]) for each in content["annotations"]], "that paint none"),
    "iscrowd text": (put("annotations.0.iscrowd", "1"), ""), "iscrowd list": (put("annotations.0.iscrowd", [1]), ""), "area text": (put("annotations.0.area", "x"), ""), "area NaN": (put("annotations.0.area", float("nan")), ""),
    "rle": (rle([10, 20, 226]), ""), "rle short": (rle([10, 20]), "rle-sum"), "rle long": (rle([10, 20, 10**6]), "rle-sum"), "rle negative": (rle([-10, 20, 246]), "rle-corrupt"), "rle floats": (rle([10.5, 245.5]), "rle-corrupt"),
    "rle NaN": (rle([float("nan"), 256]), "rle-corrupt"), "rle 10^30": (rle([10**30]), "rle-"), "rle 2^63": (rle([2**63 - 1, 2**63 - 1, 258]), "rle-"), "rle null": (rle(None), "rle-corrupt"), "rle empty": (rle([]), "rle-"),
    "rle empty text": (rle(""), "rle-corrupt"), "rle nonsense": (rle("!!!!"), "rle-corrupt"), "rle letters": (rle("zzzz"), "rle-corrupt"), "rle cut": (rle("a"), "rle-"), "rle Korean": (rle("종이"), "rle-corrupt"), "rle a map": (rle({"a": 1}), "rle-corrupt"),
    "rle of texts": (rle(["10", "246"]), "rle-corrupt"), "rle nested": (rle([[10], [246]]), "rle-corrupt"), "size other": (rle([100], (10, 10)), "rle-size"), "size huge": (rle([10**18], (10**9, 10**9)), "rle-size"), "size negative": (rle([256], (-16, -16)), "rle-size"),
    "size a text": (outline({"size": "16", "counts": [256]}), "rle-size"), "size missing": (outline({"counts": [256]}), "rle-size"), "rle without all": (outline({}), "rle-size"),
    "score text": (put("annotations.0.score", "x"), ""), "supercategory list": (put("categories.0.supercategory", ["a"]), ""), "supercategory map": (put("categories.0.supercategory", {"a": 1}), ""), "ignore text": (put("categories.0.ignore", "1"), ""),
    "all ignored": (lambda content: [each.update(ignore=1) for each in content["categories"]], "got 0"), "name with dollar": (put("categories.0.name", "$x_1$"), ""), "name of 400": (put("categories.0.name", "x" * 400), ""),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("change", "words"), COCO.values(), ids=COCO.keys())
def test_coco(judge, tmp_path, change, words):
    content = make(tmp_path)
    if callable(change):
        change(content)
        val = json.loads((tmp_path / "val.json").read_text())
        (tmp_path / "val.json").write_text(json.dumps(val if words else val | {"categories": content["categories"]}))
        change = json.dumps(content)
    (tmp_path / "train.json").write_bytes(change if isinstance(change, bytes) else change.encode())
    judge(tmp_path, lambda: ask(tmp_path), words)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 10_000)) + chunk(b"IEND", b"")


def encode(mode="RGB", kind="PNG", size=(SIDE, SIDE), **options):
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


JPEG, PNG = encode(kind="JPEG"), encode()
NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
EXIF = Image.Exif()
EXIF[0x0112] = 6
PALETTE = encode("P", "PNG", transparency=0)
IMAGES = {  # the bytes of a.png, or how to make it; what the line must hold
    "0 bytes": (b"", "unreadable-image"), "HTML": (b"<html><body>404</body></html>", "got: not an image"), "NUL": (b"\0" * 1000, "got: not an image"), "text": (b"a.png", "got: not an image"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "got: not an image"), "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "got: not an image"),
    "PNG's first bytes": (PNG[:8], "unreadable-image"), "PNG's head": (PNG[:33], "got: not an image"), "PNG cut": (PNG[:-20], "truncated or no image"), "PNG of a wrong sum": (PNG[:40] + b"xx" + PNG[42:], "got: not an image"),
    "JPEG": (JPEG, ""), "JPEG cut": (JPEG[: len(JPEG) // 2], "got: Truncated File Read"), "JPEG without end": (JPEG[:-2], "truncated or no image"), "JPEG's first bytes": (JPEG[:2], "unreadable-image"),
    "bomb of 30,000": (bomb(30_000), "decompression bomb"), "bomb of 65,000": (bomb(65_000), "decompression bomb"), "bomb of 2^31": (bomb(2**31 - 1), "unreadable-image"), "0 px": (bomb(0), "unreadable-image"),
    "1x1": (encode(size=(1, 1)), "size-differs"), "16 bits": (encode("I;16"), ""), "grey": (encode("L"), ""), "1 bit": (encode("1"), ""), "palette": (encode("P"), ""), "palette with alpha": (PALETTE, ""), "alpha": (encode("RGBA"), ""), "grey and alpha": (encode("LA"), ""),
    "CMYK": (encode("CMYK", "JPEG"), ""), "animated": (encode("P", "GIF", save_all=True, append_images=[Image.new("P", (SIDE, SIDE), 3)]), ""), "animated PNG": (encode(save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE), 3)]), ""),
    "WebP": (encode(kind="WEBP"), ""), "BMP": (encode(kind="BMP"), ""), "TIFF": (encode(kind="TIFF"), ""), "TIFF of floats": (encode("F", "TIFF"), "unknown-depth"), "PDF": (b"%PDF-1.4\n", "got: not an image"), "ICO": (encode(kind="ICO"), "truncated or no image"),
    "EXIF 6": (encode(kind="JPEG", exif=EXIF), ""), "EXIF broken": (encode(kind="JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), ""), "missing": (None, "missing-image"),
    "a pipe": (os.mkfifo, "got a pipe"), "a folder": (Path.mkdir, "got a folder"), "a loop": (lambda path: path.symlink_to(path), "missing-image"), "a device": (lambda path: path.symlink_to("/dev/zero"), "outside-folder"),
    "a link to a pipe": (lambda path: (os.mkfifo(path.with_name("pipe")), path.symlink_to("pipe")), "got a pipe"), "a link out": (lambda path: path.symlink_to("/etc/passwd"), "outside-folder"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("content", "words"), IMAGES.values(), ids=IMAGES.keys())
def test_images(judge, tmp_path, content, words):
    coco = make(tmp_path)
    (tmp_path / "a.png").unlink()
    if callable(content):
        content(tmp_path / "a.png")
    elif content is not None:
        (tmp_path / "a.png").write_bytes(content)
    (tmp_path / "train.json").write_text(json.dumps(coco))
    judge(tmp_path, lambda: ask(tmp_path), words)


def make_masks(folder):
    """Two images with masks of the values 0 to 2, and classes.json."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name in ("train/a", "train/b", "val/v"):
        Image.fromarray(draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(folder / f"images/{name}.png")
        Image.fromarray(draw.integers(0, 3, (SIDE, SIDE), np.uint8)).save(folder / f"masks/{name}.png")
    (folder / "classes.json").write_text('["background", "can", "bag"]')


def mask(content):
    """A change of the first mask: its bytes, its pixels, or how it is made."""

    def change(folder):
        path = folder / "masks/train/a.png"
        path.unlink()
        if callable(content):
            content(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            Image.fromarray(content).save(path)

    return change


def classes(text):
    return lambda folder: (folder / "classes.json").write_text(text if isinstance(text, str) else json.dumps(text))


def fill(value, kind=np.uint8, shape=(SIDE, SIDE)):
    return np.full(shape, value, kind)


FOLDERS = {  # a change of the folder; what the line must hold
    "nothing wrong": (lambda folder: None, ""), "a mask is missing": (mask(None), "must have a mask masks/train/a.png, got none"), "0 bytes": (mask(b""), "got: not an image"), "HTML": (mask(b"<html>"), "got: not an image"),
    "cut": (mask(PNG[:-40]), "a mask must be an image that can be read"), "larger": (mask(fill(1, shape=(32, 32))), "must be 16x16 px"), "smaller": (mask(fill(1, shape=(1, 1))), "must be 16x16 px"), "turned": (mask(fill(1, shape=(8, 32))), "must be 16x16 px"),
    "value 7": (mask(fill(7)), "values must be those of classes.json, got 7"), "value 256": (mask(fill(256, np.uint16)), "got 256"), "value 65535": (mask(fill(65535, np.uint16)), "got 65535"), "value 2^31": (mask(lambda path: Image.fromarray(fill(2**31 - 1, np.int32)).save(path, "TIFF")), "got 2147483647"), "value -1": (mask(lambda path: Image.fromarray(fill(-1, np.int32)).save(path, "TIFF")), "got -1"),
    "colours": (mask(NOISE), "a mask must have one channel, got colours"), "grey colours": (mask(fill(1, shape=(SIDE, SIDE, 3))), ""), "alpha": (mask(fill(1, shape=(SIDE, SIDE, 4))), ""), "floats": (mask(lambda path: Image.fromarray(fill(1, np.float32)).save(path, "TIFF")), "got floating point"),
    "JPEG": (mask(JPEG), "got JPEG"), "bomb": (mask(bomb(60_000)), "decompression bomb"), "a pipe": (mask(os.mkfifo), "got a pipe"), "a folder": (mask(Path.mkdir), "Is a directory"), "a loop": (mask(lambda path: path.symlink_to(path)), "a mask must be"), "a device": (mask(lambda path: path.symlink_to("/dev/zero")), "got a pipe or a device"),
    "an image is a pipe": (lambda folder: (os.remove(folder / "images/train/a.png"), os.mkfifo(folder / "images/train/a.png")), "images/train/a.png"), "an image is cut": (lambda folder: (folder / "images/train/a.png").write_bytes(PNG[:50]), "images/train/a.png"),
    "all 255": (lambda folder: [Image.fromarray(fill(255)).save(path) for path in folder.glob("masks/*/*.png")], "got none but 255"), "no images": (lambda folder: [path.unlink() for path in folder.glob("images/train/*")], "must have images, got none"),
    "no classes.json": (lambda folder: (folder / "classes.json").unlink(), "classes.json"), "classes a pipe": (lambda folder: ((folder / "classes.json").unlink(), os.mkfifo(folder / "classes.json")), "classes.json"),
    "classes empty": (classes(""), "classes.json: must be readable"), "classes null": (classes("null"), "must be a list of names"), "classes a number": (classes("3"), "must be a list of names"), "classes a text": (classes('"a"'), "must be a list of names"), "classes []": (classes([]), "must be a list of names"), "classes {}": (classes({}), "must be a list of names"),
    "classes cut": (classes('["a"'), "must be readable"), "classes deep": (classes("[" * 100_000), "classes.json"), "classes Infinity": (classes('{"a": Infinity}'), "must be a list of names"), "classes UTF-16": (lambda folder: (folder / "classes.json").write_bytes("[]".encode("utf-16")), "must be readable"),
    "names null": (classes([None, "a"]), "must be a list of names"), "names lists": (classes([["a"], ["b"]]), "must be a list of names"), "names twice": (classes(["background", "a", "a"]), "got a twice"), "names blank": (classes(["background", " "]), "must be a list of names"), "values twice": (classes({"a": 1, "b": 1}), "got 1 twice"), "values -1": (classes({"a": -1}), "must be a list of names"),
    "values half": (classes({"a": 1.5}), "must be a list of names"), "values bool": (classes({"a": True}), "must be a list of names"), "values null": (classes({"a": None}), "must be a list of names"), "colour of 2": (classes({"a": [1, 2]}), "must be a list of names"), "colour 300": (classes({"a": [1, 2, 300]}), "must be a list of names"), "colour of texts": (classes({"a": ["1", "2", "3"]}), "must be a list of names"),
    "colours and values": (classes({"a": [1, 2, 3], "b": 1}), "must have values or colours, got both"), "unknown option": (classes({"classes": ["a"], "ignroe_index": 1}), "did you mean 'ignore_index'"), "300 classes": (classes([f"c{n}" for n in range(300)]), "must be 254 at most"), "colours are others": (classes({"background": [9, 9, 9], "a": [1, 2, 3]}), "values must be those of classes.json"),
    "ignore_index text": (classes({"classes": ["background", "can", "bag"], "ignore_index": "x"}), "[ignore_index]: must be"), "ignore_index map": (classes({"classes": ["background", "can", "bag"], "ignore_index": {}}), "[ignore_index]: must be"), "ignore_classes unknown": (classes({"classes": ["background", "can", "bag"], "ignore_classes": ["x"]}), "unknown class in ignore_classes"),
    "ignore_classes number": (classes({"classes": ["background", "can", "bag"], "ignore_classes": 3}), "ignore_classes"), "ignore_classes lists": (classes({"classes": ["background", "can", "bag"], "ignore_classes": [["can"]]}), "ignore_classes"), "image_dir number": (classes({"classes": ["background", "can", "bag"], "image_dir": 3}), "image_dir"),
    "image_dir above": (classes({"classes": ["background", "can", "bag"], "image_dir": "../../../etc"}), "image_dir"), "mask_suffix list": (classes({"classes": ["background", "can", "bag"], "mask_suffix": [1]}), "must have a mask"), "a list of nothing": (lambda folder: (folder / "train.txt").write_text(""), ""),
    "key is a number of 5,000 digits": (classes(f'{{"{"9" * 5000}": "a"}}'), "classes.json"), "key is ²": (classes({"²": "a"}), "must be a list of names"), "value 2^70": (classes({"a": 2**70}), "must be a list of names"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("change", "words"), FOLDERS.values(), ids=FOLDERS.keys())
def test_folders_of_masks(judge, tmp_path, change, words):
    make_masks(tmp_path)
    change(tmp_path)
    judge(tmp_path, lambda: ask(tmp_path, "train", "val"), words)


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"a\0b", b"nope\n", b"../../etc/passwd\n", b"\x1b[31m\n", b"a a a\nb\n" + b"x" * 5000, None],
    ids=repr,
)
def test_lists_of_images(judge, tmp_path, content):
    make_masks(tmp_path)
    path = tmp_path / "train.txt"
    path.write_bytes(content) if content is not None else os.mkfifo(path)
    judge(tmp_path, lambda: ask(tmp_path, "train.txt", "val"), "train.txt" if content is not None else str(tmp_path))


EXTRA = {  # options of a further set; what the line must hold
    "no json": ({}, "must have json"), "json list": ({"json": ["a"]}, "extra_data[0].json must be a text"), "json missing": ({"json": "no.json"}, "no.json"), "json /dev/zero": ({"json": "/dev/zero"}, "/dev/zero"), "json NUL": ({"json": "a\0"}, "json"),
    "folder missing": ({"json": "a", "data_dir": "/nowhere"}, "there is no folder '/nowhere'"), "folder number": ({"json": "a", "data_dir": 3}, "data_dir must be a text"), "weight -1": ({"json": "val.json", "weight": -1}, "weight must be"), "weight inf": ({"json": "val.json", "weight": float("inf")}, "weight must be"),
    "weight text": ({"json": "val.json", "weight": "1"}, "weight must be"), "confidence 2": ({"json": "val.json", "min_confidence": 2}, "min_confidence must be"), "unknown": ({"json": "val.json", "wieght": 1}, "did you mean 'weight'"), "classes list": ({"json": "val.json", "classes": ["Can"]}, "classes must be a mapping"),
    "classes unknown": ({"json": "val.json", "classes": {"Cna": "Can"}}, "did you mean 'Can'"), "classes to unknown": ({"json": "val.json", "classes": {"Can": "Cna"}}, "did you mean 'Can'"), "classes to a list": ({"json": "val.json", "classes": {"Can": ["Can"]}}, "classes"), "classes to null": ({"json": "val.json", "classes": {"Can": None}}, "classes"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "words"), EXTRA.values(), ids=EXTRA.keys())
def test_extra_data(judge, tmp_path, options, words):
    (tmp_path / "train.json").write_text(json.dumps(make(tmp_path)))
    schema = read_schema(PROJECT / "notebooks/02_train.ipynb")
    values = {name: each.default for name, each in schema.items()} | {"data_dir": str(tmp_path), "encoder_weights": ""}

    def ask_rules():
        _, problems = check_parameters(schema, values | {"extra_data": [options]})
        problems = problems or find_class_problems(values | {"extra_data": [options]})
        return (2, "\n".join(problems.values())) if problems else ask(tmp_path, extra_data=[options])

    judge(tmp_path, ask_rules, words)

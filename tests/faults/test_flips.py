"""One bit of a file changes: what is read back is what was written, or the file is refused in a line or made again."""

import json
import random
import shutil

import numpy as np
import pytest
import torch

from seglib.data.coco import load_coco
from seglib.data.pixels import open_pixels
from seglib.errors import InputError
from seglib.evaluation.metrics import load_confusion, load_scene_names, save_confusion
from seglib.files import hash_files, read_json
from seglib.inference.stores import describe_store, open_store, write_store
from seglib.runs.record import read_record, start_record, update_record
from seglib.training.checkpoint import load_checkpoint, save_checkpoint

FLIPS = 200


def flip_and_read(path, read, expected, flips=FLIPS):
    """[tried, read with other content, ended in another error than a refusal]; `expected` is what was written."""
    content, draw = path.read_bytes(), random.Random(path.name)
    tried = other = unclear = 0
    for bit in draw.sample(range(8 * len(content)), min(flips, 8 * len(content))):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        tried += 1
        try:
            other += repr(read()) != repr(expected)
        except InputError as error:
            unclear += "\n" in str(error) or (path.name not in str(error) and str(path.parent) not in str(error))
        except Exception as error:
            print(f"bit {bit} of {path.name}: {error!r}")
            unclear += 1
    path.write_bytes(content)
    print(f"{path.name}: {tried} flips tried, {other} read as other content, {unclear} unclear")
    return [tried, other, unclear]


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_checkpoints(tmp_path, name):
    torch.manual_seed(0)
    weights = {f"layer{number}.weight": torch.randn(8, 8) for number in range(4)}
    state = {"model": weights, "averages": {"means": {"ema": weights}}, "rows": [{"epoch": 1}], "split": 1}
    save_checkpoint(tmp_path / name, state)
    read = lambda: load_checkpoint(tmp_path / name, ("model", "rows"))  # noqa: E731
    assert flip_and_read(tmp_path / name, read, state) == [FLIPS, 0, 0]


def test_confusion(tmp_path):
    path, counts = tmp_path / "confusion.npz", np.random.default_rng(0).integers(0, 9999, (6, 3, 3))
    save_confusion(path, counts, range(6), ["Background", "Can", "비닐"])
    read = lambda: (load_confusion(path), load_scene_names(path))  # noqa: E731
    assert flip_and_read(path, read, read()) == [FLIPS, 0, 0]


@pytest.mark.parametrize("name", ["probabilities.npy", "checksums.npy", "store.json"])
def test_stores(tmp_path, name):
    array = np.random.default_rng(0).integers(0, 256, (4, 3, 6, 6), np.uint8)
    about = describe_store(np.arange(4), list("abcd"), ["Background", "Can", "Bag"], 6, "uint8", {"run": "seed=1"})
    write_store(tmp_path / "store", about, lambda first: iter([array[first:]]), 4)

    def read():
        store = open_store(tmp_path / "store")
        pixels = [store.read(place).tolist() for place in range(len(store))]
        return pixels, store.image_ids, store.file_names, store.class_names, store.size, store.origin

    assert flip_and_read(tmp_path / "store" / name, read, read()) == [FLIPS, 0, 0]


@pytest.fixture
def start_folder(tmp_path):
    start_record(tmp_path, {"notebook": "1f"}, {"lr": 1e-3, "loss": {"focal": 2.0}}, {"lr": 1e-3})
    update_record(tmp_path, status="ok", metrics={"miou": 0.51, "iou": {"비닐": None}}, weights_sha256="ab" * 32)
    return tmp_path


def test_records(start_folder):
    read = lambda: read_record(start_folder) or read_json(start_folder / "record.json")  # noqa: E731
    assert flip_and_read(start_folder / "record.json", read, read()) == [FLIPS, 0, 0]


def test_remembered_hashes(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("seglib.files.SETTLED", -1)
    (tmp_path / "a.png").write_bytes(b"pixels")
    read = lambda: hash_files([tmp_path / "a.png"])  # noqa: E731
    expected = read()
    assert flip_and_read(tmp_path / "cache/file_hashes.json", read, expected) == [FLIPS, 0, 0]


@pytest.mark.filterwarnings("ignore:.*building the cache again")
@pytest.mark.parametrize("opened_before", [True, False])
@pytest.mark.parametrize("name", ["images.npy", "masks.npy", "checksums.npy", "meta.json"])
def test_pixel_caches(tmp_path, monkeypatch, small_data, name, opened_before):
    """Damage before a cache is opened, and while a run reads from it."""
    monkeypatch.setenv("SEGLIB_CACHE", str(tmp_path))
    shutil.copytree(small_data, tmp_path / "data")
    content = json.loads((small_data / "val.json").read_text())
    content["images"] = content["images"][:3]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] in ids]
    (tmp_path / "data/val.json").write_text(json.dumps(content))
    data = load_coco(tmp_path / "data", "val.json")
    settings = {"image_size": 8, "paint_order": "class_id", "background": "class"}
    read_all = lambda pixels: [[array.tolist() for array in pixels.read(place)] for place in range(3)]  # noqa: E731
    pixels = open_pixels(data, **settings)
    (folder,) = [path for path in (tmp_path / "pixels").iterdir() if path.is_dir()]
    read = lambda: read_all(pixels if opened_before else open_pixels(data, **settings))  # noqa: E731
    assert flip_and_read(folder / name, read, read_all(pixels)) == [FLIPS, 0, 0]

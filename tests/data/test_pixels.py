"""The pixel cache gives what decoding gives, never what is damaged or stale, to any number of processes."""

import errno
import json
import multiprocessing
import pickle
import shutil
import warnings
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from pycocotools.coco import COCO

from seglib.data import pixels
from seglib.data.coco import load_coco
from seglib.data.pixels import open_pixels, resize_image, resize_mask
from seglib.errors import InputError
from seglib.files import write_json

CAMVID = Path(__file__).parents[2].parent / "shared/data/camvid"
SIZE = 32
COUNT = 7


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of pixel caches."""
    monkeypatch.setenv("SEGLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/pixels"


@pytest.fixture
def data_dir(tmp_path):
    return make_data(tmp_path / "data")


def make_data(folder: Path, count: int = COUNT, side: int = 64) -> Path:
    """Noise with two overlapping boxes an image; ids are neither in order nor from 0, one image is empty."""
    rng = np.random.default_rng(0)
    content = {"images": [], "annotations": [], "categories": [{"id": 5, "name": "Can"}, {"id": 3, "name": "Bag"}]}
    folder.mkdir()
    for index in range(count):
        image_id, name = 100 - 3 * index, f"{index}.png"
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (side, side, 3), np.uint8))
        content["images"].append({"id": image_id, "file_name": name, "width": side, "height": side})
        for category in (5, 3) if index != 2 else ():
            x, y, width, height = map(int, rng.integers(4, 30, 4))
            box = [x, y, x + width, y, x + width, y + height, x, y + height]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]),
                    "image_id": image_id,
                    "category_id": category,
                    "area": width * height,
                    "iscrowd": 0,
                    "segmentation": [box],
                }
            )
    (folder / "train.json").write_text(json.dumps(content))
    return folder


def open_small(data_dir: Path, **changed):
    settings = {"image_size": SIZE, "paint_order": "class_id", "background": "class"} | changed
    return open_pixels(load_coco(data_dir, "train.json"), **settings)


def read_all(opened) -> list[np.ndarray]:
    return [array for index in range(len(opened)) for array in opened.read(index)]


def assert_same(opened, expected) -> None:
    pairs = zip(read_all(opened), read_all(expected), strict=True)
    assert all(np.array_equal(array, other) for array, other in pairs)


def only_cache(cache: Path) -> Path:
    (folder,) = cache.glob("*/")
    return folder


@pytest.mark.parametrize("cached", [True, False])
def test_pairs_are_those_of_cv2_and_pycocotools(data_dir, cached):
    opened = open_small(data_dir, cache=cached, image_size=64)
    reference = COCO(data_dir / "train.json")
    assert len(opened) == COUNT
    assert opened.image_ids.dtype == np.int64
    assert opened.image_ids.tolist() == [100, 97, 94, 91, 88, 85, 82]
    for index, image_id in enumerate(opened.image_ids):
        image, mask = opened.read(index)
        assert image.dtype == mask.dtype == np.uint8
        assert np.array_equal(image, cv2.imread(str(data_dir / f"{index}.png"))[..., ::-1])
        assert np.array_equal(mask, paint_reference(reference, image_id, 64))


def paint_reference(reference: COCO, image_id: int, side: int) -> np.ndarray:
    """By class id, the highest wins: categories 3 and 5 are classes 1 and 2."""
    mask = np.zeros((side, side), np.uint8)
    for annotation in sorted(reference.imgToAnns[image_id], key=lambda annotation: annotation["category_id"]):
        mask[reference.annToMask(annotation) == 1] = {3: 1, 5: 2}[annotation["category_id"]]
    return mask


@pytest.mark.parametrize("settings", [{"background": "ignore"}, {"paint_order": "area"}, {"image_size": 96}])
def test_the_cache_reads_what_decoding_reads(data_dir, settings):
    assert_same(open_small(data_dir, **settings), open_small(data_dir, cache=False, **settings))


def test_whole_shrinking_factors_average_pixels_and_pick_the_masks_every_kth():
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (96, 96, 3), np.uint8), rng.integers(0, 12, (96, 96), np.uint8)
    for factor in (2, 3):
        size = 96 // factor
        average = image.reshape(size, factor, size, factor, 3).mean(axis=(1, 3))
        assert np.abs(resize_image(image, size) - average).max() <= 0.5
        assert np.array_equal(resize_mask(mask, size), mask[::factor, ::factor])


def test_sides_shrink_by_area_and_grow_linearly_each_on_its_own():
    image = np.random.default_rng(0).integers(0, 256, (96, 32, 3), np.uint8)
    shrunk = image.reshape(48, 2, 32, 3).mean(axis=1)
    expected = cv2.resize(shrunk, (48, 48), interpolation=cv2.INTER_LINEAR)
    assert np.abs(resize_image(image, 48) - expected).max() <= 1.5
    assert np.array_equal(
        resize_image(image[:32], 48), cv2.resize(image[:32], (48, 48), interpolation=cv2.INTER_LINEAR)
    )
    assert np.array_equal(resize_image(image[:32], 32), image[:32])


def test_the_arrays_are_standard_files(data_dir, cache):
    expected = open_small(data_dir)
    images = np.load(only_cache(cache) / "images.npy", mmap_mode="r", allow_pickle=False)
    masks = np.load(only_cache(cache) / "masks.npy", mmap_mode="r", allow_pickle=False)
    assert images.shape == (COUNT, SIZE, SIZE, 3)
    assert masks.shape == (COUNT, SIZE, SIZE)
    assert np.array_equal(images[3], expected.read(3)[0])
    assert np.array_equal(masks[3], expected.read(3)[1])


def test_a_second_opening_decodes_nothing(data_dir, monkeypatch):
    first = open_small(data_dir)
    monkeypatch.setattr(pixels, "read_image", None)
    assert_same(open_small(data_dir), first)


def test_the_same_data_elsewhere_shares_the_cache(data_dir, cache, tmp_path):
    open_small(data_dir)
    shutil.copytree(data_dir, tmp_path / "copy")
    open_small(tmp_path / "copy")
    only_cache(cache)


def test_without_the_cache_nothing_is_written(data_dir, cache):
    open_small(data_dir, cache=False)
    assert not cache.exists()


def refuse_to_write(*_):
    raise PermissionError(errno.EACCES, "Permission denied")


def test_another_users_cache_is_read_and_without_one_the_run_decodes(data_dir, cache, monkeypatch, capsys):
    expected = open_small(data_dir, cache=False)
    open_small(data_dir)
    monkeypatch.setattr(pixels, "FileLock", refuse_to_write)
    assert_same(open_small(data_dir), expected)
    assert capsys.readouterr().out == ""
    shutil.rmtree(only_cache(cache))
    assert_same(open_small(data_dir), expected)
    (line,) = capsys.readouterr().out.splitlines()
    assert "cannot be written to (Permission denied), so nothing is cached; set SEGLIB_CACHE" in line


def test_progress_counts_the_images_of_a_build(data_dir):
    seen = []
    open_small(data_dir, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, COUNT) for done in range(1, COUNT + 1)]
    open_small(data_dir, progress=lambda *counts: pytest.fail("nothing is built the second time"))


@pytest.mark.parametrize("settings", [{"image_size": 16}, {"paint_order": "longest"}, {"background": "ignore"}])
def test_other_settings_make_another_cache(data_dir, cache, settings):
    open_small(data_dir)
    open_small(data_dir, **settings)
    assert len(list(cache.glob("*/"))) == 2


def test_a_changed_image_is_decoded_again(data_dir):
    open_small(data_dir)
    cv2.imwrite(str(data_dir / "1.png"), np.full((64, 64, 3), 7, np.uint8))
    assert open_small(data_dir).read(1)[0].tolist() == np.full((SIZE, SIZE, 3), 7).tolist()


def test_changed_annotations_are_painted_again(data_dir):
    data = load_coco(data_dir, "train.json")
    open_pixels(data, SIZE, "class_id", "class")
    moved = replace(data, annotations=data.annotations.assign(class_id=1))
    assert open_pixels(moved, SIZE, "class_id", "class").read(0)[1].max() == 1
    fewer = replace(data, images=data.images.iloc[[4, 1]])
    assert open_pixels(fewer, SIZE, "class_id", "class").image_ids.tolist() == [88, 97]


def test_a_changed_painter_is_asked_again(data_dir, cache, monkeypatch):
    open_small(data_dir)
    monkeypatch.setattr(pixels, "RESULTS", pixels.RESULTS + 1)
    open_small(data_dir)
    assert len(list(cache.glob("*/"))) == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose(path: Path) -> None:
    meta = json.loads((path.parent / "meta.json").read_text())
    meta["hashes"][path.name] = ""
    write_json(path.parent / "meta.json", meta)
    path.unlink()


def save_other_shape(path: Path) -> None:
    np.save(path, np.zeros((COUNT - 1, SIZE, SIZE), np.uint8))


DAMAGES = [
    ("images.npy", cut, "images.npy is not what was written"),
    ("masks.npy", flip_a_bit, "masks.npy is not what was written"),
    ("masks.npy", save_other_shape, "masks.npy is not what was written"),
    ("masks.npy", Path.unlink, "masks.npy is not what was written"),
    ("images.npy", lose, "images.npy is not what was written"),
    ("meta.json", Path.unlink, "meta.json cannot be used"),
    ("meta.json", cut, "meta.json cannot be used"),
    ("meta.json", lambda path: path.write_text("[]"), "meta.json cannot be used"),
    ("meta.json", lambda path: path.write_text('{"hashes": {"images.npy": ""}}'), "meta.json cannot be used"),
]


@pytest.mark.parametrize(("name", "damage", "words"), DAMAGES)
def test_a_damaged_cache_is_built_again_and_says_so(data_dir, cache, name, damage, words):
    open_small(data_dir)
    damage(only_cache(cache) / name)
    with pytest.warns(UserWarning, match=f"{words}.*building the cache again") as caught:
        opened = open_small(data_dir)
    (warning,) = [entry for entry in caught if entry.category is UserWarning]
    assert "\n" not in str(warning.message)
    assert_same(opened, open_small(data_dir, cache=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        open_small(data_dir)


def test_what_a_killed_build_left_is_cleared_away(data_dir, cache):
    expected = open_small(data_dir)
    only_cache(cache).rename(only_cache(cache).with_suffix(".part"))
    cut(only_cache(cache) / "images.npy")
    assert_same(open_small(data_dir), expected)
    assert not only_cache(cache).suffix


def test_a_file_cut_while_open_is_not_read_as_pixels(data_dir, cache):
    opened = open_small(data_dir)
    cut(only_cache(cache) / "images.npy")
    opened.read(COUNT - 2)
    with pytest.raises(InputError, match=r"images\.npy: the file was damaged after it was written; start again"):
        opened.read(COUNT - 1)


@pytest.mark.parametrize("cached", [True, False])
def test_positions_out_of_range_are_index_errors(data_dir, cached):
    opened = open_small(data_dir, cache=cached)
    assert np.array_equal(opened.read(-1)[0], opened.read(COUNT - 1)[0])
    for index in (COUNT, -COUNT - 1):
        with pytest.raises(IndexError):
            opened.read(index)


def open_in_process(data_dir: Path, barrier, answers) -> None:
    barrier.wait()
    built = []
    opened = open_small(data_dir, progress=lambda *counts: built.append(counts))
    answers.put((len(built), sum(int(array.sum()) for array in read_all(opened))))


def test_of_four_processes_that_start_at_once_one_builds(data_dir, cache):
    processes = multiprocessing.get_context("fork")
    barrier, answers = processes.Barrier(4), processes.Queue()
    started = [processes.Process(target=open_in_process, args=(data_dir, barrier, answers)) for _ in range(4)]
    for process in started:
        process.start()
    built, sums = zip(*(answers.get(timeout=20) for _ in started), strict=True)
    for process in started:
        process.join()
    assert sorted(built) == [0, 0, 0, COUNT]
    assert set(sums) == {sum(int(array.sum()) for array in read_all(open_small(data_dir, cache=False)))}
    assert not only_cache(cache).suffix


def test_workers_read_right_from_a_small_pickle_and_share_no_position(data_dir):
    opened = open_small(data_dir)
    assert len(pickle.dumps(opened)) < 2000
    with multiprocessing.get_context("fork").Pool(3) as pool:
        pairs = pool.map(opened.read, list(range(COUNT)) * 20, chunksize=1)
    for index, (image, mask) in enumerate(pairs):
        assert np.array_equal(image, opened.read(index % COUNT)[0])
        assert np.array_equal(mask, opened.read(index % COUNT)[1])


def test_reading_does_not_keep_the_set_in_memory(tmp_path):
    opened = open_small(make_data(tmp_path / "many", count=100, side=32), image_size=256)
    opened.read(0)
    before = psutil.Process().memory_info().rss
    for index in range(100):  # 26 MB in all
        opened.read(index)
    assert psutil.Process().memory_info().rss - before < 8e6


def test_readings_may_be_changed_in_place(data_dir):
    opened = open_small(data_dir)
    first = opened.read(0)[0].copy()
    opened.read(0)[0][:] = 0
    assert np.array_equal(opened.read(0)[0], first)


def test_a_disk_too_small_is_refused_before_the_work(data_dir, cache, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 4 * SIZE**2, 4 * SIZE**2))
    with pytest.raises(InputError) as refusal:
        open_small(data_dir, image_size=512)
    needed = COUNT * 512**2 * 4 / 1e6
    words = f"{cache}: the pixel cache needs {needed:.1f} MB, got 0.0 MB free; set SEGLIB_CACHE to a folder on a disk with more"
    assert str(refusal.value).startswith(words)
    assert "set cache to false" in str(refusal.value)
    assert not list(cache.glob("*/"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_during_a_build_is_said_and_left_clean(data_dir, cache, monkeypatch, code):
    def refuse(*args):
        raise OSError(code, "full")

    monkeypatch.setattr(pixels, "write_json", refuse)
    with pytest.raises(InputError, match="the pixel cache needs"):
        open_small(data_dir)
    assert not list(cache.glob("*/"))


@pytest.mark.parametrize("damage", [cut, Path.unlink, lambda path: path.write_text("no image")])
def test_an_image_that_cannot_be_read_is_named_and_leaves_no_cache(data_dir, cache, damage):
    damage(data_dir / "4.png")
    with pytest.raises(InputError, match=r"4\.png: "):
        open_small(data_dir)
    assert not list(cache.glob("*/"))


def test_a_broken_annotation_is_refused_with_its_file_and_image(data_dir):
    path = data_dir / "train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 77
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"train\.json \[0\.png\]: annotation 0: class_id"):
        open_small(data_dir)


@pytest.mark.skipif(not CAMVID.exists(), reason="CamVid is not at hand")
def test_street_photographs_are_read_as_pycocotools_paints_them():
    data = load_coco(CAMVID, "val.json")
    reference = COCO(CAMVID / "val.json")
    some = replace(data, images=data.images.iloc[::20])
    opened = open_pixels(some, 128, "class_id", "ignore")
    ranks = {category: rank for rank, category in enumerate(sorted(reference.cats), start=1)}
    for index, image_id in enumerate(opened.image_ids):
        info = reference.imgs[int(image_id)]
        expected = np.full((info["height"], info["width"]), 255, np.uint8)
        for annotation in sorted(reference.imgToAnns[int(image_id)], key=lambda annotation: annotation["category_id"]):
            expected[reference.annToMask(annotation) == 1] = ranks[annotation["category_id"]]
        image, mask = opened.read(index)
        assert np.array_equal(mask, cv2.resize(expected, (128, 128), interpolation=cv2.INTER_NEAREST))
        decoded = cv2.cvtColor(cv2.imread(str(CAMVID / info["file_name"])), cv2.COLOR_BGR2RGB)
        assert np.array_equal(image, cv2.resize(decoded, (128, 128), interpolation=cv2.INTER_AREA))

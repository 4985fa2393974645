"""The fingerprint follows the content of a data set, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from seglib import files
from seglib.data.layouts import fingerprint_data
from seglib.errors import InputError, read_whole
from seglib.files import hash_file, hash_files, read_file, read_json, write_json, write_table

CAMVID = Path(__file__).parents[1].parent / "shared/data/camvid"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGLIB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data_dir(tmp_path):
    """Two JSON files that share an image; what the images hold does not matter here."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    for name in ("a", "b", "c"):
        (folder / f"images/{name}.jpg").write_bytes(name.encode() * 1000)
    write_coco(folder / "train.json", ["images/a.jpg", "images/b.jpg"])
    write_coco(folder / "val.json", ["images/b.jpg", "images/c.jpg"])
    return folder


@pytest.fixture
def reads(monkeypatch):
    """The paths whose content is hashed, with files counted as settled from the start."""
    paths = []
    monkeypatch.setattr(files, "SETTLED", -1.0)
    monkeypatch.setattr(files, "hash_file", lambda path: paths.append(str(path)) or hash_file(path))
    return paths


def write_coco(path: Path, file_names: list[str]) -> None:
    images = [{"id": index, "file_name": name} for index, name in enumerate(file_names)]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))


def both(data_dir: Path) -> str:
    return fingerprint_data(data_dir, ["train.json", "val.json"])


def test_a_copy_elsewhere_with_other_times_has_the_same_fingerprint(data_dir, tmp_path):
    before = both(data_dir)
    copy = tmp_path / "elsewhere" / "copied"
    shutil.copytree(data_dir, copy, copy_function=shutil.copyfile)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    assert both(copy) == before
    assert len(before) == 32


@pytest.mark.parametrize("name", ["images/a.jpg", "images/c.jpg", "train.json", "val.json"])
def test_any_changed_byte_changes_the_fingerprint(data_dir, name):
    before = both(data_dir)
    path = data_dir / name
    path.write_bytes(path.read_bytes() + b" ")
    assert both(data_dir) != before


def test_files_that_no_json_names_do_not_count(data_dir):
    before = both(data_dir)
    (data_dir / "images/notes.txt").write_text("new")
    assert both(data_dir) == before


def test_swapped_images_and_swapped_json_files_are_seen(data_dir):
    before = both(data_dir)
    assert fingerprint_data(data_dir, ["val.json", "train.json"]) != before
    contents = [(data_dir / f"images/{name}.jpg").read_bytes() for name in "ab"]
    for name, content in zip("ba", contents, strict=True):
        (data_dir / f"images/{name}.jpg").write_bytes(content)
    assert both(data_dir) != before


def test_a_missing_image_is_hashed_as_missing(data_dir):
    before = both(data_dir)
    (data_dir / "images/a.jpg").unlink()
    missing = both(data_dir)
    assert missing != before
    (data_dir / "images/a.jpg").mkdir()
    assert both(data_dir) == missing


@pytest.mark.parametrize("name", ["../secret.jpg", "images/../../secret.jpg", "{outside}", "images/link.jpg"])
def test_images_outside_the_folder_are_not_read(data_dir, reads, name):
    secret = data_dir.parent / "secret.jpg"
    (data_dir / "images/link.jpg").symlink_to(secret)
    write_coco(data_dir / "train.json", ["images/a.jpg", name.format(outside=secret)])
    before = fingerprint_data(data_dir, ["train.json"])
    secret.write_bytes(b"private")
    assert fingerprint_data(data_dir, ["train.json"]) == before
    assert not any("secret" in path for path in reads)


def test_only_changed_files_are_read_again(data_dir, reads):
    first = both(data_dir)
    assert len(reads) == 5
    reads.clear()
    assert both(data_dir) == first
    assert reads == []
    (data_dir / "images/b.jpg").write_bytes(b"B" * 1000)
    assert both(data_dir) != first
    assert reads == [str(data_dir / "images/b.jpg")]


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_change_that_keeps_size_and_mtime_is_seen(data_dir, reads, how):
    path = data_dir / "images/a.jpg"
    first, stat = hash_files([path]), path.stat()
    time.sleep(0.05)  # past the tick of the file system's clock
    target = path if how == "in place" else path.with_suffix(".new")
    target.write_bytes(b"A" * stat.st_size)
    os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    target.rename(path)
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert hash_files([path]) == [hash_file(path)] != first


def test_a_file_written_just_now_is_not_remembered(data_dir):
    path = data_dir / "images/a.jpg"
    hash_files([path])
    path.write_bytes(b"A" * path.stat().st_size)  # perhaps within the same tick: the stat may not have changed
    assert hash_files([path]) == [hash_file(path)]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"x": 1}', b"\xff\xfe\x00", b'{"PATH": [1, 2]}'])
def test_a_damaged_cache_of_hashes_is_made_again(data_dir, reads, damage, tmp_path):
    first = both(data_dir)
    known = tmp_path / "cache/file_hashes.json"
    known.write_bytes(damage.replace(b"PATH", str(data_dir / "train.json").encode()))
    assert both(data_dir) == first
    reads.clear()
    assert both(data_dir) == first
    assert reads == []


def test_writers_at_the_same_time_do_not_damage_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SETTLED", -1.0)
    paths = [tmp_path / f"{index}.bin" for index in range(60)]
    for index, path in enumerate(paths):
        path.write_bytes(bytes([index]) * 50)
    with ThreadPoolExecutor(8) as pool:
        hashed = list(pool.map(lambda start: hash_files(paths[start::12]), range(12)))
    assert hashed == [[hash_file(path) for path in paths[start::12]] for start in range(12)]
    remembered = read_json(tmp_path / "cache/file_hashes.json")
    assert all(entry[-1] == hash_file(path) for path, entry in remembered.items())


def test_hashes_keep_the_order_of_the_paths_and_missing_ones_are_empty(data_dir):
    paths = [
        data_dir / "images/c.jpg",
        data_dir / "nowhere/x.jpg",
        data_dir / "images/a.jpg",
        data_dir / "images/c.jpg",
    ]
    c, a = hash_file(paths[0]), hash_file(paths[2])
    assert hash_files(paths) == [c, "", a, c]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "unknown JSON file 'train.json'"),
        ("{", "must be JSON, got a file that breaks at line 1"),
        ("[]", "must hold a JSON object with `images` and `categories`"),
        ('{"images": [{"id": 1}]}', "`images` must be a list of objects with a `file_name`"),
        ('{"images": ["a.jpg"]}', "`images` must be a list of objects with a `file_name`"),
    ],
)
def test_a_json_that_is_not_coco_is_refused_in_one_line(tmp_path, content, words):
    if content is not None:
        (tmp_path / "train.json").write_text(content)
    with pytest.raises(InputError) as refusal:
        fingerprint_data(tmp_path, ["train.json"])
    assert str(refusal.value).startswith(f"{tmp_path if content is None else tmp_path / 'train.json'}: {words}")


def test_an_image_that_cannot_be_read_is_named(data_dir, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "hash_file", refuse)
    with pytest.raises(InputError, match=r"a\.jpg: the file cannot be read \(Permission denied\)"):
        hash_files([data_dir / "images/a.jpg"])


def test_without_a_cache_that_can_be_written_all_goes_on_and_one_line_says_so(data_dir, reads, monkeypatch, capsys):
    expected = both(data_dir)
    monkeypatch.setenv("SEGLIB_CACHE", str(data_dir / "train.json"))
    assert both(data_dir) == both(data_dir) == expected
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{data_dir / 'train.json'}: cannot be written to (") and "set SEGLIB_CACHE" in line


def test_threads_that_cannot_cache_say_so_once(tmp_path, capsys):
    gate = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: (gate.wait(), files.report_no_cache(tmp_path, "full")), range(8)))
    assert capsys.readouterr().out.count("SEGLIB_CACHE") == 1


def test_json_comes_back_and_its_checksum_does_not(tmp_path):
    value = {"miou": 0.1 + 0.2, "iou": {"비닐": None, "half \udc80": [1, 2**70]}, "4": "\u202e"}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    write_json(tmp_path / "a.json", json.loads((tmp_path / "a.json").read_text()) | {"more": 1})
    assert read_json(tmp_path / "a.json") == value | {"more": 1}


@pytest.mark.parametrize("value", [{"an": "older file"}, {}, [1], "text", None])
def test_json_without_a_checksum_is_read_as_it_is(tmp_path, value):
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": 1, "checksum": "0"}', "a.json: is not what was written; if you changed it, delete its checksum"),
        ('{"a": 1, "b": [1, 2', "a.json: is truncated"),
        ('{"a": "some te', "a.json: is truncated"),
        ("", "a.json: is truncated"),
        ("{'a': 1}", "a.json: is no JSON: Expecting property name"),
        ("\udcff", "a.json: is no JSON: "),
        ("[" * 100_000, "a.json: is no JSON: "),
    ],
)
def test_json_that_is_damaged_is_refused_in_a_line(tmp_path, content, words):
    (tmp_path / "a.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=words) as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_pipes_and_devices_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(InputError, match="required a file, got a pipe or a device"):
            read_file(path)


def test_importing_it_leaves_the_slow_libraries_alone():
    code = "import sys, seglib.files; print({'torch', 'pandas', 'cv2', 'pycocotools', 'numpy'} & {*sys.modules})"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


@pytest.mark.skipif(not CAMVID.exists(), reason="CamVid is not at hand")
def test_camvid_is_fingerprinted_in_a_moment_the_second_time(reads):
    first = fingerprint_data(CAMVID, ["train.json", "val.json"])
    assert len(reads) == 2 + 367 + 101
    reads.clear()
    assert fingerprint_data(CAMVID, ["train.json", "val.json"]) == first
    assert reads == []


def test_a_table_keeps_its_numbers_and_no_text_of_it_is_a_formula(tmp_path):
    names = ["=HYPERLINK(1)", "+1+cmd", "@SUM(A1)", "-x", "\tx", "Glass, brown", '"quoted"']
    table = pd.DataFrame({"class": names, "=iou": -np.arange(7.0) / 3})
    write_table(tmp_path / "t.csv", table)
    back = pd.read_csv(tmp_path / "t.csv")
    assert back["class"].tolist() == [f"'{name}" for name in names[:5]] + names[5:]
    assert [*back] == ["class", "'=iou"] and back["'=iou"].tolist() == table["=iou"].tolist()
    plain = pd.DataFrame({"a": [1.5, np.nan], "b": ["x", None]}, index=pd.Index(["r", "s"], name="row"))
    write_table(tmp_path / "p.csv", plain)
    assert (tmp_path / "p.csv").read_text() == plain.to_csv()


@pytest.mark.parametrize("text", ["abc", "-1", "1.5", "9" * 5000, " "])
def test_a_variable_that_is_no_whole_number_is_refused_by_its_name(monkeypatch, text):
    monkeypatch.setenv("SEGLIB_RUNS_AT_ONCE", text)
    with pytest.raises(InputError, match=r"SEGLIB_RUNS_AT_ONCE must be a whole number from 0, got .*unset"):
        read_whole("SEGLIB_RUNS_AT_ONCE", 1)


def test_a_variable_that_is_not_set_or_empty_has_its_default(monkeypatch):
    monkeypatch.delenv("SEGLIB_STOP_AFTER", raising=False)
    assert read_whole("SEGLIB_STOP_AFTER", 3) == 3
    monkeypatch.setenv("SEGLIB_STOP_AFTER", "")
    assert read_whole("SEGLIB_STOP_AFTER", 3) == 3
    monkeypatch.setenv("SEGLIB_STOP_AFTER", "7")
    assert read_whole("SEGLIB_STOP_AFTER", 3) == 7

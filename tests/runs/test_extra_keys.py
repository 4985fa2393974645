"""Grids over extra sets and specialists: keys follow the content, a dry run stays light and says all mistakes."""

import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from seglib.files import PROJECT
from seglib.parameters import read_defaults
from seglib.runs.keys import compute_keys
from seglib.runs.record import summarise_key

NOTEBOOK = PROJECT / "notebooks" / "02_train.ipynb"
DEFAULTS = read_defaults(NOTEBOOK)


@pytest.fixture
def extra(tmp_path):
    """A set of one image with two categories, in tmp_path/extra."""
    folder = tmp_path / "extra"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), np.zeros((8, 8, 3), np.uint8))
    annotation = {
        "id": 0,
        "image_id": 0,
        "category_id": 0,
        "segmentation": [[0, 0, 4, 0, 4, 4]],
        "area": 8,
        "iscrowd": 0,
    }
    content = {"images": [{"id": 0, "file_name": "a.png", "width": 8, "height": 8}], "annotations": [annotation],
               "categories": [{"id": 0, "name": "Can"}, {"id": 1, "name": "Bottle"}]}  # fmt: skip
    (folder / "extra.json").write_text(json.dumps(content))
    return folder


def key(folder, json_name="extra.json", **options):
    entry = {"data_dir": str(folder), "json": json_name, "classes": {"Can": "Metal"}} | options
    return summarise_key(compute_keys(NOTEBOOK, [DEFAULTS | {"extra_data": [entry]}])[0])


def test_a_set_elsewhere_is_the_same_run(extra, tmp_path):
    before = key(extra)
    shutil.copytree(extra, tmp_path / "moved")
    (tmp_path / "moved" / "extra.json").rename(tmp_path / "moved" / "renamed.json")
    assert key(tmp_path / "moved", "renamed.json") == before


def test_other_pixels_labels_or_options_are_another_run(extra):
    keys = [key(extra), key(extra, weight=0.5), key(extra, classes={"Can": "Glass"}), key(extra, min_confidence=0.5)]
    cv2.imwrite(str(extra / "a.png"), np.full((8, 8, 3), 9, np.uint8))
    keys.append(key(extra))
    (extra / "extra.json").write_text((extra / "extra.json").read_text().replace("[0, 0, 4", "[1, 0, 4"))
    keys += [key(extra), summarise_key(compute_keys(NOTEBOOK, [DEFAULTS])[0])]
    assert len(set(keys)) == len(keys)


def write_grid(path, axes):
    path.write_text(f"notebook: {NOTEBOOK}\nfixed: {{data_dir: synthetic}}\ngrid: {json.dumps(axes)}\n")
    return path


def test_a_dry_run_names_the_runs_and_imports_nothing_heavy(extra, tmp_path):
    entry = {"data_dir": "extra", "json": "extra.json", "weight": 0.5, "classes": {"Can": "Metal"}}
    grid = write_grid(tmp_path / "g.yaml", {"extra_data": [[], [entry]], "focus_classes": [[], ["Metal", "Battery"]]})
    code = (
        f"import sys; sys.path.insert(0, {str(PROJECT)!r}); import run_grid\n"
        f"try: run_grid.main([{str(grid)!r}, '--dry-run', '--set', 'encoder_weights=', '--outputs', {str(tmp_path / 'out')!r}])\n"
        "finally: print([name for name in ('torch', 'numpy', 'pandas', 'cv2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
    for extra_name in ("none", "extra.extra@weight0.5@classes"):
        for focus_name in ("none", "Metal-Battery"):
            assert f"extra_data={extra_name}" in done.stdout
            assert f"focus_classes={focus_name}" in done.stdout


def test_mistakes_are_told_before_anything_starts(extra, tmp_path, call):
    entry = {"data_dir": str(extra), "json": "extra.json"}
    sets = [[entry | {"classes": {"Can": "Metl"}}], [entry], [entry | {"weight": 0}]]
    outcome = call(write_grid(tmp_path / "g.yaml", {"extra_data": sets, "focus_classes": [["Batery"]]}), "--dry-run")
    assert outcome.code == 2
    for words in (
        "extra_data[0].classes.Can: unknown class 'Metl'; did you mean 'Metal'",
        "extra_data[0] must have categories that are classes of the training data, got Can, Bottle",
        "extra_data[0].weight must be above 0.0, got 0",
        "unknown class in focus_classes 'Batery'",
    ):
        assert words in outcome.err

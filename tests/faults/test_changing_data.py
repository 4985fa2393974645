"""Data that changes while a grid runs: no result of the old data stands beside those of the new."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from seglib.runs import engine
from seglib.runs.record import read_record

PARAMETERS = (
    'data_dir: str = ""\ntrain_json: str = "train.json"\nval_json: str = "val.json"\nsplit: str = "given"\n'
    'do: str = "ok"\nseed: int = 21\nrun_dir: str = ""\n'
)
FINAL = "of 3 runs are outdated: data or code changed while the grid ran; the same command runs them again\n"


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_folders(folder):
    """A mask-folder data set of one image in each of train and val."""
    for split in ("train", "val"):
        save(folder / "images" / split / "a.png", np.zeros((8, 8, 3), np.uint8))
        save(folder / "masks" / split / "a.png", np.eye(8, dtype=np.uint8))
    (folder / "classes.json").write_text('["background", "can"]')
    return {"train_json": "train", "val_json": "val"}


def make_coco(folder, small_data):
    shutil.copytree(small_data, folder)
    return {}


def change_image(folder):
    path = next(
        path for path in sorted(folder.rglob("*")) if path.suffix in (".png", ".jpg") and "masks" not in str(path)
    )
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).copy()
    save(path, 255 - pixels)


def change_labels(folder):
    """A mask, or a class's name in the JSON."""
    mask, path = folder / "masks/train/a.png", folder / "train.json"
    if mask.exists():
        save(mask, np.fliplr(np.eye(8, dtype=np.uint8)))
    else:
        content = json.loads(path.read_text())
        content["annotations"].pop()
        path.write_text(json.dumps(content))


@pytest.fixture(params=["coco", "mask folder"])
def data(request, tmp_path, small_data):
    """(folder, the parameters that name it)."""
    folder = tmp_path / "data"
    values = make_coco(folder, small_data) if request.param == "coco" else make_folders(folder)
    return folder, {"data_dir": str(folder), **values}


def board(folder):
    with open(folder / "leaderboard.csv") as file:
        return {row["run"]: row["status"] for row in csv.DictReader(file)}


@pytest.fixture
def path(write_grid, write_notebook, stand_in, tmp_path, data):
    """A grid of three runs, and a step that keeps the leaderboard as it finds it."""
    copy = "import shutil; shutil.copy(os.path.dirname(folder) + '/leaderboard.csv', folder)"
    stand_in.write_text(f"{stand_in.read_text()}\nif 'grid_dir' in job['parameters']: {copy}\n")
    notebook = write_notebook(tmp_path / "notebook.ipynb", parameters=PARAMETERS)
    step = write_notebook(tmp_path / "look.ipynb", parameters='grid_dir: str = ""\noutput_dir: str = ""\n')
    runs = "[{do: ok, seed: 1}, {do: ok, seed: 2}, {do: slow, seed: 1}]"
    text = f"runs: {runs}\nbaseline: {{do: ok}}\nthen: [{{notebook: {step}}}]"
    return write_grid(f"fixed: {json.dumps(data[1])}\n{text}", notebook)


@pytest.mark.parametrize("change", [change_image, change_labels])
@pytest.mark.parametrize(("place", "outdated"), [("_keys_changed", 2), ("_make_room", 3)])
def test_runs_of_the_old_data_are_outdated_at_once(call, path, data, grid_folder, monkeypatch, change, place, outdated):
    """Before the last run looks, and after: its stand-in does not look again."""
    assert call(path, "--only", "do=ok").code == 0
    whole = getattr(engine, place)

    def change_first(*given):
        change(data[0])
        return whole(*given)

    with monkeypatch.context() as patch:
        patch.setattr(engine, place, change_first)
        result = call(path)
    assert result.code == 1 and result.out.endswith(f"{outdated} {FINAL}") and "better" not in result.out
    statuses = board(grid_folder)
    assert sorted(statuses.values()) == ["ok"] * (3 - outdated) + ["outdated"] * outdated
    assert "outdated" in (grid_folder / "index.html").read_text()
    assert outdated == 3 or board(grid_folder / "look") == statuses
    again = call(path)
    assert again.code == 0 and {*board(grid_folder).values()} == {"ok"}
    assert f"3 runs, {3 - outdated} done before, {outdated} to go" in again.out


@pytest.mark.parametrize("back", [False, True])
def test_a_run_whose_data_changes_while_it_goes_on_is_outdated(
    tmp_path, write_notebook, write_grid, start_grid, grid_folder, small_data, back
):
    """Its notebook changes the data, once: before it opens them and after, or back to what they were."""
    shutil.copytree(small_data, tmp_path / "data")
    names = sorted((tmp_path / "data").rglob("*.png"))[:1] or sorted((tmp_path / "data").rglob("*.jpg"))[:1]
    body = (
        f"from seglib import fingerprint_sets\nimage, once = Path({str(names[0])!r}), Path(run_dir, '../changed')\n"
        "before = image.read_bytes()\nif not once.exists(): image.write_bytes(before + b'0')\n"
        "found = fingerprint_sets(data_dir, [train_json, val_json], [])\n"
        f"if {back}: image.write_bytes(before)\nelif not once.exists(): image.write_bytes(before + b'11')\nonce.touch()\n"
    )
    result = "save_result(run_dir, data_hash=found, metrics={'miou': 0.5})"
    notebook = write_notebook(tmp_path / "notebook.ipynb", body, PARAMETERS, result)
    path = write_grid(f"fixed: {{data_dir: {tmp_path}/data, seed: 1}}", notebook)
    out, _ = (runner := start_grid(path)).communicate(timeout=90)
    assert runner.returncode == 1 and out.endswith(f"1 {FINAL.replace('3', '1')}"), out
    assert board(grid_folder) == {"run": "outdated"} and read_record(grid_folder / "run")["status"] == "ok"
    out, _ = (runner := start_grid(path)).communicate(timeout=90)
    assert runner.returncode == 0 and board(grid_folder) == {"run": "ok"}, out

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seglib.data.dataset import Subset
from seglib.errors import InputError
from seglib.evaluation.metrics import save_confusion
from seglib.inference import predict_run
from seglib.inference.predict_run import choose_size, predict_validation
from seglib.inference.runs import find_index, find_members, spread_weights
from seglib.inference.stores import describe_store, open_store, write_store

CLASSES = ["Background", "Paper", "Metal"]


def make_run(folder, miou=0.5, *, status="ok", classes=CLASSES, ids=(1, 2, 3), pixels=10, **params):
    folder.mkdir(parents=True)
    params = {"image_size": 64, "split": "given", "folds": 5, "fold": 0, "seed": 1, "paint_order": "class_id",
              "background": "class", "run_dir": str(folder), **params}  # fmt: skip
    record = {"status": status, "params": params, "metrics": {"miou": miou}}
    (folder / "record.json").write_text(json.dumps(record))
    confusion = np.full((len(ids), len(classes), len(classes)), pixels)
    save_confusion(folder / "confusion.npz", confusion, np.array(ids), classes)
    return folder


def write_board(grid):
    with open(grid / "leaderboard.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "status"])
        for folder in sorted(path for path in grid.iterdir() if path.is_dir() and not path.name.startswith("old")):
            writer.writerow([folder.name, json.loads((folder / "record.json").read_text())["status"]])
    return grid


def names_of(members):
    return [member.name for member in members]


def test_listed_runs_take_part_in_the_order_given(tmp_path):
    folders = [make_run(tmp_path / "g" / name, miou) for name, miou in (("a", 0.3), ("b", 0.5))]
    members, specialists = find_members([str(folder) for folder in folders])
    assert (names_of(members), specialists) == (["a", "b"], [])
    assert find_index(members, "b") == 1
    with pytest.raises(InputError, match="unknown member 'c'"):
        find_index(members, "c")


def test_of_a_grid_the_best_runs_take_part_that_are_ok_in_its_leaderboard(tmp_path):
    for name, miou in (("a", 0.3), ("b", 0.5), ("c", 0.4), ("old.1", 0.9)):
        make_run(tmp_path / "g" / name, miou)
    make_run(tmp_path / "g" / "d", 0.8, status="failed")
    write_board(tmp_path / "g")
    assert names_of(find_members(str(tmp_path / "g"))[0]) == ["b", "c", "a"]
    assert names_of(find_members(str(tmp_path / "g"), top=2)[0]) == ["b", "c"]


def test_a_run_that_is_named_and_not_ok_is_refused(tmp_path):
    folder = make_run(tmp_path / "a", status="killed")
    with pytest.raises(InputError, match=r"required runs that are ok, got .*a \(killed\)"):
        find_members([str(folder)])
    with pytest.raises(InputError, match=r"without leaderboard\.csv or record\.json"):
        find_members([str(tmp_path / "nothing")])
    with pytest.raises(InputError, match="no run twice; refused: b"):
        find_members([str(make_run(tmp_path / "b"))] * 2)


def test_folds_of_one_condition_are_one_member(tmp_path):
    for fold in (1, 0, 2):
        for seed in (1, 2):
            name = f"seed={seed},fold={fold}"
            make_run(tmp_path / "g" / name, seed / 10, ids=(fold,), split="kfold", folds=3, fold=fold, seed=seed)
    members, _ = find_members(str(write_board(tmp_path / "g")))
    assert names_of(members) == ["seed=2 (3 folds)", "seed=1 (3 folds)"]
    assert [folder.name for folder in members[0].folders] == ["seed=2,fold=0", "seed=2,fold=1", "seed=2,fold=2"]
    assert members[0].miou == pytest.approx(0.2)


def test_missing_folds_are_refused_and_one_fold_alone_is_a_run(tmp_path):
    one = make_run(tmp_path / "fold=0", split="kfold", folds=3, fold=0)
    assert names_of(find_members([str(one)])[0]) == ["fold=0"]
    two = make_run(tmp_path / "fold=2", split="kfold", folds=3, fold=2)
    with pytest.raises(InputError, match=r"the folds \[0, 1, 2\] of fold=0.*got \[0, 2\]"):
        find_members([str(one), str(two)])
    again = make_run(tmp_path / "again", split="kfold", folds=3, fold=0)
    with pytest.raises(InputError, match=r"each once.*got \[0, 0\]"):
        find_members([str(one), str(again)])


def test_all_that_do_not_fit_the_first_are_refused_in_one_line(tmp_path):
    folders = [
        make_run(tmp_path / "first"),
        make_run(tmp_path / "names", classes=["Background", "Metal", "Paper"]),
        make_run(tmp_path / "images", ids=(1, 2)),
        make_run(tmp_path / "painted", paint_order="area"),
        make_run(tmp_path / "counted", pixels=11),
        make_run(tmp_path / "larger", image_size=128, pixels=40),
    ]
    with pytest.raises(InputError) as caught:
        find_members([str(folder) for folder in folders])
    text = str(caught.value)
    assert "\n" not in text
    assert (
        "required the classes, validation images and masks of first; refused: names (classes Background, Metal, Paper);"
        in text
    )
    assert (
        "images (2 validation images); painted (masks: paint_order area); counted (masks: other pixels); leave" in text
    )


def test_specialists_stand_apart_and_runs_of_one_name_get_their_grids(tmp_path):
    paper = make_run(tmp_path / "s" / "a", 0.9, classes=["Background", "Paper"], focus_classes=["Paper"])
    folders = [make_run(tmp_path / "g" / "a"), make_run(tmp_path / "h" / "b"), paper]
    members, specialists = find_members([str(folder) for folder in folders], top=2)
    assert (names_of(members), names_of(specialists)) == (["g/a", "b"], ["s/a"])
    assert specialists[0].focus_classes == ["Paper"]
    with pytest.raises(InputError, match="required a run of all classes, got 1 specialists"):
        find_members([str(paper)])


def test_a_members_weight_is_divided_among_its_folds():
    members = [SimpleNamespace(folders=(1, 2)), SimpleNamespace(folders=(3,))]
    assert spread_weights(members, [0.5, 2]).tolist() == [0.25, 0.25, 2]
    assert spread_weights(members, np.array([[1, 0], [2, 3]])).tolist() == [[0.5, 0], [0.5, 0], [2, 3]]


def test_members_are_merged_at_the_size_asked_for_or_the_largest(tmp_path):
    folders = [make_run(tmp_path / f"{size}", image_size=size) for size in (64, 96)]
    members, _ = find_members([str(folder) for folder in folders])
    assert (choose_size(members), choose_size(members, 32)) == (96, 32)


def test_folds_predict_all_images_each_by_the_model_that_did_not_see_it(tmp_path, monkeypatch):
    folds = {0: [3, 1], 1: [0, 2]}
    for fold, ids in folds.items():
        make_run(tmp_path / f"fold={fold}", ids=ids, split="kfold", folds=2, fold=fold)
    pixels = SimpleNamespace(image_ids=np.arange(4), image_size=64)

    def load(folder, data_dir):
        fold = int(folder.name[-1])
        return SimpleNamespace(fold=fold, val_images=Subset(SimpleNamespace(), pixels, np.sort(folds[fold])))

    def predict(run, images, *, device, size):
        ids = images.image_ids
        about = describe_store(ids, [f"{i}.jpg" for i in ids], CLASSES, size, "uint8", {})
        array = np.full((len(ids), 3, size, size), 10 * run.fold, np.uint8) + ids[:, None, None, None].astype(np.uint8)
        write_store(tmp_path / f"store{run.fold}", about, lambda start: iter([array]), 4)
        return open_store(tmp_path / f"store{run.fold}")

    monkeypatch.setattr(predict_run, "load_finished_run", load)
    monkeypatch.setattr(predict_run, "predict_run", predict)
    members, _ = find_members([str(tmp_path / "fold=0"), str(tmp_path / "fold=1")])
    (store,), truth = predict_validation(members, device=torch.device("cpu"), size=4)
    assert truth.image_ids.tolist() == store.image_ids.tolist() == [0, 1, 2, 3]
    assert store.file_names == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert np.round(255 * store.read(0, 4)[:, 0, 0, 0]).tolist() == [10, 1, 12, 3]

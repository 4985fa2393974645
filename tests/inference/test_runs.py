import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seglib.data.dataset import Subset
from seglib.errors import InputError
from seglib.evaluation.metrics import load_confusion, save_confusion
from seglib.files import write_json
from seglib.inference.analysis import ErrorAnalysis
from seglib.inference.ensemble import open_ensemble
from seglib.inference.runs import (
    find_index,
    find_members,
    find_newest_run,
    load_finished_run,
    prepare_output_dir,
    require_same_images,
)
from seglib.training.checkpoint import hash_weights, load_checkpoint, save_checkpoint

CLASSES = ["Background", "Paper", "Metal"]


def change_record(folder, **fields):
    record = json.loads((folder / "record.json").read_text())
    write_json(folder / "record.json", record | fields)


def test_a_run_opens_with_its_images_weights_and_counts(run_dir):
    run = load_finished_run(run_dir)
    confusion, image_ids, class_names = load_confusion(run_dir / "confusion.npz")
    np.testing.assert_array_equal(run.val_images.image_ids, image_ids)
    np.testing.assert_array_equal(run.confusion, confusion)
    assert run.class_names == class_names
    assert (run.image_size, run.batch_size) == (64, 4)
    best = load_checkpoint(run_dir / "best.pt", required=("model",))["model"]
    assert all(torch.equal(weight, best[name]) for name, weight in run.model.state_dict().items())
    assert not run.model.training


def test_masks_are_paired_with_predictions_in_order(run_dir):
    run = load_finished_run(run_dir)
    preds = np.arange(len(run.val_images), dtype=np.uint8)[:, None, None] * np.ones((64, 64), np.uint8)
    for position, (truth, pred) in enumerate(ErrorAnalysis.pairs(SimpleNamespace(run=run, preds=preds))):
        np.testing.assert_array_equal(truth, run.val_images.read(position)[1])
        assert (pred == position).all()


def test_a_debug_run_is_opened_with_its_share_of_the_images_and_its_batches(run_dir, monkeypatch):
    monkeypatch.setattr(Subset, "take_debug_share", lambda self: Subset(self.data, self.pixels, self.indices[::2]))
    confusion, image_ids, class_names = load_confusion(run_dir / "confusion.npz")
    save_confusion(run_dir / "confusion.npz", confusion[::2], image_ids[::2], class_names)
    params = json.loads((run_dir / "record.json").read_text())["params"] | {"debug": True, "batch_size": 16}
    change_record(run_dir, params=params, train_images=12)
    run = load_finished_run(run_dir)
    np.testing.assert_array_equal(run.val_images.image_ids, image_ids[::2])
    assert run.batch_size == 3  # a quarter of the training images


def test_data_that_moved_is_found_where_it_is_now(run_dir, small_data, tmp_path):
    moved = shutil.copytree(small_data, tmp_path / "moved")
    params = json.loads((run_dir / "record.json").read_text())["params"]
    change_record(run_dir, params=params | {"data_dir": str(tmp_path / "gone")})
    with pytest.raises(InputError, match="gone"):
        load_finished_run(run_dir)
    assert load_finished_run(run_dir, str(moved)).val_images.data.data_dir == moved


def test_a_run_is_opened_with_the_folds_of_its_split_seed_which_was_its_seed_before(
    make_scored_run, small_data, tmp_path
):
    folder = make_scored_run(tmp_path / "run", small_data, 3, split="holdout", split_seed=7)
    val_ids = load_finished_run(folder).val_images.image_ids
    params = json.loads((folder / "record.json").read_text())["params"]
    before = {name: value for name, value in params.items() if name != "split_seed"}
    change_record(folder, params=before | {"seed": 7})
    np.testing.assert_array_equal(load_finished_run(folder).val_images.image_ids, val_ids)
    change_record(folder, params=params | {"split_seed": 8, "seed": 7})
    with pytest.raises(InputError, match="validation images that the run was scored on"):
        load_finished_run(folder)


def test_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"required a run's folder, got one without record\.json"):
        load_finished_run(tmp_path)


def test_a_run_that_failed_is_refused_with_its_own_words(run_dir):
    change_record(run_dir, status="failed", error="ValueError: no")
    with pytest.raises(InputError, match=r"required a run that is ok, got failed \(ValueError: no\)"):
        load_finished_run(run_dir)


@pytest.mark.parametrize("name", ["best.pt", "confusion.npz"])
def test_a_run_without_its_files_is_refused(run_dir, name):
    (run_dir / name).unlink()
    with pytest.raises(InputError, match=f"required a training run, got a folder without {name}"):
        load_finished_run(run_dir)


def test_the_record_of_another_notebook_is_refused(run_dir):
    write_json(run_dir / "record.json", {"status": "ok", "params": {}})
    with pytest.raises(InputError, match=r"got a folder without `weights_sha256` in record\.json and `precision`"):
        load_finished_run(run_dir)


def test_weights_that_are_not_the_record_s_are_refused(run_dir):
    best = load_checkpoint(run_dir / "best.pt", required=("model",))
    next(iter(best["model"].values())).add_(1)
    save_checkpoint(run_dir / "best.pt", best)
    with pytest.raises(InputError, match=r"best\.pt: required the weights that record\.json names, got others"):
        load_finished_run(run_dir)


def test_weights_of_a_model_that_is_built_otherwise_now_are_refused(run_dir):
    best = load_checkpoint(run_dir / "best.pt", required=("model",))
    del best["model"]["mean"]
    save_checkpoint(run_dir / "best.pt", best)
    change_record(run_dir, weights_sha256=hash_weights(best["model"]))
    with pytest.raises(
        InputError,
        match=r"best\.pt: required weights of FPN as it is built now, got others \(Missing.*a file of `parts`",
    ):
        load_finished_run(run_dir)


def test_other_validation_images_are_refused(run_dir):
    confusion, image_ids, class_names = load_confusion(run_dir / "confusion.npz")
    save_confusion(run_dir / "confusion.npz", confusion[1:], image_ids[1:], class_names)
    with pytest.raises(InputError, match="validation images that the run was scored on"):
        load_finished_run(run_dir)


def test_other_classes_are_refused(run_dir):
    confusion, image_ids, class_names = load_confusion(run_dir / "confusion.npz")
    save_confusion(run_dir / "confusion.npz", confusion, image_ids, [*class_names[:-1], "Else"])
    with pytest.raises(InputError, match=r"required data with the run's classes .*Else"):
        load_finished_run(run_dir)


def test_the_newest_run_is_the_one_that_ended_last(two_runs):
    outputs = two_runs[0].parents[1]
    assert find_newest_run(outputs) == two_runs[1]


def test_an_unfinished_run_is_not_the_newest(two_runs, tmp_path):
    outputs = shutil.copytree(two_runs[0].parents[1], tmp_path / "outputs")
    change_record(outputs / "grid" / "seed=2", status="failed")
    assert find_newest_run(outputs) == outputs / "grid" / "seed=1"


def test_without_a_finished_run_it_is_said_what_to_do(tmp_path):
    with pytest.raises(InputError, match="required a finished training run, got none; train one, or set run_dir"):
        find_newest_run(tmp_path)


def test_results_go_into_a_folder_of_the_run_unless_another_is_named(run_dir, tmp_path):
    assert prepare_output_dir("", run_dir, "03_x") == run_dir / "03_x"
    assert prepare_output_dir(str(tmp_path / "a" / "b"), run_dir, "03_x").is_dir()


def test_results_never_go_into_a_run_s_own_folder(run_dir):
    with pytest.raises(InputError, match="is the folder of a training run; required another folder"):
        prepare_output_dir(str(run_dir), run_dir, "03_x")


def test_runs_on_the_same_masks_can_be_compared_and_others_not(two_runs, run_dir):
    run, other = load_finished_run(run_dir), load_finished_run(two_runs[1])
    require_same_images(run, other)
    other.record["params"]["paint_order"] = "area"
    with pytest.raises(InputError, match=r"compare_with .*: required the paint_order of"):
        require_same_images(run, other)


# Who takes part in an ensemble.


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
    with pytest.raises(InputError, match=r"members .*a: required a run that is ok, got killed"):
        find_members([str(folder)])
    with pytest.raises(InputError, match=r"members .*nothing: required .* without record\.json or leaderboard\.csv"):
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


def test_folds_of_runs_before_there_was_a_split_seed_join_those_of_today(tmp_path):
    division = {"split": "kfold", "folds": 2}
    make_run(tmp_path / "g" / "fold=0", ids=(0,), fold=0, **division)
    make_run(tmp_path / "g" / "fold=1", ids=(1,), fold=1, split_seed=1, **division)
    make_run(tmp_path / "g" / "seed=2,fold=0", ids=(0,), fold=0, seed=2, split_seed=1, **division)
    make_run(tmp_path / "g" / "seed=2,fold=1", ids=(1,), fold=1, seed=2, split_seed=1, **division)
    members, _ = find_members(str(write_board(tmp_path / "g")))
    assert sorted(names_of(members)) == ["g (2 folds)", "seed=2 (2 folds)"]


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


def test_members_are_merged_at_the_size_asked_for_or_the_largest(tmp_path):
    folders = [make_run(tmp_path / f"{size}", image_size=size) for size in (64, 96)]
    sizes = [open_ensemble(folders, size=size).options["size"] for size in (0, 32)]
    assert sizes == [96, 32]

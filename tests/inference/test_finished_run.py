import json
import shutil

import numpy as np
import pytest
import torch

from seglib.data.dataset import Subset
from seglib.errors import InputError
from seglib.evaluation.metrics import load_confusion, save_confusion
from seglib.files import write_json
from seglib.inference.runs import find_newest_run, load_finished_run, prepare_output_dir, require_same_images
from seglib.training.checkpoint import hash_weights, load_checkpoint, save_checkpoint


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
    for position, (truth, pred) in enumerate(run.pair_masks(preds)):
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

"""notebooks/04_ensemble.ipynb, executed as a person would, on two runs that nobody trained."""

import json
import shutil

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from sklearn.metrics import jaccard_score

from seglib.data.coco import load_coco
from seglib.data.dataset import open_data
from seglib.data.verify import verify_coco
from seglib.files import PROJECT
from seglib.submission import validate_submission

NOTEBOOK = PROJECT / "notebooks" / "04_ensemble.ipynb"
TABLES = ["changes", "class_gains", "member_curve", "members", "objects", "steps", "weights"]


@pytest.fixture(scope="module")
def ensemble(two_runs, tmp_path_factory):
    grid = shutil.copytree(two_runs[0].parent, tmp_path_factory.mktemp("ensemble") / "grid")
    folder = grid / "04_ensemble"
    folder.mkdir()
    parameters = {
        "members": [str(grid / run.name) for run in two_runs], "output_dir": str(folder), "tta": {"flips": ["none", "horizontal"]},
        "weights": "greedy", "crf_candidates": 2, "crf_images": 2, "test_json": "test.json",
        "submission_size": 32, "pseudo_precision": 0.9, "debug": True,
    }  # fmt: skip
    papermill.execute_notebook(str(NOTEBOOK), str(folder / "out.ipynb"), parameters, kernel_name="python3",
                               cwd=str(NOTEBOOK.parent), progress_bar=False)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def val_images(small_data):
    return open_data(str(small_data), "train.json", "val.json", split="given", folds=2, fold=0, seed=1, paint_order="class_id",
                     background="class", image_size=64, cache=False)[1]  # fmt: skip


def test_tables_and_figures_are_written(ensemble):
    assert sorted(path.stem for path in ensemble.glob("*.csv") if path.stem != "submission") == TABLES
    figures = {path.stem for path in (ensemble / "figures").glob("*.png")}
    assert figures == {"members", "error_correlation", "member_curve", "class_gains", "changes"}


def test_the_recorded_score_is_scikit_learns_on_the_kept_masks(ensemble, val_images):
    record = json.loads((ensemble / "record.json").read_text())
    masks = np.load(ensemble / "masks_final.npy", allow_pickle=False)
    truth = np.stack([val_images.read(position)[1] for position in range(len(val_images))])
    score = jaccard_score(truth.ravel(), masks.ravel(), labels=np.union1d(truth, masks), average="macro")
    assert record["status"] == "ok" and record["miou_seen"] == pytest.approx(score, abs=1e-9)


def test_each_step_is_scored_beside_the_last_and_says_whether_it_is_used(ensemble):
    record = json.loads((ensemble / "record.json").read_text())
    steps = pd.read_csv(ensemble / "steps.csv")
    names = [step.split(",")[0] for step in steps["step"]]
    assert names == ["TTA", "plain mean", "weights: greedy", "CRF", "components"]
    assert np.allclose(steps["points"], 100 * (steps["after"] - steps["before"]))
    used = dict(zip(names, steps["used"], strict=True))
    assert (record["decisions"]["crf"]["on"], record["decisions"]["components"]["on"]) == (
        used["CRF"],
        used["components"],
    )
    assert bool(record["merging"]["tta"]) == used["TTA"]


def test_the_expected_score_is_the_means_and_the_held_out_gains_of_what_is_used(ensemble):
    record = json.loads((ensemble / "record.json").read_text())
    steps = pd.read_csv(ensemble / "steps.csv")
    gains = steps[steps["used"] & steps["held_out"]]
    assert steps["chosen_on"].notna().all() and (steps["low"] <= steps["points"]).all()
    mean = steps.set_index("step")["after"]["plain mean, beside the best member"]
    expected = mean + (gains["after"] - gains["before"]).sum()
    assert record["miou_held_out"] == pytest.approx(min(expected, record["miou_seen"]))
    better = record["miou_held_out"] > record["best_member"]["miou"]
    assert better or "NOT better" in record["result"]


def test_the_submission_has_every_test_image_in_order(ensemble, small_data):
    wanted = [image["file_name"] for image in json.loads((small_data / "test.json").read_text())["images"]]
    assert validate_submission(ensemble / "submission.csv", wanted, 12, size=32).errors == []
    record = json.loads((ensemble / "record.json").read_text())
    assert [source["run"] for source in record["submission"]["sources"]] == ["grid/seed=1", "grid/seed=2"]
    assert record["submission"]["val_score"] == record["miou_held_out"]


def test_pseudo_labels_are_a_sound_extra_set_of_the_same_classes(ensemble, small_data, val_images):
    labels = json.loads((ensemble / "pseudo_labels.json").read_text())
    shutil.copy(ensemble / "pseudo_labels.json", ensemble / "copy.json")
    data = load_coco(small_data, str(ensemble / "copy.json"))
    assert data.class_names == val_images.data.class_names and len(labels["annotations"]) > 0
    problems = verify_coco(data)
    assert not (problems["severity"] == "error").any()


def test_probabilities_are_made_once(ensemble):
    for run in ("seed=1", "seed=2"):
        kept = [
            path.name.split("-")[0] for path in (ensemble.parent / run / "probabilities").iterdir() if path.is_dir()
        ]
        assert sorted(kept) == ["test", "val", "val"]  # the plain images, and in two views
    assert not [*ensemble.parent.rglob("*.part")]


def test_a_finished_ensemble_is_not_written_over(ensemble, two_runs):
    before = (ensemble / "submission.csv").read_bytes()
    parameters = {"members": [str(run) for run in two_runs], "output_dir": str(ensemble)}
    with pytest.raises(papermill.PapermillExecutionError, match="holds a finished run; required a new folder"):
        papermill.execute_notebook(str(NOTEBOOK), None, parameters, kernel_name="python3", cwd=str(NOTEBOOK.parent),
                                   progress_bar=False)  # fmt: skip
    assert (ensemble / "submission.csv").read_bytes() == before


def test_the_executed_notebook_is_small(ensemble):
    notebook = nbformat.read(ensemble / "out.ipynb", as_version=4)
    assert not [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if output.output_type == "error"
    ]
    assert (ensemble / "out.ipynb").stat().st_size < 3_000_000

"""notebooks/03_error_analysis.ipynb, executed as a person would."""

import json
import shutil

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest

from seglib.evaluation.metrics import load_confusion, pooled_miou
from seglib.files import PROJECT

NOTEBOOK = PROJECT / "notebooks" / "03_error_analysis.ipynb"
TABLES = [
    "classes", "confusions", "error_kinds", "images", "objects", "objects_by_class", "objects_by_class_and_size",
    "objects_by_size", "reliability", "two_runs",
]  # fmt: skip


@pytest.fixture(scope="module")
def analysed(two_runs, tmp_path_factory):
    grid = shutil.copytree(two_runs[0].parent, tmp_path_factory.mktemp("analysis") / "grid")
    runs, folder = [grid / run.name for run in two_runs], grid / "seed=1" / "03_error_analysis"
    before = (runs[0] / "record.json").read_bytes()
    folder.mkdir()
    parameters = {"run_dir": str(runs[0]), "compare_with": str(runs[1])}
    papermill.execute_notebook(str(NOTEBOOK), str(folder / "out.ipynb"), parameters, kernel_name="python3",
                               cwd=str(NOTEBOOK.parent), progress_bar=False)  # fmt: skip
    assert (runs[0] / "record.json").read_bytes() == before
    return folder


def test_tables_and_figures_are_written_beside_the_notebook(analysed):
    assert sorted(path.stem for path in analysed.glob("*.csv")) == TABLES
    figures = {path.stem for path in (analysed / "figures").glob("*.png")}
    assert {
        "classes",
        "confusion",
        "confusion_gains",
        "error_kinds",
        "images_costly",
        "images_worst",
        "objects",
        "two_runs",
    } <= figures


def test_tables_add_up_to_the_run_s_own_scores(analysed, two_runs):
    confusion = load_confusion(two_runs[0] / "confusion.npz")[0]
    tables = {name: pd.read_csv(analysed / f"{name}.csv") for name in TABLES}
    miou = pooled_miou(confusion)
    assert tables["classes"]["iou"].mean() == pytest.approx(miou)
    assert tables["confusions"]["lost"].sum() == pytest.approx(1 - miou)
    wrong = confusion.sum() - np.trace(confusion.sum(0))
    assert tables["error_kinds"].filter(like="missed").to_numpy().sum() == wrong
    assert tables["error_kinds"].filter(like="invented").to_numpy().sum() == wrong
    assert tables["reliability"]["pixels"].sum() == confusion.sum()
    assert tables["two_runs"][["both", "only_a", "only_b", "neither"]].to_numpy().sum() == confusion.sum()


def test_the_record_says_ok_and_has_the_findings(analysed):
    record = json.loads((analysed / "record.json").read_text())
    assert record["status"] == "ok"
    assert record["analysed"] == str(analysed.parent)
    assert record["findings"][0].startswith("mIoU **")
    assert "A minus B" in (analysed / "findings.md").read_text()


def test_nothing_is_warned_about_and_the_predictions_are_the_run_s(analysed):
    cells = nbformat.read(analysed / "out.ipynb", as_version=4).cells
    streams = [output for cell in cells for output in cell.get("outputs", []) if output.output_type == "stream"]
    assert not [stream.text for stream in streams if stream.name == "stderr"]
    assert sum("confusion.npz exactly" in stream.text for stream in streams) == 2

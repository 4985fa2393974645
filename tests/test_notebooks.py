"""Notebooks: clean in git, parameters as their config has them, and the training notebook executed."""

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import papermill
import pytest
import torch
from sklearn.metrics import jaccard_score

import seglib
from seglib.data.analysis import DataAnalysis
from seglib.data.dataset import open_data
from seglib.evaluation.metrics import load_confusion, load_scene_names
from seglib.files import PROJECT
from seglib.models import build_model
from seglib.parameters import read_code_cells, read_defaults, read_schema
from seglib.rules import check_parameters
from seglib.training.checkpoint import hash_weights, load_checkpoint
from seglib.training.scoring import predict

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
TINY = {"image_size": 64, "architecture": "Linknet", "encoder": "tu-test_resnet", "encoder_weights": "", "epochs": 2,
        "batch_size": 8, "precision": "float32"}  # fmt: skip


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4), request.param


def test_notebook_is_clean_in_git(notebook):
    content, _ = notebook
    nbformat.validate(content)
    assert set(content.metadata) == {"kernelspec", "language_info"}
    for cell in content.cells:
        assert set(cell.metadata) <= {"tags"}
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_cells_are_short_and_introduced(notebook):
    content, _ = notebook
    assert content.cells[0].source.startswith("# ")
    for cell in content.cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            assert len(cell.source.splitlines()) <= 12, cell.source


def test_notebooks_use_the_public_names_and_plots_alone(notebook):
    content, _ = notebook
    imported = [
        node
        for cell in content.cells
        if cell.cell_type == "code"
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "seglib"
    ]
    assert {node.module for node in imported} <= {"seglib", "seglib.viz"}
    names = {name.name for node in imported if node.module == "seglib" for name in node.names}
    assert names <= {*seglib._PUBLIC, "viz"}
    assert len(seglib._PUBLIC) <= 30
    for name in seglib._PUBLIC:
        assert callable(getattr(seglib, name)), name


def test_every_parameter_has_a_type_and_a_default_that_is_valid(notebook):
    _, path = notebook
    schema, defaults = read_schema(path), read_defaults(path)
    assert all(parameter.annotation for parameter in schema.values())
    assert check_parameters(schema, defaults) == (defaults, {})


def test_every_parameter_is_explained(notebook):
    content, _ = notebook
    (cell,) = [cell for cell in content.cells if "parameters" in cell.metadata.get("tags", [])]
    for line in cell.source.splitlines():
        name, _, help_text = line.partition("  # ")
        assert ": " in name, line
        assert len(help_text) > 8, line


def divide(name, **changes):
    """The training and the validation images that a notebook opens."""
    path = PROJECT / "notebooks" / name
    p = SimpleNamespace(**read_defaults(path) | TINY | {"cache": False} | changes)
    (cell,) = [cell["source"] for cell in read_code_cells(path) if "open_data(" in cell["source"]]
    names = {"p": p}
    exec(cell, names)
    return [names[subset].image_ids.tolist() for subset in ("train_images", "val_images")]


@pytest.mark.parametrize("split", ["holdout", "kfold", "stratified"])
def test_a_split_is_not_a_seed(small_data, split):
    train, val = divide("02_train.ipynb", data_dir=str(small_data), split=split, seed=21)
    assert divide("02_train.ipynb", data_dir=str(small_data), split=split, seed=42) == [train, val]
    assert divide("02_train.ipynb", data_dir=str(small_data), split=split, split_seed=42)[1] != val
    eda = read_defaults(PROJECT / "notebooks" / "01_eda.ipynb") | {"data_dir": str(small_data), "split": split}
    data = DataAnalysis(SimpleNamespace(**eda | {"image_size": 64, "seed": 42}))
    assert data.coco.images["image_id"][data.subset == "val"].tolist() == val


def test_styled_tables_escape_what_comes_from_data(notebook):
    """pandas escapes a plain table, not one with a style: a class may be named <script>."""
    content, path = notebook
    styled = [cell.source for cell in content.cells if cell.cell_type == "code" and ".style." in cell.source]
    own_words = ("steps.style", 'tables["image_sizes"]', 'tables["colours"]')  # tables without a text from data
    assert all('escape="html"' in source for source in styled if not any(name in source for name in own_words)), path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_data):
    """The training notebook, executed as a person would without the runner."""
    run_dir = tmp_path_factory.mktemp("run")
    parameters = TINY | {"data_dir": str(small_data), "run_dir": str(run_dir), "background": "ignore"}
    path = PROJECT / "notebooks" / "02_train.ipynb"
    papermill.execute_notebook(str(path), str(run_dir / "02_train.ipynb"), parameters, kernel_name="python3",
                               cwd=str(path.parent), progress_bar=False)  # fmt: skip
    return run_dir


def test_training_notebook_leaves_its_record_and_files(trained):
    record = json.loads((trained / "record.json").read_text())
    assert record["status"] == "ok"
    assert record["error"] is None
    assert {"miou", "miou_image", "miou_batch", "accuracy", "loss", "iou"} == set(record["metrics"])
    assert record["params"]["image_size"] == 64
    weights = load_checkpoint(trained / "best.pt", required=("model",))["model"]
    assert record["weights_sha256"] == hash_weights(weights)
    for name in ("history.csv", "last.pt", "figures/batch.png", "figures/predictions.png", "figures/class_iou.png"):
        assert (trained / name).is_file(), name


def test_recorded_miou_is_scikit_learns_on_the_saved_weights(trained, small_data):
    record = json.loads((trained / "record.json").read_text())
    _, val = open_data(
        str(small_data), "train.json", "val.json", split="given", folds=5, fold=0, seed=record["params"]["seed"], paint_order="class_id",
        background="ignore", image_size=64, cache=False,
    )  # fmt: skip
    best = load_checkpoint(trained / "best.pt", required=("model",))
    model = build_model(best["architecture"], best["encoder"], best["num_classes"])
    model.load_state_dict(best["model"])
    _, truth, pred = predict(model, val, range(len(val)), torch.device("cpu"), "float32")
    valid = truth != 255
    labels = np.union1d(truth[valid], pred[valid])
    expected = jaccard_score(truth[valid], pred[valid], labels=labels, average="macro", zero_division=0)
    assert record["metrics"]["miou"] == pytest.approx(expected, abs=1e-9)
    confusion, image_ids, names = load_confusion(trained / "confusion.npz")
    assert load_scene_names(trained / "confusion.npz").keys() == {*image_ids.tolist()}
    assert confusion.sum() == valid.sum()
    assert list(image_ids) == list(val.image_ids)
    assert names == list(val.data.class_names)


def test_an_executed_notebook_stays_small_and_keeps_one_picture_of_its_curves(trained):
    content = nbformat.read(trained / "02_train.ipynb", as_version=4)
    (cell,) = [cell for cell in content.cells if "in trainer.epochs():" in cell.source]
    kinds = [sorted(output.get("data", {})) for output in cell.outputs]
    assert kinds.count(["image/png", "text/plain"]) == 1
    assert len(cell.outputs) == 2
    assert "2 epochs in" in "".join(cell.outputs[0]["data"]["text/plain"])
    assert (trained / "02_train.ipynb").stat().st_size < 1_500_000


def test_a_finished_run_is_not_written_over(trained, small_data, tmp_path):
    before = (trained / "record.json").read_bytes()
    path = PROJECT / "notebooks" / "02_train.ipynb"
    parameters = TINY | {"data_dir": str(small_data), "run_dir": str(trained)}
    with pytest.raises(papermill.PapermillExecutionError, match="holds a finished run"):
        papermill.execute_notebook(str(path), str(tmp_path / "again.ipynb"), parameters, kernel_name="python3",
                                   cwd=str(Path(path).parent), progress_bar=False)  # fmt: skip
    assert (trained / "record.json").read_bytes() == before

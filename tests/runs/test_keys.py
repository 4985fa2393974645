"""Finished runs stay finished until what decides their result changes, and then the plan says what."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import seglib
from seglib.data.layouts import fingerprint_data
from seglib.files import PROJECT, write_json
from seglib.parameters import read_defaults
from seglib.runs import record as records_module
from seglib.runs.keys import compare_keys, compute_keys, hash_code, hash_values

TRAIN = PROJECT / "notebooks" / "02_train.ipynb"
NO_EFFECT = (
    "run_dir",
    "continue_from",
    "checkpoint_minutes",
    "track",
    "num_workers",
    "cache",
    "extra_data",
    "parts",
    "data_dir",
)
BODY = 'def double(x):\n    """Twice x."""\n    return 2 * x  # why\n'


@pytest.fixture
def plan(call, tmp_path):
    """The reason that a dry run gives for the one run of the grid; "" where it is done."""

    def plan(*arguments):
        result = call(tmp_path / "grid.yaml", "--dry-run", *arguments)
        assert result.code == 0, result.err
        (line,) = [line for line in result.out.splitlines() if line[:4] in ("run ", "skip")]
        return line.partition("(")[2].rstrip(")")

    return plan


@pytest.fixture
def done(call, write_grid, write_notebook, tmp_path, stand_in):
    """A grid of one run that is done; it is written again with another body of the notebook or other parameters."""

    def write(body=BODY, **options):
        return write_grid("", write_notebook(tmp_path / "notebook.ipynb", body, **options))

    assert call(write()).code == 0
    return write


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (BODY, ""),
        ("# a comment\n\ndef double(x):\n    'Other words.'\n    return (2*x)", ""),
        ("def double(x):\n    return 2 * x", ""),
        (BODY.replace("2 * x", "3 * x"), "notebook"),
        ("%time\n" + BODY, "notebook"),
    ],
)
def test_only_what_the_notebook_does_counts(done, plan, body, why):
    done(body)
    assert plan() == why


def test_a_cell_with_magics_counts_by_its_text(done, plan, call):
    call(done("%matplotlib inline\nx = 1"))
    done("\n%matplotlib inline\nx = 1\n")
    assert plan() == ""
    done("%matplotlib inline\nx = 1  # a comment")
    assert plan() == "notebook"


def test_the_parameters_cell_counts_by_its_values(done, plan):
    parameters = 'run_dir: str = ""\nseed: int = 21  # other words\nweight: float = 0.0\ndo: str = "ok"\n'
    done(parameters=parameters)
    assert plan() == ""
    done(parameters=parameters.replace("21", "22"))
    assert plan() == "parameters" and plan("--set", "seed=21") == ""


def test_other_parameters_code_and_results_are_named(done, plan, monkeypatch):
    assert plan("--set", "weight=0.5") == "parameters" and plan("--fresh") == "fresh"
    done("x = 1")
    monkeypatch.setattr(seglib, "RESULTS", seglib.RESULTS + 1)
    assert plan("--set", "weight=0.5") == "parameters, notebook, results version"


def test_what_has_no_result_says_how_it_ended(done, plan, grid_folder):
    path = grid_folder / "run" / "record.json"
    write_json(path, json.loads(path.read_text()) | {"status": "killed"})
    assert plan() == "killed"
    path.unlink()
    assert plan() == "new"


def test_the_record_has_the_parts_of_its_key(done, records):
    record = records()["run"]
    assert [*record["key_parts"]] == ["parameters", "data", "notebook", "results"]
    assert record["key"] == records_module.summarise_key(record["key_parts"])


@pytest.fixture
def old_run(tmp_path, small_data, grid_folder):
    """A training that an earlier version finished: no parts of the key, the executed notebook in its folder."""
    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    (tmp_path / "grid.yaml").write_text(
        f"notebook: {TRAIN}\nfixed: {{data_dir: {data}, encoder_weights: '', lr: 0.5}}\n"
    )
    notebook = json.loads(TRAIN.read_text())
    injected = {"cell_type": "code", "metadata": {"tags": ["injected-parameters"]}, "source": "lr = 0.5", "outputs": []}
    notebook["cells"].insert(3, injected)
    (grid_folder / "run").mkdir(parents=True)
    (grid_folder / "run" / TRAIN.name).write_text(json.dumps(notebook))
    params = {"data_dir": str(data), "encoder_weights": "", "lr": 0.5, "run_dir": str(grid_folder / "run")}
    record = {"status": "ok", "key": "of all source", "params": params, "metrics": {"miou": 0.5}}
    record["data_hash"] = fingerprint_data(data, ["train.json", "val.json"])
    write_json(grid_folder / "run" / "record.json", record)
    return grid_folder / "run"


def test_a_run_of_an_earlier_version_is_done(old_run, plan, call, tmp_path):
    assert plan() == "" and plan("--set", "num_workers=2") == ""
    assert plan("--set", "lr=0.25") == "parameters" and plan("--set", "seed=3") == "parameters"
    result = call(tmp_path / "grid.yaml")
    assert result.code == 0 and "1 done before, 0 to go" in result.out
    assert "key_parts" in json.loads((old_run / "record.json").read_text()) and plan() == ""
    assert ",ok," in (old_run.parent / "leaderboard.csv").read_text()


@pytest.mark.parametrize("with_parts", [False, True])
def test_a_run_from_before_split_seed_is_done_where_its_images_are_divided_as_before(
    old_run, plan, tmp_path, with_parts
):
    def asks(split, seed, split_seed):
        return plan("--set", f"split={split}", "--set", f"seed={seed}", "--set", f"split_seed={split_seed}")

    for split, jsons in {"given": ["train.json", "val.json"], "holdout": ["train.json"]}.items():
        record = json.loads((old_run / "record.json").read_text())
        record["params"] |= {"split": split, "seed": 3}
        record["data_hash"] = fingerprint_data(tmp_path / "data", jsons)
        record.pop("key_parts", None)
        if with_parts:  # as a version wrote them that had parts of the key, no split_seed and no ignore_classes
            values = read_defaults(TRAIN) | record["params"]
            later = (*NO_EFFECT, "split_seed", "ignore_classes")
            hashed = {name: value for name, value in values.items() if name not in later}
            record["key_parts"] = {"parameters": hash_values(hashed), "data": {"data_dir": record["data_hash"]}}
            record["key_parts"] |= {"notebook": hash_code(TRAIN), "results": seglib.RESULTS}
        write_json(old_run / "record.json", record)
        assert asks(split, 3, 3) == ""
        assert asks(split, 3, 21) == ("" if split == "given" else "parameters")
        assert asks(split, 21, 3) == asks(split, 21, 21) == "parameters"


def test_a_run_of_an_earlier_version_goes_again_where_data_notebook_or_results_changed(
    old_run, plan, tmp_path, monkeypatch
):
    images = sorted((tmp_path / "data").rglob("*.jpg"))
    images[0].write_bytes(images[1].read_bytes())
    assert plan() == "data"
    executed = old_run / TRAIN.name
    executed.write_text(executed.read_text().replace("choose_batch_size(p", "choose_batch(p"))
    assert plan() == "data, notebook"
    monkeypatch.setattr(seglib, "RESULTS", seglib.RESULTS + 1)
    assert plan() == "data, notebook, results version"
    executed.write_text("{")
    assert plan() == "notebook"


def test_a_change_in_seglib_changes_no_key(tmp_path, write_notebook):
    shutil.copytree(PROJECT / "seglib", tmp_path / "seglib", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "grid.yaml").write_text(f"notebook: {write_notebook(tmp_path / 'n.ipynb')}\n")
    code = (
        "from pathlib import Path; from seglib.runs.grid import load_grid;"
        "print(load_grid('grid.yaml', Path('outputs'), {}).runs[0].key)"
    )
    ask = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    before = subprocess.check_output(ask, cwd=tmp_path, env=environment, text=True)
    for name in ("files.py", "training/loop.py", "inference/predict.py"):
        with open(tmp_path / "seglib" / name, "a") as file:
            file.write("\nADDED = 1\n")
    assert subprocess.check_output(ask, cwd=tmp_path, env=environment, text=True) == before


@pytest.mark.parametrize("name", ["weights written before the run", "weights written since"])
def test_weights_that_an_earlier_run_began_from_must_be_older(old_run, plan, tmp_path, name, monkeypatch):
    monkeypatch.setattr("seglib.runs.grid.find_missing_weights", lambda *_: [])  # no weights in the file
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    record = json.loads((old_run / "record.json").read_text())
    record["params"]["encoder_weights"] = str(weights)
    since = name.endswith("since")
    write_json(
        old_run / "record.json",
        record | {"finished_at": f"{'2020' if since else '2999'}-01-01T00:00:00+0000", "seconds": 60.0},
    )
    assert plan("--set", f"encoder_weights={weights}") == ("data" if since else "")


@pytest.fixture
def own(call, write_grid, write_notebook, tmp_path, stand_in):
    """A grid over a notebook of the user's own, which has no class in seglib and names its own data."""
    (tmp_path / "table.csv").write_text("1,2\n")
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.png").write_text("a")
    parameters = (
        'run_dir: str = ""\ndepth: int = 3  # of the tree\ntable: str = "table.csv"  # what is read\nmode: str = "data"\n'
        'files: list[str] = []\nimage_dir: str = ""\nshare: float = 0.5\n'
    )
    notebook = write_notebook(tmp_path / "own.ipynb", "x = 1", parameters=parameters)
    path = write_grid(f"fixed: {{image_dir: {tmp_path}/photographs, files: [{tmp_path}/table.csv]}}", notebook)
    (tmp_path / "data").mkdir()  # a folder of the name of a value that is no path
    assert call(path.rename(tmp_path / "grid.yaml")).code == 0
    return tmp_path


def test_the_data_of_an_own_notebook_counts_by_its_content(own, plan, records):
    assert plan() == "" and [*records()["run"]["key_parts"]["data"]] == ["table", "files", "image_dir"]
    (own / "table.csv").write_text("1,3\n")
    assert plan() == "data"
    (own / "table.csv").write_text("1,2\n")
    assert plan() == ""
    (own / "photographs" / "b.png").write_text("b")
    assert plan() == "data" and plan("--set", "depth=4") == "parameters, data"


def test_an_own_notebook_is_typed_by_its_annotations(own, call):
    refused = call(own / "grid.yaml", "--set", "depht=3", "--set", "share=much", "--set", "files=[[1]]", "--dry-run")
    assert refused.code == 2
    for words in (
        "unknown parameter 'depht'; did you mean 'depth'?",
        "share must be a number, got 'much' (a text)",
        "files.0 must be a text, got 1",
    ):
        assert words in refused.err
    assert call(own / "grid.yaml", "--set", "share=1e-3", "--set", "depth=[3, 4]", "--dry-run").code == 0


def test_a_record_from_before_own_data_counted_is_done_where_the_data_is_older(own, plan, grid_folder):
    path = grid_folder / "run" / "record.json"
    record = json.loads(path.read_text())
    paths = ("table", "files", "image_dir")
    others = {name: value for name, value in record["params"].items() if name != "run_dir"}
    record["key_parts"] |= {"data": {}, "parameters": hash_values(others)}
    write_json(path, record | {"finished_at": "2999-01-01T00:00:00+0000", "seconds": 1.0})
    assert plan() == "" and all(record["params"][name] for name in paths)
    write_json(path, record | {"finished_at": "2020-01-01T00:00:00+0000", "seconds": 1.0})
    assert plan() == "data"


def test_a_parameter_that_is_added_to_a_shipped_notebook_is_checked_swept_and_keyed(call, tmp_path):
    notebook = json.loads(TRAIN.read_text())
    (cell,) = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    cell["source"].append("\nnoise: float = 0.0  # of the gradient")
    (tmp_path / "mine.ipynb").write_text(json.dumps(notebook))
    (tmp_path / "grid.yaml").write_text(
        f"notebook: {tmp_path}/mine.ipynb\nfixed: {{encoder_weights: ''}}\ngrid: {{noise: [0, 0.1]}}"
    )
    listed = call(tmp_path / "grid.yaml", "--dry-run")
    assert listed.code == 0 and "run   noise=0.1  (new)" in listed.out
    refused = call(tmp_path / "grid.yaml", "--set", "noise=[loud]", "--set", "nois=1", "--dry-run")
    assert "noise must be a number, got 'loud' (a text) (of the gradient)" in refused.err
    assert "unknown parameter 'nois'; did you mean 'noise'?" in refused.err


def test_a_parameter_that_came_later_counts_only_where_it_is_set(tmp_path):
    values = read_defaults(TRAIN)
    now, ignoring = compute_keys(TRAIN, [values, values | {"ignore_classes": ["iscrowd"]}])
    text = TRAIN.read_text()
    assert ", ignore_classes=p.ignore_classes" in text
    for name, passed in (("before", ""), ("own", ", ignore_classes=mine"), ("fixed", ", ignore_classes=['iscrowd']")):
        (tmp_path / f"{name}.ipynb").write_text(text.replace(", ignore_classes=p.ignore_classes", passed))
    (before,) = compute_keys(tmp_path / "before.ipynb", [{k: v for k, v in values.items() if k != "ignore_classes"}])
    assert before == now and compare_keys(now, ignoring) == ["parameters"]
    for name in ("own", "fixed"):
        assert hash_code(tmp_path / f"{name}.ipynb") != now["notebook"]


def test_a_run_that_bends_images_is_another_since_displacements_come_from_a_pyramid():
    values = read_defaults(TRAIN)
    lists = ("flips", "elastic", [{"OneOf": [{"ElasticTransform": {"p": 1}}]}], ["distort"], [{"NoOp": {}}])
    keys = compute_keys(TRAIN, [values | {"augmentation": each} for each in lists])
    assert ["bending" in key for key in keys] == [False, True, True, True, False]

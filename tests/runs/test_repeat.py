"""A recorded run is run again, and what differs is told."""

import json

import pytest

from seglib.errors import InputError
from seglib.files import PROJECT, write_json
from seglib.runs import repeat
from seglib.runs.repeat import describe_differences, repeat_run


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, small_data):
    """The folder of a run that ended well."""
    from papermill import execute_notebook

    folder = tmp_path_factory.mktemp("grid") / "run"
    folder.mkdir()
    parameters = {"data_dir": str(small_data), "image_size": 64, "architecture": "Linknet", "encoder": "tu-test_resnet",
                  "encoder_weights": "", "epochs": 1, "batch_size": 8, "run_dir": str(folder)}  # fmt: skip
    notebook = PROJECT / "notebooks" / "02_train.ipynb"
    execute_notebook(str(notebook), str(folder / notebook.name), parameters, kernel_name="python3",
                     cwd=str(notebook.parent), progress_bar=False)  # fmt: skip
    return folder


def test_a_run_by_hand_is_repeated_by_the_runner_to_the_bit(recorded):
    lines = []
    assert repeat_run(recorded, lines.append, lambda text: None), lines
    assert lines[-1].startswith("the same weights, bit for bit")
    again, before = (json.loads((folder / "record.json").read_text()) for folder in (recorded / "repeat", recorded))
    assert again["weights_sha256"] == before["weights_sha256"]
    assert again["params"] == before["params"] | {"run_dir": str(recorded / "repeat")}


def test_other_weights_are_told_with_what_differs(recorded, monkeypatch):
    record = json.loads((recorded / "record.json").read_text())

    def pretend(jobs, *rest):
        other = record | {"weights_sha256": "0" * 64, "threads": 99, "versions": record["versions"] | {"torch": "1.0"}}
        jobs[0].run_dir.mkdir()
        write_json(jobs[0].run_dir / "record.json", other | {"key": jobs[0].key})
        return True

    monkeypatch.setattr(repeat, "run_jobs", pretend)
    lines = []
    assert not repeat_run(recorded, lines.append, lambda text: None)
    assert lines[0].startswith(f"OTHER weights: {record['weights_sha256'][:16]}... then, 0000000000000000... now")
    assert lines[1:] == [
        f"  torch: {record['versions']['torch']} then, 1.0 now",
        f"  threads: {record['threads']} then, 99 now",
    ]


def test_a_run_of_a_notebook_of_ones_own_is_repeated_by_the_notebook_that_its_grid_names(
    tmp_path, write_grid, call, write_notebook
):
    save = 'save_result(run_dir, metrics={"miou": 0.5}, weights_sha256="0" * 64)'
    own = write_notebook(tmp_path / "own.ipynb", result=save)
    assert call(write_grid("fixed: {}", own)).code == 0
    assert call("--repeat", tmp_path / "outputs" / "grid" / "run").out.count("the same weights, bit for bit") == 1
    own.rename(tmp_path / "moved.ipynb")
    refused = call("--repeat", tmp_path / "outputs" / "grid" / "run")
    assert refused.code == 2
    assert f"required the executed copy of one notebook of {tmp_path} and" in refused.err


def test_nothing_differs_between_a_record_and_itself():
    record = {"versions": {"torch": "2"}, "threads": 2, "key_parts": {"notebook": "a"}, "metrics": {"miou": 0.5}}
    assert describe_differences(record, record) == []
    fast = record | {"deterministic": False}
    assert describe_differences(fast, fast) == ["deterministic is false: other bits are to be expected"]
    assert describe_differences(record, record | {"key_parts": {"notebook": "b"}, "metrics": {"miou": 0.4}}) == [
        "the run's key: another notebook",
        "mIoU: 0.5 then, 0.4 now",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"status": "failed"}, "required the folder of a finished training run, got status failed"),
        ({"params": {"loss": {"focl": 1.0}}}, "unknown loss 'focl'; did you mean 'focal'"),
        ({"params": {"data_dir": "/nowhere"}}, "data_dir must be a folder with COCO files"),
    ],
)
def test_what_cannot_be_repeated_is_refused(recorded, tmp_path, change, words):
    record = json.loads((recorded / "record.json").read_text())
    change = change | ({"params": record["params"] | change["params"]} if "params" in change else {})
    write_json(tmp_path / "record.json", record | change)
    (tmp_path / "02_train.ipynb").write_bytes((recorded / "02_train.ipynb").read_bytes())
    with pytest.raises(InputError, match=words):
        repeat_run(tmp_path, print, print)
    assert not (tmp_path / "repeat").exists()


def test_a_folder_that_is_no_run_is_refused_on_the_command_line(call, tmp_path):
    refused = call("--repeat", tmp_path)
    assert refused.code == 2
    assert "required the folder of a finished training run, got no record.json" in refused.err
    assert call().code == 2
    refused = call("--repeat", tmp_path, "--dry-run")
    assert refused.code == 2
    assert "--repeat takes no other options" in refused.err

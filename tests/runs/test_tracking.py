"""Trackers: each epoch once, nothing lost when one fails, and what the real libraries have written when they are installed."""

import json
import os
import random
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from seglib.files import write_json
from seglib.runs.execute import run_job
from seglib.runs.family import UNDER_RUNNER
from seglib.runs.record import read_record
from seglib.runs.trackers import Tracking, finish_tracking, open_trackers, refuse_missing

METRICS = {"miou": 0.5, "loss": float("nan"), "iou": {"일반 쓰레기": 0.5, "bag & box": 0.25, "absent": float("nan")}}
PARAMETERS = {"lr": 1e-3, "loss": {"focal": 1.0}, "encoder": "resnet18"}

KILLED = """
import os, sys
from pathlib import Path
import pandas as pd
from seglib.runs.trackers import open_trackers
run_dir, name, parameters = Path(sys.argv[1]), sys.argv[2], eval(sys.argv[3])
history = pd.DataFrame({"epoch": [1, 2, 3], "miou": [0.1, 0.2, 0.3]})
tracking = open_trackers([name], run_dir, parameters)
for epochs in (1, 2, 3):
    tracking.epoch(history[:epochs])
os.kill(os.getpid(), 9)
"""


class Recorder:
    """A tracker that keeps what it is told, in a list that outlives it, and fails where it is asked to."""

    def __init__(self, told, note, fails=""):
        self.told, self.fails = told, fails
        self.id, self.logged, self.has_result = (
            note.get("id", "run-1"),
            note.get("logged", 0),
            note.get("result", False),
        )
        self._tell("open", note)

    def log_epoch(self, epoch, values):
        self._tell("epoch", epoch, dict(values))

    def log_result(self, epoch, values, figures):
        self._tell("result", epoch, dict(values), [path.name for path in figures])

    def log_files(self, files):
        self._tell("files", files)

    def close(self, ok):
        self._tell("close", ok)

    def _tell(self, what, *details):
        random.random()
        np.random.random()  # noqa: NPY002, the stream that libraries draw from
        torch.rand(1)
        if what == self.fails:
            raise ConnectionError(f"no answer from https://me:{os.environ.get('SOME_TOKEN', 'word')}@server/api\nagain")
        self.told.append((what, *details))


@pytest.fixture
def track(tmp_path):
    """Open a run in recorders: name -> list of what it is told; `fails` is what the one called `bad` fails in."""

    def track(fails="", **told):
        def opener(name):
            return lambda run_dir, parameters, note: Recorder(told[name], note, fails if name == "bad" else "")

        return Tracking(tmp_path, PARAMETERS, {name: opener(name) for name in told})

    return track


@pytest.fixture
def figures(tmp_path):
    folder = tmp_path / "figures"
    folder.mkdir()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / "predictions.png")
    return folder


def make_history(epochs):
    numbers = [*range(1, epochs + 1)]
    return pd.DataFrame({"epoch": numbers, "miou": [number / 10 for number in numbers]})


def list_epochs(told):
    return [details[0] for what, *details in told if what == "epoch"]


def test_each_epoch_is_logged_once_by_its_number(track):
    told = []
    tracking = track(good=told)
    for epochs in (1, 2, 2, 3):
        tracking.epoch(make_history(epochs))
    tracking.epoch(make_history(3))
    assert list_epochs(told) == [1, 2, 3]
    assert told[1] == ("epoch", 1, {"miou": 0.1})


def test_a_killed_run_goes_on_in_the_same_run_of_the_tracker_with_the_epochs_that_it_lacks(track):
    told = []
    track(good=told).epoch(make_history(2))
    resumed = track(good=told)
    resumed.epoch(make_history(5))
    assert told[3] == ("open", {"id": "run-1", "logged": 2, "result": False})
    assert list_epochs(told) == [1, 2, 3, 4, 5] and resumed.describe()["good"]["logged"] == 5


def test_scores_iou_and_figures_are_logged_and_the_run_is_closed_as_a_good_one(track, figures):
    told = []
    tracking = track(good=told)
    tracking.epoch(make_history(3))
    described = tracking.log_result(METRICS, 2, figures)
    values = {"best/epoch": 2.0, "best/miou": 0.5, "iou/일반 쓰레기": 0.5, "iou/bag _ box": 0.25}
    assert told[-2:] == [("result", 3, values, ["predictions.png"]), ("close", True)]
    assert described == {"good": {"id": "run-1", "logged": 3, "result": True}}


def test_a_result_that_a_tracker_has_is_not_sent_again(track, figures):
    told = []
    track(good=told).log_result(METRICS, 2, figures)
    track(good=told).log_result(METRICS, 2, figures)
    assert [what for what, *_ in told].count("result") == 1


@pytest.mark.parametrize("fails", ["open", "epoch", "result", "close"])
def test_a_tracker_that_fails_costs_one_line_and_neither_the_training_nor_the_others(track, figures, capsys, fails):
    good, bad = [], []
    tracking = track(fails, bad=bad, good=good)
    for epochs in (1, 2, 3):
        tracking.epoch(make_history(epochs))
    described = tracking.log_result(METRICS, 2, figures)
    assert [what for what, *_ in good] == ["open", "epoch", "epoch", "epoch", "result", "close"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("bad gets no more, the run goes on: ConnectionError: no answer from https://***@server/api")
    assert "again" in described["bad"]["stopped"] and "stopped" not in described["good"]


def test_a_tracker_that_failed_is_tried_again_by_the_next_process_and_gets_what_it_missed(track):
    bad = []
    tracking = track("epoch", bad=bad)
    tracking.epoch(make_history(1))
    tracking.epoch(make_history(2))
    again = track(bad=bad)
    again.epoch(make_history(3))
    assert list_epochs(bad) == [1, 2, 3] and "stopped" not in again.describe()["bad"]


def test_secrets_of_the_environment_are_neither_printed_nor_kept(track, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SOME_TOKEN", "hush-hush")
    tracking = track("open", bad=[])
    kept = (tmp_path / "tracking.json").read_text() + json.dumps(tracking.describe()) + capsys.readouterr().out
    assert "ConnectionError" in kept and "hush" not in kept


def test_what_trackers_draw_changes_no_generator(track, figures):
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    tracking = track("result", bad=[], good=[])
    tracking.epoch(make_history(2))
    tracking.log_result(METRICS, 2, figures)
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


def test_no_tracker_asked_for_means_no_file_and_no_words(tmp_path, capsys):
    tracking = open_trackers([], tmp_path, PARAMETERS)
    tracking.epoch(make_history(2))
    assert tracking.log_result(METRICS, 2, tmp_path) == {}
    assert finish_tracking(tmp_path, PARAMETERS | {"track": []}, [], ok=True) == {}
    assert not [*tmp_path.iterdir()] and capsys.readouterr().out == ""


def test_trackers_are_imported_only_when_asked_for():
    code = (
        "import sys, seglib.rules, seglib.runs.trackers; print({'torch', 'pandas', 'wandb', 'mlflow'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(tmp_path, monkeypatch):
    for name in ("tensorboard", "wandb", "mlflow"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / "wandb").mkdir()  # what wandb writes into looks like a package
    assert refuse_missing(["wandb"]) == "track: wandb must be installed first: pip install wandb==0.31.0"
    words = "track: tensorboard and mlflow must be installed first: pip install tensorboard==2.21.0 mlflow==3.17.2"
    assert refuse_missing(["tensorboard", "mlflow"]) == words and refuse_missing([]) == ""


def test_a_tracker_without_an_answer_leaves_a_run_ok_and_the_record_says_so(tmp_path, write_notebook, monkeypatch):
    monkeypatch.setenv(UNDER_RUNNER, "")  # run_job sets it for the kernel
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (tmp_path / "run").mkdir()
    parameters = {"run_dir": str(tmp_path / "run"), "track": ["mlflow"]}
    body = "from seglib.runs.trackers import open_trackers\nopen_trackers(track, run_dir, {})"
    notebook = write_notebook(tmp_path / "notebook.ipynb", body)
    run_job(
        {
            "notebook": notebook,
            "run_dir": tmp_path / "run",
            "key": {"notebook": "k"},
            "parameters": parameters,
            "varied": {},
        }
    )
    record = read_record(tmp_path / "run")
    stopped = record["tracking"]["mlflow"]["stopped"]
    assert record["status"] == "ok" and stopped.startswith(("ModuleNotFoundError: ", "MlflowException: "))


@pytest.fixture
def kill_and_resume(tmp_path, figures, monkeypatch):
    """Three epochs in a process that is killed, five and the result in this one, then the executed notebook."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)  # where MLflow's own default puts artifacts

    def kill_and_resume(name):
        parameters = PARAMETERS | {"track": [name]}
        child = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), name, repr(parameters)])
        assert child.returncode == -signal.SIGKILL
        note = json.loads((tmp_path / "tracking.json").read_text())
        note[name]["logged"] = 2  # as if it had been killed before it could note the third
        write_json(tmp_path / "tracking.json", note)
        states = random.getstate(), torch.get_rng_state()
        tracking = open_trackers([name], tmp_path, parameters)
        tracking.epoch(make_history(5))
        tracking.log_result(METRICS, 2, figures)
        assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
        make_history(5).to_csv(tmp_path / "history.csv", index=False)
        (tmp_path / "record.json").write_text(json.dumps({"metrics": {"miou": 0.5}, "best_epoch": 2}))
        (tmp_path / "02_train.ipynb").write_text("{}")
        described = finish_tracking(tmp_path, parameters, [tmp_path / "02_train.ipynb"], ok=True)
        assert described[name] == {"id": note[name]["id"], "logged": 5, "result": True}
        return note[name]["id"]

    return kill_and_resume


def test_tensorboard_has_each_epoch_once_the_scores_and_the_figures(tmp_path, kill_and_resume):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kill_and_resume("tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("miou")] == [1, 2, 3, 4, 5]
    assert events.Scalars("best/epoch")[0].value == 2 and "iou/일반 쓰레기" in events.Tags()["scalars"]
    assert events.Tags()["images"] == ["predictions"] and "parameters/text_summary" in events.Tags()["tensors"]


def test_mlflow_has_each_epoch_once_the_parameters_and_the_notebook(kill_and_resume):
    client = pytest.importorskip("mlflow").MlflowClient
    run_id = kill_and_resume("mlflow")
    client = client(os.environ["MLFLOW_TRACKING_URI"])
    run = client.get_run(run_id)
    assert [point.step for point in client.get_metric_history(run_id, "miou")] == [1, 2, 3, 4, 5]
    assert len(client.get_metric_history(run_id, "iou/일반 쓰레기")) == 1 and run.info.status == "FINISHED"
    assert run.data.params["loss"] == '{"focal": 1.0}' and run.data.metrics["best/miou"] == 0.5
    assert [file.path for file in client.list_artifacts(run_id, "notebook")] == ["notebook/02_train.ipynb"]
    assert [file.path for file in client.list_artifacts(run_id, "figures")] == ["figures/predictions.png"]


def test_wandb_offline_is_one_run_with_each_epoch_once_and_the_notebook(tmp_path, kill_and_resume):
    pytest.importorskip("wandb")
    run_id = kill_and_resume("wandb")
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")  # what the killed process left is gone
    records = [*_read_wandb(path)]
    rows = [record.history for record in records if record.HasField("history")]
    epochs = [row.step.num for row in rows if any("miou" in (item.key, *item.nested_key) for item in row.item)]
    artifacts = [file.path for record in records for file in record.artifact.manifest.contents]
    summary = {"/".join(item.nested_key) or item.key for record in records for item in record.summary.update}
    assert epochs == [1, 2, 3, 4, 5] and artifacts == ["02_train.ipynb"] and "best/miou" in summary
    assert {record.run.run_id for record in records if record.HasField("run")} == {run_id}


def _read_wandb(path: Path):
    """Records of a .wandb file: a log in blocks of 32 KiB, each chunk after checksum, length and kind (1, 4: complete)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield Record.FromString(parts)
            parts = b""

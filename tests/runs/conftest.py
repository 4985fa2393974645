"""Notebooks that train nothing, a runner that starts no kernel, and the command line called as a function."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from seglib.files import PROJECT
from seglib.runs import local, schedule

PARAMETERS = 'do: str = "ok"  # what happens\nweight: float = 0.0\nseed: int = 21\nrun_dir: str = ""\n'
IMPORTS = "import os, sys, time\nfrom pathlib import Path\nfrom seglib.runs.record import save_result\n"
RESULT = 'save_result(run_dir, metrics={"miou": 0.5})\n'

STAND_IN = """
import json, os, signal, sys, time
from seglib.runs.family import UNDER_RUNNER
from seglib.runs.record import save_result, start_record, update_record
os.environ[UNDER_RUNNER] = "1"
job = json.loads(sys.stdin.readline())
do, folder = job["parameters"].get("do", "ok"), job["run_dir"]
if do == "crash":
    sys.exit("no module named nonsense")
start_record(folder, job["key"], job["parameters"], job["varied"])
began = time.time()
if do == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if do == "sleep":
    time.sleep(60)
if do == "slow":
    time.sleep(0.7)
if do == "raise":
    update_record(folder, status="failed", error="ValueError: asked to")
else:
    save_result(folder, metrics={"miou": 0.5}, began=began, ended=time.time(), weights_sha256=str(began))
    update_record(folder, status="ok")
"""


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def write_notebook():
    """Write a notebook of four cells: parameters, imports, a body, the result saved."""

    def write(path, body="", parameters=PARAMETERS, result=RESULT):
        sources = [parameters, IMPORTS, body, result]
        code = [
            {"cell_type": "code", "id": f"cell-{number}", "metadata": {}, "execution_count": None, "outputs": [],
             "source": source}
            for number, source in enumerate(sources)
        ]  # fmt: skip
        code[0]["metadata"]["tags"] = ["parameters"]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": code}))
        return path

    return write


@pytest.fixture
def stopping_notebook(tmp_path, write_notebook):
    """A notebook that can be stopped after its first epoch of two; its score is its weight."""
    body = (
        "from seglib.errors import StoppedForNow\nfrom seglib.files import STOP_AFTER\n"
        "class trainer:\n    epochs = range(2).__iter__\nif False:\n    for epoch in trainer.epochs(): pass\n"
        'Path(run_dir, "history.csv").write_text(f"epoch,miou\\n1,{weight}\\n")\n'
        'if os.environ[STOP_AFTER] == "1":\n    raise StoppedForNow("after epoch 1, mIoU 0.5")'
    )
    parameters = 'weight: float = 0.0\nepochs: int = 8\nseed: int = 21\nrun_dir: str = ""\n'
    return write_notebook(
        tmp_path / "training.ipynb", body, parameters, 'save_result(run_dir, metrics={"miou": weight})\n'
    )


@pytest.fixture
def call(capsys, tmp_path):
    """Call `run_grid.py`; results go to tmp_path/outputs."""
    spec = importlib.util.spec_from_file_location("run_grid", PROJECT / "run_grid.py")
    run_grid = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run_grid)

    def call(*arguments):
        try:
            code = run_grid.main([*map(str, arguments), "--outputs", str(tmp_path / "outputs")])
        except SystemExit as error:
            code = error.code
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def write_grid(tmp_path, write_notebook):
    """Write tmp_path/grid.yaml over a notebook that does what its parameter `do` says."""

    def write(text, notebook=None):
        notebook = notebook or write_notebook(tmp_path / "notebook.ipynb")
        path = tmp_path / "grid.yaml"
        path.write_text(f"notebook: {notebook}\n{text}\n")
        return path

    return write


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Runs are executed by a short script, which does to the record what a notebook does, and not by papermill; its path."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(local, "COMMAND", (sys.executable, str(script)))
    monkeypatch.setattr(schedule, "POLL", 0.02)
    monkeypatch.setenv("SEGLIB_WARM", "0")
    return script


@pytest.fixture
def records(tmp_path):
    """Read all records of the grid: name of the run -> record."""

    def read():
        paths = (tmp_path / "outputs" / "grid").glob("*/record.json")
        return {path.parent.name: json.loads(path.read_text()) for path in sorted(paths)}

    return read


@pytest.fixture
def grid_folder(tmp_path) -> Path:
    return tmp_path / "outputs" / "grid"


@pytest.fixture
def environment():
    """What the commands that `start` starts have beside this process's own, as it is then."""
    return {"PYTHONPATH": str(PROJECT)}


@pytest.fixture
def start(environment, tmp_path):
    """Start the command in the background; it is killed when the test ends. Results go to tmp_path/outputs."""
    runners = []

    def start(*arguments):
        command = [sys.executable, PROJECT / "run_grid.py", *arguments, "--outputs", tmp_path / "outputs"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        runners.append(subprocess.Popen(command, env=os.environ | environment, **pipes))
        return runners[-1]

    yield start
    for runner in runners:
        runner.kill()
        runner.communicate()

"""The fixtures of tests/runs, and a grid of a small notebook in processes of its own."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seglib.files import PROJECT

_spec = importlib.util.spec_from_file_location("tests_runs_conftest", Path(__file__).parents[1] / "runs/conftest.py")
_runs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_runs)
write_notebook, call, write_grid, stand_in = _runs.write_notebook, _runs.call, _runs.write_grid, _runs.stand_in
records, grid_folder = _runs.records, _runs.grid_folder


@pytest.fixture
def wait_for():
    """Wait until a condition holds; return what it says."""

    def wait(condition, seconds=60):
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)
        return found

    return wait


@pytest.fixture
def start_grid(tmp_path):
    """Start `run_grid.py` with what it prints in a pipe; results go to tmp_path/outputs."""
    started = []

    def start(path, *arguments, **options):
        command = [sys.executable, PROJECT / "run_grid.py", path, "--outputs", tmp_path / "outputs", *arguments]
        started.append(subprocess.Popen(command, stdout=-1, stderr=subprocess.STDOUT, text=True, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()

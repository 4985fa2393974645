"""Fifty kills at random moments: what is on disk is whole after each, and the end is that of an undisturbed run."""

import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml

from seglib.data.synthetic import make_synthetic
from seglib.files import PROJECT
from seglib.runs.family import UNDER_RUNNER
from seglib.training.checkpoint import hash_weights

pytestmark = pytest.mark.slow

KILLS = 50
SEED = 21  # of the plan
VICTIMS = ("kernel", "runner")
STARTING = KILLS // 5  # kills while the kernel starts, before training; the others hit training
PATIENCE = 90  # [s] for anything that must happen

# Many small steps: in one epoch several kills, and several checkpoints (every 0.3 s; the model is small enough for that) between them.
PARAMETERS = {
    "image_size": 64, "architecture": "PSPNet", "encoder": "tu-test_resnet", "encoder_weights": "", "epochs": 20,
    "batch_size": 2, "augmentation": "flips", "mixing": {"cutmix": 0.5}, "averaging": {"ema": {"decay": 0.95}}, "num_workers": 1,
    "checkpoint_minutes": 0.005,
}  # fmt: skip


@dataclass(frozen=True)
class Kill:
    """One kill of the plan: whom, and how long [s] after the kernel was started or after its training began."""

    victim: str
    while_starting: bool
    wait: float


@dataclass(frozen=True)
class Grid:
    """A grid of one run: how it is started, and where its files are."""

    command: list[str]
    env: dict[str, str]
    folder: Path

    def start(self) -> subprocess.Popen:
        with open(self.folder.with_name("run_grid.log"), "a") as log:
            return subprocess.Popen(self.command, env=self.env, stdout=log, stderr=log)

    def run_to_the_end(self) -> None:
        assert self.start().wait(PATIENCE * 10) == 0, self.folder.with_name("run_grid.log").read_text()

    @property
    def run_dir(self) -> Path:
        (folder,) = [path for path in self.folder.iterdir() if path.is_dir() and path.name[0] != "."]
        return folder


@pytest.fixture(scope="module")
def make_grid(tmp_path_factory) -> Callable[[str], Grid]:
    """Grids of the same run, from a copy of the project: an edit meanwhile would change the run's key, and restart it."""
    project = tmp_path_factory.mktemp("project")
    for name in ("seglib", "notebooks"):
        shutil.copytree(PROJECT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "run_grid.py", project)
    data_dir = make_synthetic(tmp_path_factory.mktemp("data") / "data", num_images=240, image_size=64, seed=3)
    notebook = project / "notebooks" / "02_train.ipynb"
    fixed = PARAMETERS | {"data_dir": str(data_dir)}

    def make(name: str) -> Grid:
        folder = tmp_path_factory.mktemp(name)
        (folder / "grid.yaml").write_text(
            yaml.safe_dump({"notebook": str(notebook), "fixed": fixed, "grid": {"seed": [21]}})
        )
        command = [sys.executable, str(project / "run_grid.py"), str(folder / "grid.yaml"), "--outputs", str(folder)]
        # Kernels are found by their command line; of forked ones, which have none, see tests/runs/test_warm.py.
        env = os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
        return Grid(command, env, folder / "grid")

    return make


def plan_kills(seconds: float) -> list[Kill]:
    """Kills in a random order and at random times, in all less training than the whole of it takes [s]."""
    rng = random.Random(SEED)
    longest = 2 * 0.75 * seconds / (KILLS - STARTING)
    starting = [number < STARTING for number in range(KILLS)]
    rng.shuffle(starting)
    return [
        Kill(VICTIMS[number % len(VICTIMS)], early, rng.uniform(0, 5 if early else longest))
        for number, early in enumerate(starting)
    ]


def test_after_fifty_kills_the_result_is_that_of_an_undisturbed_run(make_grid):
    undisturbed = make_grid("undisturbed")
    undisturbed.run_to_the_end()
    history = pd.read_csv(undisturbed.run_dir / "history.csv")

    killed, hits, within, records = make_grid("killed"), Counter(), 0, []
    for number, kill in enumerate(plan_kills(history["seconds"].sum()), 1):
        moment = execute_kill(killed, kill)
        hits[f"{kill.victim}, {moment}"] += 1
        within += check_what_is_left(killed, f"kill {number}, {kill}")
        records.append(json.loads((killed.run_dir / "record.json").read_text()))
    print(f"{dict(hits)}; after {within} of the kills the checkpoint was one within an epoch")
    assert sum(count for hit, count in hits.items() if "training" in hit) >= 0.9 * (KILLS - STARTING)
    assert within >= 0.3 * KILLS

    killed.run_to_the_end()
    assert_same_result(undisturbed, killed)
    assert not [*killed.folder.rglob("*.part")], "half-written files are left"
    assert all(record["key"] and record["params"]["seed"] == 21 for record in records), "a record was lost"
    assert not [record["error"] for record in records if record["status"] not in ("running", "killed")]


def execute_kill(grid: Grid, kill: Kill) -> str:
    """Start the grid, kill at the moment that was planned, wait until no process of it is left; say what was hit."""
    progress = grid.folder / "seed=21" / "progress.json"
    before = stamp(progress)
    runner = psutil.Process(grid.start().pid)
    kernel = wait_for(lambda: find_kernel(runner), f"{kill}: a kernel")
    if not kill.while_starting:
        wait_for(lambda: stamp(progress) not in (None, before) or not kernel.is_running(), f"{kill}: training")
    time.sleep(kill.wait)
    moment = "training" if stamp(progress) not in (None, before) else "starting"
    family = [runner, *runner.children(recursive=True)]
    assert kernel in family, f"{kill}: the run ended before it could be killed; it needs more epochs"
    {"kernel": kernel, "runner": runner}[kill.victim].kill()
    marks = {str(process.pid) for process in family}
    wait_for(lambda: not any(map(is_alive, family)) and not find_marked(marks), f"{kill}: the end of all processes")
    return moment


def find_kernel(runner: psutil.Process) -> psutil.Process | None:
    with contextlib.suppress(psutil.Error):
        for process in runner.children(recursive=True):
            if "ipykernel_launcher" in process.cmdline() and process.parent().parent() == runner:
                return process
    return None


def find_marked(runners: set[str]) -> list[psutil.Process]:
    """What a run has started bears the number of the process that executes it, wherever it has got to."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(UNDER_RUNNER) in runners and is_alive(process):
                found.append(process)
    return found


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def stamp(path: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return None


def wait_for(condition: Callable, what: str):
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {PATIENCE} s in vain for {what}"
        time.sleep(0.05)
    return found


READERS = {
    ".json": json.loads,
    ".pt": lambda data: torch.load(io.BytesIO(data), weights_only=True),
    ".npz": lambda data: [array.shape for array in np.load(io.BytesIO(data), allow_pickle=False).values()],
    ".csv": lambda data: pd.read_csv(io.BytesIO(data)),
    ".yaml": yaml.safe_load,
    ".ipynb": lambda data: nbformat.validate(nbformat.reads(data.decode(), as_version=4)),
}


def check_what_is_left(grid: Grid, where: str) -> bool:
    """Every file that a reader would take for a result can be read whole; return whether last.pt is within an epoch."""
    for path in grid.folder.rglob("*"):
        if path.is_dir() or path.name.startswith("."):
            continue
        assert path.suffix != ".part", f"{where}: {path}"
        try:
            READERS.get(path.suffix, bytes)(path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{where}: {path.name} cannot be read: {error}") from error
    last = grid.run_dir / "last.pt"
    return last.exists() and torch.load(last, weights_only=True)["step"] > 0


def assert_same_result(undisturbed: Grid, killed: Grid) -> None:
    records = [json.loads((grid.run_dir / "record.json").read_text()) for grid in (undisturbed, killed)]
    for name in ("status", "key", "weights_sha256", "metrics", "best_epoch", "precision", "threads"):
        assert records[0][name] == records[1][name], name
    last = [torch.load(grid.run_dir / "last.pt", weights_only=True) for grid in (undisturbed, killed)]
    assert hash_weights(last[0]["model"]) == hash_weights(last[1]["model"])
    history = [
        pd.read_csv(grid.run_dir / "history.csv").drop(columns=["seconds", "memory_mb"])
        for grid in (undisturbed, killed)
    ]
    pd.testing.assert_frame_equal(*history, check_exact=True)
    confusion = [dict(np.load(grid.run_dir / "confusion.npz")) for grid in (undisturbed, killed)]
    assert np.array_equal(confusion[0]["confusion"], confusion[1]["confusion"])
    boards = [pd.read_csv(grid.folder / "leaderboard.csv") for grid in (undisturbed, killed)]
    assert len(boards[0]) == len(boards[1]) == 1 and boards[0]["miou"].equals(boards[1]["miou"])

"""The fixtures of tests/runs, a grid of a small notebook in processes of its own, and one of trainings with its result."""

import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from seglib.data.synthetic import make_synthetic
from seglib.files import PROJECT
from seglib.runs.lock import read_holder

_spec = importlib.util.spec_from_file_location("tests_runs_conftest", Path(__file__).parents[1] / "runs/conftest.py")
_runs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_runs)
write_notebook, call, write_grid, stand_in = _runs.write_notebook, _runs.call, _runs.write_grid, _runs.stand_in
records, grid_folder = _runs.records, _runs.grid_folder

_spec = importlib.util.spec_from_file_location("faults_judge", Path(__file__).with_name("judge.py"))
_judge = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_judge)


@pytest.fixture
def judge():
    """See judge.py."""
    return _judge.judge


@pytest.fixture(autouse=True, scope="session")
def _totals(pytestconfig):
    """Print what became of all bad inputs."""
    yield
    names = ("tried", "lost", "half-written", "unclear", "traceback")
    if _judge.TOTALS:
        with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print("\nbad inputs: " + ", ".join(f"{_judge.TOTALS[name]} {name}" for name in names))


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


# Trainings of some seconds, and what must be the same however often they were disturbed.

SEEDS = range(1, 9)
TRAINING = {
    "image_size": 64, "architecture": "PSPNet", "encoder": "tu-test_resnet", "encoder_weights": "", "epochs": 4,
    "batch_size": 2, "augmentation": "flips", "mixing": {"cutmix": 0.5}, "averaging": {"ema": {"decay": 0.95}},
    "num_workers": 1, "checkpoint_minutes": 0.003, "track": ["wandb"],
}  # fmt: skip
LEFT_OUT = re.compile(r"save_figure\(plot_(schedule|history|predictions|class_iou)\(.*")  # figures take seconds
WANDB = """
class Run:
    id, dir, starting_step, summary = "1", "none/none", 0, {}
    log = finish = log_artifact = lambda self, *_, **__: None
class Artifact:
    add_file = __init__ = lambda self, *_, **__: None
login = lambda **_: False
Settings, Image, init = dict, str, lambda **_: Run()
"""


@dataclass(frozen=True)
class Grid:
    """A grid of trainings and an ensemble of them: how it is started, and where its files are."""

    command: list[str]
    environment: dict[str, str]
    folder: Path
    seeds: tuple[int, ...]

    def start(self, **environment: str) -> subprocess.Popen:
        """Start run_grid.py; what it prints goes to `log`, from its beginning."""
        with open(self.log, "w") as log:
            return subprocess.Popen(self.command, env=self.environment | environment, stdout=log, stderr=log)

    def aim(self, aims: Sequence[dict], **environment: str) -> subprocess.Popen:
        """Start it so that the aims are hit; see aimed/sitecustomize.py."""
        path = f"{Path(__file__).parent / 'aimed'}:{self.environment['PYTHONPATH']}"
        return self.start(KILL_AT=json.dumps(aims), PYTHONPATH=path, **environment)

    def run(self, **environment: str) -> str:
        """Run it to its end; what it printed."""
        self.start(**environment).wait(600)
        return self.log.read_text()

    @property
    def log(self) -> Path:
        return self.folder.parents[1] / "run_grid.log"

    @property
    def run_dirs(self) -> list[Path]:
        return [self.folder / f"seed={seed}" for seed in self.seeds]


@pytest.fixture(scope="session")
def make_trainings(tmp_path_factory):
    """Make grids of the same runs, from a copy of the project: an edit meanwhile would change the runs' keys."""
    project = tmp_path_factory.mktemp("project")
    for name in ("seglib", "notebooks"):
        shutil.copytree(PROJECT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "run_grid.py", project)
    (project / "wandb").mkdir()
    (project / "wandb/__init__.py").write_text(WANDB)
    notebook = nbformat.read(project / "notebooks/02_train.ipynb", 4)
    for cell in notebook.cells:
        cell.source = LEFT_OUT.sub("", cell.source)
    nbformat.write(notebook, project / "notebooks/02_train.ipynb")
    data_dir = make_synthetic(tmp_path_factory.mktemp("data") / "data", num_images=60, image_size=64, seed=3)

    def make(folder: Path, seeds=SEEDS, workers=2, outputs=None, **fixed) -> Grid:
        outputs = outputs or folder / "outputs"
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "notebook": str(project / "notebooks/02_train.ipynb"),
            "fixed": TRAINING | {"data_dir": str(data_dir)} | fixed,
            "grid": {"seed": [*seeds]},
            "then": [{"notebook": str(project / "notebooks/04_ensemble.ipynb")}],
        }
        (folder / "grid.yaml").write_text(yaml.safe_dump(content))
        command = [sys.executable, project / "run_grid.py", folder / "grid.yaml", "--workers", workers]
        environment = os.environ | {
            "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1", "SEGLIB_WARM": "1", "SEGLIB_CACHE": str(folder / "cache"),
        }  # fmt: skip
        return Grid([*map(str, command), "--outputs", str(outputs)], environment, outputs / "grid", (*seeds,))

    return make


@pytest.fixture(scope="session")
def undisturbed(make_trainings, tmp_path_factory) -> Grid:
    """The grid of trainings, run at once."""
    grid = make_trainings(tmp_path_factory.mktemp("undisturbed"))
    said = grid.run()
    assert "04_ensemble: ok" in said and len(list_results(grid)) == len(SEEDS), said
    return grid


def list_results(grid: Grid) -> dict[str, tuple]:
    """Of each run that is ok: what must be the same to the bit."""
    found = {}
    for folder in grid.run_dirs:
        record = json.loads(path.read_text()) if (path := folder / "record.json").exists() else {}
        if record.get("status") == "ok":
            with np.load(folder / "confusion.npz") as arrays:
                confusion = arrays["confusion"].tobytes()
            found[folder.name] = (record["weights_sha256"], record["key"], record["metrics"], confusion)
    return found


READERS = {
    ".json": json.loads,
    ".pt": lambda data: torch.load(io.BytesIO(data), weights_only=True),
    ".npz": lambda data: [array.shape for array in np.load(io.BytesIO(data), allow_pickle=False).values()],
    ".npy": lambda data: np.load(io.BytesIO(data), allow_pickle=False).shape,
    ".csv": lambda data: pd.read_csv(io.BytesIO(data)),
    ".yaml": yaml.safe_load,
    ".ipynb": lambda data: nbformat.validate(nbformat.reads(data.decode(), as_version=4)),
    ".png": lambda data: Image.open(io.BytesIO(data)).load(),
    ".html": lambda data: data.decode().rstrip().endswith("</html>") or 1 / 0,
}


def list_broken(folder: Path) -> list[str]:
    """Files that a reader would take for results and cannot read; what is being written has another name."""
    broken = []
    for path in sorted(folder.rglob("*")):
        temporary = any(part.endswith(".part") for part in path.relative_to(folder).parts)
        if temporary or path.suffix not in READERS or not path.is_file():
            continue
        try:
            READERS[path.suffix](path.read_bytes())
        except FileNotFoundError:  # replaced or moved just now
            continue
        except Exception as error:
            broken.append(f"{path}: {type(error).__name__}: {error}")
    return broken


@dataclass
class Totals:
    """What came of disturbances: how many of each kind, and what was found wrong."""

    tried: Counter = field(default_factory=Counter)
    wrong: dict[str, list[str]] = field(
        default_factory=lambda: {name: [] for name in ("lost", "half-written", "unclear", "traceback")}
    )
    known: dict[Path, dict[str, tuple]] = field(default_factory=dict)

    def look(self, grid: Grid, where: str) -> None:
        """After a disturbance: no result that was there is gone, nothing is half written, and what was said is clear."""
        said, results = grid.log.read_text(), list_results(grid)
        before = self.known.setdefault(grid.folder, {})
        self.wrong["lost"] += [f"{where}: {name}" for name in before if results.get(name) != before[name]]
        before |= results
        for folder in (grid.folder, Path(grid.environment["SEGLIB_CACHE"])):
            self.wrong["half-written"] += [f"{where}: {each}" for each in list_broken(folder)]
        self.wrong["traceback"] += [f"{where}: {said}"] if "Traceback" in said else []

    def compare(self, grid: Grid, undisturbed: Grid) -> None:
        """At the end: all results are those of the grid that nothing disturbed, and nothing is left over."""
        results = list_results(grid)
        expected = {
            name: each for name, each in list_results(undisturbed).items() if grid.folder / name in grid.run_dirs
        }
        self.wrong["lost"] += [f"at the end: {name}" for name in expected if results.get(name) != expected[name]]
        for folder in (grid.folder, Path(grid.environment["SEGLIB_CACHE"])):
            self.wrong["half-written"] += [f"left: {path}" for path in folder.rglob("*") if path.suffix == ".part"]
        boards = [pd.read_csv(each.folder / "leaderboard.csv").set_index("run")["miou"] for each in (grid, undisturbed)]
        same = boards[0].sort_index().equals(boards[1][boards[0].index].sort_index())
        self.wrong["lost"] += [] if same and len(boards[0]) == len(grid.seeds) else ["leaderboard.csv"]
        self.wrong["unclear"] += [f"the lock says {holder}"] if (holder := read_holder(grid.folder)) else []

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.tried.items()))
        wrong = ", ".join(f"{len(found)} {name}" for name, found in self.wrong.items())
        return f"{self.tried.total()} tried, {wrong} ({kinds})"

    def require_none(self) -> None:
        """Print the totals; fail with what was wrong."""
        print(f"\n{self}")
        assert not any(self.wrong.values()), "\n".join(line for found in self.wrong.values() for line in found)


@pytest.fixture
def totals():
    return Totals()

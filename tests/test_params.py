"""Every shipped grid passes the checks that come before a run."""

import json
import re
import subprocess
import sys

import pytest

from seglib.data.augment import PRESETS
from seglib.data.splits import SPLITS
from seglib.evaluation.verdicts import Noise
from seglib.files import PROJECT
from seglib.models import ARCHITECTURES
from seglib.parts import find_parts
from seglib.runs.check import ask_builders
from seglib.runs.grid import load_grid
from seglib.runs.planning import foresee

GRIDS = sorted((PROJECT / "params").glob("*.yaml"))


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_shipped_grid_is_valid_and_explains_itself(path, tmp_path):
    grid = load_grid(path, tmp_path, {})
    assert len(grid.runs) >= 2
    assert path.read_text().startswith("# ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_run_of_a_shipped_grid_can_have_three_seeds(path, tmp_path):
    grid = load_grid(path, tmp_path, {"seed": [21, 42, 63]})
    conditions = {
        str({name: value for name, value in run.parameters.items() if name not in ("seed", "run_dir")})
        for run in grid.runs
    }
    assert len(grid.runs) == 3 * len(conditions)


@pytest.mark.parametrize(
    "path", [path for path in GRIDS if "baseline:" in path.read_text()], ids=lambda path: path.stem
)
def test_a_sweep_compares_one_factor_with_enough_seeds_and_says_what_it_can_see(path, tmp_path):
    grid = load_grid(path, tmp_path, {})
    assert grid.file.one_factor
    said = re.search(r"differences from ([\d.]+) at a seed SD of 0.006, ([\d.]+) at 0.014", path.read_text())
    parameters = [run.parameters for run in grid.runs]
    for number, sd in zip(said.groups(), (0.006, 0.014), strict=True):
        line = foresee(parameters, grid.varied, grid.file.baseline, lambda sd=sd: (Noise(sd**2, 1e-9), 1))
        assert f"differences from {number} at 80 % power" in line


def test_every_sweep_has_a_baseline():
    without = {"camvid_seeds", "kfold", "pseudo_label", "seed_ensemble", "specialist", "submission"}  # compare nothing
    assert {path.stem for path in GRIDS if "baseline:" not in path.read_text()} == without


def test_quickstart_is_two_losses_by_two_seeds_on_the_embedded_data(tmp_path):
    grid = load_grid(PROJECT / "params" / "quickstart.yaml", tmp_path, {})
    assert len(grid.runs) == 4
    assert {run.parameters["data_dir"] for run in grid.runs} == {"synthetic"}
    assert {run.parameters["encoder_weights"] for run in grid.runs} == {""}


def values(name, parameter, tmp_path):
    return [run.parameters[parameter] for run in load_grid(PROJECT / "params" / f"{name}.yaml", tmp_path, {}).runs]


def test_loss_sweep_has_the_eleven_mixtures_of_the_table(tmp_path):
    assert len({str(loss) for loss in values("loss_sweep", "loss", tmp_path)}) == 11
    assert set(values("loss_sweep", "encoder", tmp_path)) == {"resnet50"}


def test_encoder_sweep_has_32_encoders_under_50_million_parameters(tmp_path):
    encoders = set(values("encoder_sweep", "encoder", tmp_path))
    asked = [{"about": "size", "architecture": "DeepLabV3Plus", "encoder": name, "parts": []} for name in encoders]
    assert len(encoders) == 32
    assert all(0 < float(millions) < 50 for millions in ask_builders(asked))


@pytest.mark.parametrize(
    ("grid", "parameter", "choices"),
    [
        ("augmentation_sweep", "augmentation", PRESETS),
        ("augmentation_sweep", "mixing", find_parts("mixing")),
        ("scheduler_sweep", "scheduler", find_parts("scheduler")),
        ("split_sweep", "split", SPLITS),
    ],
)
def test_a_sweep_tries_the_whole_vocabulary(grid, parameter, choices, tmp_path):
    tried = values(grid, parameter, tmp_path)
    names = {
        name for value in tried for name in ([value] if isinstance(value, str) else value) if isinstance(name, str)
    }
    assert set(choices) <= names


def test_every_architecture_is_in_a_sweep(tmp_path):
    tried = {
        *values("architecture_sweep", "architecture", tmp_path),
        *values("classic_models", "architecture", tmp_path),
    }
    assert set(ARCHITECTURES) - tried == {"PAN"}  # takes no image of 64 px


TRIAL = [
    "--debug",
    "--set",
    "data_dir=synthetic",
    "--set",
    "image_size=64",
    "--set",
    "encoder_weights=",
    "--set",
    "cache=true",
]


@pytest.mark.slow
@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_shipped_grid_runs_to_the_end_in_a_trial(path, tmp_path):
    command = [sys.executable, "run_grid.py", str(path), *TRIAL, "--workers", "2", "--outputs", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    for weights in tmp_path.rglob("*.pt"):  # gigabytes, which pytest would keep
        weights.unlink()
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_focal_loss_alone_trains_as_well_as_cross_entropy(tmp_path):
    """A bug once made it look useless: softmax over the image's width."""
    losses = "loss=[{cross_entropy: 1.0}, {focal: 1.0}]"
    command = [sys.executable, "run_grid.py", "params/quickstart.yaml", "--set", losses, "--set", "seed=21"]
    done = subprocess.run(
        [*command, "--outputs", str(tmp_path)], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    records = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/*/record.json")}
    scores = {name: record["metrics"]["miou"] for name, record in records.items()}
    assert scores["loss=focal"] > 0.8 * scores["loss=ce"] > 0.2

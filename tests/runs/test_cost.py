"""What a grid will take, by records that were written for the test."""

import re
from collections import namedtuple

import pytest

from seglib.files import write_json
from seglib.runs import cost
from seglib.runs.cost import expect_cost, find_makespan, read_past_runs

TRAINING = {
    "architecture": "FPN", "encoder": "resnet18", "epochs": 10, "image_size": 256, "lr": 1e-3, "seed": 21, "batch_size": 8,
}  # fmt: skip


@pytest.fixture
def finish(tmp_path):
    """Write the record of a finished run, and weights of so many bytes."""

    def finish(name, params, seconds, size=1000, notebook="a", **fields):
        folder = tmp_path / "outputs" / "before" / name
        folder.mkdir(parents=True)
        (folder / "best.pt").write_bytes(b"0" * size)
        record = {"status": "ok", "params": params, "seconds": seconds, "key_parts": {"notebook": notebook}}
        write_json(folder / "record.json", record | {"peak_memory_mb": 2048.0, "device": "cpu"} | fields)

    return finish


def test_runs_that_differ_in_seed_alone_lend_their_median_and_time_goes_with_epochs(tmp_path, finish):
    for seed, seconds in ((1, 100), (2, 110), (3, 500)):
        finish(f"seed={seed}", TRAINING | {"seed": seed}, seconds)
    finish("other", TRAINING | {"encoder": "resnet34"}, 9000)
    past = read_past_runs(tmp_path / "outputs")
    found = expect_cost(TRAINING | {"epochs": 30}, "b", past)
    assert found.seconds == 330 and found.memory_mb == 2048 and not found.on_gpu
    assert 1000 < found.disk < 2000  # the weights and the record


def test_another_learning_rate_and_size_of_the_same_model_and_data_is_of_a_kind_and_another_model_is_not(
    tmp_path, finish
):
    finish("run", TRAINING, 100)
    past = read_past_runs(tmp_path / "outputs")
    assert expect_cost(TRAINING | {"lr": 1e-2, "image_size": 512}, "a", past).seconds == 400
    assert expect_cost(TRAINING | {"encoder": "resnet50"}, "a", past) is None


def test_any_notebook_lends_to_its_own_runs_alone(tmp_path, finish):
    finish("run", {"depth": 3, "seed": 1}, 60)
    past = read_past_runs(tmp_path / "outputs")
    assert expect_cost({"depth": 3, "seed": 2}, "a", past).seconds == 60
    assert expect_cost({"depth": 4, "seed": 1}, "a", past) is None
    assert expect_cost({"depth": 3, "seed": 2}, "another notebook", past) is None


@pytest.mark.parametrize("broken", [{"status": "failed"}, {"seconds": None}, {"params": [1]}])
def test_runs_without_a_result_lend_nothing(tmp_path, finish, broken):
    finish("run", **{"params": TRAINING, "seconds": 5} | broken)
    assert read_past_runs(tmp_path / "outputs") == {}


def test_the_longest_begin_first():
    assert find_makespan([1, 1, 1, 3], 2) == 3 and find_makespan([2, 3], 1) == 5


def test_the_dry_run_says_time_end_memory_and_disk(call, write_grid, finish, tmp_path, monkeypatch):
    shared = {"do": "ok", "weight": 0.0}
    path = write_grid("grid: {seed: [1, 2, 3]}")
    assert "it takes" not in call(path, "--dry-run").out  # nothing was measured
    (key,) = {run.key["notebook"] for run in cost_runs(path)}
    finish("run", shared | {"seed": 9}, 1800, 2**30, notebook=key, device="cuda (H200)")
    line = call(path, "--dry-run", "--workers", 2).out.splitlines()[-1]
    assert re.fullmatch(
        r"it takes about 1h00m with 2 at a time, 1.5 GPU h, until \w+ \d\d:\d\d, 2.0 GiB of memory, 3.0 GiB of disk"
        r" \(by runs of the same kind\)", line
    ), line  # fmt: skip
    for name in ("sbatch", "squeue", "scancel", "scontrol"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    line = call(path, "--dry-run", "--on", "slurm", "--workers", 2).out.splitlines()[-1]
    assert line.startswith("it takes about 1h30m of runs, 1.5 GPU h, 2.0 GiB of memory"), "nobody knows when SLURM ends"


def cost_runs(path):
    from seglib.runs.grid import load_grid

    return load_grid(path, path.parent / "outputs", {}).runs


def test_a_grid_that_will_not_fit_the_disk_is_refused_and_nothing_starts(
    call, write_grid, finish, monkeypatch, tmp_path
):
    path = write_grid("grid: {seed: [1, 2, 3]}")
    (key,) = {run.key["notebook"] for run in cost_runs(path)}
    finish("run", {"do": "ok", "weight": 0.0, "seed": 9}, 10, 2**30, notebook=key)
    usage = namedtuple("usage", "total used free")(9 * 2**30, 7 * 2**30, 2 * 2**30)
    monkeypatch.setattr(cost.shutil, "disk_usage", lambda _: usage)
    for options in ([], ["--dry-run"]):
        result = call(path, *options)
        assert result.code == 2 and "required 3.0 GiB for 3 runs" in result.err and "got 2.0 GiB free" in result.err
    assert not (tmp_path / "outputs" / "grid" / "seed=1").exists()
    assert call(path, "--dry-run", "--limit", 1).code == 0

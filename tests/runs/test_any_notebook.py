"""A notebook that knows nothing of seglib: a grid over it runs with all that a grid over ours does."""

import json
import signal
import time

import pytest

# Plain Python: it keeps its state in a file and goes on from it, and writes down each step that it does.
PARAMETERS = 'rate = 0.1\nseed: int = 0\nsteps: int = 3  # how many\npause: float = 0.0  # [s]\nrun_dir: str = "."\n'
IMPORTS = "import json, os, random, time\nstate = os.path.join(run_dir, 'state.json')"
WORK = """
x, begin = json.load(open(state)) if os.path.exists(state) else (1.0, 0)
for step in range(begin, steps):
    x -= rate * (2 * x + random.Random(1000 * seed + step).gauss(0, 0.1))
    json.dump((x, step + 1), open(state + ".new", "w"))
    os.replace(state + ".new", state)
    open(os.path.join(run_dir, "steps"), "a").write(f"{step}\\n")
    time.sleep(pause)
"""
SAYS = 'print("x is", x)'
FOLLOWS = 'import os\nprint([each for each in os.listdir(grid_dir) if "seed" in each])'


@pytest.fixture
def write_plain(tmp_path):
    """Write a grid file over the notebook, with more lines."""

    def write(text):
        save_cells(tmp_path / "plain.ipynb", PARAMETERS, IMPORTS, WORK, SAYS)
        save_cells(tmp_path / "follows.ipynb", 'grid_dir: str = ""', FOLLOWS)
        (tmp_path / "grid.yaml").write_text(f"notebook: {tmp_path}/plain.ipynb\n{text}\n")
        return tmp_path / "grid.yaml"

    return write


def save_cells(path, *sources):
    cells = [
        {"cell_type": "code", "metadata": {"tags": [] if at else ["parameters"]}, "source": source, "outputs": [],
         "execution_count": None}
        for at, source in enumerate(sources)
    ]  # fmt: skip
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 4, "metadata": kernel, "cells": cells}))


@pytest.fixture
def run(start):
    """Run the command to its end; its exit code and what it printed."""

    def run(*arguments):
        process = start(*arguments)
        out, _ = process.communicate(timeout=180)
        return process.returncode, out

    return run


def read_printed(folder):
    """What the last cell of an executed notebook printed."""
    cells = json.loads(next(folder.glob("*.ipynb")).read_text())["cells"]
    return "".join("".join(each["text"]) for each in cells[-1]["outputs"] if each["output_type"] == "stream")


def read_steps(folder):
    path = folder / "steps"
    return path.read_text().split() if path.is_file() else []


def test_a_grid_with_a_step_that_follows_is_run_listed_and_foreseen(write_plain, run, records, grid_folder, tmp_path):
    path = write_plain(f"grid: {{rate: [0.1, 0.2], seed: [1, 2]}}\nthen: [{{notebook: {tmp_path}/follows.ipynb}}]")
    code, out = run(path, "--workers", "2")
    assert code == 0, out
    assert {name: each["status"] for name, each in records().items() if "seed" in name} == {
        f"rate={rate},seed={seed}": "ok" for rate in (0.1, 0.2) for seed in (1, 2)
    }
    assert len({read_printed(grid_folder / name) for name in records() if "seed" in name}) == 4
    assert "rate=0.2,seed=2" in read_printed(grid_folder / "follows")
    assert (grid_folder / "leaderboard.csv").read_text().count(",ok,") == 4
    assert (grid_folder / "index.html").read_text().count("<td>ok</td>") == 4
    code, out = run(path, "--dry-run", "--set", "seed=[1, 2, 3]")
    assert code == 0 and "6 runs, 4 done before, 2 to go" in out and "(by runs of the same kind)" in out, out
    code, out = run("--repeat", grid_folder / "rate=0.1,seed=1")
    assert code == 2 and out.count("\n") == 1, out
    assert "required the folder of a finished training run, got one whose notebook saved no weights" in out


def test_a_killed_one_goes_on_from_what_it_kept(write_plain, run, start, records, grid_folder, wait_for):
    path = write_plain("grid: {seed: [1, 2]}\nfixed: {steps: 8, pause: 0.5}")
    killed = start(path, "--workers", "2")
    wait_for(lambda: all(len(read_steps(grid_folder / f"seed={seed}")) >= 3 for seed in (1, 2)))
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    code, out = run(path, "--workers", "2", "--set", "pause=0.5")
    assert code == 0, out
    assert {record["status"] for record in records().values()} == {"ok"}
    steps = {name: read_steps(grid_folder / name) for name in records()}
    assert all(len(each) <= 9 and sorted({*each}) == [*"01234567"] for each in steps.values()), steps
    printed = [read_printed(grid_folder / name) for name in records()]
    code, out = run(path, "--fresh")
    assert code == 0 and [read_printed(grid_folder / name) for name in ("seed=1", "seed=2")] == printed


def test_one_that_is_silent_or_too_long_is_ended(write_plain, run, records):
    path = write_plain("grid: {seed: [1]}\nfixed: {pause: 60.0}\nstall_minutes: 0.1")
    code, out = run(path)
    assert code == 1 and out.count("no sign of life for 6s (stall_minutes)") == 2, out
    assert records()["seed=1"]["error"] == "no sign of life for 6s, twice (stall_minutes)"
    path = write_plain("grid: {seed: [2]}\nfixed: {pause: 60.0}\ntimeout_hours: 0.002")
    code, out = run(path)
    assert code == 1 and "seed=2: stopped after 7s (timeout_hours)" in out, out
    assert records()["seed=2"]["status"] == "interrupted"


def test_it_is_watched_paused_and_stopped_from_elsewhere(write_plain, run, start, records, grid_folder, wait_for):
    path = write_plain("grid: {seed: [1, 2, 3]}\nfixed: {steps: 60, pause: 0.5}")
    runner = start(path)
    wait_for(lambda: read_steps(grid_folder / "seed=1"))
    watching = start("--watch", path)
    assert "to start no further run" in run(path, "--pause")[1]
    assert "to stop seed=1" in run(path, "--stop", "seed=1")[1]
    wait_for(lambda: records()["seed=1"]["status"] == "interrupted")
    time.sleep(1)
    assert not (grid_folder / "seed=2").exists()
    assert "to stop seed=2" in run(path, "--stop", "seed=2")[1] and "to go on" in run(path, "--resume")[1]
    wait_for(lambda: read_steps(grid_folder / "seed=3"))
    runner.send_signal(signal.SIGINT)
    out, _ = runner.communicate(timeout=60)
    assert runner.returncode == 130 and "seed=2: not started (--stop)" in out, out
    shown, _ = watching.communicate(timeout=60)
    assert watching.returncode == 0 and "1 running" in shown and "nobody runs now" in shown


@pytest.mark.slow
def test_it_runs_on_a_cluster(write_plain, run, records, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    code, out = run(write_plain("grid: {rate: [0.1, 0.2], seed: [1, 2]}"), "--on", "ray", "--workers", "2")
    assert code == 0 and len(records()) == 4 and {each["status"] for each in records().values()} == {"ok"}, out

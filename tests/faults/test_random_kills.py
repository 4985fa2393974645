"""Kills at random moments of a kernel, of the process that executes it, or of run_grid.py: nothing is lost or half written."""

import contextlib
import json
import random
import re
import statistics
import threading
import time
from collections import Counter

import psutil
import pytest

from seglib.runs.family import UNDER_RUNNER
from seglib.runs.record import read_record

pytestmark = pytest.mark.slow

KILLS = 66
SEED = 21  # of the draws
SHARE = 0.6  # of the commands in which run_grid.py is killed too
PATIENCE = 90  # [s] for all processes to end
KILLED = r"the kernel died: killed from outside|the process of the run was killed \(signal 9\)"


def test_after_random_kills_all_is_whole_and_the_end_is_that_of_an_undisturbed_grid(
    undisturbed, make_trainings, tmp_path, totals
):
    draw, rounds = random.Random(SEED), 0
    typical = statistics.mean(read_record(folder)["seconds"] for folder in undisturbed.run_dirs)
    while totals.tried.total() < KILLS:
        grid, rounds = make_trainings(tmp_path / f"round{rounds}"), rounds + 1
        with reading_notebooks(grid.folder) as reads:
            while totals.tried.total() < KILLS and not is_done(grid):
                kill_now_and_then(grid, draw, typical, totals)
        assert reads["whole"] > 100
        totals.wrong["half-written"] += ["notebook"] * reads["broken"]
        print(f"round {rounds}: {reads['whole']} reads of notebooks, {reads['broken']} broken")
        said = grid.run()
        assert is_done(grid), said
        totals.compare(grid, undisturbed)
    totals.require_none()


def is_done(grid):
    return (read_record(grid.folder / "04_ensemble") or {}).get("status") == "ok"


@contextlib.contextmanager
def reading_notebooks(folder):
    """Read all executed notebooks again and again while the block runs."""
    counts, over = Counter(), threading.Event()

    def read():
        while not over.wait(0.01):
            for path in folder.glob("*/*.ipynb"):
                with contextlib.suppress(FileNotFoundError):  # moved aside just now
                    try:
                        json.loads(path.read_bytes())
                        counts["whole"] += 1
                    except ValueError:
                        counts["broken"] += 1

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield counts
    finally:
        over.set()
        thread.join()


def kill_now_and_then(grid, draw, typical, totals):
    """Run the grid's command; kill what was drawn, at times that were drawn, and look at what is left each time."""
    process = grid.start(SEGLIB_WARM=draw.choice("01"))
    runner, plans, hit, began = psutil.Process(process.pid), {}, [], time.monotonic()
    end = began + draw.uniform(0, 4 * typical) if draw.random() < SHARE else None
    while process.poll() is None:
        for folder in [*grid.run_dirs, grid.folder / "04_ensemble"]:
            record = read_record(folder) or {}
            pid = (record.get("process") or {}).get("pid")
            if record.get("status") == "running" and (folder.name, pid) not in plans:
                plans[folder.name, pid] = draw.choice(["kernel", "run"]), time.monotonic() + draw.uniform(0, typical)
        for (name, pid), (victim, due) in plans.items():
            if due <= time.monotonic() and (name, pid) not in hit and kill(pid, victim):
                hit.append((name, pid))
                totals.tried[victim] += 1
                totals.look(grid, f"{victim} of {name}")
        if end and time.monotonic() > end:
            family = [runner, *runner.children(recursive=True)]
            runner.kill()
            totals.tried["run_grid.py"] += 1
            process.wait()
            wait_for_end(family)
        time.sleep(0.02)
    totals.look(grid, f"the end of run_grid.py, {process.returncode}")
    said = grid.log.read_text()
    for name, _ in hit:
        record = read_record(grid.folder / name) or {}
        told = record.get("status") == "ok" or (record.get("status") == "killed" and record.get("error"))
        words = process.returncode == -9 or re.search(rf"\] {name}: (ok|killed, \d+\w*  ({KILLED}))", said)
        totals.wrong["unclear"] += [] if told and words else [f"{name}: {record}; {said}"]
    still = [folder.name for folder in grid.run_dirs if (read_record(folder) or {}).get("status") == "running"]
    totals.wrong["unclear"] += [f"{still} run without a process"] if still else []


def kill(pid, victim):
    """Whether there was something to kill: the process that executes a run, or its kernel."""
    with contextlib.suppress(psutil.Error):
        run = psutil.Process(pid)
        marks = ("ipykernel_launcher", "seglib.runs.warm")  # of kernels, and of forked ones
        kernels = [child for child in run.children() if any(mark in child.cmdline() for mark in marks)]
        for process in kernels[:1] if victim == "kernel" else [run]:
            process.kill()
            return True
    return False


def wait_for_end(family):
    """Wait until no process is left of a grid: what a run has started bears the number of the process that executes it."""
    marks, deadline = {str(process.pid) for process in family}, time.monotonic() + PATIENCE
    while any(map(is_alive, family)) or any(map(is_alive, find_marked(marks))):
        assert time.monotonic() < deadline, f"still there: {[process for process in family if is_alive(process)]}"
        time.sleep(0.05)


def find_marked(marks):
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found += [process] if process.environ().get(UNDER_RUNNER) in marks else []
    return found


def is_alive(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False

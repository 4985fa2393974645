"""One run on a node of a cluster: is the node like the machine that sent the run, and who stops the run when it must end.

on_ray.py starts this file as `python -m seglib.runs.node` with an order as one line of JSON on standard input, which
stays open: Ray kills a task's own children at once when its process ends. It kills this one, and the run below it, whose
standard input ends, still saves what it has.
"""

import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from seglib.errors import InputError
from seglib.files import PROJECT, hash_text, outputs_dir, write_json, write_text
from seglib.runs.grid import Grid, Job
from seglib.runs.local import LocalMachine
from seglib.runs.record import describe_environment
from seglib.runs.schedule import POLL, stop_all

GRACE = 15  # [s] to save and end; less than the runner waits before it kills (see schedule.GRACE)
PROBE = ".shared"  # in a grid's folder: what every node must be able to read
_TRAVELS = ("SEGLIB_", "OMP_NUM_THREADS")  # how variables begin that a run has on a node as where it was sent from


def require_extra(on: str) -> None:
    """Refuse `--on ray` where the package of that name is not installed, `--on slurm` where its commands are not."""
    if on == "slurm":
        if missing := [name for name in ("sbatch", "squeue", "scancel", "scontrol") if shutil.which(name) is None]:
            raise InputError(f"--on slurm: required SLURM's {missing[0]} on PATH, got none; log in to the cluster")
    elif importlib.util.find_spec(on) is None:
        raise InputError(f"--on {on}: required {on}, got none; pip install 'seglib[{on}]'")


def require_whole_gpus(on: str, grid: Grid) -> None:
    """Refuse `per_gpu` where runs cannot share a GPU."""
    several, together = grid.file.per_gpu, grid.file.gpus_per_run
    if several > 1 and (on == "slurm" or together > 1):
        why = "a GPU is one job's" if on == "slurm" else f"a run has {together} GPUs (gpus_per_run)"
        raise InputError(f"per_gpu: required 1 with --on {on}, where {why}, got {several}")


def write_order(job: Job, here: Mapping[str, Any], at_once: int = 1) -> str:
    """A job as one line of JSON, with what its node must be like and how many runs that node takes at a time."""
    return json.dumps({"job": asdict(job), "here": dict(here), "at_once": at_once}, default=str)


def describe_here(grid: Grid) -> dict[str, Any]:
    """What a node must have as this machine has it: the grid's folder, the data, seglib's code, packages, variables."""
    probe = grid.folder / PROBE
    if not probe.is_file():
        write_text(probe, uuid.uuid4().hex)
    values = [value for run in grid.runs for value in run.parameters.values()]
    texts = {
        text for value in values for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)
    }
    paths = sorted(text for text in texts if os.path.isabs(text) and os.path.exists(text))
    return {
        "probe": str(probe),
        "token": probe.read_text(),
        "paths": [str(grid.notebook), *paths],
        "same": _describe_software(),
        "environment": {name: value for name, value in os.environ.items() if name.startswith(_TRAVELS)}
        | {"SEGLIB_OUTPUTS": str(outputs_dir())},
    }


@cache
def _describe_software() -> dict[str, Any]:
    files = sorted((PROJECT / "seglib").rglob("*.py"))
    code = hash_text("".join(f"{file.relative_to(PROJECT)}{file.read_text('utf-8')}" for file in files))
    about = describe_environment()
    return {"commit": about["git_commit"], "code of seglib": code[:8], **about["versions"]}


def find_differences(here: Mapping[str, Any]) -> str:
    """One line: what this node does not see or has otherwise than the machine that sent the run; "" for nothing."""
    problems = []
    if _read(here["probe"]) != here["token"]:
        problems.append(f"does not see {Path(here['probe']).parent}; required a folder that all nodes share")
    problems += [f"does not see {path}" for path in here["paths"] if not os.path.exists(path)]
    mine = _describe_software()
    problems += [
        f"required {name} {wanted}, got {mine.get(name)}"
        for name, wanted in here["same"].items()
        if mine.get(name) != wanted
    ]
    return f"node {platform.node()}: {'; '.join(problems)}" if problems else ""


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError):
        return None


def start_keeper(order: str, without: Sequence[str] = ()) -> subprocess.Popen:
    """Start the process that keeps a run; SIGTERM stops the run, and so does the end of this process.

    Parameters
    ----------
    without : variables of this process that the run must not have.

    Raises
    ------
    RuntimeError
        This node is not like the machine that sent the run.
    """
    parts = json.loads(order)
    if problem := find_differences(parts["here"]):
        raise RuntimeError(problem)
    run_dir = Path(parts["job"]["run_dir"])
    run_dir.mkdir(parents=True, exist_ok=True)
    mine = {name: value for name, value in os.environ.items() if name not in without}
    with open(run_dir / "run.log", "a", encoding="utf-8") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "seglib.runs.node"],
            stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, cwd=PROJECT,
            env=mine | parts["here"]["environment"], start_new_session=True,
        )  # fmt: skip
    keeper.stdin.write(order + "\n")
    keeper.stdin.flush()
    return keeper


def decode(code: int) -> int:
    """The exit code of the run, by that of its keeper, which cannot be negative."""
    return 128 - code if code > 128 else code


def show_progress(run_dir: Path, text: str) -> None:
    """What the status line says of a run until its notebook has something to say."""
    write_json(run_dir / "progress.json", {"text": text})


def keep(order: Mapping[str, Any], stop: threading.Event) -> int:
    """Start the run and wait for its end; its exit code."""
    job = Job(**order["job"] | {name: Path(order["job"][name]) for name in ("notebook", "run_dir")})
    show_progress(job.run_dir, f"starting on {platform.node()}")
    process = LocalMachine(order["at_once"]).start(job)
    while process.poll() is None:
        if stop.wait(POLL):
            stop_all([process], GRACE)
    code = process.poll()
    process.close(ended_well=not code and not stop.is_set())
    return code


def main() -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=lambda: (os.read(sys.stdin.fileno(), 1), stop.set()), daemon=True).start()
    code = keep(order, stop)
    sys.exit(128 - code if code < 0 else code)


if __name__ == "__main__":
    main()

"""Runs a grid: one process a run, a few at a time, with progress; what fails or is killed does not stop the rest."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from seglib.files import PROJECT
from seglib.runs.record import read_record, update_record
from seglib.runs.text_table import format_seconds

GRACE = 20  # [s] that an interrupted run gets to save its notebook before it is killed


@dataclass
class Job:
    """A notebook to execute: a run of the grid, or a step that follows. The record is written in `run_dir`."""

    label: str
    notebook: Path
    run_dir: Path
    key: str
    parameters: dict[str, Any]
    varied: dict[str, Any]


def is_finished(folder: Path, key: str) -> bool:
    """Whether a run is done: its record is ok and was made with the same key."""
    record = read_record(folder) or {}
    return record.get("status") == "ok" and record.get("key") == key


def move_aside(folder: Path, planned: Iterable[str]) -> Path | None:
    """Rename a folder to `<run>.1` (or .2, ...), never to a name that a planned run has; None if there is none."""
    if not folder.exists():
        return None
    taken = set(planned)
    number = 1
    while (target := folder.with_name(f"{folder.name}.{number}")).exists() or target.name in taken:
        number += 1
    folder.rename(target)
    return target


def run_jobs(
    jobs: list[Job],
    workers: int,
    fail_fast: bool,
    report: Callable[[str], None],
    show: Callable[[str], None],
    on_end: Callable[[], None],
) -> bool:
    """Execute jobs, at most `workers` at a time; return whether all are ok.

    Parameters
    ----------
    report : takes a line that stays (a run began or ended).
    show : takes the line of what is going on now, about four times a second.
    on_end : called after each job.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C, when every process has ended; records say `interrupted`.
    """
    waiting, active, statuses, began = list(jobs), [], [], time.monotonic()
    try:
        while waiting or active:
            while waiting and len(active) < workers:
                number = len(jobs) - len(waiting) + 1
                active.append((_start(waiting[0]), waiting.pop(0), number, time.monotonic()))
                report(f"[{number}/{len(jobs)}] {active[-1][1].label}")
            time.sleep(0.25)
            show(_describe(active, len(statuses), len(jobs), began))
            for entry in [entry for entry in active if entry[0].poll() is not None]:
                active.remove(entry)
                statuses.append(_finish(*entry, total=len(jobs), report=report))
                on_end()
            if fail_fast and any(status != "ok" for status in statuses):
                waiting.clear()
    except KeyboardInterrupt:
        show("stopping ...")
        _interrupt([process for process, *_ in active])
        for entry in active:
            _finish(*entry, total=len(jobs), report=report, interrupted=True)
        raise
    return len(statuses) == len(jobs) and all(status == "ok" for status in statuses)


def _start(job: Job) -> subprocess.Popen:
    job.run_dir.mkdir(parents=True, exist_ok=True)
    task = {name: str(value) if isinstance(value, Path) else value for name, value in vars(job).items()}
    with open(job.run_dir / "run.log", "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "seglib.runs.execute"],
            stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, cwd=PROJECT,
            start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone, which ends its children in order
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    process.stdin.write(json.dumps(task))
    process.stdin.close()
    return process


def _finish(
    process: subprocess.Popen, job: Job, number: int, began: float, total: int, report: Callable, interrupted: bool = False
) -> str:
    """Read how a job ended; if its process could not say so itself, say it for it."""
    record = read_record(job.run_dir) or {}
    if not record or "process" in record or process.returncode:
        status = "interrupted" if interrupted else "killed" if process.returncode < 0 else "failed"
        error = f"the process of the run ended with code {process.returncode}; see {job.run_dir / 'run.log'}"
        record = update_record(job.run_dir, status=status, error=error, key=job.key, params=job.parameters, varied=job.varied)
    (job.run_dir / "progress.json").unlink(missing_ok=True)
    status = record["status"]
    miou = (record.get("metrics") or {}).get("miou")
    detail = f"mIoU {miou:.4f}" if status == "ok" and miou is not None else (record.get("error") or "")
    report(f"[{number}/{total}] {job.label}: {status}, {format_seconds(time.monotonic() - began)}  {detail[:300]}".rstrip())
    return status


def _interrupt(processes: list[subprocess.Popen]) -> None:
    """Ask every process to stop and save, then end it and all it has started."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    for process in processes:
        family = _family(process.pid)
        try:
            process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for orphan in family:
            if orphan.is_running():
                orphan.kill()


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _describe(active: list, done: int, total: int, began: float) -> str:
    parts = []
    for _, job, number, started in active:
        text = _read_progress(job.run_dir) or f"starting {format_seconds(time.monotonic() - started)}"
        parts.append(f"[{number}/{total}] {text}")
    left = f" | about {format_seconds((time.monotonic() - began) / done * (total - done))} in all" if done else ""
    return " | ".join(parts) + left


def _read_progress(run_dir: Path) -> str:
    try:
        return json.loads((run_dir / "progress.json").read_text())["text"]
    except (OSError, ValueError, KeyError):  # not written yet
        return ""

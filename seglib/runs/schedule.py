"""Runs jobs: one process each, a few at a time, with progress; what fails or is killed does not stop the rest."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seglib.files import PROJECT, outputs_dir
from seglib.runs.processes import kill_family
from seglib.runs.record import describe_key, read_record, update_record
from seglib.runs.text_table import format_seconds

COMMAND = (sys.executable, "-m", "seglib.runs.execute")
GRACE = 20  # [s] that a run which is told to stop gets to save its notebook before it is killed
POLL = 0.25  # [s] between two looks at what runs


@dataclass(frozen=True)
class Job:
    """A notebook to execute: a run of the grid, or a step that follows. Everything is written in `run_dir`."""

    label: str
    notebook: Path
    run_dir: Path
    key: dict[str, Any]
    parameters: dict[str, Any]
    varied: dict[str, Any]


@dataclass(frozen=True)
class _Active:
    """A job that runs: its process, its place in the list, when it began on the monotonic clock [s]."""

    job: Job
    process: subprocess.Popen
    place: str
    began: float


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    fail_fast: bool,
    prepare: Callable[[Job], Job],
    report: Callable[[str], None],
    show: Callable[[str], None],
    on_end: Callable[[], None],
) -> bool:
    """Execute jobs, at most `workers` at a time; return whether all are ok.

    Parameters
    ----------
    prepare : called just before a job starts; makes room in its folder and returns the job to start.
    report : takes a line that stays (a run began or ended).
    show : takes the line of what is going on now, about four times a second.
    on_end : called after each job.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C, when every process has ended; records say `interrupted`.
    """
    waiting, active, statuses, seconds = list(jobs), [], [], []
    try:
        while waiting or active:
            while waiting and len(active) < workers:
                place = f"[{len(jobs) - len(waiting) + 1}/{len(jobs)}]"
                job = prepare(waiting.pop(0))
                with _interrupts_held_back():  # in between, a process would have begun that nobody ends or records
                    active.append(_start(job, place))
                report(f"{place} {active[-1].job.label}")
            time.sleep(POLL)
            show(_describe(active, len(waiting), seconds, workers))
            for run in [run for run in active if run.process.poll() is not None]:
                active.remove(run)
                statuses.append(_finish(run, report))
                seconds += [time.monotonic() - run.began] if statuses[-1] == "ok" else []
                on_end()
            if fail_fast and any(status != "ok" for status in statuses):
                waiting.clear()
    finally:
        if active:  # Ctrl-C, or a disk that is full
            show("stopping ...")
            _stop([run.process for run in active])
            for run in active:
                _finish(run, report, interrupted=True)
    return len(statuses) == len(jobs) and all(status == "ok" for status in statuses)


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Let Ctrl-C, and the signals that end as it does, wait until the block is left."""
    came = []
    held = [number for number in signal.valid_signals() if signal.getsignal(number) is signal.default_int_handler]
    for number in held:
        signal.signal(number, lambda *_: came.append(True))
    try:
        yield
    finally:
        for number in held:
            signal.signal(number, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


def _start(job: Job, place: str) -> _Active:
    job.run_dir.mkdir(parents=True, exist_ok=True)
    with open(job.run_dir / "run.log", "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, cwd=PROJECT,
            env=os.environ | {"SEGLIB_OUTPUTS": str(outputs_dir())},  # seen from here, not from where the run stands
            close_fds=False,  # the lock on the grid's folder is the one handle that is inheritable
            start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone, which ends its children in order
        )  # fmt: skip
    with contextlib.suppress(BrokenPipeError):  # it ended already; _finish says how
        process.stdin.write(json.dumps(asdict(job), default=str) + "\n")
        process.stdin.flush()  # and stays open: when this process is killed, its end tells the child
    return _Active(job, process, place, time.monotonic())


def _finish(run: _Active, report: Callable[[str], None], interrupted: bool = False) -> str:
    """Read how a job ended; if its process could not say so itself, say it for it."""
    job, code = run.job, run.process.returncode
    with contextlib.suppress(BrokenPipeError):
        run.process.stdin.close()
    if code or interrupted:
        kill_family(run.process.pid)
    if code:
        status, error = "failed", _last_line(job.run_dir / "run.log")
        if interrupted:
            status, error = "interrupted", "stopped before its end"
        elif code < 0:
            status, error = "killed", f"the process of the run was killed (signal {-code})"
        update_record(
            job.run_dir, status=status, error=error, params=job.parameters, varied=job.varied, **describe_key(job.key)
        )
    (job.run_dir / "progress.json").unlink(missing_ok=True)
    record = read_record(job.run_dir) or {}
    status, miou = record.get("status", "failed"), (record.get("metrics") or {}).get("miou")
    detail = f"mIoU {miou:.4f}" if status == "ok" and miou is not None else record.get("error") or ""
    seconds = format_seconds(time.monotonic() - run.began)
    report(f"{run.place} {job.label}: {status}, {seconds}  {detail[:300]}".rstrip())
    return status


def _stop(processes: Sequence[subprocess.Popen]) -> None:
    """Ask every process to stop and save, and end those that do not."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{lines[-1][:300] if lines else 'the process of the run ended without a word'}; see {log}"


def _describe(active: Sequence[_Active], waiting: int, seconds: Sequence[float], workers: int) -> str:
    """What each run does now, after the time that is left if all take as long as those that were ok [s]."""
    parts = []
    elapsed = [time.monotonic() - run.began for run in active]
    if seconds:
        mean = statistics.fmean(seconds)
        left = (waiting * mean + sum(max(0, mean - so_far) for so_far in elapsed)) / workers
        parts += [f"about {format_seconds(left)} left"] if left >= 1 else []
    for run, so_far in zip(active, elapsed, strict=True):
        parts.append(f"{run.place} {_read_progress(run.job.run_dir) or f'starting {format_seconds(so_far)}'}")
    return " | ".join(parts)


def _read_progress(run_dir: Path) -> str:
    try:
        return json.loads((run_dir / "progress.json").read_text())["text"]
    except (OSError, ValueError, KeyError):  # not written yet
        return ""

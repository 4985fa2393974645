"""A grid's runs, in slots: what is to do, in which order, on which device, again."""

import contextlib
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from seglib.errors import InputError, printable
from seglib.files import PROJECT, RUNS_AT_ONCE, find_free_folder, outputs_dir, write_text
from seglib.runs.averages import explain_averages
from seglib.runs.conditions import RunResult, find_earlier_noise, summarise_conditions
from seglib.runs.grid import Grid, Job, Run, find_neighbours, group_steps, plan_step
from seglib.runs.keys import compare_keys, compute_keys, find_changes, is_finished
from seglib.runs.leaderboard import (
    collect_runs,
    fit,
    format_seconds,
    format_table,
    write_leaderboard,
)
from seglib.runs.page import write_index
from seglib.runs.planning import find_needed
from seglib.runs.record import describe_key, kill_family, read_record, update_record

COMMAND = (sys.executable, "-m", "seglib.runs.execute")
GRACE = 20  # [s] that a run which is told to stop gets to save its notebook before it is killed
POLL = 0.25  # [s] between two looks at what runs


class StatusLine:
    """Progress: one line that changes in place on a terminal; elsewhere a new line, at most every ten seconds."""

    def __init__(self):
        self.live, self.last, self.printed = sys.stdout.isatty(), "", 0.0

    def show(self, text: str) -> None:
        """Show what is going on now."""
        text = printable(text)
        if self.live:
            print(f"\r\x1b[K{fit(text, shutil.get_terminal_size().columns - 1)}", end="", flush=True)
        elif text != self.last and time.monotonic() - self.printed > 10:
            print(f"    {text}", flush=True)
            self.last, self.printed = text, time.monotonic()

    def keep(self, text: str) -> None:
        """Print a line that stays."""
        print(("\r\x1b[K" if self.live else "") + printable(text), flush=True)


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
    limit: float = math.inf,
) -> bool:
    """Execute jobs, at most `workers` at a time; return whether all are ok.

    What happens to the files of one run is that run's failure: the others go on.

    Parameters
    ----------
    prepare : called just before a job starts; makes room in its folder and returns the job to start.
    report : takes a line that stays (a run began or ended).
    show : takes the line of what is going on now, about four times a second.
    on_end : called after each job.
    limit : [s] after which a run is stopped; it is `interrupted`, and goes on from there the next time.

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
                job = waiting.pop(0)
                try:
                    job = prepare(job)
                    with _interrupts_held_back():  # in between, a process would have begun that nobody ends or records
                        active.append(_start(job, place, workers))
                    report(f"{place} {job.label}")
                except OSError as error:
                    statuses.append("failed")
                    report(f"{place} {job.label}: failed, not started: {error}")
            time.sleep(POLL)
            show(_describe(active, len(waiting), seconds, workers))
            _stop_late(active, limit, report)
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


def _stop_late(active: Sequence[_Active], limit: float, report: Callable[[str], None]) -> None:
    late = [run for run in active if time.monotonic() - run.began > limit and run.process.poll() is None]
    for run in late:
        report(f"{run.place} {run.job.label}: stopped after {format_seconds(limit)} (timeout_hours)")
    _stop([run.process for run in late])


def _start(job: Job, place: str, workers: int) -> _Active:
    seen = {
        "SEGLIB_OUTPUTS": str(outputs_dir()),
        RUNS_AT_ONCE: str(workers),
    }  # outputs from here, not from where the run stands
    job.run_dir.mkdir(parents=True, exist_ok=True)
    with open(job.run_dir / "run.log", "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, cwd=PROJECT,
            env=os.environ | seen,
            close_fds=False,  # the lock on the grid's folder is the one handle that is inheritable
            start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone, which ends its children in order
        )  # fmt: skip
    with contextlib.suppress(BrokenPipeError):  # it ended already; _finish says how
        process.stdin.write(json.dumps(asdict(job), default=str) + "\n")
        process.stdin.flush()  # and stays open: when this process is killed, its end tells the child
    return _Active(job, process, place, time.monotonic())


def _finish(run: _Active, report: Callable[[str], None], interrupted: bool = False) -> str:
    """Say how a job ended; of one whose folder is gone or full that it failed."""
    try:
        status, detail = _read_end(run, interrupted)
    except OSError as error:
        status, detail = "failed", f"{error}"
    seconds = format_seconds(time.monotonic() - run.began)
    report(f"{run.place} {run.job.label}: {status}, {seconds}  {detail[:300]}".rstrip())
    return status


def _read_end(run: _Active, interrupted: bool) -> tuple[str, str]:
    """Status and detail of a job that ended; if its process could not say so itself, say it for it."""
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
    return status, detail or ("" if record else f"{job.run_dir} has no record.json: was it moved or deleted?")


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


def run_grid(
    grid: Grid,
    waiting: Sequence[Run],
    workers: int,
    fail_fast: bool,
    report: Callable[[str], None],
    show: Callable[[str], None],
) -> bool:
    """Run the waiting runs and then the steps that follow; return whether all of them are ok.

    `report` takes lines that stay, `show` the line of what is going on now (see `schedule.run_jobs`).

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C; what ran is kept and the leaderboard is written.
    """

    write_text(grid.folder / "grid.yaml", grid.file.as_yaml())
    near = find_neighbours(grid)
    jobs = {
        run.name: Job(run.name, grid.notebook, run.folder, run.key, run.parameters, run.varied, near[run.name])
        for run in waiting
    }
    ok, tried = True, set()
    try:
        while (ok or not fail_fast) and (names := find_next(grid, jobs.keys() - tried, tried)):
            if tried:
                report(f"{len(names)} more runs, where one more seed can still tell")
            prepare = partial(_prepare, grid, report)
            chosen = [jobs[name] for name in names]
            on_end = partial(_write_on_the_way, grid, report)
            ok = run_jobs(chosen, workers, fail_fast, prepare, report, show, on_end, _limit(grid)) and ok
            tried.update(names)
        if grid.file.then:
            write_results(grid)  # which a step reads; nothing ran where the grid only became smaller
        for places in group_steps(grid.file.then):
            if fail_fast and not ok:
                break
            jobs, planned = _plan_group(grid, places, ok, report)
            ended = run_jobs(jobs, workers, fail_fast, _make_room, report, show, lambda: None, _limit(grid))
            ok = ended and planned and ok
        return ok
    except KeyboardInterrupt:
        write_results(grid)
        raise


def _plan_group(grid: Grid, places: Sequence[int], ok: bool, report: Callable[[str], None]) -> tuple[list[Job], bool]:
    """Jobs of the steps at these places, and whether each step could be planned; those that cannot are reported."""
    jobs, planned = [], True
    for place in places:
        step = grid.file.then[place - 1]
        if not ok and step.uses_grid_dir():
            report(f"{step.notebook}: not started, because what it follows failed")
            continue
        try:
            jobs += plan_step(grid, place)
        except InputError as error:
            report(f"{step.notebook}: not started: {error}")
            planned = False
    return jobs, planned


def _prepare(grid: Grid, report: Callable[[str], None], job: Job) -> Job:
    """Key a run again, whose notebook or data may have changed since the grid was checked, and make room for it."""
    try:
        key = compute_keys(grid.notebook, [job.parameters])[0]
    except ValueError:  # the data set or the notebook is gone: the run itself says so, and the others go on
        key = job.key
    names = [run.name for run in grid.runs]
    if key != job.key:
        changed = " and ".join(compare_keys(job.key, key))
        report(f"{job.label}: {changed} changed since the grid was checked; this run is with the new")
        position = names.index(job.label)
        grid.runs[position] = replace(grid.runs[position], key=key)
    return _make_room(replace(job, key=key), names)


def _make_room(job: Job, planned: Sequence[str] = ()) -> Job:
    """Move aside a finished run, or what other parameters, code or data left; a run that did not end goes on.

    The old folder never gets a name that is planned: `weight_decay=0` is not moved onto `weight_decay=0.1`.
    """
    record = read_record(job.run_dir)
    ended = not record or record.get("status") == "ok" or find_changes(job.run_dir, job.notebook, job.key)
    if job.run_dir.exists() and ended:
        job.run_dir.rename(find_free_folder(job.run_dir, lambda path: path.exists() or path.name in planned, first=1))
    return job


def keep_finished(grid: Grid) -> None:
    """Write the key into the records of runs that are done and have no parts of it yet: it is worked out only once."""
    for run in grid.runs:
        record = read_record(run.folder) or {}
        if record and "key_parts" not in record and is_finished(run.folder, grid.notebook, run.key):
            update_record(run.folder, **describe_key(run.key))


def find_next(grid: Grid, waiting: Collection[str], tried: Collection[str] = ()) -> list[str]:
    """Those of the waiting runs that are worth their time by what the others came to, in the grid's order."""
    rows = _collect(grid) if grid.file.max_seeds else []  # a thousand records are not read for nothing
    wanted = find_needed(grid, rows, tried, _lend(grid)) & {*waiting}
    return [run.name for run in grid.runs if run.name in wanted]


def _limit(grid: Grid) -> float:
    """Seconds that a run may take."""
    return grid.file.timeout_hours * 3600 or math.inf


def _write_on_the_way(grid: Grid, report: Callable[[str], None]) -> None:
    """The results so far; a disk that is full now ends no run, and at the end they are written again."""
    try:
        write_results(grid)
    except OSError as error:
        report(f"{grid.folder}: leaderboard and page were not written: {error}; the runs go on")


def write_results(grid: Grid, width: int = 100) -> str:
    """Write leaderboard.csv and index.html; return the leaderboard as text `width` columns wide, and where to look."""
    rows, earlier = _collect(grid), _lend(grid)
    needed = find_needed(grid, rows, earlier=earlier)
    rows = [row for row in rows if row.run in needed or row.status != "planned"]
    options = {"worthwhile": grid.file.worthwhile, "earlier": earlier, "max_seeds": grid.file.max_seeds}
    comparison = summarise_conditions(rows, grid.varied, grid.file.baseline, **options)
    averages = explain_averages(grid.folder, rows, grid.varied, grid.file.worthwhile)
    comparison = replace(comparison, averages=averages)
    table = write_leaderboard(grid.folder, rows)
    page = write_index(grid.folder, rows, comparison, grid.varied, grid.name, grid.notebook.stem)
    return f"{format_table(rows, comparison, grid.varied, width)}\n\nleaderboard  {table}\nlook here    {page}"


def _collect(grid: Grid) -> list[RunResult]:
    """A row for each run of the grid; one whose key is another now is outdated, its score no result."""
    rows = collect_runs(grid.folder, [run.name for run in grid.runs], grid.varied)
    done = {run.name for run in grid.runs if is_finished(run.folder, grid.notebook, run.key)}
    return [replace(row, status="outdated") if row.status == "ok" and row.run not in done else row for row in rows]


def _lend(grid: Grid) -> Callable[[], Any]:
    """Gives the noise of earlier grids where it is asked for; all records of the outputs folder are read once for it."""
    runs = [run.name for run in grid.runs]
    return cache(partial(find_earlier_noise, grid.folder.parent, grid.folder, runs))

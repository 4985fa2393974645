"""A grid's runs, in slots: what is to do, in which order, on which device, again."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from seglib.errors import InputError, InputErrors
from seglib.files import PROJECT, find_free_folder, outputs_dir, write_text
from seglib.parameters import read_schema
from seglib.parts import find_kept_parts
from seglib.rules import check_parameters, resolve_paths
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
from seglib.runs.record import complete_params, describe_key, kill_family, read_record, update_record

COMMAND = (sys.executable, "-m", "seglib.runs.execute")
GRACE = 20  # [s] that a run which is told to stop gets to save its notebook before it is killed
POLL = 0.25  # [s] between two looks at what runs


class StatusLine:
    """Progress: one line that changes in place on a terminal; elsewhere a new line, at most every ten seconds."""

    def __init__(self):
        self.live, self.last, self.printed = sys.stdout.isatty(), "", 0.0

    def show(self, text: str) -> None:
        """Show what is going on now."""
        if self.live:
            print(f"\r\x1b[K{fit(text, shutil.get_terminal_size().columns - 1)}", end="", flush=True)
        elif text != self.last and time.monotonic() - self.printed > 10:
            print(f"    {text}", flush=True)
            self.last, self.printed = text, time.monotonic()

    def keep(self, text: str) -> None:
        """Print a line that stays."""
        print(("\r\x1b[K" if self.live else "") + text, flush=True)


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
            ok = run_jobs(chosen, workers, fail_fast, prepare, report, show, lambda: write_results(grid)) and ok
            tried.update(names)
        if grid.file.then:
            write_results(grid)  # which a step reads; nothing ran where the grid only became smaller
        for places in group_steps(grid.file.then):
            if fail_fast and not ok:
                break
            jobs, planned = _plan_group(grid, places, ok, report)
            ok = run_jobs(jobs, workers, fail_fast, _make_room, report, show, lambda: None) and planned and ok
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


# What may make a difference, in the order in which it is reported.
_CAUSES = (
    "versions", "platform", "device", "precision", "threads", "deterministic", "oom_split", "weights", "data_hash",
    "git_commit", "git_dirty",
)  # fmt: skip


_ALONE = {"continue_from": "", "track": []}  # a repeat begins at the beginning, and no tracker gets it


def repeat_run(run_dir: Path, report: Callable[[str], None], show: Callable[[str], None]) -> bool:
    """Run a finished run again with the parameters of its record; return whether the weights are the same to the bit.

    What comes of it is in `run_dir`/repeat (repeat.2, ...). `report` and `show`: see `schedule.run_jobs`.

    Raises
    ------
    InputError
        A run that is not finished, or parameters that no longer fit the notebook or the data.
    """
    before = _read_finished(run_dir)
    job = _plan(run_dir, before)
    if not run_jobs([job], 1, False, lambda job: job, report, show, lambda: None):
        return False
    after = read_record(job.run_dir) or {}
    same = [_hashes(record) for record in (before, after)]
    if same[0] == same[1] and _same_confusion(run_dir, job.run_dir):
        report(f"the same weights, bit for bit ({before['weights_sha256'][:16]}...), and the same confusion matrices")
        return True
    report(f"OTHER weights: {before['weights_sha256'][:16]}... then, {str(after.get('weights_sha256'))[:16]}... now")
    for line in describe_differences(before, after) or ["nothing that is recorded differs"]:
        report(f"  {line}")
    return False


def _hashes(record: Mapping[str, Any]) -> tuple:
    """Of the best weights, and of those fitted to all images."""
    return record.get("weights_sha256"), (record.get("final_fit") or {}).get("weights_sha256")


def describe_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two records of which the same was asked: a line each."""
    lines = []
    keys = [record.get("key_parts") for record in (before, after)]
    if all(keys) and (changed := compare_keys(*keys)):
        lines.append(f"the run's key: another {', '.join(changed)}")
    causes = [_list_causes(record) for record in (before, after)]
    pairs = {name: [each.get(name) for each in causes] for name in dict.fromkeys(itertools.chain(*causes))}
    lines += [f"{name}: {then} then, {now} now" for name, (then, now) in pairs.items() if then != now]
    if not after.get("deterministic", True):
        lines.append("deterministic is false: other bits are to be expected")
    score = [(record.get("metrics") or {}).get("miou") for record in (before, after)]
    return lines + ([f"mIoU: {score[0]} then, {score[1]} now"] if score[0] != score[1] else [])


def _list_causes(record: Mapping[str, Any]) -> dict[str, Any]:
    """What may make a difference, the version of each library for itself."""
    causes = {name: record.get(name) for name in _CAUSES}
    return (causes.pop("versions") or {}) | causes


def _read_finished(run_dir: Path) -> dict[str, Any]:
    record = read_record(run_dir)
    if record is None or record.get("status") != "ok" or "weights_sha256" not in record:
        got = "no record.json" if record is None else f"status {record.get('status')}"
        raise InputError(f"--repeat {run_dir}: required the folder of a finished training run, got {got}")
    return record


def _plan(run_dir: Path, record: Mapping[str, Any]) -> Job:
    notebook = _find_notebook(run_dir)
    schema = read_schema(notebook)
    values = complete_params({name: each.default for name, each in schema.items()}, record["params"])
    values |= {name: value for name, value in _ALONE.items() if name in values}
    values |= {"parts": find_kept_parts(run_dir)} if "parts" in values else {}
    values = resolve_paths(values, notebook.parent)  # a run by hand may have relative ones
    parameters, problems = check_parameters(schema, values)
    if problems:
        raise InputErrors([f"--repeat {run_dir}: {problem}" for problem in problems.values()])
    folder = find_free_folder(run_dir / "repeat")
    parameters |= {"run_dir": str(folder)}
    (key,) = compute_keys(notebook, [parameters])
    return Job(f"repeat of {run_dir.name}", notebook, folder, key, parameters, dict(record.get("varied", {})))


def _find_notebook(run_dir: Path) -> Path:
    """The notebook of which the run's folder holds the executed copy."""
    names = [path.name for path in run_dir.glob("*.ipynb") if (PROJECT / "notebooks" / path.name).is_file()]
    if len(names) != 1:
        raise InputError(
            f"--repeat {run_dir}: required the executed copy of one of {PROJECT / 'notebooks'}, got {names or 'none'}"
        )
    return PROJECT / "notebooks" / names[0]


def _same_confusion(*folders: Path) -> bool:
    import numpy as np  # not at the top: a dry run does without it

    with np.load(folders[0] / "confusion.npz") as before, np.load(folders[1] / "confusion.npz") as after:
        return all(np.array_equal(before[name], after[name]) for name in ("confusion", "image_ids"))

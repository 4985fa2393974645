"""Runs a checked grid: what is not done yet, the steps that follow, leaderboard and index."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from seglib.errors import InputError
from seglib.files import write_text
from seglib.runs.grid import Grid, Run
from seglib.runs.index_page import write_index
from seglib.runs.keys import compare_keys, compute_keys, find_changes, is_finished
from seglib.runs.leaderboard import collect_runs, format_table, summarise_conditions, write_leaderboard
from seglib.runs.record import describe_key, read_record, update_record
from seglib.runs.schedule import Job, run_jobs
from seglib.runs.steps import group_steps, plan_step


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

    def prepare(job: Job) -> Job:
        try:
            key = compute_keys(grid.notebook, grid.config, [job.parameters])[0]
        except ValueError:  # the data set or the notebook is gone: the run itself says so, and the others go on
            key = job.key
        if key != job.key:
            changed = " and ".join(compare_keys(job.key, key))
            report(f"{job.label}: {changed} changed since the grid was checked; this run is with the new")
            position = [run.name for run in grid.runs].index(job.label)
            grid.runs[position] = replace(grid.runs[position], key=key)
        make_room(job.run_dir, job.notebook, key, [run.name for run in grid.runs])
        return replace(job, key=key)

    def prepare_step(job: Job) -> Job:
        make_room(job.run_dir, job.notebook, job.key, ())
        return job

    write_text(grid.folder / "grid.yaml", grid.file.as_yaml())
    jobs = [Job(run.name, grid.notebook, run.folder, run.key, run.parameters, run.varied) for run in waiting]
    try:
        ok = run_jobs(jobs, workers, fail_fast, prepare, report, show, lambda: write_results(grid))
        if grid.file.then:
            write_results(grid)  # which a step reads; nothing ran where the grid only became smaller
        for places in group_steps(grid.file.then):
            if fail_fast and not ok:
                break
            jobs, planned = _plan_group(grid, places, ok, report)
            ok = run_jobs(jobs, workers, fail_fast, prepare_step, report, show, lambda: None) and planned and ok
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


def make_room(folder: Path, notebook: Path, key: Mapping[str, Any], planned: Iterable[str]) -> None:
    """Move aside a finished run, or what other parameters, code or data left; a run that did not end goes on.

    The old folder becomes `<run>.1` (or .2, ...), never a name that is planned: `weight_decay=0` is not moved onto
    `weight_decay=0.1`.
    """
    record = read_record(folder)
    if not folder.exists() or (record and record.get("status") != "ok" and not find_changes(folder, notebook, key)):
        return
    number, taken = 1, set(planned)
    while (target := folder.with_name(f"{folder.name}.{number}")).exists() or target.name in taken:
        number += 1
    folder.rename(target)


def keep_finished(grid: Grid) -> None:
    """Write the key into the records of runs that are done and have no parts of it yet: it is worked out only once."""
    for run in grid.runs:
        record = read_record(run.folder) or {}
        if record and "key_parts" not in record and is_finished(run.folder, grid.notebook, run.key):
            update_record(run.folder, **describe_key(run.key))


def write_results(grid: Grid, width: int = 100) -> str:
    """Write leaderboard.csv and index.html; return the leaderboard as text `width` columns wide, and where to look."""
    rows = collect_runs(grid.folder, [run.name for run in grid.runs], grid.varied)
    done = {run.name for run in grid.runs if is_finished(run.folder, grid.notebook, run.key)}
    rows = [replace(row, status="outdated") if row.status == "ok" and row.run not in done else row for row in rows]
    conditions = summarise_conditions(rows, grid.varied, grid.file.baseline)
    table = write_leaderboard(grid.folder, rows)
    page = write_index(grid.folder, rows, conditions, grid.varied, grid.name, grid.notebook.stem)
    return f"{format_table(rows, conditions, grid.varied, width)}\n\nleaderboard  {table}\nlook here    {page}"

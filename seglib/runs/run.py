"""Runs a checked grid: what is not done yet, the steps that follow, leaderboard and index."""

from collections.abc import Callable

from seglib.files import write_text
from seglib.runs.grid import Grid, Run
from seglib.runs.index_page import write_index
from seglib.runs.leaderboard import collect_runs, format_table, summarise_conditions, write_leaderboard
from seglib.runs.record import read_record
from seglib.runs.schedule import Job, is_finished, move_aside, run_jobs
from seglib.runs.steps import plan_steps


def run_grid(
    grid: Grid,
    waiting: list[Run],
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
    grid.folder.mkdir(parents=True, exist_ok=True)
    write_text(grid.folder / "grid.yaml", grid.file.as_yaml())
    try:
        jobs = [_prepare(run, grid) for run in waiting]
        ok = run_jobs(jobs, workers, fail_fast, report, show, lambda: write_results(grid))
        if fail_fast and not ok:
            return False
        steps = [job for job in plan_steps(grid) if not is_finished(job.run_dir, job.key)]
        for job in steps:
            move_aside(job.run_dir, ())
        return run_jobs(steps, workers, fail_fast, report, show, lambda: None) and ok
    except KeyboardInterrupt:
        write_results(grid)
        raise


def write_results(grid: Grid, width: int = 100) -> str:
    """Write leaderboard.csv and index.html; return the leaderboard as text `width` columns wide, and where to look."""
    rows = collect_runs(grid.folder, [run.name for run in grid.runs], grid.varied)
    conditions = summarise_conditions(rows, grid.varied, grid.file.baseline)
    table = write_leaderboard(grid.folder, rows)
    page = write_index(grid.folder, rows, conditions, grid.varied, grid.name, grid.notebook.stem)
    return f"{format_table(rows, conditions, grid.varied, width)}\n\nleaderboard  {table}\nlook here    {page}"


def _prepare(run: Run, grid: Grid) -> Job:
    """Move away what an earlier run with other parameters, code or data left; a run that did not end goes on."""
    record = read_record(run.folder) or {}
    if record.get("key") != run.key or record.get("status") == "ok":
        move_aside(run.folder, (planned.name for planned in grid.runs))
    parameters = run.parameters | ({"run_dir": str(run.folder)} if "run_dir" in run.parameters else {})
    return Job(run.name, grid.notebook, run.folder, run.key, parameters, run.varied)

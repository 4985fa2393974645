"""A grid's runs and the steps that follow them: what is to do, again or further, and what came of it."""

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from seglib.errors import InputError
from seglib.files import find_free_folder, write_text
from seglib.runs.grid import Grid, Job, Run, find_neighbours, group_steps, plan_step
from seglib.runs.halving import Halving
from seglib.runs.keys import compare_keys, compute_keys, find_changes, is_finished
from seglib.runs.order import Order
from seglib.runs.planning import find_needed
from seglib.runs.record import describe_key, read_record, update_record
from seglib.runs.results import ResultsWriter, collect_rows, lend_noise, write_results
from seglib.runs.schedule import Place, run_jobs
from seglib.runs.search import Search
from seglib.runs.slurm import find_handed_over
from seglib.runs.watch import Orders

MOST_LOOKED_AT = 20  # data sets, before each run; where a grid has more, the others at its end


def run_grid(
    grid: Grid,
    waiting: Sequence[Run],
    place: Place,
    fail_fast: bool,
    report: Callable[[str], None],
    show: Callable[[str], None],
    orders: Orders,
) -> bool:
    """Run the waiting runs and then the steps that follow; return whether all of them are ok.

    `report` takes lines that stay, `show` the line of what is going on now (see `schedule.run_jobs`), `place` starts the runs, `orders` are what others ask.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C; what ran is kept and the leaderboard is written.
    """
    write_text(grid.folder / "grid.yaml", grid.file.as_yaml())
    again = [run.name for run in waiting if is_finished(run.folder, grid.notebook, run.key)]
    halving = Halving(grid, [run.name for run in waiting], again) if grid.file.stop else None
    search = Search(grid, lambda: place.slots, again) if grid.file.search else None
    waiting = [*waiting, *(search.extend() if search else ())]
    jobs = _make_jobs(grid, waiting)
    ok, tried, order = True, set(), Order(grid)
    steady = {
        "fail_fast": fail_fast,
        "leave": order.leave,
        "limit": grid.file.timeout_hours * 3600 or math.inf,
        "stall": grid.file.stall_minutes * 60 or math.inf,
        "orders": orders,
    }
    results = ResultsWriter(grid, report)

    def on_end(job: Job, status: str) -> Sequence[Job]:
        further = halving.find_next(jobs, job, status) if halving else ()
        further = [*_make_jobs(grid, search.extend(job.label, status)).values()] if search else further
        results.write_soon()
        return order.sort(further)

    try:
        while (ok or not fail_fast) and (names := find_next(grid, jobs.keys() - tried, tried)):
            if tried:
                report(f"{len(names)} more runs, where one more seed can still tell")
            chosen, prepare = [jobs[name] for name in names], partial(_prepare, grid, report, results.write_soon)
            chosen = halving.find_next(jobs) if halving else chosen
            ok = run_jobs(order.sort(chosen), place, report, show, prepare=prepare, on_end=on_end, **steady) and ok
            tried.update(jobs if halving or search else names)
            if place.leaves:
                break
        results.close()
        if place.leaves:  # what follows needs results
            return ok
        if grid.file.then:
            key_again(grid)
            write_results(grid)  # which a step reads; nothing ran where the grid only became smaller
        for places in group_steps(grid.file.then):
            if fail_fast and not ok:
                break
            jobs, planned = _plan_group(grid, places, ok, report)
            ended = run_jobs(jobs, place, report, show, prepare=_make_room, **steady)
            ok = ended and planned and ok
        if left := order.describe_left():
            report(left)
        return ok
    except KeyboardInterrupt:
        results.close()
        write_results(grid)
        raise
    finally:
        results.close()


def _make_jobs(grid: Grid, runs: Sequence[Run]) -> dict[str, Job]:
    near, processes = find_neighbours(grid), grid.file.gpus_per_run
    return {
        run.name: Job(
            run.name, grid.notebook, run.folder, run.key, run.parameters, run.varied, near[run.name], processes
        )
        for run in runs
    }


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


def _prepare(grid: Grid, report: Callable[[str], None], changed: Callable[[], None], job: Job) -> Job:
    """Make room for a run, with its key of now: data or code may have changed since the grid was checked.

    Where they did, what ran with the old is outdated from now on, and `changed` is called.
    """
    names = [run.name for run in grid.runs]
    position = names.index(job.label)
    one_of_each = [*{str(run.key["data"]): run for run in grid.runs}.values()]  # of the data sets
    if _keys_changed(grid, [grid.runs[position], *one_of_each[:MOST_LOOKED_AT]]):
        key_again(grid)
        changed()
    key = grid.runs[position].key
    if key != job.key:
        what = " and ".join(compare_keys(job.key, key))
        report(f"{job.label}: {what} changed since the grid was checked; this run is with the new")
    return _make_room(replace(job, key=key), names)


def _keys_changed(grid: Grid, runs: Sequence[Run]) -> bool:
    with suppress(ValueError):  # the data set or the notebook is gone: the run itself says so, and the others go on
        return compute_keys(grid.notebook, [run.parameters for run in runs]) != [run.key for run in runs]
    return False


def key_again(grid: Grid) -> None:
    """Give all runs the keys that they have now."""
    with suppress(ValueError):
        keys = compute_keys(grid.notebook, [run.parameters for run in grid.runs])
        grid.runs[:] = [replace(run, key=key) for run, key in zip(grid.runs, keys, strict=True)]


def find_outdated(grid: Grid, names: Collection[str]) -> list[str]:
    """Those of the runs that ended well, with other data or code than there is now."""
    key_again(grid)
    return [row.run for row in collect_rows(grid) if row.status == "outdated" and row.run in names]


def _make_room(job: Job, planned: Sequence[str] = ()) -> Job:
    """Move aside a finished run, or what other parameters, code or data left; a run that did not end goes on.

    One that was handed over to SLURM is found again there. The old folder never gets a name that is planned: `weight_decay=0` is not moved onto `weight_decay=0.1`.
    """
    if find_handed_over([job.run_dir]):
        return job
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
    rows = collect_rows(grid) if grid.file.max_seeds else []  # a thousand records are not read for nothing
    wanted = find_needed(grid, rows, tried, lend_noise(grid)) & {*waiting}
    wanted -= Halving(grid, waiting).find_stopped().keys() if grid.file.stop else set()
    return [run.name for run in grid.runs if run.name in wanted]

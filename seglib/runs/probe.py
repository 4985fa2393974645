"""Three steps of one run of each kind that was never measured: what its time and memory will be, before a night goes into it."""

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from seglib.errors import InputError
from seglib.runs.conditions import identify
from seglib.runs.cost import PROBES, describe_shape, expect_cost, read_past_runs
from seglib.runs.grid import Grid, Job, Run
from seglib.runs.keys import calls
from seglib.runs.record import read_record
from seglib.runs.schedule import Place, stop_all

POLL = 0.2  # [s] between two looks at whether a run has measured itself


def probe_runs(
    grid: Grid, runs: Sequence[Run], place: Place, report: Callable[[str], None], show: Callable[[str], None]
) -> None:
    """Start one run of each kind that was not measured, until its trainer has estimated what it takes; end it there.

    What came of it is in the grid's folder, in .probe/<run>, where `cost.forecast` finds it.

    Raises
    ------
    InputError
        A notebook that does not estimate itself: it would run to its end.
    """
    if not calls(grid.notebook, "trainer.estimate("):
        raise InputError(f"--probe: required a notebook that calls trainer.estimate(...), got {grid.notebook}")
    past = read_past_runs(grid.folder.parent)
    unknown = [run for run in runs if expect_cost(run.parameters, run.key["notebook"], past) is None]
    kinds = {
        identify([describe_shape(run.parameters), run.parameters.get("image_size")]): run for run in reversed(unknown)
    }
    for number, run in enumerate(kinds.values(), 1):
        folder = grid.folder / PROBES / run.name
        shutil.rmtree(folder, ignore_errors=True)
        show(f"measuring [{number}/{len(kinds)}] {run.name}")
        parameters = run.parameters | ({"run_dir": str(folder)} if "run_dir" in run.parameters else {})
        _probe(Job(run.name, grid.notebook, folder, run.key, parameters, run.varied), place)
        report(f"measured [{number}/{len(kinds)}] {run.name}: {_word_end(folder)}")


def _probe(job: Job, place: Place) -> None:
    process = place.start(job)
    try:
        while process.poll() is None and "estimate" not in (read_record(job.run_dir) or {}):
            time.sleep(POLL)
    finally:
        stop_all([process])
        process.close(ended_well=False)
        for left in job.run_dir.glob("*.pt"):
            with contextlib.suppress(OSError):  # its size matters to nobody
                left.unlink()


def _word_end(folder: Path) -> str:
    record = read_record(folder) or {}
    if estimate := record.get("estimate"):
        return f"about {estimate['total']:.0f} s of training, {estimate['peak_memory_mb'] / 1024:.1f} GiB of memory"
    return f"{record.get('status', 'failed')}: {record.get('error') or f'see {folder}/run.log'}"

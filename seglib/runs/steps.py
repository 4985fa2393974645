"""The notebooks that follow a grid's runs (`then:`): once for each finished run, or once for the grid."""

import json
from collections.abc import Sequence
from pathlib import Path

from seglib.files import hash_text
from seglib.runs.grid import Grid
from seglib.runs.grid_file import Step
from seglib.runs.keys import hash_seglib
from seglib.runs.notebook import find_notebook, hash_code, read_defaults
from seglib.runs.record import is_finished
from seglib.runs.schedule import Job


def plan_steps(grid: Grid) -> list[Job]:
    """Jobs of the `then:` steps that are not done, over the runs that are; each writes into a folder named after it."""
    finished = [run for run in grid.runs if is_finished(run.folder, run.key)]
    jobs = []
    for step in grid.file.then if finished else ():
        notebook = find_notebook(step.notebook, grid.file.path)
        code = [hash_code(notebook), hash_seglib()]
        if step.each:
            jobs += [_make_job(step, notebook, run.folder, "run_dir", [run.key, *code], run.name) for run in finished]
        else:
            keys = [run.key for run in finished]
            jobs.append(_make_job(step, notebook, grid.folder, "grid_dir", [*keys, *code], ""))
    return [job for job in jobs if not is_finished(job.run_dir, job.key)]


def _make_job(step: Step, notebook: Path, source: Path, name: str, keys: Sequence[str], run: str) -> Job:
    """`source` is the folder that the notebook reads, given to it as the parameter `name`."""
    defaults, folder = read_defaults(notebook), source / notebook.stem
    given = {name: str(source)} | ({"output_dir": str(folder)} if "output_dir" in defaults else {})
    key = hash_text(json.dumps([*keys, step.fixed], sort_keys=True, default=str))
    return Job(f"{notebook.stem} {run}".rstrip(), notebook, folder, key, defaults | step.fixed | given, {})

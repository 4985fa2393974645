"""The notebooks that follow a grid's runs (`then:`): once for each finished run, or once for the grid."""

import json

from seglib.files import hash_text
from seglib.runs.grid import Grid, find_notebook, hash_seglib
from seglib.runs.grid_file import Step
from seglib.runs.notebook import hash_code, read_defaults
from seglib.runs.schedule import Job, is_finished


def plan_steps(grid: Grid) -> list[Job]:
    """Jobs of all `then:` steps over the runs that are ok; a step writes into a folder of its own, named after it."""
    finished = [run for run in grid.runs if is_finished(run.folder, run.key)]
    jobs = []
    for step in grid.file.then:
        if step.each:
            jobs += [_make_job(grid, step, run.name, {"run_dir": str(run.folder)}, [run.key]) for run in finished]
        elif finished:
            jobs.append(_make_job(grid, step, "", {"grid_dir": str(grid.folder)}, [run.key for run in finished]))
    return jobs


def _make_job(grid: Grid, step: Step, run: str, given: dict[str, str], keys: list[str]) -> Job:
    notebook = find_notebook(step.notebook, grid.file.path)
    defaults = read_defaults(notebook)
    folder = grid.folder / run / notebook.stem
    if "output_dir" in defaults:
        given["output_dir"] = str(folder)
    key = hash_text(json.dumps([keys, step.fixed, hash_code(notebook), hash_seglib()], sort_keys=True))
    label = f"{notebook.stem} {run}".strip()
    return Job(label, notebook, folder, key, defaults | step.fixed | given, {})

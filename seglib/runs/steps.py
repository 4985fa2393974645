"""The notebooks that follow a grid's runs (`then:`): once for each finished run, once for the grid, or as a further run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seglib.files import hash_text
from seglib.runs.checks import compose_values
from seglib.runs.grid import Grid
from seglib.runs.grid_file import GRID_DIR, Step
from seglib.runs.keys import compute_keys, hash_seglib
from seglib.runs.notebook import find_config, find_notebook, hash_code, read_defaults
from seglib.runs.record import is_finished
from seglib.runs.schedule import Job


def group_steps(steps: Sequence[Step]) -> list[list[Step]]:
    """Steps that may be planned together, in their order: one that names `{grid_dir}` needs what those before it wrote."""
    groups: list[list[Step]] = []
    for step in steps:
        if not groups or step.uses_grid_dir():
            groups.append([])
        groups[-1].append(step)
    return groups


def plan_steps(grid: Grid, steps: Sequence[Step]) -> list[Job]:
    """Jobs of the steps that are not done, over the runs that are; each writes into a folder named after its notebook.

    Raises
    ------
    InputError
        What a further run is to read is not there.
    """
    finished = [run for run in grid.runs if is_finished(run.folder, run.key)]
    jobs = []
    for step in steps if finished else ():
        notebook = find_notebook(step.notebook, grid.file.path)
        code, names = [hash_code(notebook), hash_seglib()], read_defaults(notebook)
        if step.each:
            jobs += [_make_job(grid, step, notebook, run.folder, "run_dir", [run.key, *code], run.name) for run in finished]
        elif "grid_dir" in names:
            keys = [run.key for run in finished]
            jobs.append(_make_job(grid, step, notebook, grid.folder, "grid_dir", [*keys, *code], ""))
        else:
            jobs.append(_make_run(grid, step, notebook))
    return [job for job in jobs if not is_finished(job.run_dir, job.key)]


def _make_run(grid: Grid, step: Step, notebook: Path) -> Job:
    """One more run, with what the grid fixes; its folder is named after its place among the steps."""
    config, folder = find_config(notebook), grid.folder / f"then.{grid.file.then.index(step) + 1}"
    values = _expand(compose_values(grid.file, step, notebook), grid.folder)
    values = (config.resolve_paths(values, notebook.parent) if config else values) | {"run_dir": str(folder)}
    values |= _take_debug(grid, values)
    (key,) = compute_keys(notebook, config, [values])
    return Job(f"{notebook.stem} {folder.name}", notebook, folder, key, values, {})


def _make_job(
    grid: Grid, step: Step, notebook: Path, source: Path, name: str, keys: Sequence[str], run: str
) -> Job:
    """`source` is the folder that the notebook reads, given to it as the parameter `name`."""
    values, folder = _expand(compose_values(grid.file, step, notebook), grid.folder), source / notebook.stem
    values |= {name: str(source)} | ({"output_dir": str(folder)} if "output_dir" in values else {}) | _take_debug(grid, values)
    key = hash_text(json.dumps([*keys, step.fixed], sort_keys=True, default=str))
    return Job(f"{notebook.stem} {run}".rstrip(), notebook, folder, key, values, {})


def _take_debug(grid: Grid, values: Mapping[str, Any]) -> dict[str, bool]:
    """What follows a trial is a trial."""
    return {"debug": True} if "debug" in values and any(run.parameters.get("debug") for run in grid.runs) else {}


def _expand(value: Any, folder: Path) -> Any:
    """Put the grid's folder where a value names it."""
    if isinstance(value, str):
        return value.replace(GRID_DIR, str(folder))
    if isinstance(value, Mapping):
        return {name: _expand(item, folder) for name, item in value.items()}
    return [_expand(item, folder) for item in value] if isinstance(value, list) else value

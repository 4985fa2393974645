"""The notebooks that follow a grid's runs (`then:`): once for each finished run, once for the grid, or as a further run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import seglib
from seglib.data.fingerprint import fingerprint_data, hash_files
from seglib.runs.checks import compose_values, find_data_dirs, is_further_run
from seglib.runs.grid import Grid, Run
from seglib.runs.grid_file import GRID_DIR, Step
from seglib.runs.keys import compute_keys, hash_values, is_finished
from seglib.runs.notebook import find_config, find_notebook, hash_code
from seglib.runs.record import read_record
from seglib.runs.schedule import Job


def group_steps(steps: Sequence[Step]) -> list[list[int]]:
    """Places (from 1) of steps that may be planned together: one that names `{grid_dir}` needs what those before it wrote."""
    groups: list[list[int]] = []
    for place, step in enumerate(steps, 1):
        if not groups or step.uses_grid_dir():
            groups.append([])
        groups[-1].append(place)
    return groups


def plan_step(grid: Grid, place: int) -> list[Job]:
    """Jobs of a step (by its place in `then`, from 1) that are not done, over the runs that are; each has its own folder.

    Raises
    ------
    InputError
        What it is to read is not there.
    """
    finished = [run for run in grid.runs if is_finished(run.folder, grid.notebook, run.key)]
    step = grid.file.then[place - 1]
    notebook = find_notebook(step.notebook, grid.file.path)
    if not finished:
        jobs = []
    elif step.each:
        jobs = [_make_job(grid, place, notebook, run.folder, "run_dir", [run]) for run in finished]
    elif is_further_run(grid.file, step, notebook):
        jobs = [_make_run(grid, place, notebook, finished)]
    else:
        jobs = [_make_job(grid, place, notebook, grid.folder, "grid_dir", finished)]
    return [job for job in jobs if not is_finished(job.run_dir, job.notebook, job.key)]


def _make_run(grid: Grid, place: int, notebook: Path, finished: Sequence[Run]) -> Job:
    """One more run, with what the grid fixes; its folder is named after its place among the steps."""
    config, folder, step = find_config(notebook), grid.folder / f"then.{place}", grid.file.then[place - 1]
    values = _expand(compose_values(grid.file, step, notebook), grid.folder)
    values = (config.resolve_paths(values, notebook.parent) if config else values) | {"run_dir": str(folder)}
    values |= _take_debug(grid, values)
    (key,) = compute_keys(notebook, config, [values])
    if step.uses_grid_dir() and config is None:  # a config says which files are read: they count by their content
        key["runs"] = hash_values(_read_weights(finished))
    return Job(f"{notebook.stem} {folder.name}", notebook, folder, key, values, {})


def _make_job(grid: Grid, place: int, notebook: Path, source: Path, name: str, runs: Sequence[Run]) -> Job:
    """`source` is the folder of `runs` that the notebook reads, given to it as the parameter `name`."""
    step, folder = grid.file.then[place - 1], source / _name_folder(grid, place)
    asked = compose_values(grid.file, step, notebook)
    asked |= _take_debug(grid, asked)
    values = _expand(asked, grid.folder)
    values |= {name: str(source)} | ({"output_dir": str(folder)} if "output_dir" in values else {})
    content = _hash_content(values, runs)
    by_place = {"run_dir", "grid_dir", "output_dir", *content}
    key = {
        "parameters": hash_values({name: value for name, value in asked.items() if name not in by_place}),
        "data": content,
        "notebook": hash_code(notebook),
        "results": seglib.RESULTS,
        "runs": hash_values([[run.key for run in runs], _read_weights(runs)]),
    }
    return Job(" ".join([folder.name, *(run.name for run in runs if step.each)]), notebook, folder, key, values, {})


def _name_folder(grid: Grid, place: int) -> str:
    """A step's folder is named after its notebook, and after its place too where that name is taken."""
    step, stem = grid.file.then[place - 1], Path(grid.file.then[place - 1].notebook).stem
    taken = {Path(other.notebook).stem for other in grid.file.then[: place - 1] if other.each == step.each}
    taken |= set() if step.each else {run.name for run in grid.runs}
    return f"{stem}.then{place}" if stem in taken else stem


def _read_weights(runs: Sequence[Run]) -> list[str | None]:
    """What training made of each run: a run that was made again has the same key, and maybe other weights."""
    return [(read_record(run.folder) or {}).get("weights_sha256") for run in runs]


def _hash_content(values: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    """Hashes of the files that a step reads beside those of its runs, by the parameter that names them."""
    if not values.get("test_json"):
        return {}
    data_dirs = find_data_dirs(values, [run.parameters for run in runs])
    images = [name if name == "synthetic" else fingerprint_data(name, [values["test_json"]]) for name in data_dirs]
    sample = values.get("sample_submission")
    return {"test_json": [values["test_json"], images], "sample_submission": hash_files([sample])[0] if sample else ""}


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

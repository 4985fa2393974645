"""From a grid file to runs, named, checked all together and keyed, and to the steps that follow them."""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import seglib
from seglib.data.layouts import fingerprint_data
from seglib.errors import InputError, InputErrors
from seglib.files import hash_files, require_folder
from seglib.parameters import Schema, read_schema
from seglib.parts import read_parts
from seglib.rules import check_runs, resolve_paths
from seglib.runs.check import (
    compose_values,
    find_data_dirs,
    find_grid_problems,
    find_missing_weights,
    find_run_problems,
    is_further_run,
)
from seglib.runs.conditions import describe_task, measure_earlier_noise
from seglib.runs.grid_file import GRID_DIR, GridFile, Step, name_runs, read_grid_file
from seglib.runs.halving import find_stop_problems
from seglib.runs.keys import calls, compute_keys, explain_run, find_notebook, hash_code, hash_values, is_finished
from seglib.runs.order import find_deadline_problems
from seglib.runs.planning import foresee
from seglib.runs.record import read_record
from seglib.runs.search import BEST, list_rows, name_rows, read_trials
from seglib.runs.search_space import find_search_problems, list_corners, set_search, settle_search

MOST_RUNS = 20_000


@dataclass(frozen=True)
class Run:
    """One planned run: where it goes, what it is given, what varies in it, and all that decides it."""

    name: str
    folder: Path
    parameters: dict[str, Any]
    varied: dict[str, Any]
    key: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A notebook to execute: a run of the grid, or a step that follows. Everything is written in `run_dir`.

    `neighbours` of a run: `previous` and `next` in its grid, and the runs of the `baseline`. `processes`: each with a
    device, that train one model together, see `seglib.ranks`.
    """

    label: str
    notebook: Path
    run_dir: Path
    key: dict[str, Any]
    parameters: dict[str, Any]
    varied: dict[str, Any]
    neighbours: dict[str, Any] = field(default_factory=dict)
    processes: int = 1
    stop_after: int = 0  # the epoch at which a run stops for now, see halving.py; 0 for its last


@dataclass(frozen=True)
class Grid:
    """A checked grid: every run can be started."""

    name: str
    folder: Path
    notebook: Path
    runs: list[Run]
    varied: list[str]
    file: GridFile
    notes: list[str] = field(default_factory=list)  # what the check of the data says of it
    plan: "Callable[[Sequence[str], Sequence[Mapping]], list[Run]] | None" = None  # more runs, where a search adds some


def load_grid(path: str | Path, outputs: Path, overrides: Mapping[str, Any], debug: bool = False) -> Grid:
    """Read a grid file and check every run of it.

    Parameters
    ----------
    path : the YAML file.
    outputs : folder of all grids; this grid's results go to outputs/<name>.
    overrides : parameters set on the command line; a list of values makes or replaces an axis.
    debug : a short trial of every run, kept apart in outputs/<name>-debug.

    Raises
    ------
    InputErrors
        One line for each mistake, wherever it stands.
    """
    file = read_grid_file(path)
    if found := find_search_problems(file):
        raise InputErrors(found)
    notebook = find_notebook(file.notebook, file.path)
    schema = read_schema(notebook)
    if debug and "debug" not in schema:
        raise InputError(f"--debug: {notebook} must have a parameter `debug`, which makes its runs short")
    if file.gpus_per_run > 1 and not calls(notebook, "Trainer("):
        raise InputError(f"{file.path}: `gpus_per_run` must be 1 for {notebook}, which makes no `Trainer(...)`")
    if "seed" in overrides:
        file = replace(file, max_seeds=0)
    if debug:  # every run is to show that it can be trained
        file = replace(file, stop={})
    if file.search:
        file = _resolve_paths(set_search(file, overrides))
    else:
        file = _resolve_paths(_override(file, ({"seed": file.seeds} if file.seeds else {}) | overrides))
    varied = _combine(_override(file, {"seed": _choose_seeds(file, schema)}) if file.max_seeds else file)
    defaults = resolve_paths({name: each.default for name, each in schema.items()}, notebook.parent)
    base = defaults | file.fixed | ({"debug": True} if debug else {})
    if file.search:
        file = settle_search(file, base)
        base, varied = base | {"seed": file.seeds[0]}, list_corners(file)
    own = [str(notebook)] if "parts" in schema and read_parts([notebook]) else []  # registered in its cells
    checked = check_runs(schema, [_add_parts(base | values, own) for values in varied])
    parameters, problems = [values for values, _ in checked], [found for _, found in checked]
    if any("run_dir" in values for values in (file.fixed, *varied)):
        problems[0]["run_dir"] = "run_dir is set by the runner; leave it out"
    names = name_runs(varied)
    lines, notes = find_run_problems(file, schema, parameters, problems, varied, overrides)
    lines += find_grid_problems(file, parameters, names) + find_deadline_problems(file)
    lines += [] if lines else find_stop_problems(file, notebook, parameters)
    if lines:
        raise InputErrors(lines)
    file = _resolve_steps(file)
    folder = outputs / (file.name + ("-debug" if debug else ""))
    require_folder(folder)
    make, plan = partial(_make_runs, notebook, folder, own), None
    if file.search:
        plan = lambda names, rows: make(names, _check_again(schema, base, own, rows), rows)  # noqa: E731
        rows = list_rows(read_trials(folder, file), file)
        runs, varied = plan(name_rows(rows), rows), [{**file.search, "seed": 0}]
    else:
        runs = make(names, parameters, varied)
    if file.max_seeds:
        runs.sort(key=lambda run: run.parameters["seed"])  # the first seeds of all conditions are the first to run
    varied_names = list(dict.fromkeys(itertools.chain.from_iterable(varied)))
    return Grid(folder.name, folder, notebook, runs, varied_names, replace(file, notebook=str(notebook)), notes, plan)


def _check_again(schema: Schema, base: Mapping, own: list[str], rows: Sequence[Mapping]) -> list[dict[str, Any]]:
    """Parameters of runs between those that were checked; one that cannot be run after all says so itself."""
    return [values for values, _ in check_runs(schema, [_add_parts(base | row, own) for row in rows])]


def _make_runs(
    notebook: Path,
    folder: Path,
    own: Sequence[str],
    names: Sequence[str],
    parameters: list[dict[str, Any]],
    varied: Sequence[Mapping[str, Any]],
) -> list[Run]:
    for values in parameters if own else ():
        values["parts"] = [path for path in values["parts"] if path not in own]
    if "run_dir" in parameters[0]:
        parameters = [values | {"run_dir": str(folder / name)} for values, name in zip(parameters, names, strict=True)]
    keys = compute_keys(notebook, parameters)
    return [Run(name, folder / name, *rest) for name, *rest in zip(names, parameters, varied, keys, strict=True)]


def require_weights(grid: Grid, runs: Sequence[Run]) -> None:
    """Refuse runs whose pretrained weights cannot be had, before any starts."""
    parameters = [run.parameters for run in runs]
    if grid.file.search:
        parameters += [run.parameters | row for run in runs[:1] for row in list_corners(grid.file)]
    if lines := find_missing_weights(read_schema(grid.notebook), parameters):
        raise InputErrors(f"{grid.file.path}: {line}" for line in lines)


def _choose_seeds(file: GridFile, schema: Mapping[str, Any]) -> list[int]:
    """All that `seeds: auto` may come to: the notebook's own, and further ones as far apart as the shipped grids have them."""
    if "seed" not in schema:
        raise InputError(f"{file.path}: `seeds: auto`: {file.notebook} must have a parameter `seed`, got none")
    return [schema["seed"].default + 21 * number for number in range(file.max_seeds)]


def _add_parts(values: dict[str, Any], paths: list[str]) -> dict[str, Any]:
    return values | {"parts": [*values["parts"], *paths]} if paths and isinstance(values["parts"], list) else values


def _override(file: GridFile, overrides: Mapping[str, Any]) -> GridFile:
    """Apply the command line: a list makes an axis (crossed with `runs` too), one value on an axis leaves just that."""
    lists = {name: value for name, value in overrides.items() if isinstance(value, list)}
    single = {name: value for name, value in overrides.items() if name not in lists}
    axes = file.axes | lists if file.axes or not file.listed else {}
    axes = {name: [single[name]] if name in single else values for name, values in axes.items()}
    if sum(math.prod(map(len, product.values())) for product in (axes, *[lists] * len(file.listed))) > MOST_RUNS:
        raise InputError(
            f"{file.path}: required at most {MOST_RUNS:,} runs, got more; split the grid into several files"
        )
    listed = [
        run | {name: value for name, value in single.items() if name in run} | values
        for run in file.listed
        for values in _multiply(lists)
    ]
    if lists:  # rows that differed in what the command line sets alone are the same now
        listed = _drop_repeated(listed, _multiply(axes) if axes else [])
    fixed = {name: value for name, value in file.fixed.items() if name not in lists}
    fixed |= {name: value for name, value in single.items() if name not in axes}
    baseline = {
        name: value
        for name, value in file.baseline.items()
        if name not in single and value in lists.get(name, [value])  # not what the command line took out of the grid
    }
    one_factor = file.one_factor and bool(baseline or not file.baseline)
    return replace(file, fixed=fixed, axes=axes, listed=listed, baseline=baseline, one_factor=one_factor, seeds=[])


def _resolve_paths(file: GridFile) -> GridFile:
    """Make paths absolute, seen from the current folder: notebooks run in another, and so may the copy of the grid."""
    resolve = partial(resolve_paths, folder=Path.cwd())
    axes, search = (
        {
            name: [resolve({name: value})[name] for value in values] if isinstance(values, list) else values
            for name, values in among.items()
        }
        for among in (file.axes, file.search)
    )
    listed, fixed, baseline = [resolve(run) for run in file.listed], resolve(file.fixed), resolve(file.baseline)
    return replace(file, fixed=fixed, axes=axes, search=search, listed=listed, baseline=baseline)


def _resolve_steps(file: GridFile) -> GridFile:
    """The same for the steps that follow; what names `{grid_dir}` stays as it is until the step is planned."""
    steps = [
        replace(step, fixed={name: _resolve_value(name, value) for name, value in step.fixed.items()})
        for step in file.then
    ]
    return replace(file, then=steps)


def _resolve_value(name: str, value: Any) -> Any:
    if isinstance(value, list) and len(value) > 1:  # each entry for itself
        return [_resolve_value(name, [entry])[0] for entry in value]
    return value if GRID_DIR in json.dumps(value, default=str) else resolve_paths({name: value}, Path.cwd())[name]


def _combine(file: GridFile) -> list[dict[str, Any]]:
    """What varies in each run: the product of the axes, then the runs listed one by one."""
    product = _multiply(file.axes) if file.axes or not file.listed else []
    return product + file.listed


def _drop_repeated(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that stand neither among the others nor earlier among themselves."""
    seen = {json.dumps(row, sort_keys=True, default=str) for row in others}
    kept = []
    for row in rows:
        identity = json.dumps(row, sort_keys=True, default=str)
        if identity not in seen:
            kept.append(row)
            seen.add(identity)
    return kept


def _multiply(axes: Mapping[str, list]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def choose_runs(grid: Grid, only: str, limit: int | None) -> list[Run]:
    """The runs whose names contain a text, at most so many of them."""
    if grid.file.search and (only or limit):
        raise InputError(
            "--only, --limit: required a grid without `search`, whose runs are not known; set its `trials`"
        )
    chosen = [run for run in grid.runs if only in run.name][:limit]
    if not chosen:
        raise InputError(f"--only {only!r}: required a part of a run's name, got none's; one is {grid.runs[0].name!r}")
    return chosen


def find_reasons(grid: Grid, chosen: list[Run], fresh: bool) -> dict[str, list[str]]:
    """Why runs are to go, by name: those that are not done yet, and with --fresh all of them."""
    reasons = {run.name: explain_run(run.folder, grid.notebook, run.key) for run in chosen}
    return {name: words or ["fresh"] for name, words in reasons.items() if words or fresh}


def foresee_verdicts(grid: Grid) -> str:
    """One line: which differences the grid will be able to see, by the noise of what ran before on its task."""
    wanted, runs = grid.file.baseline.items(), grid.runs
    first = next((run for run in runs if wanted <= run.parameters.items()), runs[0])
    task = describe_task(first.parameters, first.key["data"].get("data_dir"))
    earlier = partial(measure_earlier_noise, grid.folder.parent, task)
    planned = [run.parameters for run in runs]
    if grid.file.search:  # what will be judged
        planned = [values | {"seed": seed} for values in planned[: BEST + 1] for seed in grid.file.seeds[1:]]
    return foresee(planned, grid.varied, grid.file.baseline, earlier, grid.file.max_seeds)


def find_neighbours(grid: Grid) -> dict[str, dict[str, Any]]:
    """By a run's name: the runs before and after it (`previous`, `next`), and those of the `baseline`."""
    names, wanted = ["", *(run.name for run in grid.runs), ""], grid.file.baseline.items()
    baseline = [run.name for run in grid.runs if wanted and wanted <= run.parameters.items()]
    return {
        name: {"previous": names[place], "next": names[place + 2], "baseline": baseline}
        for place, name in enumerate(names[1:-1])
    }


# The notebooks that follow a grid's runs (`then:`): once for each finished run, once for the grid, or as a further run.


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
    folder, step = grid.folder / f"then.{place}", grid.file.then[place - 1]
    values = _expand(compose_values(grid.file, step, notebook), grid.folder)
    values = resolve_paths(values, notebook.parent) | {"run_dir": str(folder)}
    values |= _take_debug(grid, values)
    (key,) = compute_keys(notebook, [values])
    if step.uses_grid_dir() and "data_dir" not in values:  # a training's files are known, and count by their content
        key["runs"] = hash_values(_read_weights(finished))
    return Job(f"{notebook.stem} {folder.name}", notebook, folder, key, values, {}, processes=grid.file.gpus_per_run)


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

"""From a grid file to runs: combined, named, checked all together, and keyed by everything that decides a result."""

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from seglib.errors import InputError, InputErrors
from seglib.parameters import read_schema
from seglib.rules import check_parameters, resolve_paths
from seglib.runs.check import find_grid_problems, find_run_problems
from seglib.runs.grid_file import GRID_DIR, GridFile, name_runs, read_grid_file
from seglib.runs.keys import compute_keys, find_notebook

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
class Grid:
    """A checked grid: every run can be started."""

    name: str
    folder: Path
    notebook: Path
    runs: list[Run]
    varied: list[str]
    file: GridFile


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
    notebook = find_notebook(file.notebook, file.path)
    schema = read_schema(notebook)
    if debug and "debug" not in schema:
        raise InputError(f"--debug: {notebook} must have a parameter `debug`, which makes its runs short")
    file = _resolve_paths(_override(file, overrides))
    varied = _combine(file)
    defaults = resolve_paths({name: each.default for name, each in schema.items()}, notebook.parent)
    base = defaults | file.fixed | ({"debug": True} if debug else {})
    checked = [check_parameters(schema, base | values) for values in varied]
    parameters, problems = [values for values, _ in checked], [found for _, found in checked]
    if any("run_dir" in values for values in (file.fixed, *varied)):
        problems[0]["run_dir"] = "run_dir is set by the runner; leave it out"
    names = name_runs(varied)
    lines = find_run_problems(file, schema, parameters, problems, varied, overrides)
    lines += find_grid_problems(file, parameters, names)
    if lines:
        raise InputErrors(lines)
    file = _resolve_steps(file)
    folder = outputs / (file.name + ("-debug" if debug else ""))
    if "run_dir" in schema:
        parameters = [values | {"run_dir": str(folder / name)} for values, name in zip(parameters, names, strict=True)]
    keys = compute_keys(notebook, parameters)
    runs = [Run(name, folder / name, *rest) for name, *rest in zip(names, parameters, varied, keys, strict=True)]
    varied_names = list(dict.fromkeys(itertools.chain.from_iterable(varied)))
    return Grid(folder.name, folder, notebook, runs, varied_names, replace(file, notebook=str(notebook)))


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
    return replace(file, fixed=fixed, axes=axes, listed=listed, baseline=baseline)


def _resolve_paths(file: GridFile) -> GridFile:
    """Make paths absolute, seen from the current folder: notebooks run in another, and so may the copy of the grid."""
    resolve = partial(resolve_paths, folder=Path.cwd())
    axes = {name: [resolve({name: value})[name] for value in values] for name, values in file.axes.items()}
    listed, fixed, baseline = [resolve(run) for run in file.listed], resolve(file.fixed), resolve(file.baseline)
    return replace(file, fixed=fixed, axes=axes, listed=listed, baseline=baseline)


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

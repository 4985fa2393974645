"""From a grid file to runs: combined, named, checked all together, and keyed by everything that decides a result."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from seglib.config import NotebookConfig, PathParameter
from seglib.data.fingerprint import fingerprint_data, hash_files
from seglib.errors import InputError, InputErrors, unknown_name
from seglib.files import PROJECT, hash_file, hash_text
from seglib.runs.grid_file import GridFile, read_grid_file
from seglib.runs.naming import name_runs, shorten
from seglib.runs.notebook import find_config, hash_code, read_defaults
from seglib.runs.preflight import find_model_refusals

MOST_RUNS = 20_000


@dataclass(frozen=True)
class Run:
    """One planned run: where it goes, what it is given, what varies in it, and the hash of all that decides it."""

    name: str
    folder: Path
    parameters: dict[str, Any]
    varied: dict[str, Any]
    key: str


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
    defaults = read_defaults(notebook)
    config = find_config(notebook)
    fixed, axes = _override(file, overrides, config)
    if math.prod(len(values) for values in axes.values()) > MOST_RUNS:
        raise InputError(f"{path}: the grid has more than {MOST_RUNS:,} runs; split it into several files")
    varied = _combine(axes, [{**run, **_only(overrides, run)} for run in file.listed])
    base = defaults | fixed | ({"debug": True} if debug and "debug" in defaults else {})
    resolve = config.resolve_paths if config else dict
    parameters = [resolve(base | values) for values in varied]
    problems = _find_problems(file.path, config, defaults, parameters, varied, overrides)
    problems += _find_grid_problems(file, varied, defaults)
    if problems:
        raise InputErrors(problems)
    name = file.name + ("-debug" if debug else "")
    folder = outputs / name
    runs = [
        Run(run_name, folder / run_name, values, shown, _compute_key(notebook, config, values))
        for run_name, values, shown in zip(name_runs(varied), parameters, varied, strict=True)
    ]
    names = list(dict.fromkeys(itertools.chain.from_iterable(varied)))
    return Grid(name, folder, notebook, runs, names, replace(file, notebook=str(notebook), fixed=fixed, axes=axes))


def _override(file: GridFile, overrides: Mapping, config: type[NotebookConfig] | None) -> tuple[dict, dict]:
    """(fixed, axes) after the command line: a list makes an axis, one value on an axis leaves just that value."""
    fixed, axes = dict(file.fixed), dict(file.axes)
    for name, value in overrides.items():
        if isinstance(value, list):
            fixed.pop(name, None)
            axes[name] = value
        elif name in axes:
            axes[name] = [value]
        else:
            fixed[name] = value
    return fixed, axes


def _combine(axes: Mapping[str, Sequence], listed: list[dict]) -> list[dict[str, Any]]:
    """What varies in each run: the product of the axes, then the runs listed one by one."""
    if not axes and listed:
        return listed
    product = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return product + listed


def _only(overrides: Mapping, names: Mapping) -> dict:
    return {name: value for name, value in overrides.items() if name in names and not isinstance(value, list)}


def _find_problems(
    path: Path,
    config: type[NotebookConfig] | None,
    defaults: Mapping,
    parameters: Sequence[Mapping],
    varied: Sequence[Mapping],
    overrides: Mapping,
) -> list[str]:
    """Word each mistake once, with the varied values that it comes from; `[...]` is left out where it is in all."""
    lines: dict[str, None] = {}
    sound = []
    for values, shown in zip(parameters, varied, strict=True):
        found = config.find_problems(values) if config else _find_untyped_problems(values, defaults)
        if "run_dir" in shown or "run_dir" in overrides:
            found["run_dir"] = "run_dir is set by the runner; leave it out"
        for name, problem in found.items():
            lines[f"{_where(path, [name], shown, overrides)}: {problem}"] = None
        if not {"architecture", "encoder", "image_size", "batch_size"} & found.keys():
            sound.append((values, shown))
    for line in _find_model_problems(path, sound, overrides) if config else ():
        lines[line] = None
    return list(lines)


def _find_model_problems(path: Path, runs: Sequence[tuple[Mapping, Mapping]], overrides: Mapping) -> list[str]:
    models: dict[str, dict] = {}
    shown: dict[str, Mapping] = {}
    names = ("architecture", "encoder", "image_size", "batch_size")
    for values, varied in runs:
        if all(name in values for name in names):
            model = {name: values[name] for name in names} | {"batch_size": min(values["batch_size"], 2)}
            models.setdefault(json.dumps(model), model)
            shown.setdefault(json.dumps(model), varied)
    refusals = find_model_refusals(list(models.values()))
    return [
        f"{_where(path, names, varied, overrides)}: {refusal}"
        for refusal, varied in zip(refusals, shown.values(), strict=True)
        if refusal
    ]


def _find_untyped_problems(values: Mapping, defaults: Mapping) -> dict[str, str]:
    """A notebook without a config class: names must be the notebook's, types those of the defaults."""
    problems = {name: unknown_name("parameter", name, defaults, limit=40) for name in values if name not in defaults}
    for name, default in defaults.items():
        numbers = isinstance(default, float) and isinstance(values[name], int) and not isinstance(values[name], bool)
        if type(values[name]) is not type(default) and not numbers:
            problems[name] = (
                f"{name} must be of type {type(default).__name__} (as the notebook's default {default!r}),"
                f" got {values[name]!r} ({type(values[name]).__name__})"
            )
    return problems


def _find_grid_problems(file: GridFile, varied: Sequence[Mapping], defaults: Mapping) -> list[str]:
    problems = []
    distinct = {json.dumps(values, sort_keys=True, default=str) for values in varied}
    if len(distinct) < len(varied):
        problems.append(f"{file.path}: {len(varied) - len(distinct)} runs stand twice; take the repeated values out")
    if file.baseline and not any(file.baseline.items() <= values.items() for values in varied):
        problems.append(f"{file.path}: `baseline` {file.baseline} matches no run; name values that the grid has")
    for step in file.then:
        try:
            parameters = read_defaults(find_notebook(step.notebook, file.path))
        except InputError as error:
            problems.append(f"{file.path}: `then`: {error}")
            continue
        needed = "run_dir" if step.each else "grid_dir"
        problems += [
            f"{file.path}: `then`: {step.notebook}: {unknown_name('parameter', name, parameters, limit=40)}"
            for name in [*step.fixed, needed]
            if name not in parameters
        ]
    return problems


def _where(path: Path, names: Sequence[str], varied: Mapping, overrides: Mapping) -> str:
    shown = ", ".join(f"{name}={shorten(varied[name])}" for name in names if name in varied)
    source = "--set" if any(name in overrides for name in names) and not shown else str(path)
    return f"{source} [{shown}]" if shown else source


def find_notebook(notebook: str, grid_path: Path) -> Path:
    """A notebook's path, from the current folder or else from the project's."""
    for folder in (Path.cwd(), PROJECT, grid_path.parent):
        if (folder / notebook).is_file():
            return (folder / notebook).resolve()
    raise InputError(f"{grid_path}: there is no notebook {notebook!r} (seen from {Path.cwd()} and {PROJECT})")


def _compute_key(notebook: Path, config: type[NotebookConfig] | None, parameters: Mapping) -> str:
    """Hash of the parameters, the notebook's code, seglib's code, and the content behind paths (not their names)."""
    values = {name: value for name, value in parameters.items() if name != "run_dir"}
    for name, field in config.model_fields.items() if config else ():
        marked = any(isinstance(marker, PathParameter) and values[name] not in marker.unless for marker in field.metadata)
        if marked and name != "data_dir":
            values[name] = hash_files([values[name]])[0]
    if values.get("data_dir", "synthetic") != "synthetic":
        values["data_dir"] = _hash_data(values["data_dir"], config(**parameters).json_names())
    return hash_text(json.dumps([values, _hash_notebook(notebook), hash_seglib()], sort_keys=True))


@cache
def _hash_data(data_dir: str, json_names: tuple[str, ...]) -> str:
    return fingerprint_data(data_dir, json_names)


@cache
def _hash_notebook(notebook: Path) -> str:
    return hash_code(notebook)


@cache
def hash_seglib() -> str:
    """Hash of seglib's own source files."""
    folder = PROJECT / "seglib"
    sources = sorted(folder.rglob("*.py"))
    return hash_text("".join(f"{path.relative_to(folder).as_posix()} {hash_file(path)}\n" for path in sources))

"""Reads a grid file: YAML to a checked specification, each mistake of its form in one line."""

import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from seglib.errors import InputError, InputErrors, unknown_name
from seglib.runs.strict_yaml import parse_yaml, read_text

GRID_DIR = "{grid_dir}"


@dataclass(frozen=True)
class Step:
    """A notebook that follows the runs: once for `each` run (as `run_dir`), or once for the grid (as `grid_dir`).

    The grid's own notebook is a further run, with what the grid fixes. `{grid_dir}` in a text of `fixed` is the grid's
    folder, in which the steps before have written.
    """

    notebook: str
    each: bool = False
    fixed: dict[str, Any] = field(default_factory=dict)

    def uses_grid_dir(self, *names: str) -> bool:
        """Whether one of the named parameters (default: any) names the grid's folder."""
        return any(
            GRID_DIR in json.dumps(self.fixed[name], default=str) for name in names or self.fixed if name in self.fixed
        )


@dataclass(frozen=True)
class GridFile:
    """A grid file as written; `axes` are the values to combine, `listed` the runs named one by one."""

    path: Path
    name: str
    notebook: str
    fixed: dict[str, Any]
    axes: dict[str, list]
    listed: list[dict[str, Any]]
    baseline: dict[str, Any]
    then: list[Step]

    def as_yaml(self) -> str:
        """The grid in the form of a grid file."""
        then = [vars(step) for step in self.then]
        spec = {"name": self.name, "notebook": self.notebook, "fixed": self.fixed, "grid": self.axes}
        spec |= {"runs": self.listed, "baseline": self.baseline, "then": then}
        filled = {key: value for key, value in spec.items() if value}
        return yaml.safe_dump(filled, sort_keys=False, allow_unicode=True)


_EMPTY = {"parts": [], "fixed": {}, "grid": {}, "runs": [], "baseline": {}, "then": []}
_KEYS = ("notebook", "name", *_EMPTY)
_STEP_KEYS = ("notebook", "each", "fixed")
_NAME = re.compile(r"[\w][\w.+,=@() -]{0,79}(?<! )")


def read_grid_file(path: str | Path) -> GridFile:
    """Read and check the form of a grid file.

    Raises
    ------
    InputErrors
        One line for each mistake.
    """
    path = Path(path)
    spec = parse_yaml(read_text(path), str(path))
    if not isinstance(spec, dict):
        raise InputError(f"{path}: required a mapping with `notebook`, got {_kind(spec)}")
    spec = _EMPTY | {key: value for key, value in spec.items() if value is not None}
    problems = _find_problems(spec)
    if problems:
        raise InputErrors(f"{path}: {problem}" for problem in problems)
    return GridFile(
        path=path,
        name=spec.get("name", path.stem),
        notebook=spec["notebook"],
        fixed=spec["fixed"] | ({"parts": _find_files(path, spec["parts"])} if spec["parts"] else {}),
        axes=spec["grid"],
        listed=spec["runs"],
        baseline=spec["baseline"],
        then=[Step(**{**step, "fixed": step.get("fixed") or {}}) for step in spec["then"]],
    )


def _find_files(path: Path, names: list[str]) -> list[str]:
    """Absolute paths of the files of parts, seen from the grid file's folder, else from the current one."""
    folders = [path.resolve().parent, Path.cwd()]
    found = {
        name: [file for folder in folders if (file := folder / Path(name).expanduser()).is_file()] for name in names
    }
    missing = [name for name, files in found.items() if not files]
    if missing:
        raise InputErrors(
            f"{path}: `parts`: there is no file {name!r}, neither in {folders[0]} nor in {folders[1]}"
            for name in missing
        )
    return [str(files[0].resolve()) for files in found.values()]


def _find_problems(spec: Mapping) -> list[str]:
    hint = "; parameters belong in `fixed`, `grid` or `runs`"
    problems = [unknown_name("key", key, _KEYS) + hint for key in spec if key not in _KEYS]
    if not isinstance(spec.get("notebook"), str):
        problems.append(f"`notebook` must be the path of a notebook, got {_kind(spec.get('notebook'))}")
    name = spec.get("name", "grid")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        problems.append(f"`name` must be a folder name (letters, digits, . _ + -; at most 80), got {_kind(name)}")
    if not isinstance(spec["parts"], list) or not all(isinstance(name, str) for name in spec["parts"]):
        problems.append(f"`parts` must be a list of Python files, got {_kind(spec['parts'])}")
    for key in ("fixed", "grid", "baseline"):
        problems += _find_mapping_problems(f"`{key}`", spec[key])
    axes, fixed = (spec[key] if isinstance(spec[key], dict) else {} for key in ("grid", "fixed"))
    for axis, values in axes.items():
        if not isinstance(values, list) or not values:
            problems.append(f"`grid`: {axis} must be a list of values, got {_kind(values)}; write {axis}: [VALUE, ...]")
    problems += [f"{name} stands in `fixed` and in `grid`; take one out" for name in axes if name in fixed]
    if spec["parts"] and "parts" in (axes | fixed):
        problems.append("the files of parts stand twice, as `parts` and as a parameter; take one out")
    for key in ("runs", "then"):
        problems += _find_list_problems(key, spec[key])
    for step in spec["then"] if isinstance(spec["then"], list) else ():
        problems += _find_step_problems(step) if isinstance(step, dict) else []
    return problems


def _find_mapping_problems(where: str, value: object) -> list[str]:
    return [] if isinstance(value, dict) else [f"{where} must be a mapping name: value, got {_kind(value)}"]


def _find_list_problems(key: str, value: object) -> list[str]:
    if not isinstance(value, list):
        return [f"`{key}` must be a list of mappings name: value, got {_kind(value)}"]
    problems = []
    for number, item in enumerate(value, 1):
        problems += _find_mapping_problems(f"`{key}`, entry {number},", item)
    return problems


def _find_step_problems(step: Mapping) -> list[str]:
    problems = [f"`then`: {unknown_name('key', key, _STEP_KEYS)}" for key in step if key not in _STEP_KEYS]
    if not isinstance(step.get("notebook"), str):
        problems.append(f"`then`: notebook must be the path of a notebook, got {_kind(step.get('notebook'))}")
    if not isinstance(step.get("each", False), bool):
        problems.append(f"`then`: each must be true or false, got {_kind(step['each'])}")
    return problems + _find_mapping_problems("`then`: fixed", step.get("fixed") or {})


def _kind(value: object) -> str:
    """What arrived, in words, with the value where it is short."""
    if value is None:
        return "nothing"
    names = {
        dict: "a mapping",
        list: "a list",
        str: "the text",
        bool: "the switch",
        int: "the number",
        float: "the number",
    }
    if isinstance(value, list | dict):
        return names[type(value)] if value else f"an empty {names[type(value)][2:]}"
    return f"{names.get(type(value), f'a {type(value).__name__}')} {reprlib.repr(value)}"

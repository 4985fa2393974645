"""Reads a grid file: YAML to a checked specification, each mistake of its form in one line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from seglib.errors import InputError, InputErrors, unknown_name


@dataclass(frozen=True)
class Step:
    """A notebook that follows the runs: once for `each` run (as `run_dir`), or once for the grid (as `grid_dir`)."""

    notebook: str
    each: bool = False
    fixed: dict[str, Any] = field(default_factory=dict)


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


_KEYS = ("notebook", "fixed", "grid", "runs", "name", "baseline", "then")
_STEP_KEYS = ("notebook", "each", "fixed")


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, where PyYAML silently keeps the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a name", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """Load YAML safely; a mistake becomes one line with its place."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{where}{place}: required YAML, got: {getattr(error, 'problem', None) or error}") from error
    except (RecursionError, ValueError) as error:  # nesting without end; a date such as 2026-13-45
        raise InputError(f"{where}: required YAML, got: {type(error).__name__}: {error}") from error


def read_grid_file(path: str | Path) -> GridFile:
    """Read and check the form of a grid file.

    Raises
    ------
    InputErrors
        One line for each mistake.
    """
    path = Path(path)
    try:
        spec = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such grid file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: required a text file, got {type(error).__name__}: {error}") from error
    if not isinstance(spec, dict):
        raise InputError(f"{path}: required a mapping with `notebook`, got {_kind(spec)}")
    problems = _find_problems(spec)
    if problems:
        raise InputErrors(f"{path}: {problem}" for problem in problems)
    return GridFile(
        path=path,
        name=spec.get("name", path.stem),
        notebook=spec["notebook"],
        fixed=spec.get("fixed") or {},
        axes=spec.get("grid") or {},
        listed=spec.get("runs") or [],
        baseline=spec.get("baseline") or {},
        then=[Step(**step) for step in spec.get("then") or []],
    )


def _find_problems(spec: Mapping) -> list[str]:
    problems = [unknown_name("key", key, _KEYS) for key in spec if key not in _KEYS]
    if not isinstance(spec.get("notebook"), str):
        problems.append(f"`notebook` must be the path of a notebook, got {_kind(spec.get('notebook'))}")
    name = spec.get("name", "grid")
    if not isinstance(name, str) or not name.strip() or set(name) & set('/\\:*?"<>|\0') or name.startswith("."):
        problems.append(f"`name` must be a folder name, got {name!r}")
    for key in ("fixed", "grid", "baseline"):
        problems += _find_mapping_problems(key, spec.get(key))
    for axis, values in spec["grid"].items() if isinstance(spec.get("grid"), dict) else ():
        if not isinstance(values, list) or not values:
            problems.append(f"`grid`: {axis} must be a list of values, got {_kind(values)}; write {axis}: [...]")
    problems += _find_list_problems("runs", spec.get("runs"))
    problems += _find_list_problems("then", spec.get("then"))
    for step in spec["then"] if isinstance(spec.get("then"), list) else ():
        problems += _find_step_problems(step) if isinstance(step, dict) else []
    return problems


def _find_mapping_problems(key: str, value: object) -> list[str]:
    if value is None or (isinstance(value, dict) and all(isinstance(name, str) for name in value)):
        return []
    return [f"`{key}` must be a mapping name: value, got {_kind(value)}"]


def _find_list_problems(key: str, value: object) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(
        isinstance(item, dict) and item and all(isinstance(name, str) for name in item) for item in value
    ):
        return [f"`{key}` must be a list of mappings name: value, got {_kind(value)}"]
    return []


def _find_step_problems(step: Mapping) -> list[str]:
    problems = [unknown_name("key in `then`", key, _STEP_KEYS) for key in step if key not in _STEP_KEYS]
    if not isinstance(step.get("notebook"), str):
        problems.append(f"`then`: notebook must be the path of a notebook, got {_kind(step.get('notebook'))}")
    if not isinstance(step.get("each", False), bool):
        problems.append(f"`then`: each must be true or false, got {_kind(step['each'])}")
    problems += _find_mapping_problems("then: fixed", step.get("fixed", {}))
    return problems


def _kind(value: object) -> str:
    names = {type(None): "nothing", dict: "a mapping", list: "a list", str: "a text", bool: "true or false"}
    if isinstance(value, list | dict) and not value:
        return "an empty " + ("list" if isinstance(value, list) else "mapping")
    name = names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
    return name if isinstance(value, list | dict | None) else f"{name} ({str(value)[:40]!r})"

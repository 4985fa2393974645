"""The base of every notebook's config: strict types, path parameters, and each mistake worded in one line."""

import ast
import linecache
import os
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from seglib.errors import InputError, InputErrors, unknown_name

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]
Text = Annotated[str, Field(strict=True)]
Switch = Annotated[bool, Field(strict=True)]


class Parameters:
    """A live view on a notebook's own parameters: `p.lr` is its `lr` of now, checked each time that it is read.

    `dict(p)` and `p.to_dict(exclude=...)` are all of them, for records. A parameter is changed in the notebook
    (`lr = 1e-5` in a cell), never through the view.
    """

    def __init__(self, namespace: Mapping[str, Any], find_names: Callable[[], Iterable[str]]):
        vars(self).update(_namespace=namespace, _find_names=find_names)

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        values, problems = self._check()
        if name in problems:
            raise InputError(f"parameters: {problems[name]}")
        return values[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self:
            known = () if name.startswith("_") else self
            raise AttributeError(unknown_name("parameter", name, known))
        return self[name]

    def __setattr__(self, name: str, value: object) -> None:
        raise InputError(f"p.{name} cannot be set: write {name} = {value!r} in a cell, and the next p.{name} is that")

    def __iter__(self) -> Iterator[str]:
        return iter(self._find_names())

    def __dir__(self) -> list[str]:
        return ["to_dict", *self]

    def __repr__(self) -> str:
        return "\n".join(f"{name} = {self._namespace.get(name)!r}" for name in self)

    def keys(self) -> list[str]:
        """The names of the parameters, in the order of their cell."""
        return list(self)

    def to_dict(self, exclude: Iterable[str] = ()) -> dict[str, Any]:
        """All parameters as they are now, less those excluded.

        Raises
        ------
        InputErrors
            One line for each parameter that is missing or wrong.
        """
        values, problems = self._check()
        if problems:
            raise InputErrors([f"parameters: {problem}" for problem in problems.values()])
        return {name: value for name, value in values.items() if name not in set(exclude)}

    def _check(self) -> tuple[dict[str, Any], dict[str, str]]:
        from seglib.config import check_parameters

        names = list(self)
        missing = {name: _MISSING.format(name) for name in names if name not in self._namespace}
        values = {name: self._namespace[name] for name in names if name not in missing}
        values, problems = check_parameters(names, values)
        return values, problems | missing


_MISSING = "{} is missing; the notebook's parameters cell must set it"


def read_parameters() -> Parameters:
    """The parameters of the notebook that calls this, checked: `p = read_parameters()` in the cell after theirs.

    The parameters cell is the one that only has statements `name: type = literal`; run again, it counts again. In a
    script they are the statements of that form at its top level.

    Raises
    ------
    InputErrors
        No parameters cell was run, or one line for each parameter that is missing or wrong.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        view = Parameters(shell.user_ns, lambda: _find_names(shell.history_manager.input_hist_raw))
    else:
        caller = sys._getframe(1)
        source = "".join(linecache.getlines(caller.f_code.co_filename))
        view = Parameters(caller.f_globals, lambda: _read_names(source))
    if not list(view):
        raise InputError("read_parameters: required a parameters cell (name: type = literal), got none; run it first")
    view.to_dict()
    return view


def _find_names(cells: Iterable[str]) -> tuple[str, ...]:
    """Of the parameters cell among executed cells: the longest of its form, or that again after it was edited."""
    names: dict[str, None] = {}
    for cell in cells:
        found = _read_names(cell, whole=True)
        again = not names.keys().isdisjoint(found)
        if len(found) > len(names) or (again and 2 * len(found) > len(names)):
            names = dict.fromkeys(found)
        elif again:  # a line that sets some of them
            names |= dict.fromkeys(found)
    return tuple(names)


@lru_cache(maxsize=4096)
def _read_names(source: str, whole: bool = False) -> tuple[str, ...]:
    """Names of the annotated literals in a source; with `whole`, none where anything else stands there too."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError):
        return ()
    names = [statement.target.id for statement in statements if _is_parameter(statement)]
    return () if whole and len(names) < len(statements) else tuple(names)


def _is_parameter(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
        return False
    try:
        ast.literal_eval(statement.value)
    except (ValueError, TypeError):
        return False
    return True


class PathParameter(NamedTuple):
    """Marks a parameter that is a path unless it has one of these values."""

    unless: tuple[str, ...]


class NotebookConfig(BaseModel):
    """Base of all: strict types, unknown names refused, immutable, errors in one line each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def find_problems(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """Word what is wrong with the values: parameter name -> one line; empty when all is well."""
        problems = {}
        try:
            cls(**values)
        except ValidationError as error:
            for item in error.errors(include_url=False):
                if item["loc"]:
                    problems.setdefault(str(item["loc"][0]), _word(cls, str(item["loc"][0]), item))
        sound = {name: value for name, value in values.items() if name not in problems}
        return problems | cls.find_disagreements(sound)

    @classmethod
    def find_disagreements(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """Word which values, each fine alone, do not go together; values that are wrong alone are not passed in."""
        return {}

    @model_validator(mode="after")
    def _agree(self) -> Self:
        problems = self.find_disagreements(dict(self))
        if problems:
            raise ValueError("; ".join(problems.values()))
        return self

    @classmethod
    def resolve_paths(cls, values: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
        """Make the path parameters absolute, relative ones being seen from `folder`."""
        resolved = dict(values)
        for name, unless in cls.path_parameters():
            value = resolved.get(name)
            if isinstance(value, str) and value not in unless:
                resolved[name] = make_absolute(value, folder)
        return resolved

    @classmethod
    def path_parameters(cls) -> list[tuple[str, tuple[str, ...]]]:
        """The parameters that are paths: name, and the values that are not."""
        fields = cls.model_fields.items()
        markers = [(name, marker) for name, field in fields for marker in field.metadata]
        return [(name, marker.unless) for name, marker in markers if isinstance(marker, PathParameter)]


def make_absolute(path: str, folder: str | Path) -> str:
    """An absolute path, a relative one being seen from `folder`."""
    return os.path.abspath(os.path.join(folder, os.path.expanduser(path)))


_REQUIRED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "dict_type": "a mapping name: value",
    "finite_number": "a finite number",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "string_too_short": "a text that is not empty",
    "too_short": "not empty",
    "list_type": "a list",
}


def _word(model: type[NotebookConfig], name: str, item: Mapping[str, Any]) -> str:
    """One line for one pydantic error of a config."""
    if item["type"] == "extra_forbidden":
        return unknown_name("parameter", name, model.model_fields)
    if item["type"] == "missing":
        return _MISSING.format(name)
    # Of a union, pydantic puts the branch that it tried into the path.
    path = (
        ".".join(part for part in map(str, item["loc"]) if part != "[key]" and not part.startswith("literal[")) or name
    )
    return word_value(path, item, model.model_fields[name].description or "")


def word_value(path: str, item: Mapping[str, Any], description: str = "") -> str:
    """One line for one pydantic error of a value: what was required, what arrived, the fix."""
    kind, value = item["type"], item.get("input")
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", item["ctx"]["expected"])
        if isinstance(value, str):
            return unknown_name(path, value, choices)
        return f"{path} must be one of {', '.join(choices)}, got {_show(value)}"
    if kind == "value_error":
        error = item["ctx"]["error"]  # an InputError is a whole line, other words follow the parameter's name
        return str(error) if isinstance(error, InputError) else f"{path} {error}"
    required = _REQUIRED[kind].format(**item.get("ctx", {})) if kind in _REQUIRED else item["msg"]
    return f"{path} must be {required}, got {_show(value)}" + (f" ({description})" if description else "")


def _show(value: object) -> str:
    """A value as a person wrote it, with its type where that is what is wrong."""
    if isinstance(value, bool):
        return str(value).lower()
    kind = (
        ""
        if isinstance(value, int | float)
        else " (a text)"
        if isinstance(value, str)
        else f" ({type(value).__name__})"
    )
    return reprlib.repr(value) + kind

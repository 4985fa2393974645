"""The base of every notebook's config: strict types, path parameters, and each mistake worded in one line."""

import os
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from seglib.errors import InputError, InputErrors, unknown_name

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]
Text = Annotated[str, Field(strict=True)]
Switch = Annotated[bool, Field(strict=True)]


class PathParameter(NamedTuple):
    """Marks a parameter that is a path unless it has one of these values."""

    unless: tuple[str, ...]


class NotebookConfig(BaseModel):
    """Base of all: strict types, unknown names refused, immutable, errors in one line each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> Self:
        """Check the parameters of a notebook: `config = TrainConfig.from_notebook(globals())`.

        Raises
        ------
        InputErrors
            One line for each parameter that is missing or wrong.
        """
        values = {name: namespace[name] for name in cls.model_fields if name in namespace}
        problems = cls.find_problems(values)
        if problems:
            raise InputErrors([f"parameters: {problem}" for problem in problems.values()])
        return cls(**values)

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
        return f"{name} is missing; the notebook's parameters cell must set it"
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

"""A notebook's parameters: what their cell declares, the check of values against it, a live view on the names.

The cell tagged `parameters` has statements `name: type = literal  # comment` and nothing else. It is the only place
where a parameter is declared: its annotation is the type that grids are checked by.
"""

import ast
import json
import linecache
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from seglib.errors import InputError, InputErrors, unknown_name
from seglib.files import read_file

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]
Text = Annotated[str, Field(strict=True)]
Switch = Annotated[bool, Field(strict=True)]
NotNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
BelowOne = Annotated[Number, Field(ge=0, lt=1)]
Factor = Annotated[Number, Field(ge=0, le=100)]
ClassWeights = Literal["", "balanced"] | dict[str, NotNegative]


def _check_range(bounds: list) -> list:
    if len(bounds) != 2 or bounds[0] > bounds[1]:
        raise ValueError(f"must be [lowest, highest], got {bounds}")
    return bounds


def _check_odd(size: int) -> int:
    if size % 2 == 0:
        raise ValueError(f"must be odd (a window with a pixel in the middle), got {size}")
    return size


Window = Annotated[Whole, Field(ge=1, le=99), AfterValidator(_check_odd)]
CountRange = Annotated[list[Annotated[Whole, Field(ge=1, le=100)]], AfterValidator(_check_range)]
ScaleRange = Annotated[list[Annotated[Number, Field(gt=0, le=10)]], AfterValidator(_check_range)]

# What an annotation may be made of.
_TYPES = {
    "int": Whole, "float": Number, "bool": Switch, "str": Text, "list": list, "tuple": tuple, "dict": dict[Text, Any],
    "object": Any, "None": None,
}  # fmt: skip
_NAMED = _TYPES | {  # of options of parts, which import these names
    "Number": Number, "Whole": Whole, "Text": Text, "Switch": Switch, "NotNegative": NotNegative, "Positive": Positive,
    "Share": Share, "BelowOne": BelowOne, "Factor": Factor, "ClassWeights": ClassWeights, "Window": Window,
    "CountRange": CountRange, "ScaleRange": ScaleRange,
}  # fmt: skip
_GENERIC = {"list": list, "tuple": tuple, "dict": dict}


class Parameter(NamedTuple):
    """What a notebook says of a parameter: annotation ("" for none), default, and the comment behind it."""

    annotation: str
    default: Any
    comment: str


Schema = Mapping[str, Parameter]


def read_schema(notebook: str | Path) -> dict[str, Parameter]:
    """Read the parameters of a notebook from its cell tagged `parameters`, without running it.

    Returns
    -------
    Name -> annotation, default and comment, in the order of the cell.

    Raises
    ------
    InputError
        Not a notebook, not exactly one such cell, or a line of it that is not `name: type = literal`.
    """
    cells = [cell for cell in _read_cells(notebook) if "parameters" in cell["metadata"].get("tags", [])]
    kinds = [cell["cell_type"] for cell in cells]  # papermill takes the first one, whatever it is
    if kinds != ["code"]:
        got = f"{len(kinds)}" + (f" ({', '.join(kinds)})" if kinds else "")
        raise InputError(f"{notebook}: required one code cell tagged `parameters`, got {got}; tag it in JupyterLab")
    try:
        return parse_parameters(cells[0]["source"])
    except InputError as error:
        raise InputError(f"{notebook}: {error}") from error


def read_defaults(notebook: str | Path) -> dict[str, Any]:
    """The defaults of a notebook's parameters; see `read_schema`."""
    return {name: parameter.default for name, parameter in read_schema(notebook).items()}


def read_code_cells(notebook: str | Path) -> list[dict[str, Any]]:
    """A notebook's code cells; `source` of each is one text."""
    return [cell for cell in _read_cells(notebook) if cell["cell_type"] == "code"]


def _read_cells(notebook: str | Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(read_file(notebook))
        if isinstance(content, dict) and "worksheets" in content:
            raise InputError(
                f"{notebook}: required a notebook of format 4, got format 3; open and save it in JupyterLab"
            )
        cells = content["cells"]
        cells = [cell for cell in cells if isinstance(cell["cell_type"], str) and isinstance(cell["metadata"], dict)]
        _ = [{*cell["metadata"].get("tags", [])} for cell in cells]  # papermill stops at those that are no list
        return [cell | {"source": "".join(cell.get("source", ""))} for cell in cells]
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{notebook}: required a notebook that can be read, got {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{notebook}: required a Jupyter notebook (JSON with cells), got something else") from error


def parse_parameters(source: str) -> dict[str, Parameter]:
    """Read a parameters cell; InputError for one that has anything but `name: type = literal`."""
    statements, lines, found = parse_code(source, "the parameters cell").body, source.splitlines(), {}
    for name, parameter in (_read_statement(statement, lines) for statement in statements):
        if name in found:
            raise InputError(f"the parameters cell: {name} stands twice; take one out")
        found[name] = parameter
    return found


def parse_code(source: str, what: str) -> ast.Module:
    """The syntax tree of a text; `what` it is, for the words of an error."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:  # ValueError: null bytes; the last: nesting
        place = f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else str(error)
        raise InputError(f"{what} must be Python, got {place or 'nesting without end'}") from error


def _read_statement(statement: ast.stmt, lines: list[str]) -> tuple[str, Parameter]:
    target = getattr(statement, "target", None) or (getattr(statement, "targets", None) or [None])[0]
    annotation = getattr(statement, "annotation", None)
    single = isinstance(target, ast.Name) and len(getattr(statement, "targets", [target])) == 1
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or not single or not statement.value:
        raise InputError(f"line {statement.lineno} of the parameters cell must be `name: type = literal`")
    try:
        default = ast.literal_eval(statement.value)
    except (ValueError, TypeError, MemoryError, RecursionError) as error:
        raise InputError(f"the default of {target.id} must be a plain literal, got code") from error
    words = ast.unparse(annotation) if annotation else ""
    _find_type(target.id, words, default)
    behind = lines[statement.end_lineno - 1].encode()[statement.end_col_offset :].decode()
    return target.id, Parameter(words, default, behind.strip().lstrip("# "))


@lru_cache(maxsize=1024)
def build_type(annotation: str, *, of_part: bool = False) -> Any:
    """The type that an annotation stands for; those of parts may be limited, `Annotated[float, Field(gt=0)]`.

    Raises
    ------
    InputError
        A type that is not plain.
    """
    return _read_annotation(ast.parse(annotation, mode="eval").body, _NAMED if of_part else _TYPES)


def _read_annotation(node: ast.expr, named: Mapping[str, Any]) -> Any:
    match node:
        case ast.Name(id=name) if name in named:
            return named[name]
        case ast.Constant(value=None):
            return None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_read_annotation(left, named), _read_annotation(right, named)]  # noqa: UP007
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            return Literal[ast.literal_eval(choices)]
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[kind, ast.Call(keywords=limits)])):
            limits = {limit.arg: ast.literal_eval(limit.value) for limit in limits}
            return Annotated[_read_annotation(kind, named), Field(**limits)]
        case ast.Subscript(value=ast.Name(id=name), slice=inner) if name in _GENERIC:
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return _GENERIC[name][tuple(_read_annotation(part, named) for part in parts)]
    name = ast.unparse(node)
    raise InputError(unknown_name("type", name, [*_TYPES, "Literal"]))


def _find_type(name: str, annotation: str, default: Any) -> Any:
    """The type of a parameter; of one without an annotation it is its default's."""
    try:
        return build_type(annotation or (type(default).__name__ if default is not None else "object"))
    except (InputError, SyntaxError, ValueError, TypeError) as error:
        why = error if isinstance(error, InputError) else f"got {annotation}"
        raise InputError(f"the type of {name} must be plain: {why}") from error


_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def check_type(name: str, parameter: Parameter, narrower: Any, value: Any) -> Any:
    """Check a value by the parameter's annotation, or by a narrower type; see `check_value`."""
    kind = _find_type(name, parameter.annotation, parameter.default) if narrower is None else narrower
    if parameter.annotation == "float" and isinstance(value, str) and _EXPONENT.fullmatch(value):
        value = float(value)  # YAML 1.1 reads `1e-3` as a text; a person means a number
    return check_value(name, value, kind, parameter.comment or f"the notebook's default is {parameter.default!r}")


_adapters: dict[int, tuple[Any, TypeAdapter]] = {}  # by the id of a type: building one takes longer than 1,000 checks


def check_value(path: str, value: Any, kind: Any, description: str = "") -> Any:
    """Check one value against a type; return it, whole numbers as floats where floats are meant.

    Parameters
    ----------
    path : what the value is called, for the words of the refusal.
    kind : a type as pydantic has them: `Number`, `list[Text]`, `Literal["a", "b"]`, `Annotated[Whole, Field(ge=1)]`.

    Raises
    ------
    InputError
        One line: what was required, what arrived, the description.
    """
    if id(kind) not in _adapters:
        _adapters[id(kind)] = (kind, TypeAdapter(kind))
    try:
        return _adapters[id(kind)][1].validate_python(value)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        item = errors[0] if isinstance(value, str) else errors[-1]  # of a union: its names come before its mapping
        raise InputError(_word(".".join([path, *_follow(value, item["loc"])]), item, description)) from None


def check_options(
    where: str, options: Mapping[str, Any], known: Mapping[str, Any], needed: Iterable[str] = ()
) -> dict[str, Any]:
    """Check options by name and type, and that those without a default are there; see `check_value`."""
    for option in options:
        if option not in known:
            refusal = unknown_name(f"option of {where}", option, known)
            raise InputError(refusal if known else f"unknown option of {where} {option!r}; it has none")
    require_options(where, needed, options)
    return {option: check_value(f"{where}.{option}", value, known[option]) for option, value in options.items()}


def require_options(where: str, needed: Iterable[str], given: Iterable[str]) -> None:
    """Refuse options that have no default and are not given."""
    missing = [name for name in needed if name not in given]
    if missing:
        raise InputError(f"{where}: required the option {missing[0]}, which has no default, got none")


def _follow(value: Any, location: Iterable[Any]) -> Iterator[str]:
    """The keys and places on the way to what is wrong; pydantic puts the branches of unions between them."""
    for part in location:
        if isinstance(value, Mapping | list | tuple):
            try:
                value = value[part]
            except (LookupError, TypeError):
                continue
            yield str(part)


_REQUIRED = {
    "int_type": "a whole number", "float_type": "a number", "bool_type": "true or false", "string_type": "a text",
    "dict_type": "a mapping name: value", "list_type": "a list", "finite_number": "a finite number",
    "greater_than": "above {gt}", "greater_than_equal": "at least {ge}", "less_than": "below {lt}",
    "less_than_equal": "at most {le}", "multiple_of": "a multiple of {multiple_of}", "string_too_short": "a text that is not empty", "too_short": "not empty",
}  # fmt: skip


def _word(path: str, item: Mapping[str, Any], description: str) -> str:
    """One line for one of pydantic's errors: what was required, what arrived, the fix."""
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
    fix = (
        f"; write [{value}], and [[{value}]] after --set or in `grid`"
        if kind == "list_type" and isinstance(value, str)
        else ""
    )
    return f"{path} must be {required}, got {_show(value)}" + (f" ({description})" if description else "") + fix


def _show(value: object) -> str:
    """A value as a person wrote it, with its type where that is what is wrong."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return reprlib.repr(value)
    return f"{reprlib.repr(value)} ({'a text' if isinstance(value, str) else type(value).__name__})"


# The live view.


class Parameters:
    """A live view on a notebook's own parameters: `p.lr` is its `lr` of now, checked each time that it is read.

    `dict(p)` and `p.to_dict(exclude=...)` are all of them, for records. A parameter is changed in the notebook
    (`lr = 1e-5` in a cell), never through the view.
    """

    def __init__(self, namespace: Mapping[str, Any], find_schema: Callable[[], Schema]):
        vars(self).update(_namespace=namespace, _find_schema=find_schema)

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        values, problems = self._check()
        if name in problems:
            raise InputError(f"parameters: {problems[name]}")
        return values[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self:
            raise AttributeError(unknown_name("parameter", name, () if name.startswith("_") else self))
        return self[name]

    def __setattr__(self, name: str, value: object) -> None:
        raise InputError(f"p.{name} cannot be set: write {name} = {value!r} in a cell, and the next p.{name} is that")

    def __iter__(self) -> Iterator[str]:
        return iter(self._find_schema())

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
        from seglib.rules import check_parameters  # which needs the parts, and these need the types above

        schema = self._find_schema()
        return check_parameters(schema, {name: self._namespace[name] for name in schema if name in self._namespace})


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
        view = Parameters(shell.user_ns, lambda: _find_cell(shell.history_manager.input_hist_raw))
    else:
        caller = sys._getframe(1)
        view = Parameters(caller.f_globals, lambda: _read_script(caller.f_code.co_filename))
    if not list(view):
        raise InputError("read_parameters: required a parameters cell (name: type = literal), got none; run it first")
    view.to_dict()
    return view


def _find_cell(cells: Iterable[str]) -> dict[str, Parameter]:
    """What the parameters cell declares: of executed cells the longest of its form, or that again after an edit."""
    schema: dict[str, Parameter] = {}
    for cell in cells:
        found = _read_cell(cell)
        again = not schema.keys().isdisjoint(found)
        if len(found) > len(schema) or (again and 2 * len(found) > len(schema)):
            schema = found
        elif again:  # a line that sets some of them
            schema = schema | found
    return schema


@lru_cache(maxsize=4096)
def _read_cell(source: str) -> dict[str, Parameter]:
    """What a cell declares; {} for one that has anything else in it too."""
    try:
        found = parse_parameters(source)
    except InputError:
        return {}
    return found if all(parameter.annotation for parameter in found.values()) else {}


@cache
def _read_script(path: str) -> dict[str, Parameter]:
    source = "".join(linecache.getlines(path))
    annotated = [statement for statement in ast.parse(source).body if isinstance(statement, ast.AnnAssign)]
    found = {}
    for statement in annotated:
        found |= _read_cell(ast.get_source_segment(source, statement))
    return found

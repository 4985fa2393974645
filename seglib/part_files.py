"""Files of parts: what they and the cells of notebooks register, read without being run, hashed and kept with each run."""

import ast
import inspect
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from seglib.errors import InputError
from seglib.files import expand, hash_text, read_file, write_text
from seglib.parameters import build_type, parse_code, read_code_cells

CELLS = "registered_in_cells.py"  # in a run's `parts`
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def keep_cells(run_dir: str | Path, cells: Iterable[str]) -> None:
    """Keep what the cells of a notebook that ran have registered in a run's `parts`, with which the run is opened again."""
    if text := _compose_cells(cells):
        folder = Path(run_dir) / "parts"
        folder.mkdir(exist_ok=True)
        write_text(folder / CELLS, text)


def _compose_cells(cells: Iterable[str]) -> str:
    """A file of parts: the imports of all cells, and the cells that register any, of those run again the last; "" for none."""
    imports, kept = {}, {}
    for cell in cells:
        try:
            tree = ast.parse(cell)
        except (SyntaxError, ValueError):  # a magic: %matplotlib inline
            continue
        found = [node.name for node, _ in _find_registered(tree)]
        nodes = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        imports |= dict.fromkeys(map(ast.unparse, nodes))
        if found:
            kept[tuple(found)] = cell
    return "\n".join([*imports, *(f"\n\n{cell}" for cell in kept.values()), ""]) if kept else ""


def find_kept_parts(run_dir: str | Path) -> list[str]:
    """The copies of own parts in a run's folder; [] where it used none."""
    return sorted(map(str, (Path(run_dir) / "parts").glob("*.py")))


def hash_parts(paths: Iterable[str | Path]) -> list[str]:
    """Hash of each file's code, in no order; comments, docstrings and layout do not count."""
    return sorted(hash_text(unparse_code(parse_file(path, read_text(path)))) for path in map(Path, paths))


def unparse_code(tree: ast.Module) -> str:
    """What code does: its text without comments, docstrings and layout."""
    for node in ast.walk(tree):
        if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.unparse(tree)


def find_definitions(path: Path, text: str) -> list[tuple[ast.FunctionDef | ast.ClassDef, str]]:
    """The functions and classes that stand under `@register(kind)` at a file's top level, each with its kind."""
    return _find_registered(parse_file(path, text))


def _find_registered(tree: ast.Module) -> list[tuple[ast.FunctionDef | ast.ClassDef, str]]:
    found = [(node, _find_kind(decorator)) for node in tree.body for decorator in getattr(node, "decorator_list", ())]
    return [(node, kind) for node, kind in found if kind is not None]


def _find_kind(decorator: ast.expr) -> str | None:
    """The kind in `@register("loss")`; None for another decorator."""
    if not isinstance(decorator, ast.Call) or len(decorator.args) != 1:
        return None
    name = getattr(decorator.func, "id", getattr(decorator.func, "attr", ""))
    return getattr(decorator.args[0], "value", None) if name == "register" else None


def read_arguments(node: ast.FunctionDef | ast.ClassDef) -> list[tuple]:
    """Arguments as (name, type, whether it must be given, whether it is a keyword only); of a class, its __init__'s."""
    function = node
    if isinstance(node, ast.ClassDef):
        function = next((each for each in node.body if getattr(each, "name", "") == "__init__"), None)
        if function is None:
            return []
    a = function.args
    positional = [*a.posonlyargs, *a.args]
    first_default = len(positional) - len(a.defaults)
    arguments = [
        (each.arg, read_type(each.annotation), number < first_default, False) for number, each in enumerate(positional)
    ]
    arguments = arguments[1:] if function is not node else arguments
    return arguments + [
        (each.arg, read_type(each.annotation), default is None, True)
        for each, default in zip(a.kwonlyargs, a.kw_defaults, strict=True)
    ]


@cache
def _build_type(annotation: str) -> Any:
    try:
        return build_type(annotation, of_part=True)
    except (InputError, SyntaxError, ValueError):
        return Any  # a type of the user's own: the part checks it


def read_type(annotation: Any) -> Any:
    """The type of an option by its annotation, be it a type, its text or its syntax tree."""
    if annotation in (None, inspect.Parameter.empty):
        return Any
    if isinstance(annotation, ast.expr):
        text = annotation.value if isinstance(annotation, ast.Constant) else ast.unparse(annotation)
    else:
        text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return _build_type(str(text).replace("typing.", ""))


def parse_file(path: Path, text: str) -> ast.Module:
    """The syntax tree of a file's text; `path` is for the words of an error."""
    return parse_code(text, f"parts: {path}")


def read_text(path: Path) -> str:
    """A file's text; of a notebook what its cells register."""
    if path.suffix == ".ipynb":
        return _compose_cells(cell["source"] for cell in read_code_cells(path))
    try:
        return read_file(expand(path)).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        got = error.strerror if isinstance(error, OSError) else "other bytes, or no file"
        raise InputError(f"parts: required a Python file (UTF-8), got {str(path)!r}: {got}") from error

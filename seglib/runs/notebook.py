"""What a notebook says about itself: its parameters with their defaults, its config class, a hash of its code."""

import ast
import json
import os
import re
from pathlib import Path
from typing import Any

from seglib import config
from seglib.errors import InputError
from seglib.files import PROJECT, hash_text
from seglib.parameters import NotebookConfig

_PARAMETERS = {"parameters", "injected-parameters"}  # tags of cells; papermill puts the second in
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def read_defaults(path: Path) -> dict[str, Any]:
    """Read name -> default from the cell tagged `parameters`, without running it.

    Raises
    ------
    InputError
        Not a notebook, not exactly one such cell, or a default that is not a plain literal.
    """
    cells = [cell for cell in _code_cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise InputError(f"{path}: required one code cell tagged `parameters`, got {len(cells)}; tag it in JupyterLab")
    try:
        statements = ast.parse(_source(cells[0])).body
    except (SyntaxError, ValueError) as error:  # ValueError: null bytes
        place = f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else str(error)
        raise InputError(f"{path}: the parameters cell must be Python, got {place}") from error
    return dict(_read_assignment(path, statement) for statement in statements)


def find_notebook(notebook: str, grid_path: Path) -> Path:
    """A notebook's path, seen from the current folder, the project's, or the grid file's."""
    for folder in (Path.cwd(), PROJECT, grid_path.parent):
        if os.path.isfile(folder / notebook):
            return (folder / notebook).resolve()
    raise InputError(f"{grid_path}: there is no notebook {notebook!r}, neither in {Path.cwd()} nor in {PROJECT}")


def find_config(path: Path) -> type[NotebookConfig] | None:
    """The config class that the notebook checks itself with; None for a notebook that has none."""
    for cell in _code_cells(path):
        match = re.search(r"\b(\w+Config)\.from_notebook\(", _source(cell))
        if match and isinstance(getattr(config, match[1], None), type):
            return getattr(config, match[1])
    return None


def saves_result(path: Path) -> bool:
    """Whether the notebook ends by writing its result into the record."""
    return any("save_result(" in _source(cell) for cell in _code_cells(path))


def hash_code(path: Path) -> str:
    """Hash of what the notebook's cells do: comments, docstrings, layout, prose, outputs and parameters do not count."""
    cells = [cell for cell in _code_cells(path) if _PARAMETERS.isdisjoint(cell["metadata"].get("tags", []))]
    return hash_text(json.dumps([code for cell in cells if (code := _strip_layout(_source(cell)))]))


def _strip_layout(source: str) -> str:
    """A cell's code without comments, docstrings and layout; its text where it is not Python alone (magics)."""
    try:
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node) is not None:
                del node.body[0]
        return ast.unparse(tree)
    except (SyntaxError, ValueError, RecursionError):
        return source.strip()


def _read_assignment(path: Path, statement: ast.stmt) -> tuple[str, Any]:
    target = statement.target if isinstance(statement, ast.AnnAssign) else None
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
    if not isinstance(target, ast.Name) or statement.value is None:
        raise InputError(f"{path}: line {statement.lineno} of the parameters cell must be `name: type = literal`")
    try:
        return target.id, ast.literal_eval(statement.value)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: the default of {target.id} must be a plain literal, got code") from error


def _code_cells(path: Path) -> list[dict]:
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
        return [
            cell for cell in notebook["cells"] if cell["cell_type"] == "code" and isinstance(cell["metadata"], dict)
        ]
    except OSError as error:
        raise InputError(f"{path}: required a notebook that can be read, got {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: required a Jupyter notebook (JSON with cells), got something else") from error


def _source(cell: dict) -> str:
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(source)

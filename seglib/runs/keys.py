"""What decides the results of a run: parameters, data, the notebook's code, own parts; their key."""

import ast
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import seglib
from seglib import config
from seglib.data.fingerprint import fingerprint_data, fingerprint_sets, hash_files
from seglib.errors import InputError
from seglib.files import PROJECT, hash_text
from seglib.parameters import NotebookConfig
from seglib.parts import hash_parts
from seglib.runs.record import read_record

# What a notebook says about itself: its parameters with their defaults, its config class, a hash of its code.


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
    """The config class of a shipped notebook; None for a notebook that has none."""
    return config.find_class(read_defaults(path))


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


# A run's key: what decides its result, in named parts, so that a run that is to go again can say why.


# Parameters of 02_train that leave every bit alone: where results go, what a run must equal to go on from it, speed.
_WITHOUT_EFFECT = ("run_dir", "continue_from", "checkpoint_minutes", "track", "num_workers", "cache")
_FIRST_RESULTS = 1  # seglib.RESULTS of the runs whose records have no parts


def compute_keys(
    notebook: Path, config: type[NotebookConfig] | None, parameters: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Each run's key: hashes of its parameters and of the notebook's code, content behind paths, `seglib.RESULTS`.

    Raises
    ------
    InputError
        Data that cannot be read.
    """
    code = hash_code(notebook)
    content: dict[tuple, str] = {}  # many runs read the same files
    return [
        {
            "parameters": _hash_parameters(config, values),
            "data": _hash_data(config, values, content),
            "notebook": code,
            "results": seglib.RESULTS,
        }
        | ({"parts": hash_parts(values["parts"])} if _uses_parts(config, values) else {})
        for values in parameters
    ]


def explain_run(run_dir: Path, notebook: Path, key: Mapping[str, Any]) -> list[str]:
    """Why a run is to go: `new`, how it ended (failed, killed, ...), or the parts of its key that differ; [] is done."""
    record = read_record(run_dir)
    if record is None:
        return ["new"]
    if record.get("status") != "ok":
        return [str(record.get("status") or "unknown")]
    return find_changes(run_dir, notebook, key)


def is_finished(run_dir: Path, notebook: Path, key: Mapping[str, Any]) -> bool:
    """Whether a run is done: its record is ok and was made with the same key."""
    return not explain_run(run_dir, notebook, key)


def find_changes(run_dir: Path, notebook: Path, key: Mapping[str, Any]) -> list[str]:
    """The parts of the key that a folder's record does not share, however its run ended."""
    record = read_record(run_dir) or {}
    parts = record.get("key_parts")
    try:
        return compare_keys(parts if isinstance(parts, dict) else _derive_key(run_dir, notebook, record), key)
    except InputError:  # one of its notebooks cannot be read
        return ["notebook"]


def compare_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The words for the parts that differ."""
    parts = [name for name in dict.fromkeys((*now, *before)) if before.get(name) != now.get(name)]
    return ["results version" if name == "results" else name for name in parts]


def _derive_key(run_dir: Path, notebook: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The key of a run whose record has no parts: from its parameters, its data_hash and its executed notebook.

    Parameters that the notebook has been given since have their defaults.
    """
    config, params = find_config(notebook), read_defaults(notebook) | dict(record.get("params") or {})
    data = {name: _hash_unchanged(_find_file(name, params[name]), record) for name in _find_paths(config, params)}
    if "data_dir" in data:
        data["data_dir"] = record.get("data_hash")
    return {
        "parameters": _hash_parameters(config, params),
        "data": data,
        "notebook": hash_code(run_dir / notebook.name),
        "results": _FIRST_RESULTS,
    }


def _hash_parameters(config: type[NotebookConfig] | None, values: Mapping[str, Any]) -> str:
    """Of the resolved values that decide something; paths and what is joined to the data count by their content."""
    fields = config.model_fields if config else {}
    left_out = {"run_dir", *_find_paths(config, values), *(name for name in _WITHOUT_EFFECT if name in fields)}
    left_out |= {"extra_data", "parts"} & fields.keys()
    return hash_values({name: value for name, value in values.items() if name not in left_out})


def _uses_parts(config: type[NotebookConfig] | None, values: Mapping[str, Any]) -> bool:
    return config is not None and "parts" in config.model_fields and bool(values["parts"])


def hash_values(values: object) -> str:
    """Hash of JSON values; the order of names does not count."""
    return hash_text(json.dumps(values, sort_keys=True, default=str))


def _find_paths(config: type[NotebookConfig] | None, values: Mapping[str, Any]) -> list[str]:
    """The parameters that name files which decide something."""
    paths = config.path_parameters() if config else []
    return [name for name, unless in paths if name not in _WITHOUT_EFFECT and values[name] not in unless]


def _hash_data(
    config: type[NotebookConfig] | None, values: Mapping[str, Any], content: dict[tuple, str]
) -> dict[str, str]:
    """Content behind the parameters that are paths; of `data_dir` it is what a training records as its data_hash."""
    extra = values["extra_data"] if config and "extra_data" in config.model_fields else []
    names = _find_paths(config, values) + (["extra_data"] if extra and values["data_dir"] == "synthetic" else [])
    data = {}
    for name in names:
        json_names = config(**values).json_names() if name == "data_dir" else ()
        source = (name, str(values[name]), json_names, str(extra))
        if source not in content:
            content[source] = _hash_content(name, values[name], json_names, extra)
        data[name] = content[source]
    return data


def _hash_content(name: str, value: Any, json_names: Sequence[str], extra: Sequence[Mapping[str, Any]]) -> str:
    if name == "data_dir":
        return fingerprint_sets(value, json_names, extra)
    if name != "extra_data":
        return hash_files([_find_file(name, value)])[0]
    sets = [  # they join the synthetic set, whose images are known
        fingerprint_data(entry["data_dir"], [entry["json"]]) if "data_dir" in entry else hash_files([entry["json"]])[0]
        for entry in extra
    ]
    return hash_values([sets, [entry | {"data_dir": "", "json": ""} for entry in extra]])


def _find_file(name: str, path: str) -> Path:
    return Path(path) / "best.pt" if name == "init_from" else Path(path)


def _hash_unchanged(file: Path, record: Mapping[str, Any]) -> str | None:
    """Hash of a file that a run read, None where it may have been written since."""
    try:
        began = datetime.strptime(record["finished_at"], "%Y-%m-%dT%H:%M:%S%z").timestamp() - record["seconds"]
        return hash_files([file])[0] if file.stat().st_mtime < began else None
    except (OSError, KeyError, TypeError, ValueError):  # gone, or a record that does not say when
        return None

"""What decides the results of a run: parameters, data, the notebook's code, own parts; their key."""

import ast
import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import seglib
from seglib.data.layouts import fingerprint_data, fingerprint_sets
from seglib.errors import InputError
from seglib.files import PROJECT, hash_files, hash_text, outputs_dir
from seglib.parameters import read_code_cells, read_defaults
from seglib.parts import hash_parts, unparse_code
from seglib.rules import is_path
from seglib.runs.record import WITHOUT_EFFECT, complete_params, find_split_seed, read_record

_PARAMETERS = {"parameters", "injected-parameters"}  # tags of cells; papermill puts the second in


def find_notebook(notebook: str, grid_path: Path) -> Path:
    """A notebook's path, seen from the current folder, the project's, or the grid file's."""
    for folder in (Path.cwd(), PROJECT, grid_path.parent):
        if os.path.isfile(folder / notebook):
            return (folder / notebook).resolve()
    raise InputError(f"{grid_path}: there is no notebook {notebook!r}, neither in {Path.cwd()} nor in {PROJECT}")


def calls(path: Path, text: str) -> bool:
    """Whether the notebook's code has a text such as `save_result(`, by which it writes its result into the record."""
    return any(text in cell["source"] for cell in read_code_cells(path))


def hash_code(path: Path) -> str:
    """Hash of what the notebook's cells do: comments, docstrings, layout, prose, outputs and parameters do not count."""
    cells = [cell for cell in read_code_cells(path) if _PARAMETERS.isdisjoint(cell["metadata"].get("tags", []))]
    return hash_text(json.dumps([code for cell in cells if (code := _strip_layout(cell["source"]))]))


def _strip_layout(source: str) -> str:
    """A cell's code without comments, docstrings and layout; its text where it is not Python alone (magics)."""
    try:
        tree = ast.parse(source)
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            call.keywords = [each for each in call.keywords if not _passes_later(each)]
        return unparse_code(tree)
    except (SyntaxError, ValueError, RecursionError):
        return source.strip()


def _passes_later(keyword: ast.keyword) -> bool:
    """Whether it is `ignore_classes=p.ignore_classes`, whose value counts with the parameters."""
    value = keyword.value
    return keyword.arg in _LATER and isinstance(value, ast.Attribute) and value.attr == keyword.arg


# A run's key: what decides its result, in named parts, so that a run that is to go again can say why.

_NO_PATHS = {*WITHOUT_EFFECT, "extra_data", "parts"}  # or not by their name and value alone
# Parameters that came after runs were finished: at their default, neither they nor the words that pass them on count.
_LATER = ("ignore_classes",)
_FIRST_RESULTS = 1  # seglib.RESULTS of the runs whose records have no parts


def compute_keys(notebook: Path, parameters: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each run's key: hashes of its parameters and of the notebook's code, content behind paths, `seglib.RESULTS`.

    Raises
    ------
    InputError
        Data that cannot be read.
    """
    code = hash_code(notebook)
    content: dict[str, str] = {}  # many runs read the same files
    known: dict[tuple[str, int], bool] = {}  # and most values are one object in all runs
    return [
        {
            "parameters": _hash_parameters(values, paths),
            "data": _hash_data(values, paths, content),
            "notebook": code,
            "results": seglib.RESULTS,
        }
        | ({"parts": hash_parts(values["parts"])} if _uses_parts(values) else {})
        | ({"painting": "by mask"} if values.get("paint_order") == "area" else {})  # once by the areas in the file
        | ({"bending": "by a pyramid"} if _bends(values) else {})  # once by one wide Gaussian
        for values in parameters
        for paths in [_find_paths(values, known)]
    ]


def _bends(values: Mapping[str, Any]) -> bool:
    """Whether an augmentation has ElasticTransform, by its own name or in a preset."""
    return bool(re.search(r"'(elastic|distort|ElasticTransform)'", repr(values.get("augmentation"))))


CHANGED = "changed while the run went on"  # in a key for the hash of data; no data has it


def mend_key(notebook: Path, parameters: Mapping[str, Any], key: Mapping[str, Any], run_dir: Path) -> Mapping[str, Any]:
    """A run's key at its end: with the data that it opened, where that is what there was to the end, else `CHANGED`."""
    before = key.get("data")
    if not before or "runs" in key:  # it reads none, or the results of runs
        return key
    try:
        now = compute_keys(notebook, [parameters])[0]["data"]
    except InputError:  # gone, which makes what was read no other
        return key
    opened = dict(before)
    if "data_dir" in before and any("fingerprint_sets(" in cell["source"] for cell in read_code_cells(notebook)):
        opened["data_dir"] = (read_record(run_dir) or {}).get("data_hash", before["data_dir"])
    return {**key, "data": {name: now[name] if opened[name] == now.get(name) else CHANGED for name in before}}


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
        return compare_keys(_complete_key(run_dir, notebook, record, parts, key), key)
    except InputError:  # one of its notebooks cannot be read
        return ["notebook"]


def _complete_key(run_dir: Path, notebook: Path, record: Mapping, parts: Any, key: Mapping) -> Mapping[str, Any]:
    """A record's key; what versions before this one left out of it (all parts, own notebooks' data) is worked out."""
    if not isinstance(parts, dict):
        return _derive_key(notebook, record) | {
            "notebook": hash_code(run_dir / notebook.name),
            "results": _FIRST_RESULTS,
        }
    if (parts.get("data") or {}).keys() == key["data"].keys():
        return parts
    return parts | _derive_key(notebook, record)


def compare_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The words for the parts that differ."""
    parts = [name for name in dict.fromkeys((*now, *before)) if before.get(name) != now.get(name)]
    return ["results version" if name == "results" else name for name in parts]


def _derive_key(notebook: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters and data of a finished run; parameters that the notebook has been given since have their defaults."""
    params = complete_params(read_defaults(notebook), record.get("params") or {})
    paths = _find_paths(params, {})
    data = {name: _hash_unchanged(params[name], record) for name in paths}
    if "data_dir" in data and "data_hash" in record:
        data["data_dir"] = record["data_hash"]
    return {"parameters": _hash_parameters(params, paths), "data": data}


def _hash_unchanged(paths: Any, record: Mapping[str, Any]) -> Any:
    """Hash of the files that a run read; None where one may have been written since."""
    try:
        began = datetime.strptime(record["finished_at"], "%Y-%m-%dT%H:%M:%S%z").timestamp() - record["seconds"]
        files = [file for path in _as_list(paths) for file in _list_files(path)]
        return _hash_content(paths) if all(file.stat().st_mtime < began for file in files) else None
    except (OSError, KeyError, TypeError, ValueError):  # gone, or a record that does not say when
        return None


def _hash_parameters(values: Mapping[str, Any], paths: Sequence[str]) -> str:
    """Of the resolved values that decide something; paths and what is joined to the data count by their content."""
    trains = "data_dir" in values
    left_out = {*((*WITHOUT_EFFECT, "extra_data", "parts") if trains else ["run_dir"]), *paths}
    left_out |= {name for name in _LATER if not values.get(name)}
    if "split" in values and find_split_seed(values) in (None, values.get("seed")):
        left_out.add("split_seed")  # nothing is drawn from it, or what was drawn from the seed before there was one
    return hash_values({name: value for name, value in values.items() if name not in left_out})


def hash_values(values: object) -> str:
    """Hash of JSON values; the order of names does not count."""
    return hash_text(json.dumps(values, sort_keys=True, default=str))


def _uses_parts(values: Mapping[str, Any]) -> bool:
    return "data_dir" in values and bool(values.get("parts"))


def _find_paths(values: Mapping[str, Any], known: dict[tuple[str, int], bool]) -> list[str]:
    """The parameters that name files which decide something; `known`: of names and values (by `id`) that were asked."""
    for name, value in values.items():
        if (name, id(value)) not in known:
            named = isinstance(value, str | list) and name not in _NO_PATHS
            known[name, id(value)] = named and any(is_path(name, path) for path in _as_list(value))
    return [name for name, value in values.items() if known[name, id(value)]]


def _hash_data(values: Mapping[str, Any], paths: Sequence[str], content: dict[str, Any]) -> dict[str, Any]:
    """Content behind the parameters that are paths; of `data_dir` it is what a training records as its data_hash."""
    extra, names, data = values.get("extra_data") or [], [*paths], {}
    if extra and values.get("data_dir") == "synthetic":  # they join a set whose images are known
        names.append("extra_data")
    for name in names:
        jsons = name_jsons(values) if name == "data_dir" else []
        source = hash_values([name, values[name], jsons, extra])
        if source not in content:
            if jsons:
                content[source] = fingerprint_sets(values[name], jsons, extra)
            else:
                content[source] = _hash_extra(extra) if name == "extra_data" else _hash_content(values[name])
        data[name] = content[source]
    return data


def name_jsons(values: Mapping[str, Any]) -> list[str]:
    """The annotation files that a run reads in its data_dir."""
    names = [values.get("train_json"), values.get("val_json") if values.get("split") == "given" else ""]
    return [name for name in names if name]


def _hash_extra(extra: Sequence[Mapping[str, Any]]) -> str:
    sets = [
        fingerprint_data(entry["data_dir"], [entry["json"]]) if "data_dir" in entry else hash_files([entry["json"]])[0]
        for entry in extra
    ]
    return hash_values([sets, [entry | {"data_dir": "", "json": ""} for entry in extra]])


def _hash_content(paths: Any) -> Any:
    """Hash of a file, or of the files of a folder; a list for a list, its words as they are."""
    if isinstance(paths, list):
        return [_hash_content(path) if os.path.exists(path) else path for path in paths]
    files = _list_files(paths)
    hashes = hash_files(files)
    return hashes[0] if len(files) == 1 else hash_values([[str(file.relative_to(paths)) for file in files], hashes])


def _list_files(path: str) -> list[Path]:
    """The file itself; of a run's or a grid's folder the best weights; else all in the folder, less hidden and results."""
    folder, outputs = Path(path), outputs_dir()
    if not folder.is_dir():
        return [folder]
    if weights := [*folder.glob("best.pt")] or sorted(folder.glob("*/best.pt")):
        return weights
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_relative_to(outputs))
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]

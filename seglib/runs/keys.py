"""A run's key: what decides its result, in named parts, so that a run that is to go again can say why."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import seglib
from seglib.data.fingerprint import fingerprint_data, fingerprint_sets, hash_files
from seglib.errors import InputError
from seglib.files import hash_text
from seglib.parameters import NotebookConfig
from seglib.runs.notebook import find_config, hash_code, read_defaults
from seglib.runs.record import read_record

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
    return compare_keys(parts if isinstance(parts, dict) else _derive_key(run_dir, notebook, record), key)


def compare_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The words for the parts that differ."""
    parts = [name for name in dict.fromkeys((*now, *before)) if before.get(name) != now.get(name)]
    return ["results version" if name == "results" else name for name in parts]


def _derive_key(run_dir: Path, notebook: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The key of a run whose record has no parts: from its parameters, its data_hash and its executed notebook.

    Parameters that the notebook has been given since have their defaults.
    """
    config, params = find_config(notebook), read_defaults(notebook) | dict(record.get("params") or {})
    executed = run_dir / notebook.name
    data = {name: _hash_unchanged(name, params[name], record) for name in _find_paths(config, params)}
    if "data_dir" in data:
        data["data_dir"] = record.get("data_hash")
    return {
        "parameters": _hash_parameters(config, params),
        "data": data,
        "notebook": hash_code(executed) if executed.is_file() else None,
        "results": _FIRST_RESULTS,
    }


def _hash_parameters(config: type[NotebookConfig] | None, values: Mapping[str, Any]) -> str:
    """Of the resolved values that decide something; paths and what is joined to the data count by their content."""
    fields = config.model_fields if config else {}
    left_out = {"run_dir", *_find_paths(config, values), *(name for name in _WITHOUT_EFFECT if name in fields)}
    left_out |= {"extra_data"} & fields.keys()
    return hash_values({name: value for name, value in values.items() if name not in left_out})


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
    """Content behind the parameters that are paths; `data_dir` is what a training records as its data_hash."""
    data = {}
    extra = values["extra_data"] if config and "extra_data" in config.model_fields else []
    for name in [
        *_find_paths(config, values),
        *(["extra_data"] if extra and values["data_dir"] == "synthetic" else []),
    ]:
        json_names = config(**values).json_names() if name == "data_dir" else ()
        source = (name, str(values[name]), json_names, str(extra))
        if source not in content:
            if name == "data_dir":
                content[source] = fingerprint_sets(values[name], json_names, extra)
            else:
                content[source] = (
                    _hash_synthetic_extra(extra) if name == "extra_data" else _hash_file(name, values[name])
                )
        data[name] = content[source]
    return data


def _hash_synthetic_extra(extra: Sequence[Mapping[str, Any]]) -> str:
    """What joins the synthetic set, whose images are known by `seglib.RESULTS`."""
    hashes = []
    for entry in extra:
        options = {name: value for name, value in entry.items() if name not in ("data_dir", "json")}
        own = "data_dir" not in entry
        hashes.append([hash_files([entry["json"]])[0] if own else fingerprint_data(entry["data_dir"], [entry["json"]]),
                       options])  # fmt: skip
    return hash_values(hashes)


def _hash_file(name: str, path: str) -> str:
    return hash_files([Path(path) / "best.pt" if name == "init_from" else path])[0]


def _hash_unchanged(name: str, path: str, record: Mapping[str, Any]) -> str | None:
    """Hash of a file that a run read, None where it has been written since (or may have been)."""
    file = Path(path) / "best.pt" if name == "init_from" else Path(path)
    try:
        began = datetime.strptime(record["finished_at"], "%Y-%m-%dT%H:%M:%S%z").timestamp() - record["seconds"]
        return _hash_file(name, path) if os.stat(file).st_mtime < began else None
    except (InputError, OSError, KeyError, TypeError, ValueError):
        return None

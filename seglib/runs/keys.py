"""A run's key: the hash of everything that decides its result."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seglib.data.fingerprint import fingerprint_data, hash_files
from seglib.files import PROJECT, hash_file, hash_text
from seglib.parameters import NotebookConfig
from seglib.parts import hash_parts
from seglib.runs.notebook import hash_code

# Parameters that decide nothing: where results go, and a run that this one must equal where it goes on from it.
_WITHOUT_EFFECT = ("run_dir", "continue_from", "checkpoint_minutes", "track")


def compute_keys(
    notebook: Path, config: type[NotebookConfig] | None, parameters: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Hash each run's parameters, the notebook's code, seglib's code, and the content behind paths, not their names.

    `seglib/runs` does not count: it starts and records runs, and a change of the index page must not cost a night.

    Raises
    ------
    InputError
        Data that cannot be read.
    """
    code = [hash_code(notebook), hash_seglib(besides=("runs",))]
    content: dict[tuple, str] = {}  # many runs read the same files
    return [
        hash_text(json.dumps([_replace_paths(config, values, content), *code], sort_keys=True, default=str))
        for values in parameters
    ]


def hash_seglib(besides: Sequence[str] = ()) -> str:
    """Hash of seglib's own source files, some of its folders left out."""
    folder = PROJECT / "seglib"
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.py"))
    counted = [name for name in names if name.parts[0] not in besides]
    return hash_text("".join(f"{name.as_posix()} {hash_file(folder / name)}\n" for name in counted))


def _replace_paths(
    config: type[NotebookConfig] | None, parameters: Mapping, content: dict[tuple, str]
) -> dict[str, Any]:
    """The parameters that decide something, with hashes where paths were."""
    values = {name: value for name, value in parameters.items() if name not in _WITHOUT_EFFECT}
    for name, unless in config.path_parameters() if config else ():
        if name in _WITHOUT_EFFECT or values[name] in unless:
            continue
        source = (values[name], *(config(**parameters).json_names() if name == "data_dir" else ()))
        if source not in content:
            content[source] = _hash_content(name, *source)
        values[name] = content[source]
    if config and "parts" in config.model_fields:
        values["parts"] = hash_parts(values["parts"])
    if config and "extra_data" in config.model_fields:
        own = {"data_dir": parameters["data_dir"]}
        values["extra_data"] = [_replace_place(own | options, content) for options in values["extra_data"]]
    return values


def _replace_place(options: Mapping, content: dict[tuple, str]) -> dict[str, Any]:
    """An extra set's options, with the hash of its content where its folder and file were."""
    source = (options["data_dir"], options["json"])
    if source not in content:
        images_are_known = options["data_dir"] == "synthetic"  # by seglib's code
        content[source] = (
            hash_files([options["json"]])[0] if images_are_known else fingerprint_data(*source[:1], source[1:])
        )
    return {name: value for name, value in options.items() if name not in ("data_dir", "json")} | {
        "data": content[source]
    }


def _hash_content(name: str, path: str, *json_names: str) -> str:
    if name == "data_dir":
        return fingerprint_data(path, json_names)
    return hash_files([Path(path) / "best.pt" if name == "init_from" else path])[0]

"""Whether the classes that parameters name are classes of the data, known before a grid starts."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from seglib.data.class_names import BACKGROUND, SYNTHETIC, refuse_class_map
from seglib.errors import unknown_name
from seglib.parameters import NotebookConfig


def find_class_problems(config: type[NotebookConfig], values: Mapping) -> dict[str, str]:
    """Word the class names that the data does not have: parameter name -> one line."""
    used, extra_data = config.class_names_used(values), values.get("extra_data", [])
    known = _read_class_names(values["data_dir"], values["train_json"]) if any(used.values()) or extra_data else ()
    if not known:  # nothing to check, or a file that cannot be read: the data's own check says so
        return {}
    focused = tuple(used.get("focus_classes", ())) or known[1:]
    usable = {"focus_classes": known[1:], "mixing": focused}  # the background cannot be pasted
    problems = {
        name: _find_unknown(name, names, usable.get(name, (BACKGROUND, *focused))) for name, names in used.items()
    }
    found = (
        _find_map_problem(place, {"data_dir": values["data_dir"]} | extra_set, known)
        for place, extra_set in enumerate(extra_data)
    )
    problems["extra_data"] = next(filter(None, found), "")
    return {name: problem for name, problem in problems.items() if problem}


def _find_map_problem(place: int, extra_set: Mapping, known: Sequence[str]) -> str:
    """What is wrong with the classes of an extra set; a file that cannot be read is left to the data's own check."""
    theirs = _read_class_names(extra_set["data_dir"], extra_set["json"])[1:]
    return refuse_class_map(f"extra_data[{place}]", extra_set.get("classes", {}), theirs, known) if theirs else ""


def _find_unknown(parameter: str, names: Sequence[str], known: Sequence[str]) -> str:
    unknown = [name for name in names if name not in known]
    return unknown_name(f"class in {parameter}", unknown[0], known, limit=20) if unknown else ""


@cache
def _read_class_names(data_dir: str, train_json: str) -> tuple[str, ...]:
    if data_dir == "synthetic":
        return (BACKGROUND, *SYNTHETIC)
    try:
        content = json.loads((Path(data_dir).expanduser() / train_json).read_text(encoding="utf-8"))
        return (BACKGROUND, *(str(category["name"]) for category in content["categories"]))
    except (OSError, ValueError, KeyError, TypeError):
        return ()

"""Whether the classes that parameters name are classes of the data, known before a grid starts."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from seglib.errors import unknown_name
from seglib.parameters import NotebookConfig


def find_class_problems(config: type[NotebookConfig], values: Mapping) -> dict[str, str]:
    """Word the class names that the data does not have: parameter name -> one line."""
    used = config.class_names_used(values)
    known = _read_class_names(values["data_dir"], values["train_json"]) if any(used.values()) else ()
    if not known:  # nothing to check, or a file that cannot be read: the data's own check says so
        return {}
    usable = {name: known[1:] if name == "mixing" else known for name in used}  # the background cannot be pasted
    return {name: problem for name, names in used.items() if (problem := _find_unknown(name, names, usable[name]))}


def _find_unknown(parameter: str, names: Sequence[str], known: Sequence[str]) -> str:
    unknown = [name for name in names if name not in known]
    return unknown_name(f"class in {parameter}", unknown[0], known, limit=20) if unknown else ""


@cache
def _read_class_names(data_dir: str, train_json: str) -> tuple[str, ...]:
    if data_dir == "synthetic":
        from seglib.data.synthetic import CLASSES  # not at the top: drawing needs OpenCV

        return ("Background", *CLASSES)
    try:
        content = json.loads((Path(data_dir).expanduser() / train_json).read_text(encoding="utf-8"))
        return ("Background", *(str(category["name"]) for category in content["categories"]))
    except (OSError, ValueError, KeyError, TypeError):
        return ()

"""What an entry of `extra_data` may be: its options, and a folder and file that exist."""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from seglib.errors import InputError
from seglib.parameters import Number, Share, Text
from seglib.parts import check_options

# option -> type. Defaults stand where the sets are joined, see seglib/data/extra_data.py.
EXTRA_SET: dict[str, Any] = {
    "data_dir": Text,
    "json": Annotated[Text, Field(min_length=1)],
    "weight": Annotated[Number, Field(gt=0, le=100)],
    "classes": dict[Text, Text],
    "min_confidence": Share,
}


def check_extra_data(sets: list[dict]) -> list[dict]:
    """Check the options of each set; what its categories are called, the check of the classes says."""
    return [_check_set(f"extra_data[{place}]", options) for place, options in enumerate(sets)]


def resolve_extra_data(sets: Any, folder: str | Path) -> Any:
    """Make the sets' folders absolute, relative ones being seen from `folder`; what is no set is left as it is."""
    return [_resolve_set(options, folder) for options in sets] if isinstance(sets, list) else sets


def list_json(folder: Path) -> str:
    """The JSON files of a folder, for the words of one that is missing."""
    return ", ".join(sorted(path.name for path in folder.glob("*.json"))[:8]) or "no JSON files"


def _check_set(where: str, options: dict) -> dict:
    options = check_options(where, options, EXTRA_SET)
    if "json" not in options:
        raise InputError(
            f"{where} must have json, and data_dir where its images are not those of the run's; got no json"
        )
    if "data_dir" not in options:  # the run's own, known where it is read
        if os.path.isabs(options["json"]) and not os.path.isfile(options["json"]):
            raise InputError(f"{where}.json must be a file, got {options['json']!r}, which is not there")
        return options
    folder = Path(os.path.expanduser(options["data_dir"]))
    if not os.path.isdir(folder):
        raise InputError(
            f"{where}.data_dir must be a folder with a COCO file; there is no folder {options['data_dir']!r}"
            f" (seen from {Path.cwd()})"
        )
    if not os.path.isfile(folder / options["json"]):
        got = f"{options['json']!r}; {folder} has {list_json(folder)}"
        raise InputError(f"{where}.json must be a file in data_dir, got {got}")
    return options


def _resolve_set(options: Any, folder: str | Path) -> Any:
    if not isinstance(options, dict) or not isinstance(options.get("data_dir"), str):
        return options
    return options | {"data_dir": os.path.abspath(os.path.join(folder, os.path.expanduser(options["data_dir"])))}

"""What parameters may say about data, known without importing NumPy: classes to focus on, other sets, their classes."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from seglib.errors import InputError, unknown_name
from seglib.parameters import Number, Share, Text
from seglib.parts import check_options

BACKGROUND = "Background"
IGNORE = "ignore"  # where a class name is expected: pixels that neither loss nor scores see
MARKS = ("iscrowd", "ignore")  # of annotations, which `ignore_classes` may name beside classes
SYNTHETIC = ("UNKNOWN", "General trash", "Paper", "Paper pack", "Metal", "Glass", "Plastic", "Styrofoam", "Plastic bag",
             "Battery", "Clothing")  # fmt: skip
# Option -> type. Defaults stand where the sets are joined, see `join_extra`.
EXTRA_SET: dict[str, Any] = {
    "data_dir": Text,
    "json": Annotated[Text, Field(min_length=1)],
    "weight": Annotated[Number, Field(gt=0, le=100)],
    "classes": dict[Text, Text],
    "min_confidence": Share,
}


def is_background(category: str) -> bool:
    """Whether a category is plainly the background by its name: `background`, `_background_`, `__background__`."""
    return category.strip(" _-").casefold() == BACKGROUND.casefold()


def refuse_focus(focus_classes: Sequence[str], known: Sequence[str] | None = None) -> str:
    """Say what is wrong with the classes to focus on, "" where nothing is.

    Parameters
    ----------
    known : the data's classes, Background first; None where the data is not known yet.
    """
    return _refuse_names("focus_classes", focus_classes, known and known[1:], ", which is always there; leave it out")


def refuse_ignored(ignore_classes: Sequence[str], known: Sequence[str] | None = None) -> str:
    """Say what is wrong with the classes to ignore, "" where nothing is; `known` as in `refuse_focus`."""
    fix = "; set background to ignore where unannotated pixels are meant"
    problem = _refuse_names("ignore_classes", ignore_classes, known and (*known[1:], *MARKS), fix)
    if not problem and known and len(known) > 1 and {*known[1:]} <= {*ignore_classes}:
        return f"ignore_classes must leave a class, got all {len(known) - 1}; take one out"
    return problem


def _refuse_names(parameter: str, names: Sequence[str], choices: Sequence[str] | None, fix: str) -> str:
    for place, name in enumerate(names):
        if is_background(name):
            return f"{parameter} must be classes of objects, got {name!r}{fix}"
        if name in names[:place]:
            return f"{parameter} must name a class once, got {name!r} twice; take one out"
        if choices is not None and name not in choices:
            return unknown_name(f"class in {parameter}", name, choices, limit=20)
    return ""


def refuse_class_map(where: str, classes: Mapping[str, str], theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Say why another set's categories cannot become our classes, "" where they can.

    Parameters
    ----------
    where : the extra set, such as `extra_data[0]`.
    classes : their category -> our class, Background or "ignore"; empty where the names are the same.
    theirs, ours : names of their categories, and of our classes, Background first.
    """
    if not classes:
        unlike = [name for name in theirs if name not in ours[1:]]
        listed = ", ".join(unlike[:8]) + (f", ... ({len(unlike)} in all)" if len(unlike) > 8 else "")
        fix = f"map it, as in classes: {{{unlike[0]}: {IGNORE}}}" if unlike else ""
        return (
            f"{where} must have categories that are classes of the training data, got {listed}; {fix}" if unlike else ""
        )
    for name, target in classes.items():
        if name not in theirs:
            return f"{where}.classes: {unknown_name('category of that set', name, theirs)}"
        if target not in (*ours, IGNORE):
            return f"{where}.classes.{name}: {unknown_name('class', target, (*ours, IGNORE), limit=20)}"
    return ""


def check_extra_data(sets: list[dict]) -> list[dict]:
    """Check the options of each set; what its categories are called, the check of the classes says."""
    return [_check_set(f"extra_data[{place}]", options) for place, options in enumerate(sets)]


def resolve_extra_data(sets: Any, folder: str | Path) -> Any:
    """Make the sets' folders absolute, relative ones being seen from `folder`; what is no set is left as it is."""
    return [_resolve_set(options, folder) for options in sets] if isinstance(sets, list) else sets


def find_jsons(folder: Path) -> list[str]:
    """The JSON files of a folder and of the folders in it."""
    return sorted(str(path.relative_to(folder)) for pattern in ("*.json", "*/*.json") for path in folder.glob(pattern))


def list_json(folder: Path) -> str:
    """The same, for the words about one that is missing."""
    return ", ".join(find_jsons(folder)[:8]) or "no JSON files"


def _check_set(where: str, options: dict) -> dict:
    from seglib.data.mask_folders import is_mask_split  # which asks this file what is a background
    from seglib.data.sources import is_annotation_folder

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
    is_folder = is_mask_split(folder, options["json"]) or is_annotation_folder(folder, options["json"])
    if not os.path.isfile(folder / options["json"]) and not is_folder:
        got = f"{options['json']!r}; {folder} has {list_json(folder)}"
        raise InputError(f"{where}.json must be a file in data_dir, got {got}")
    return options


def _resolve_set(options: Any, folder: str | Path) -> Any:
    if not isinstance(options, dict) or not isinstance(options.get("data_dir"), str):
        return options
    return options | {"data_dir": os.path.abspath(os.path.join(folder, os.path.expanduser(options["data_dir"])))}

"""What the shipped notebooks' parameters need beyond their annotations: limits, choices, paths, what goes together.

A limit applies to a parameter of that name and annotation in any notebook, a rule where all its parameters are.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from seglib.data.class_names import check_extra_data, list_json, refuse_focus, refuse_ignored, resolve_extra_data
from seglib.data.mask_folders import is_mask_split, list_pairs, read_description
from seglib.data.sources import is_annotation_folder
from seglib.errors import InputError, require_known, unknown_name
from seglib.parameters import BelowOne, Number, Positive, Schema, Switch, Text, Whole, check_type
from seglib.parts import check_choices, check_options, check_part, find_parts, list_names, read_choice, read_parts
from seglib.runs.trackers import refuse_missing


def _whole(lowest: int = 0, highest: int | None = None) -> Any:
    return Annotated[Whole, Field(ge=lowest, le=highest)]


def _number(lowest: float = 0.0, highest: float | None = None) -> Any:
    return Annotated[Number, Field(ge=lowest, le=highest)]


_SEED = Annotated[Whole, Field(ge=0, lt=2**31)]
_SELECTIONS = ("miou", "miou_image", "loss", "accuracy")
_AVERAGES = {"ema": {"decay": BelowOne}, "swa": {"lr": Positive, "start": BelowOne}, "snapshot": {}}
_LIMITS: dict[str, dict[str, Any]] = {  # annotation -> name -> what it may be
    "int": {
        "folds": _whole(2, 100), "fold": _whole(), "seed": _SEED, "split_seed": _SEED,
        "image_size": _whole(16, 4096), "expand": _whole(1, 16), "epochs": _whole(1, 10_000), "patience": _whole(),
        "freeze_epochs": _whole(), "final_fit_epochs": _whole(1, 1000), "batch_size": _whole(0, 4096),
        "accumulate": _whole(1, 1024), "num_workers": _whole(0, 64), "num_images": _whole(1, 50),
        "top": _whole(), "size": _whole(0, 4096), "crf_candidates": _whole(0, 200),
        "crf_images": _whole(2), "submission_size": _whole(1, 4096),
    },
    "float": {
        "lr": Annotated[Number, Field(gt=0, le=10)], "encoder_lr": _number(0, 10), "weight_decay": _number(0, 1),
        "warmup_epochs": _number(), "clip_norm": _number(), "checkpoint_minutes": _number(),
        "worthwhile": _number(0, 1), "specialist_weight": _number(), "specialist_confidence": BelowOne, "pseudo_precision": _number(0, 1),
    },
    "str": {
        "data_dir": Text, "train_json": Annotated[Text, Field(min_length=1)], "val_json": Text, "split": Text,
        "paint_order": Literal["class_id", "longest", "area"], "background": Literal["class", "ignore"], "encoder": Text, "encoder_weights": Text,
        "init_from": Text, "continue_from": Text, "scheduler": Text,
        "schedule_per": Literal["iteration", "epoch"], "final_fit": Literal["none", "train_all"],
        "on_oom": Literal["fail", "accumulate"], "precision": Literal["auto", "float32", "bfloat16", "float16"], "select_by": Text,
        "merge": Literal["mean", "logits"], "vote": Literal["soft", "geometric", "hard"], "tie_break": Text,
        "resizing": Literal["nearest", "probabilities"], "test_json": Text,
    },
    "bool": {"components": Switch},
    "list[str]": {"focus_classes": list[Text], "ignore_classes": list[Text], "parts": list[Text], "track": list[Literal["tensorboard", "wandb", "mlflow"]]},
    "list[dict]": {"extra_data": list[dict[Text, Any]]},
    "dict": {
        "loss": Annotated[dict[Text, Any], Field(min_length=1)], "mixing": dict[Text, Any],
        "scheduler_options": dict[Text, Any], "averaging": dict[Text, dict[Text, Any]],
        "callbacks": dict[Text, dict[Text, Any]],
    },
    "object": {
        "num_workers": Literal["auto"] | _whole(0, 64), "augmentation": Any, "architecture": Any, "optimizer": Any, "split": Any,
        "weights": Literal["auto", "greedy", "mean", "best"] | dict[Text, _number()],
    },
}  # fmt: skip


def _is_folder(path: str) -> bool:
    return os.path.isdir(os.path.expanduser(path))


def _is_file(path: str) -> bool:
    return os.path.isfile(os.path.expanduser(path))


_NO_MASKS = "resizing: probabilities has no masks before it is done, so it does not go with "
_RULES: list[tuple[str, Callable[..., object], str]] = [  # names, what must hold, the refusal of the first name
    ("data_dir train_json", lambda folder, _: folder == "synthetic" or _is_folder(folder),
     'data_dir must be a folder with COCO files, or "synthetic"; there is no folder {data_dir!r} (seen from {here})'),
    ("val_json epochs", lambda name, _: name, "val_json must be a text that is not empty, got {val_json!r}"),
    ("fold folds", lambda fold, folds: fold < folds, "fold must be below folds ({folds}), got {fold}"),
    ("fold split", lambda fold, split: not fold or split != "given",
     "fold must be 0 with split 'given', which makes no folds, got {fold}"),
    ("batch_size epochs", lambda size, _: size, "batch_size must be at least 1, got {batch_size}"),
    ("encoder_weights", lambda path: path in ("imagenet", "") or _is_file(path),
     'encoder_weights must be "imagenet", "" (from scratch) or a path to a file; there is no file {encoder_weights!r}'
     " (seen from {here})"),
    ("init_from", lambda folder: not folder or _is_folder(folder),
     'init_from must be the folder of a run, or ""; there is no folder {init_from!r} (seen from {here})'),
    ("init_from", lambda folder: not _is_folder(folder) or _is_file(f"{folder}/best.pt"),
     "init_from must be the folder of a run that has best weights; there is no best.pt in {init_from!r}"),
    ("continue_from", lambda folder: not folder or _is_folder(folder),
     'continue_from must be the folder of a run, or ""; there is no folder {continue_from!r} (seen from {here})'),
    ("continue_from", lambda folder: not _is_folder(folder) or any(  # of a run, or of a grid with one
        any(Path(os.path.expanduser(folder)).glob(name)) for name in ("last.pt", "*/last.pt")),
     "continue_from must be the folder of a run, or of a grid; there is no last.pt in {continue_from!r}"),
    ("encoder_weights encoder", lambda weights, encoder: encoder or not weights,
     'encoder_weights must be "" for an architecture without an encoder, got {encoder_weights!r}'),
    ("encoder_lr encoder", lambda rate, encoder: encoder or not rate,
     "encoder_lr must be 0 for an architecture without an encoder, got {encoder_lr}"),
    ("freeze_epochs encoder", lambda epochs, encoder: encoder or not epochs,
     "freeze_epochs must be 0 for an architecture without an encoder, got {freeze_epochs}"),
    ("warmup_epochs epochs", lambda warmup, epochs: warmup <= epochs,
     "warmup_epochs must not be above epochs ({epochs}), got {warmup_epochs}"),
    ("averaging", lambda averaging: not {"swa", "snapshot"} <= averaging.keys(),
     "averaging: swa holds the learning rate, and snapshot needs its cycles to the end; choose one of them"),
    ("averaging scheduler", lambda averaging, name: "snapshot" not in averaging or name == "cosine_restarts",
     "averaging: snapshot takes the weights at the end of each cycle, so scheduler must be cosine_restarts, got"
     " {scheduler}"),
    ("resizing crf_candidates", lambda how, number: how == "nearest" or not number, _NO_MASKS + "crf_candidates"),
    ("resizing components", lambda how, on: how == "nearest" or not on, _NO_MASKS + "components"),
    ("resizing specialist_confidence", lambda how, least: how == "nearest" or not least,
     _NO_MASKS + "specialist_confidence"),
    ("resizing vote", lambda how, vote: how == "nearest" or vote != "hard", _NO_MASKS + "vote: hard"),
    ("crf_candidates vote", lambda number, vote: not number or vote != "hard",
     "crf_candidates must be 0 with vote: hard, which has no probabilities to refine"),
    ("specialist_weight vote", lambda weight, vote: not weight or vote == "soft",
     "specialist_weight must be 0 with vote: {vote}, got {specialist_weight}"),
    ("tie_break vote", lambda member, vote: not member or vote == "hard",
     "tie_break is for vote: hard, got vote: {vote}"),
    ("pseudo_precision test_json", lambda precision, name: not precision or name,
     "pseudo_precision needs test_json, the images to label"),
]  # fmt: skip


def check_parameters(schema: Schema, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Check a notebook's values: names, types, limits, and what does not go together.

    Returns
    -------
    The values, whole numbers as floats where floats are meant; and name -> what is wrong, one line each.
    """
    return check_runs(schema, [values])[0]


def check_runs(schema: Schema, runs: Sequence[Mapping[str, Any]]) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """`check_parameters` of each run of a grid; what many runs share is checked once."""
    limits = {name: _LIMITS.get(parameter.annotation, {}).get(name) for name, parameter in schema.items()}
    checks = [((name,), partial(check_type, name, schema[name], limits[name])) for name in schema]
    checks += [(names, check) for names, check in _CHECKS if all(limits.get(name) for name in names)]
    answers: dict[tuple, tuple[Any, str]] = {}
    first, problems = _check_run(schema, checks, runs[0], answers)
    checked, due = [(first, problems)], {}
    for values in runs[1:]:
        # Most values are one object in all runs. Where these are right, only checks that see another can say something.
        others = frozenset(name for name in values if problems or values[name] is not runs[0].get(name, values))
        if others not in due:
            due[others] = [each for each in checks if not others.isdisjoint(each[0])]
        same = {name: first[name] for name in values if name not in others}
        checked.append(_check_run(schema, due[others], {**values, **same}, answers))
    return checked


def _check_run(
    schema: Schema, checks: Sequence[tuple[Sequence[str], Callable]], values: Mapping[str, Any], answers: dict
) -> tuple[dict[str, Any], dict[str, str]]:
    """`answers`: of a check to values (by their text): the value to be used and "", or what is wrong."""
    checked = dict(values)
    missing = "{} is missing; the notebook's parameters cell must set it"
    problems = {name: unknown_name("parameter", name, schema) for name in values if name not in schema}
    problems |= {name: missing.format(name) for name in schema if name not in values}
    for names, check in checks:
        if not problems or problems.keys().isdisjoint(names):
            key = check, repr([checked[name] for name in names])
            if key not in answers:
                answers[key] = _ask(check, [checked[name] for name in names])
            checked[names[0]], problem = answers[key]
            if problem:
                problems[names[0]] = problem
    return checked, {name: problems[name] for name in (*values, *schema) if name in problems}


def _ask(check: Callable, given: Sequence[Any]) -> tuple[Any, str]:
    try:
        answer = check(*given)
    except InputError as error:
        return given[0], str(error)
    return given[0] if answer is None else answer, ""


# What the builders of parts and the readers of data say of a value: an InputError, or the value that is to be used.


def _check_parts(paths: list[str]) -> None:
    read_parts(paths)  # whose answer is no value for the parameter


def _check_json(parameter: str, name: str, data_dir: str, split: str = "given") -> None:
    folder = Path(os.path.expanduser(data_dir))
    if not name or data_dir == "synthetic" or split != "given" or is_annotation_folder(folder, name):
        return
    if is_mask_split(folder, name):
        list_pairs(read_description(folder), name)
    elif not _is_file(str(folder / name)):
        fix = "; without one, split: holdout validates on a part of train_json" if parameter == "val_json" else ""
        raise InputError(f"{parameter} must be a file in data_dir, got {name!r}; {folder} has {list_json(folder)}{fix}")


def _check_image_size(size: int, _: str) -> None:
    if size % 32:
        nearest = " or ".join(str(each) for each in (size // 32 * 32, size // 32 * 32 + 32) if each)
        raise InputError(f"image_size must be a multiple of 32 (encoder stride), got {size}; nearest: {nearest}")


def _check_augmentation(value: Any) -> None:
    if isinstance(value, str):
        require_known("augmentation", value, list_names("augmentation"), limit=20)
        return
    steps = value if isinstance(value, list) else [None]
    if not all(isinstance(step, str) or (isinstance(step, dict) and len(step) == 1) for step in steps):
        raise InputError(
            "augmentation must be a preset's name or a list of steps, each a name or one mapping name: {options},"
            f" got {value!r}; for example [flips, ElasticTransform: {{alpha: 160, sigma: 10, p: 0.5}}]"
        )


def _check_loss(loss: dict, parts: list[str]) -> dict:
    loss = check_choices("loss", loss, parts)
    weights = [term.get("weight", 1) if isinstance(term, dict) else term for term in loss.values()]
    _refuse("" if any(weight > 0 for weight in weights) else f"loss must have a term with a weight above 0, got {loss}")
    return loss


def _check_averaging(averaging: dict) -> dict:
    for name in averaging:
        require_known("averaging", name, _AVERAGES)
    return {name: check_options(f"averaging.{name}", each, _AVERAGES[name]) for name, each in averaging.items()}


def _check_named(kind: str, part: str, value: Any, parts: list[str]) -> str | dict[str, Any]:
    """An own part, or a name that its builder knows, which is asked before a grid starts."""
    own = find_parts(part, parts)
    return check_part(kind, value, own) if read_choice(kind, value)[0] in own else value


def _check_scheduler_options(options: dict, scheduler: str, parts: list[str]) -> None:
    part = find_parts("scheduler", parts)[scheduler]
    check_options(f"scheduler_options.{scheduler}", options, part.options, part.needed)


def _check_callbacks(callbacks: dict, parts: list[str]) -> None:
    for name, options in callbacks.items():
        check_part("callback", {name: options}, find_parts("callback", parts))


def _refuse(line: str) -> None:
    if line:
        raise InputError(line)


def _hold(names: list[str], holds: Callable[..., object], refusal: str, *values: Any) -> None:
    if not holds(*values):
        raise InputError(refusal.format(**dict(zip(names, values, strict=True)), here=Path.cwd()))


_CHECKS: list[tuple[list[str], Callable]] = [
    *((names.split(), partial(_hold, names.split(), holds, refusal)) for names, holds, refusal in _RULES),
    (["train_json", "data_dir"], partial(_check_json, "train_json")),
    (["val_json", "data_dir", "split"], partial(_check_json, "val_json")),
    (["image_size", "encoder"], _check_image_size),
    (["focus_classes"], lambda names: _refuse(refuse_focus(names))),
    (["ignore_classes"], lambda names: _refuse(refuse_ignored(names))),
    (["extra_data"], check_extra_data),
    (["track"], lambda names: _refuse(refuse_missing(names))),
    (["augmentation"], _check_augmentation),
    (["parts"], _check_parts),
    (["architecture", "parts"], partial(_check_named, "architecture", "model")),
    (["optimizer", "parts"], partial(_check_named, "optimizer", "optimizer")),
    (["loss", "parts"], _check_loss),
    (["select_by", "parts"],
     lambda name, paths: require_known("select_by", name, [*_SELECTIONS, *find_parts("metric", paths)])),
    (["mixing", "parts"], partial(check_choices, "mixing")),
    (["split", "parts"], lambda value, paths: check_part("split", value, find_parts("split", paths), list_names("split"))),
    (["callbacks", "parts"], _check_callbacks),
    (["scheduler", "parts"], lambda name, paths: check_part("scheduler", name, find_parts("scheduler", paths)) and None),
    (["averaging"], _check_averaging),
    (["scheduler_options", "scheduler", "parts"], _check_scheduler_options),
]  # fmt: skip


# Paths: what counts by its content, and is made absolute where a grid names it.


_PATHS = {  # parameter -> the words that are no paths
    "data_dir": ("synthetic",), "encoder_weights": ("imagenet",), "init_from": (), "continue_from": (),
    "compare_with": (), "more_grids": (), "sample_submission": (), "grid_dir": (), "parts": (), "members": (),
}  # fmt: skip
_IN_DATA_DIR = ("train_json", "val_json", "test_json")
_NAMES_RESULTS = re.compile(r"(^|_)(run|out|outputs?|results?|save|logs?|cache)(_|$)")
_NAMES_A_PATH = re.compile(r"(^|_)(data|files?|folder|dir|paths?|json|csv|weights|checkpoint)(_|$)")


def is_path(name: str, value: Any, folder: str | Path = "") -> bool:
    """Whether a value is a path that a run reads, seen from `folder`; of a shipped parameter its name says so.

    Any other value is the path of a file or folder that exists, and either looks like one (`a/b`, `table.csv`) or has a
    name that says so (`data`, `table_file`). Parameters that say where results go (`run_dir`, `output_dir`) are none.
    """
    if not isinstance(value, str) or not value or name in _IN_DATA_DIR:
        return False
    if name in _PATHS:
        return value not in _PATHS[name]
    looks = os.sep in value or "." in value.strip(".") or _NAMES_A_PATH.search(name)
    return bool(looks) and not _NAMES_RESULTS.search(name) and os.path.exists(_join(folder, value))


def resolve_paths(values: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """Make the parameters that are paths absolute, relative ones being seen from `folder`."""
    resolved = {name: _resolve(name, value, folder) for name, value in values.items()}
    if "extra_data" in resolved:
        resolved["extra_data"] = resolve_extra_data(resolved["extra_data"], folder)
    return resolved


def _resolve(name: str, value: Any, folder: str | Path) -> Any:
    if isinstance(value, list):
        return [_resolve(name, each, folder) for each in value]
    return os.path.abspath(_join(folder, value)) if is_path(name, value, folder) else value


def _join(folder: str | Path, path: str) -> str:
    return os.path.join(folder, os.path.expanduser(path))

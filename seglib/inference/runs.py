"""Finished runs: opened again, gathered as members of an ensemble (folds are one member), checked against each other."""

import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from seglib.data.dataset import Subset, choose_batch_size, open_data
from seglib.errors import InputError, require_known, require_same
from seglib.evaluation.metrics import load_confusion
from seglib.files import expand, outputs_dir, write_table, write_text
from seglib.models import ARCHITECTURES, build_model
from seglib.parts import find_kept_parts, find_parts, load_parts, read_choice, read_parts, require_options
from seglib.runs.record import find_split_seed, read_record
from seglib.training.checkpoint import hash_weights, load_checkpoint

OF_CHECKPOINT = ("model", "epoch", "architecture", "encoder", "num_classes", "class_names", "image_size")
OF_RECORD = ("params", "weights_sha256", "precision", "threads", "train_images")
BOARD = "leaderboard.csv"
UNDIVIDED = ("given", "holdout")  # splits that have one validation set, whatever `fold` says


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run whose record says ok.

    Attributes
    ----------
    folder : Path
    record : dict, the content of record.json
    train_images, val_images : Subset, the images that the run was trained and scored on
    model : the best epoch's model, on the CPU
    class_names : list of str
    confusion : (images, classes, classes) int64, as the run counted it
    """

    folder: Path
    record: Mapping[str, Any]
    train_images: Subset
    val_images: Subset
    model: nn.Module
    class_names: list[str]
    confusion: np.ndarray

    @property
    def image_size(self) -> int:
        """Side of images and masks [px]."""
        return int(self.record["params"]["image_size"])

    @property
    def batch_size(self) -> int:
        """Images that were predicted at a time: another number may change the last bits of a logit."""
        params = self.record["params"]
        return choose_batch_size(params["batch_size"], self.record["train_images"], params["debug"])


def find_newest_run(folder: Path | None = None) -> Path:
    """The training run that ended last under `folder` (default: outputs/)."""
    folder = folder or outputs_dir()
    records = {weights.parent: read_record(weights.parent) or {} for weights in folder.glob("*/*/best.pt")}
    finished = {run: record.get("finished_at", "") for run, record in records.items() if record.get("status") == "ok"}
    if not finished:
        raise InputError(
            f"{folder}: required a finished training run, got none; train one, or set run_dir to its folder"
        )
    return max(finished, key=finished.get)


def load_finished_run(run_dir: str | Path, data_dir: str = "") -> FinishedRun:
    """Open a run from its record.json, best.pt and confusion.npz.

    Parameters
    ----------
    data_dir : where the run's data is now; "" where it was.

    Raises
    ------
    InputError
        The run is not finished, files are missing, or data or weights are not those of the run.
    """
    folder = expand(run_dir).resolve()
    record = _read_finished(folder, "run_dir", ("best.pt", "confusion.npz"), OF_RECORD)
    best = load_checkpoint(folder / "best.pt", required=OF_CHECKPOINT)
    if hash_weights(best["model"]) != record.get("weights_sha256"):
        raise InputError(
            f"{folder / 'best.pt'}: required the weights that record.json names, got others; train it again"
        )
    params = record["params"] | ({"data_dir": data_dir} if data_dir else {})
    kept, named = find_kept_parts(folder), params.get("parts", [])
    if missing := sorted({Path(path).name for path in named} - {Path(path).name for path in kept}):
        required = f"required {', '.join(missing)}, with which the run was made"
        raise InputError(f"{folder / 'parts'}: {required}; put it there")
    load_parts(kept)  # before the data: one of them may split it
    train_images, val_images = open_data(**_take_arguments(open_data, params | {"seed": find_split_seed(params)}))
    if params["debug"]:
        train_images, val_images = train_images.take_debug_share(), val_images.take_debug_share()
    confusion, image_ids, class_names = load_confusion(folder / "confusion.npz")
    fix, ids = "set data_dir to the run's data", val_images.image_ids.tolist()
    require_same(folder, "data with the run's classes", class_names, val_images.data.class_names, fix)
    require_same(folder, "the validation images that the run was scored on", image_ids.tolist(), ids, fix)
    model = _rebuild_model(folder / "best.pt", best)
    return FinishedRun(folder, record, train_images, val_images, model, class_names, confusion)


def choose_weights(run: FinishedRun, *, may_be_final: bool) -> tuple[str, str, Callable[[], nn.Module]]:
    """The weights to predict with: final.pt, fitted to all images at the end, where it may be and is; else best.pt.

    Returns
    -------
    File name, SHA-256 of the weights, and a function that gives the model, on the CPU where it is built again.
    """
    path = run.folder / "final.pt"
    if not (may_be_final and path.is_file()):
        return "best.pt", run.record["weights_sha256"], lambda: run.model
    final = load_checkpoint(path, required=OF_CHECKPOINT)
    require_same(path, "the run's classes", run.class_names, final["class_names"], "train it again")
    return path.name, hash_weights(final["model"]), lambda: _rebuild_model(path, final)


def find_differences(run: FinishedRun, other: FinishedRun, *names: str) -> list[str]:
    """Which parameters (`names` too), classes, validation images or masks of two runs are not the same."""
    pair = [
        {name: each.record["params"][name] for name in (*names, "image_size", "paint_order", "background")}
        | {"classes": each.class_names, "validation images": each.val_images.image_ids.tolist()}
        | {"validation masks": each.confusion.sum(axis=2).tolist()}  # ids alone may be those of other images
        for each in (run, other)
    ]
    return [name for name in pair[0] if pair[0][name] != pair[1][name]]


def require_same_images(run: FinishedRun, other: FinishedRun) -> None:
    """Refuse two runs whose predictions cannot be laid upon each other."""
    if differing := find_differences(run, other):
        raise InputError(
            f"compare_with {other.folder}: required the {' and '.join(differing)} of {run.folder}, got others;"
            " compare runs that were scored on the same masks"
        )


def prepare_output_dir(output_dir: str, run_dir: Path, name: str) -> Path:
    """Make the folder that an analysis writes to; "" is `run_dir/name`."""
    folder = expand(output_dir).resolve() if output_dir else Path(run_dir) / name
    if (folder / "best.pt").exists():
        raise InputError(
            f'output_dir {folder} is the folder of a training run; required another folder, or "" for one in it'
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_tables(folder: Path, tables: Mapping[str, pd.DataFrame], lines: Sequence[str]) -> None:
    """Write tables as CSV by their names, and findings as findings.md."""
    for name, table in tables.items():
        write_table(folder / f"{name}.csv", table)
    write_text(folder / "findings.md", "\n".join(f"- {line}" for line in lines) + "\n")


def _read_finished(folder: Path, what: str, files: Sequence[str], entries: Sequence[str]) -> Mapping[str, Any]:
    """The record of a run that is ok and has these files, and these entries or parameters in it; `what` names it in words."""
    record = read_record(folder)
    if record is None:
        raise InputError(
            f"{what} {folder}: required a run's folder, got one without record.json or {BOARD}; check {what}"
        )
    if record.get("status") != "ok":
        got = f"{record.get('status')} ({record.get('error') or 'still going on'})"
        raise InputError(f"{what} {folder}: required a run that is ok, got {got}; run it again")
    missing = [name for name in files if not (folder / name).is_file()]
    known = {*record, *record.get("params", {})}
    missing += [f"`{name}` in record.json" for name in entries if name not in known]
    if missing:
        raise InputError(f"{what} {folder}: required a training run, got a folder without {' and '.join(missing)}")
    return record


def _rebuild_model(path: Path, checkpoint: Mapping[str, Any]) -> nn.Module:
    load_parts(find_kept_parts(path.parent))  # again: another run's may have taken their names
    name, _ = read_choice("architecture", checkpoint["architecture"])
    by_hand = checkpoint.get("made_by_hand") or not any(key.startswith("network.") for key in checkpoint["model"])
    if not by_hand and name not in ARCHITECTURES and name not in find_parts("model"):
        raise InputError(
            f"{path}: required a file with @register('model') {name} in {path.parent / 'parts'}, got none; put it there"
        )
    if by_hand:
        model = _build_by_hand(path, name, checkpoint)
    else:
        model = build_model(**_take_arguments(build_model, checkpoint))
    try:
        model.load_state_dict(checkpoint["model"])
    except RuntimeError as error:
        got = str(error).partition("\n")[2].strip()[:160]
        fix = "a model that was made in a cell needs a file of `parts` that registers it, so that it can be built again"
        if by_hand:
            fix = f"give its options in {path.parent / 'parts'} the cell's values as defaults"
        raise InputError(f"{path}: required weights of {name} as it is built now, got others ({got}); {fix}") from error
    return model.eval()


def _build_by_hand(path: Path, name: str, checkpoint: Mapping[str, Any]) -> nn.Module:
    """A model that a notebook's cell made: built by the part of its name, or by the one model of the run's parts."""
    kept, own = path.parent / "parts", find_parts("model")
    known = [part.name for part in read_parts(find_kept_parts(path.parent)) if part.kind == "model"]
    found = [name] if name in own else known
    if len(found) != 1:
        got = f"{', '.join(found)} and no {name}" if found else "none"
        raise InputError(
            f"{path}: holds a {name} that was made by hand: required a file in {kept} with @register('model') before its"
            f" class, got {got}; put it there"
        )
    require_options(f"{kept}: {found[0]}", own[found[0]].needed, ())
    return own[found[0]].build(checkpoint["num_classes"])


def _take_arguments(function: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """What of the values a function takes: records grow with the notebook, and name things as functions do."""
    return {name: values[name] for name in inspect.signature(function).parameters if name in values}


@dataclass(frozen=True, eq=False)
class Member:
    """One voter: a run, or all folds of one, whose models together predict each image without having seen it.

    Attributes
    ----------
    name : short, its own within an ensemble
    folders, records : one of each run, in the order of folds
    """

    name: str
    folders: tuple[Path, ...]
    records: tuple[Mapping[str, Any], ...]

    @property
    def params(self) -> Mapping[str, Any]:
        """Parameters of the first run; those of other folds differ in `fold` alone."""
        return self.records[0]["params"]

    @property
    def image_size(self) -> int:
        """Side of the model's input [px]."""
        return int(self.params["image_size"])

    @property
    def focus_classes(self) -> list[str]:
        """The classes of a specialist; empty for a member that knows all."""
        return list(self.params.get("focus_classes") or [])

    @property
    def miou(self) -> float:
        """As its runs recorded it, mean over folds; -1 where one has none."""
        scores = [record.get("metrics", {}).get("miou") for record in self.records]
        return -1.0 if None in scores else fmean(scores)

    @cached_property
    def scored(self) -> tuple[dict[int, tuple[int, ...]], list[str]]:
        """Truth's pixels of each class by validation image, and the class names: what confusion.npz says."""
        truth = {}
        for folder in self.folders:
            confusion, image_ids, class_names = load_confusion(folder / "confusion.npz")
            truth |= dict(zip(image_ids.tolist(), map(tuple, confusion.sum(2).tolist()), strict=True))
        return truth, class_names


def find_members(members: str | Sequence[str], top: int = 0) -> tuple[list[Member], list[Member]]:
    """Find the runs that vote together, and refuse those that cannot.

    Parameters
    ----------
    members : folders of finished runs, and of grids, of which every run that is ok in leaderboard.csv takes part.
        Runs that differ in `fold` alone are one member; all folds must be there, or only one.
    top : only so many of the best by recorded mIoU; 0 is all.

    Returns
    -------
    members, specialists : best first where a grid was named or `top` given, else in the order given. Specialists are
        the runs with `focus_classes`; `top` does not count them.

    Raises
    ------
    InputError
        Folders without a finished run, folds that are missing or there twice, or members whose classes, validation
        images or masks differ from the first's: all of them in one line.
    """
    given = [expand(each) for each in ([members] if isinstance(members, str) else members)]
    folders = [run for folder in given for run in _list_runs(folder.resolve())]
    _require("no run twice", [folder.name for folder, count in Counter(folders).items() if count > 1])
    found = _join_folds([(folder, _read_finished(folder, "members", (), ("image_size",))) for folder in folders])
    if top or any((folder / BOARD).is_file() for folder in given):
        found.sort(key=lambda member: -member.miou)
    voters = [member for member in found if not member.focus_classes][: top or None]
    specialists = [member for member in found if member.focus_classes]
    if not voters:
        raise InputError(f"members: required a run of all classes, got {len(specialists)} specialists and no other run")
    others = [(member, _find_differences(voters[0], member)) for member in [*voters[1:], *specialists]]
    refused = [f"{member.name} ({', '.join(differing)})" for member, differing in others if differing]
    _require(f"the classes, validation images and masks of {voters[0].name}", refused)
    named = _name_apart([*voters, *specialists])
    return named[: len(voters)], named[len(voters) :]


def find_index(members: Sequence[Member], name: str) -> int:
    """Place of a member by name, as for a tie-break."""
    names = [member.name for member in members]
    require_known("member", name, names, "members")
    return names.index(name)


def _list_runs(folder: Path) -> list[Path]:
    if not (folder / BOARD).is_file():
        return [folder]
    rows = pd.read_csv(folder / BOARD, dtype=str, keep_default_na=False)
    runs = [folder / run for run in rows.loc[rows["status"] == "ok", "run"] if run]
    if not runs:
        raise InputError(f"{folder / BOARD}: required a run that is ok, got none of {len(rows)}; run the grid again")
    return runs


def _join_folds(runs: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[Member]:
    groups: dict[str, list[tuple[Path, Mapping[str, Any]]]] = {}
    for folder, record in runs:
        params = record["params"]
        divided = params.get("split", "given") not in UNDIVIDED
        key = {name: value for name, value in params.items() if name not in ("fold", "run_dir")}
        key["split_seed"] = find_split_seed(params)
        groups.setdefault(json.dumps(key, sort_keys=True) if divided else str(folder), []).append((folder, record))
    return [_make_member(group) for group in groups.values()]


def _make_member(group: list[tuple[Path, Mapping[str, Any]]]) -> Member:
    folder, record = group[0]
    if len(group) == 1:
        return Member(folder.name, (folder,), (record,))
    group = sorted(group, key=lambda pair: pair[1]["params"]["fold"])
    there, wanted = [pair[1]["params"]["fold"] for pair in group], list(range(record["params"]["folds"]))
    if there != wanted:
        raise InputError(
            f"members: required the folds {wanted} of {folder.name}, each once, or one alone, got {there}; run those that"
            " are missing, or name one run of each fold"
        )
    name = re.sub(r",?\bfold=\d+", "", folder.name).strip(",") or folder.parent.name
    return Member(f"{name} ({len(group)} folds)", *zip(*group, strict=True))


def _find_differences(first: Member, member: Member) -> list[str]:
    """In words; a specialist may know other classes, and count other truths."""
    (truth, names), (other_truth, other_names) = first.scored, member.scored
    special = bool(member.focus_classes)
    same_names = set(other_names) <= set(names) if special else other_names == names
    differing = [] if same_names else [f"classes {', '.join(other_names)}"]
    painted = [name for name in ("paint_order", "background") if first.params.get(name) != member.params.get(name)]
    if other_truth.keys() != truth.keys():
        others = " others" if len(other_truth) == len(truth) else ""
        differing.append(f"{len(other_truth)} validation images{others}")
    elif painted:
        differing.append(f"masks: {', '.join(f'{name} {member.params.get(name)}' for name in painted)}")
    elif not special and member.image_size == first.image_size and same_names and other_truth != truth:
        differing.append("masks: other pixels")
    return differing


def _require(what: str, refused: Sequence[str]) -> None:
    if refused:
        raise InputError(f"members: required {what}; refused: {'; '.join(refused)}; leave them out")


def _name_apart(members: Sequence[Member]) -> list[Member]:
    """The grid's name in front where two runs are called alike, a number behind where that does not help."""
    count = Counter(member.name for member in members)
    grids = [f"{member.folders[0].parent.name}/" * (count[member.name] > 1) for member in members]
    names = [f"{grid}{member.name}" for grid, member in zip(grids, members, strict=True)]
    numbers = [f" #{names[: place + 1].count(name)}" * (names.count(name) > 1) for place, name in enumerate(names)]
    named = zip(members, names, numbers, strict=True)
    return [replace(member, name=f"{name}{number}") for member, name, number in named]

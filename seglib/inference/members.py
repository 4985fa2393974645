"""Who takes part in an ensemble: finished runs by folder, the best of a grid, folds as one member, specialists apart."""

import csv
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from seglib.errors import InputError, unknown_name
from seglib.evaluation.metrics import load_confusion
from seglib.runs.record import read_record

BOARD = "leaderboard.csv"
UNDIVIDED = ("given", "holdout")  # splits that have one validation set, whatever `fold` says


@dataclass(frozen=True, eq=False)
class Member:
    """One voter: a run, or all folds of one, whose models together predict each image without having seen it.

    Attributes
    ----------
    name : short, its own within a team
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
    given = [members] if isinstance(members, str) else list(members)
    folders = [run for text in given for run in _list_runs(Path(text).expanduser().resolve())]
    _require("no run twice", [folder.name for folder, count in Counter(folders).items() if count > 1])
    found = _join_folds([(folder, _read_ok(folder)) for folder in folders])
    if top or any((Path(text).expanduser() / BOARD).is_file() for text in given):
        found.sort(key=lambda member: -member.miou)
    voters = [member for member in found if not member.focus_classes][: top or None]
    specialists = [member for member in found if member.focus_classes]
    if not voters:
        raise InputError(f"members: required a run of all classes, got {len(specialists)} specialists and no other run")
    _require_alike(voters, specialists)
    named = _name_apart([*voters, *specialists])
    return named[: len(voters)], named[len(voters) :]


def find_index(members: Sequence[Member], name: str) -> int:
    """Place of a member by name, as for a tie-break.

    Raises
    ------
    InputError
        There is none of that name.
    """
    names = [member.name for member in members]
    if name not in names:
        raise InputError(f"members: {unknown_name('member', name, names)}")
    return names.index(name)


def _list_runs(folder: Path) -> list[Path]:
    if not (folder / BOARD).is_file():
        return [folder]
    with open(folder / BOARD, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    runs = [folder / row["run"] for row in rows if row.get("status") == "ok" and row.get("run")]
    if not runs:
        raise InputError(f"{folder / BOARD}: required a run that is ok, got none of {len(rows)}; run the grid again")
    return runs


def _read_ok(folder: Path) -> Mapping[str, Any]:
    record = read_record(folder)
    if record is None:
        raise InputError(
            f"members: required the folder of a run or of a grid, got {folder} without {BOARD} or record.json"
        )
    if record.get("status") != "ok":
        raise InputError(f"members: required runs that are ok, got {folder} ({record.get('status')}); run it again")
    if "image_size" not in record.get("params", {}):
        raise InputError(f"members: required training runs, got {folder}, whose record has no image_size; leave it out")
    return record


def _join_folds(runs: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[Member]:
    groups: dict[str, list[tuple[Path, Mapping[str, Any]]]] = {}
    for folder, record in runs:
        params = record["params"]
        divided = params.get("split", "given") not in UNDIVIDED
        key = {name: value for name, value in params.items() if name not in ("fold", "run_dir")}
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


def _require_alike(voters: Sequence[Member], specialists: Sequence[Member]) -> None:
    """Specialists may know other classes, and count other truths."""
    first = voters[0]
    refused = [
        f"{member.name} ({', '.join(differing)})"
        for member in [*voters[1:], *specialists]
        if (differing := _find_differences(first, member))
    ]
    _require(f"the classes, validation images and masks of {first.name}", refused)


def _find_differences(first: Member, member: Member) -> list[str]:
    (truth, names), (other_truth, other_names) = first.scored, member.scored
    special = bool(member.focus_classes)
    same_names = set(other_names) <= set(names) if special else other_names == names
    differing = [] if same_names else [f"classes {', '.join(other_names)}"]
    painted = [name for name in ("paint_order", "background") if first.params.get(name) != member.params.get(name)]
    if other_truth.keys() != truth.keys():
        differing.append(
            f"{len(other_truth)} validation images" + (" others" if len(other_truth) == len(truth) else "")
        )
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
    named = [
        replace(member, name=f"{member.folders[0].parent.name}/{member.name}") if count[member.name] > 1 else member
        for member in members
    ]
    count = Counter(member.name for member in named)
    numbers: Counter[str] = Counter()
    for place, member in enumerate(named):
        numbers[member.name] += 1
        if count[member.name] > 1:
            named[place] = replace(member, name=f"{member.name} #{numbers[member.name]}")
    return named


def spread_weights(members: Sequence[Member], weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """Weights of all runs, (R,) or (R, C), for members' (M,) or (M, C): each fold has an equal part of its member's."""
    counts = [len(member.folders) for member in members]
    parts = [np.asarray(weight, np.float64) / count for weight, count in zip(weights, counts, strict=True)]
    return np.repeat(np.array(parts), counts, axis=0)

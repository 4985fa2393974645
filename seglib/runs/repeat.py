"""A finished run again, with the parameters of its record: are its weights the same to the bit, and what differs."""

import itertools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from seglib.errors import InputError, InputErrors
from seglib.files import PROJECT, check_zip, find_free_folder
from seglib.parameters import read_schema
from seglib.parts import find_kept_parts
from seglib.rules import check_parameters, resolve_paths
from seglib.runs.grid import Job
from seglib.runs.grid_file import read_grid_file
from seglib.runs.keys import compare_keys, compute_keys
from seglib.runs.local import LocalMachine
from seglib.runs.record import complete_params, read_record
from seglib.runs.schedule import run_jobs
from seglib.runs.slots import set_threads

# What may make a difference, in the order in which it is reported.
_CAUSES = (
    "versions", "platform", "device", "precision", "threads", "deterministic", "oom_split", "weights", "data_hash",
    "git_commit", "git_dirty",
)  # fmt: skip


_ALONE = {"continue_from": "", "track": []}  # a repeat begins at the beginning, and no tracker gets it


def repeat_run(run_dir: Path, report: Callable[[str], None], show: Callable[[str], None]) -> bool:
    """Run a finished run again with the parameters of its record; return whether the weights are the same to the bit.

    What comes of it is in `run_dir`/repeat (repeat.2, ...). `report` and `show`: see `schedule.run_jobs`.

    Raises
    ------
    InputError
        A run that is not finished, or parameters that no longer fit the notebook or the data.
    """
    before = _read_finished(run_dir)
    job = _plan(run_dir, before)
    if not run_jobs([job], LocalMachine(environments=[set_threads(before.get("threads"))]), report, show):
        return False
    after = read_record(job.run_dir) or {}
    same = [_hashes(record) for record in (before, after)]
    if same[0] == same[1] and _same_confusion(run_dir, job.run_dir):
        both = ", and the same confusion matrices" if (run_dir / "confusion.npz").is_file() else ""
        report(f"the same weights, bit for bit ({before['weights_sha256'][:16]}...){both}")
        return True
    report(f"OTHER weights: {before['weights_sha256'][:16]}... then, {str(after.get('weights_sha256'))[:16]}... now")
    for line in describe_differences(before, after) or ["nothing that is recorded differs"]:
        report(f"  {line}")
    return False


def _hashes(record: Mapping[str, Any]) -> tuple:
    """Of the best weights, and of those fitted to all images."""
    return record.get("weights_sha256"), (record.get("final_fit") or {}).get("weights_sha256")


def describe_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two records of which the same was asked: a line each."""
    lines = []
    keys = [record.get("key_parts") for record in (before, after)]
    if all(keys) and (changed := compare_keys(*keys)):
        lines.append(f"the run's key: another {', '.join(changed)}")
    causes = [_list_causes(record) for record in (before, after)]
    pairs = {name: [each.get(name) for each in causes] for name in dict.fromkeys(itertools.chain(*causes))}
    lines += [f"{name}: {then} then, {now} now" for name, (then, now) in pairs.items() if then != now]
    if not after.get("deterministic", True):
        lines.append("deterministic is false: other bits are to be expected")
    score = [(record.get("metrics") or {}).get("miou") for record in (before, after)]
    return lines + ([f"mIoU: {score[0]} then, {score[1]} now"] if score[0] != score[1] else [])


def _list_causes(record: Mapping[str, Any]) -> dict[str, Any]:
    """What may make a difference, the version of each library for itself."""
    causes = {name: record.get(name) for name in _CAUSES}
    return (causes.pop("versions") or {}) | causes


def _read_finished(run_dir: Path) -> dict[str, Any]:
    record = read_record(run_dir)
    if record is None or record.get("status") != "ok" or "weights_sha256" not in record:
        got = "no record.json" if record is None else f"status {record.get('status')}"
        if got == "status ok":
            got = "one whose notebook saved no weights (weights_sha256), so that nothing can be compared"
        raise InputError(f"--repeat {run_dir}: required the folder of a finished training run, got {got}")
    return record


def _plan(run_dir: Path, record: Mapping[str, Any]) -> Job:
    notebook = _find_notebook(run_dir)
    schema = read_schema(notebook)
    values = complete_params({name: each.default for name, each in schema.items()}, record["params"])
    values |= {name: value for name, value in _ALONE.items() if name in values}
    values |= {"parts": find_kept_parts(run_dir)} if "parts" in values else {}
    values = resolve_paths(values, notebook.parent)  # a run by hand may have relative ones
    parameters, problems = check_parameters(schema, values)
    if problems:
        raise InputErrors([f"--repeat {run_dir}: {problem}" for problem in problems.values()])
    folder = find_free_folder(run_dir / "repeat")
    parameters |= {"run_dir": str(folder)}
    (key,) = compute_keys(notebook, [parameters])
    return Job(f"repeat of {run_dir.name}", notebook, folder, key, parameters, dict(record.get("varied", {})))


def _find_notebook(run_dir: Path) -> Path:
    """The notebook of which the run's folder holds the executed copy: the one that its grid names, or a shipped one."""
    shipped, grid_file = PROJECT / "notebooks", run_dir.parent / "grid.yaml"
    named = [PROJECT / read_grid_file(grid_file).notebook] if grid_file.is_file() else []
    names = [path.name for path in run_dir.glob("*.ipynb")]
    found = [path for path in named if path.name in names and path.is_file()]
    found = found or [shipped / name for name in names if (shipped / name).is_file()]
    if len(found) != 1:
        where = " and ".join(map(str, dict.fromkeys([*(path.parent for path in named), shipped])))
        raise InputError(
            f"--repeat {run_dir}: required the executed copy of one notebook of {where}, got {names or 'none'}"
        )
    return found[0]


def _same_confusion(*folders: Path) -> bool:
    import numpy as np  # not at the top: a dry run does without it

    paths = [folder / "confusion.npz" for folder in folders]
    if not any(path.exists() for path in paths):  # a notebook of one's own may keep none
        return True
    try:
        for path in paths:
            check_zip(path)
        with np.load(paths[0]) as before, np.load(paths[1]) as after:
            return all(np.array_equal(before[name], after[name]) for name in ("confusion", "image_ids"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"--repeat {path}: required the confusion matrices of a run, got: {error}") from error

"""A run's record, and its history."""

import copy
import csv
import importlib.metadata
import io
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from seglib.errors import InputError
from seglib.files import (
    PROJECT,
    clear_parts,
    expand,
    find_free_folder,
    hash_file,
    hash_text,
    outputs_dir,
    read_file,
    read_json,
    replacing,
    sign,
    write_json,
)
from seglib.parameters import Parameters
from seglib.parts import keep_cells, load_parts
from seglib.runs.family import UNDER_RUNNER
from seglib.runs.lock import describe_process, is_running

# A run's record.json: what was asked, what came of it, and what is needed to repeat it.


NAME = "record.json"
# Parameters of a training that leave every bit alone: where results go, what a run must equal to go on from it, speed.
WITHOUT_EFFECT = ("run_dir", "continue_from", "checkpoint_minutes", "track", "num_workers", "cache")
_RESULTS_GO = ("run_dir", "output_dir")  # parameters that say where results go, and decide none
_LITERALS = (bool, int, float, str, list, tuple, dict, type(None))
_opened: dict[
    Path, tuple[Any, dict[str, Any]]
] = {}  # of this process: folder -> the notebook's names, and as they were
MOST_KNOWN = 20_000
_known: dict[str, tuple[object, dict[str, Any]]] = {}  # path -> what was read, and of which state of the file
_written: dict[Path, dict[str, Any]] = {}  # of this process: folder -> the record as it read or wrote it last
_PACKAGES = (
    "torch", "torchvision", "timm", "segmentation-models-pytorch", "albumentations", "opencv-python-headless",
    "numpy", "pandas", "pycocotools", "papermill", "ipykernel",
)  # fmt: skip


def read_record(run_dir: str | Path) -> dict[str, Any] | None:
    """The record of a run; None where there is none that can be read.

    A record that says `running` while its process is gone is a run that was killed, and reads so.
    """
    path = os.path.join(run_dir, NAME)
    state = sign(path)
    known, record = _known.get(path, (None, None))
    if state is None or known != state:
        try:
            record = read_json(path)
        except (OSError, ValueError):
            return None
        if not isinstance(record, dict):
            return None
        if len(_known) >= MOST_KNOWN:
            _known.pop(next(iter(_known)), None)
        _known[path] = state, record
    record = dict(record)
    if record.get("status") == "running" and not is_running(run_dir, record):
        record |= {"status": "killed", "error": "the process was killed before it could say why"}
    return record


def open_run(parameters: Parameters | Mapping[str, Any], run_dir: str | Path | None = None) -> Path:
    """Make ready the folder that a notebook writes to; under the runner it is ready already.

    Files of `parts` are run, so that what they register is known, and copied into the folder.

    The parameters in force now are those of the record: `save_result` refuses if one of them changed since.

    Parameters
    ----------
    parameters : the view `p = read_parameters()`, or a mapping.
    run_dir : the folder; "" makes a new one under outputs/notebooks. None: the parameter `run_dir`.

    Raises
    ------
    InputError
        The folder holds a finished run, or one that is going on: results are never written over. A file of `parts` that
        cannot be run.
    """
    values = dict(parameters)
    folder = str(values.get("run_dir", "") if run_dir is None else run_dir)
    path = Path(folder) if os.environ.get(UNDER_RUNNER) else _start_by_hand(folder, values)
    _written[path] = read_record(path) or {}
    if values.get("parts"):
        load_parts(values["parts"], keep_in=path)
    names = parameters._namespace if isinstance(parameters, Parameters) else parameters
    _opened[path] = (names, copy.deepcopy({name: names[name] for name in values}))
    return path


def _start_by_hand(folder: str, values: Mapping[str, Any]) -> Path:
    """Begin the record of a run that no runner began."""
    path = expand(folder).resolve() if folder else _make_dated_folder()
    record = read_record(path) or {}
    if record.get("status") == "ok":
        raise InputError(f'run_dir {path} holds a finished run; required a new folder; choose another name or ""')
    if record.get("status") == "running" and record["process"]["pid"] != os.getpid():
        raise InputError(
            f'run_dir {path} is written to by process {record["process"]["pid"]}; choose another name or ""'
        )
    path.mkdir(parents=True, exist_ok=True)
    clear_parts(path)
    start_record(path, None, {name: value for name, value in values.items() if name not in _RESULTS_GO}, {})
    return path


def _make_dated_folder() -> Path:
    """A new folder, that nobody else makes in the same second."""
    dated = outputs_dir() / "notebooks" / time.strftime("%Y-%m-%d_%H-%M-%S")
    dated.parent.mkdir(parents=True, exist_ok=True)
    while True:
        path = find_free_folder(dated)
        try:
            path.mkdir()
            return path
        except FileExistsError:  # made since by another notebook
            continue


def require_unchanged(run_dir: str | Path, where: str) -> None:
    """Refuse to go on where a parameter is another than when the run was opened: the record would say the other one.

    An object that took a parameter's name (`optimizer = torch.optim.SGD(...)`) is the notebook's code, not a parameter.
    """
    names, before = _opened.get(Path(run_dir), ({}, {}))
    for name, value in before.items():
        now = names.get(name, value)
        if isinstance(now, _LITERALS) and now != value and name not in _RESULTS_GO:
            raise InputError(
                f"{where}: {name} was {value!r} when the run was opened and is {now!r} now; run the cell with"
                f" open_run and those after it again, or set {name} back"
            )


def find_split_seed(params: Mapping[str, Any]) -> int | None:
    """What a run's images were divided from: its `split_seed`, or its `seed`, which was both before there was a split_seed.

    None where nothing is drawn, since `split` is "given".
    """
    return None if params.get("split", "given") == "given" else params.get("split_seed", params.get("seed"))


def complete_params(defaults: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """A run's parameters; those that the notebook has been given since have their defaults, `split_seed` the run's seed."""
    complete = {**defaults, **params}
    if "split_seed" in complete and "seed" in complete:
        complete["split_seed"] = params.get("split_seed", complete["seed"])
    return complete


def reopen_run(run_dir: str | Path) -> None:
    """A finished run whose results are about to change is going on again, until they are saved."""
    record = read_record(run_dir) or {}
    if record.get("status") == "ok":
        start_record(run_dir, record.get("key_parts"), record["params"], record.get("varied", {}))


def summarise_key(key: Any) -> str | None:
    """One hash of a key's parts; None for a notebook that is run by hand and has no key."""
    return None if key is None else hash_text(json.dumps(key, sort_keys=True))


def describe_key(key: Any) -> dict[str, Any]:
    """A key as the record keeps it: one hash, and the parts, which say why a run is to go again."""
    return {"key": summarise_key(key), "key_parts": key}


def start_record(
    run_dir: str | Path, key: Mapping[str, Any] | None, parameters: Mapping[str, Any], varied: Mapping[str, Any]
) -> None:
    """Say that a run has begun, in this process."""
    record = {
        "status": "running",
        **describe_key(key),
        "params": dict(parameters),
        "varied": dict(varied),
        **describe_process(),
        **describe_environment(),
    }
    _written[Path(run_dir)] = record
    write_json(Path(run_dir) / NAME, record)


def update_record(run_dir: str | Path, **fields: Any) -> dict[str, Any]:
    """Set fields of the record, whole or not at all, and return it; of one that was damaged since, what is known of it."""
    record = _written[Path(run_dir)] = (read_record(run_dir) or _written.get(Path(run_dir), {})) | fields
    if record.get("status") != "running":
        record.pop("process", None)
    write_json(Path(run_dir) / NAME, record)
    return record


def save_result(run_dir: str | Path, **fields: Any) -> None:
    """The last line of a notebook: write its results (metrics, best_epoch, ...) into the record.

    Cells that registered parts are kept in the folder's `parts`. Under the runner the status stays `running` until the executed notebook is on disk too; by hand a copy of the
    notebook, as it was last saved, is laid beside the record.

    Raises
    ------
    InputError
        A parameter changed since `open_run`, or the results are of another folder (their `made_in`): the record would
        say what is not true.
    """
    require_unchanged(run_dir, "save_result")
    made_in = fields.pop("made_in", run_dir)
    if Path(made_in) != Path(run_dir):
        raise InputError(
            f"save_result: the results are of {made_in}, not of {run_dir}; run the cells that make them again"
        )
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        keep_cells(run_dir, shell.history_manager.input_hist_raw)
    if (Path(run_dir) / "history.csv").is_file():
        fields["history_hash"] = hash_file(Path(run_dir) / "history.csv")
    status = "running" if os.environ.get(UNDER_RUNNER) else "ok"
    update_record(run_dir, status=status, error=None, finished_at=time.strftime("%Y-%m-%dT%H:%M:%S%z"), **fields)
    if status == "ok" and hasattr(shell, "kernel"):
        print(
            _keep_notebook(Path(run_dir), os.environ.get("JPY_SESSION_NAME") or shell.user_ns.get("__vsc_ipynb_file__"))
        )


def _keep_notebook(run_dir: Path, notebook: str | None) -> str:
    """Copy a notebook that is run by hand beside its record; return a line that says whether it could be done."""
    if not notebook or not notebook.endswith(".ipynb"):
        return f"no copy of the notebook is in {run_dir}: its file is not known (JPY_SESSION_NAME is not set)"
    try:
        kept = run_dir / Path(notebook).name
        if not kept.exists() or not kept.samefile(notebook):
            with replacing(kept) as temporary:
                shutil.copyfile(notebook, temporary)
    except OSError as error:
        return f"no copy of the notebook is in {run_dir}: {error}"
    return f"{Path(notebook).name} as it was last saved is in {run_dir}: save it and run this cell again for the latest"


@cache
def describe_environment() -> dict[str, Any]:
    """Versions, machine and the state of the source tree."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "versions": versions,
        "platform": platform.platform(),
        "git_commit": _ask_git("rev-parse", "HEAD"),
        "git_dirty": bool(_ask_git("status", "--porcelain", "--untracked-files=no")),
    }


def _ask_git(*arguments: str) -> str | None:
    """What git says of the project; None outside a checkout or without git."""
    try:
        answer = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


# Its history.csv: a row per epoch.


def read_history(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, float]]:
    """Rows of a history.csv as finite numbers by column, without pandas; none where no epoch was finished.

    `columns`: those that are wanted, all where None.
    """
    if is_damaged(path):
        return []
    try:
        header, *lines = csv.reader(io.StringIO(read_file(path).decode(errors="replace"), newline=""))
    except (OSError, ValueError, csv.Error):  # none, or no line in it
        return []
    wanted = [(place, name) for place, name in enumerate(header) if columns is None or name in columns]
    rows = []
    for line in lines:
        numbers = ((name, _parse(line[place])) for place, name in wanted if place < len(line))
        rows.append({name: value for name, value in numbers if value is not None})
    return [row for row in rows if "epoch" in row]


def is_damaged(path: Path) -> bool:
    """Whether a history.csv is another than when the run's result was saved."""
    expected = (read_record(path.parent) or {}).get("history_hash")
    return bool(expected) and path.is_file() and hash_file(path) != expected


def _parse(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:  # a text
        return None
    return value if math.isfinite(value) else None

"""A run's record.json: what was asked, what came of it, and what is needed to repeat it."""

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from seglib.errors import InputError
from seglib.files import PROJECT, clear_parts, hash_text, outputs_dir, write_json
from seglib.runs.processes import UNDER_RUNNER, describe_process, is_alive

NAME = "record.json"
_PACKAGES = (
    "torch", "torchvision", "timm", "segmentation-models-pytorch", "albumentations", "opencv-python-headless",
    "numpy", "pandas", "pycocotools", "papermill", "ipykernel",
)  # fmt: skip


def read_record(run_dir: str | Path) -> dict[str, Any] | None:
    """The record of a run; None where there is none that can be read.

    A record that says `running` while its process is gone is a run that was killed, and reads so.
    """
    try:
        record = json.loads((Path(run_dir) / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict):
        return None
    if record.get("status") == "running" and not is_alive(record):
        record |= {"status": "killed", "error": "the process was killed before it could say why"}
    return record


def open_run(run_dir: str, parameters: Mapping[str, Any]) -> Path:
    """Make ready the folder that a notebook writes to; under the runner it is ready already.

    Parameters
    ----------
    run_dir : the folder; "" makes a new one under outputs/notebooks.

    Raises
    ------
    InputError
        The folder holds a finished run, or one that is going on: results are never written over.
    """
    if os.environ.get(UNDER_RUNNER):
        return Path(run_dir)
    folder = Path(run_dir or outputs_dir() / "notebooks" / time.strftime("%Y-%m-%d_%H-%M-%S")).expanduser().resolve()
    record = read_record(folder) or {}
    if record.get("status") == "ok":
        raise InputError(f'run_dir {folder} holds a finished run; required a new folder; choose another name or ""')
    if record.get("status") == "running" and record["process"]["pid"] != os.getpid():
        raise InputError(
            f'run_dir {folder} is written to by process {record["process"]["pid"]}; choose another name or ""'
        )
    folder.mkdir(parents=True, exist_ok=True)
    clear_parts(folder)
    start_record(folder, None, parameters, {})
    return folder


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
    write_json(Path(run_dir) / NAME, record)


def update_record(run_dir: str | Path, **fields: Any) -> dict[str, Any]:
    """Set fields of the record, whole or not at all, and return it."""
    record = (read_record(run_dir) or {}) | fields
    if record.get("status") != "running":
        record.pop("process", None)
    write_json(Path(run_dir) / NAME, record)
    return record


def save_result(run_dir: str | Path, **fields: Any) -> None:
    """The last line of a notebook: write its results (metrics, best_epoch, ...) into the record.

    Under the runner the status stays `running` until the executed notebook is on disk too.
    """
    status = "running" if os.environ.get(UNDER_RUNNER) else "ok"
    update_record(run_dir, status=status, error=None, finished_at=time.strftime("%Y-%m-%dT%H:%M:%S%z"), **fields)


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

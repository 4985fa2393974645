"""Processes of runs: which still live, and which belong to one run."""

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import psutil

UNDER_RUNNER = "SEGLIB_RUNNER"  # in the environment of all that a run starts: the id of the process that executes it


def describe_process() -> dict[str, Any]:
    """This process, so that others can see whether it is still there."""
    process = psutil.Process()
    return {"process": {"pid": process.pid, "started": process.create_time()}}


def is_alive(record: Mapping[str, Any]) -> bool:
    """Whether the process that signed a record still runs (its id may have gone to another since)."""
    signed = record.get("process") or {}
    try:
        process = psutil.Process(signed["pid"])
        return abs(process.create_time() - signed["started"]) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def kill_family(pid: int) -> None:
    """Kill what the process of a run has started and left behind: its kernel, the workers of its loader."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # gone, or another user's
            if process.environ().get(UNDER_RUNNER) == str(pid) and process.pid != os.getpid():
                process.kill()

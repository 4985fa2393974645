"""One runner at a time in a grid's folder, for as long as any process that it started is alive."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from seglib.errors import InputError
from seglib.runs.processes import describe_process, is_alive


@contextmanager
def only_runner(folder: Path, show: Callable[[str], None]) -> Iterator[None]:
    """Hold a grid's folder; it is made if it is not there.

    The processes of the runs inherit the lock (see `schedule`), so that a runner which was killed cannot be followed by
    a second one before its last run has stopped writing.

    Parameters
    ----------
    show : takes the line of what is going on, while the processes of a killed runner end.

    Raises
    ------
    InputError
        Another runner works in this folder, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"{folder}: required a folder to write to, got {error.strerror}; choose --outputs") from error
    try:
        while not _take(handle, folder):
            holder = _read_holder(handle)
            if is_alive(holder):
                raise InputError(
                    f"{folder} is in use by another run_grid.py (process {holder['process']['pid']});"
                    " wait until it ends, or choose another --outputs"
                )
            show("waiting for the last processes of a killed run_grid.py to end")
            time.sleep(0.2)
        os.set_inheritable(handle, True)
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(describe_process()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _take(handle: int, folder: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise InputError(
            f"{folder}: required a disk that can lock files, got {error.strerror}; choose --outputs on another disk"
        ) from error
    return True


def _read_holder(handle: int) -> dict:
    try:
        return json.loads(os.pread(handle, 1000, 0))
    except ValueError:  # just taken, and not signed yet
        return {}

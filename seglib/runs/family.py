"""The processes that a run has started, and their end with it, wherever they have got to."""

import contextlib
import ctypes
import os
import time
from collections.abc import Collection

import psutil

UNDER_RUNNER = "SEGLIB_RUNNER"  # in the environment of all that a run starts: the id of the process that executes it
NOT_ADOPTED = (
    "this system lets processes leave their parent: what cells start in a session of their own may outlive a run"
)
_PR_SET_CHILD_SUBREAPER = 36  # of Linux
_adopted: set[int] | None = None  # the children that were there before this process adopted; None: it did not


def adopt_orphans() -> bool:
    """Become the parent of what the children of this process leave behind; False where the system cannot do that."""
    global _adopted
    with contextlib.suppress(AttributeError, OSError):  # no Linux
        if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0:
            _adopted = {child.pid for child in psutil.Process().children()}
            return True
    return False


def kill_family(pid: int, keep: Collection[int] = ()) -> None:
    """Kill what a run has started and left behind: its kernel, the workers of its loader, daemons of its cells.

    Parameters
    ----------
    pid : of the process that executes it, or did: what bears its number in its environment goes.
    keep : children of this process that are no run's leftovers; all others go, with their children, once it has adopted.
    """
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # gone, or another user's
            if process.environ().get(UNDER_RUNNER) == str(pid) and process.pid != os.getpid():
                process.kill()
    deadline = time.monotonic() + 5  # a process that waits for a disk ends when that answers
    while _adopted is not None and (left := _list_left(keep)) and time.monotonic() < deadline:
        for process in [*left, *(each for child in left for each in child.children(recursive=True))]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        for child in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, os.WNOHANG)
        time.sleep(0.01)


def _list_left(keep: Collection[int]) -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.pid not in keep and child.pid not in _adopted]

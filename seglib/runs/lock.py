"""Who holds a grid's folder, on whichever machine, and whether that one still lives.

The lock file is held with flock for as long as any process of the runner or its runs is there. Where flock does not
reach another machine, or a machine died with it, the heartbeat decides: the holder touches the file, and its age is
judged by the clock of the disk that it is on, never by that of a machine.
"""

import contextlib
import fcntl
import json
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from seglib.errors import InputError
from seglib.files import private_file

NAME = ".lock"
_RUNNING = ".running"  # in a run's folder: held while the run is executed
BEAT = 10.0  # [s] between two heartbeats
QUIET = 30.0  # [s] without one: perhaps dead
DEAD = 90.0  # [s] without one: its grid can be taken over
_LEAVE = "; wait until it ends, or choose another --outputs"


def describe_process() -> dict[str, Any]:
    """This process, so that others can see whether it is still there."""
    process = psutil.Process()
    return {"process": {"pid": process.pid, "started": process.create_time(), "host": platform.node()}}


def is_here(record: Mapping[str, Any]) -> bool:
    """Whether what signed a record ran on this machine; earlier versions did not sign the host."""
    signed = record.get("process")
    return not isinstance(signed, dict) or signed.get("host", platform.node()) == platform.node()


def is_alive(record: Mapping[str, Any]) -> bool:
    """Whether the process of this machine that signed a record still runs (its id may have gone to another since)."""
    signed = record.get("process") or {}
    try:
        process = psutil.Process(signed["pid"])
        alive = abs(process.create_time() - signed["started"]) < 2 and process.status() != psutil.STATUS_ZOMBIE
        return alive and is_here(record)
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def is_running(run_dir: str | Path, record: Mapping[str, Any]) -> bool:
    """Whether a run goes on; of one on another machine: whether the grid's holder, under whom it was signed, still does."""
    if is_here(record):
        return is_alive(record)
    folder, holder = Path(run_dir).parent, read_holder(Path(run_dir).parent)
    if is_held(run_dir):  # as one is that was left with SLURM, where nobody holds the grid
        return True
    try:
        signed_since = os.stat(Path(run_dir) / "record.json").st_mtime >= holder.get("since", math.inf) - 1
        return signed_since and read_age(folder) < DEAD
    except OSError:  # a folder that cannot be written to has no clock: what cannot be judged is not called dead
        return bool(holder)


def read_holder(folder: Path) -> dict[str, Any]:
    """Who holds a grid's folder: `process` and `since` [s, by the disk's clock]; empty where nobody does."""
    try:
        holder = json.loads((folder / NAME).read_bytes())
    except (OSError, ValueError):  # never held, or just taken and not signed yet
        return {}
    return holder if isinstance(holder, dict) and isinstance(holder.get("process"), dict) else {}


def describe_holder(holder: Mapping[str, Any]) -> str:
    """In words: `process 12 on node7, since 2026-11-28 07:31`."""
    signed, since = holder["process"], holder.get("since")
    when = time.strftime(", since %Y-%m-%d %H:%M", time.localtime(since)) if isinstance(since, float) else ""
    return f"process {signed.get('pid')} on {signed.get('host', platform.node())}{when}"


def read_age(folder: Path) -> float:
    """Seconds since the last heartbeat, by the disk's clock; infinite where nobody ever held the folder.

    Raises
    ------
    OSError
        The folder cannot be written to.
    """
    try:
        with open(folder / NAME, "rb") as file:  # opened, since a network's client then asks the server again
            beaten = os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return math.inf
    return read_clock(folder) - beaten


def read_clock(folder: Path) -> float:
    """The time of a disk's own clock [s]: that of a file just written there."""
    with private_file(folder) as path, open(path, "rb+") as file:
        os.utime(file.fileno())  # without a time: the server's
        return os.fstat(file.fileno()).st_mtime


@contextlib.contextmanager
def only_runner(folder: Path, show: Callable[[str], None]) -> Iterator[threading.Event]:
    """Hold a grid's folder; it is made if it is not there. Yields an event that is set if another machine takes over.

    The processes of the runs inherit the lock (see local.py), so that a runner which was killed cannot be followed by
    a second one before its last run has stopped writing. A holder on another machine is followed when it gave no
    heartbeat for `DEAD` seconds.

    Parameters
    ----------
    show : takes the line of what is going on, while a holder that is dead, or may be, is waited for.

    Raises
    ------
    InputError
        Another runner works in this folder, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while (handle := _try(folder, show)) is None:
            time.sleep(0.2)
    except OSError as error:
        raise InputError(f"{folder}: required a folder to write to, got {error.strerror}; choose --outputs") from error
    mine, ended, lost = read_holder(folder), threading.Event(), threading.Event()
    beat = threading.Thread(target=_beat, args=(folder, handle, mine, ended, lost), daemon=True)
    beat.start()
    try:
        yield lost
    finally:
        ended.set()
        beat.join(1)
        if not lost.is_set():
            os.ftruncate(handle, 0)  # nobody needs to wait for a heartbeat
        os.close(handle)


def _beat(folder: Path, handle: int, mine: dict, ended: threading.Event, lost: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):  # the disk is away for a while; the next one may come through
            if (found := read_holder(folder)) and found != mine:  # this machine slept, and was taken for dead
                lost.set()
                return
            os.utime(handle)


def _try(folder: Path, show: Callable[[str], None]) -> int | None:
    """The lock, taken and signed; None: try again soon."""
    with _one_at_a_time(folder) as first:
        if not first:
            show("waiting for another run_grid.py that starts in this folder")
            return None
        path = folder / NAME
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)  # a link would write elsewhere
        try:
            taken, holder = _take(handle, folder), read_holder(folder)
            free = _is_free(folder, holder, taken, show)
            if free and not taken:  # a machine that died with it
                os.unlink(path)
                new = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
                os.close(handle)
                handle, free = new, _take(new, folder)
            if free:
                _sign(handle, folder)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        return None


def _is_free(folder: Path, holder: dict, taken: bool, show: Callable[[str], None]) -> bool:
    """Whether a folder can be had now; False: perhaps soon."""
    if is_here(holder):
        if not taken and is_alive(holder):
            raise InputError(f"{folder} is in use by another run_grid.py ({describe_holder(holder)}){_LEAVE}")
        if not taken:
            show("waiting for the last processes of a killed run_grid.py to end")
        return taken
    age, dead = read_age(folder), DEAD if taken else 2 * DEAD  # by then a server frees what a dead machine held
    if age < QUIET:
        raise InputError(
            f"{folder} is in use by another run_grid.py ({describe_holder(holder)}; last heartbeat {max(age, 0):.0f} s ago)"
            f"{_LEAVE}; of one that was killed, the same command takes over after {DEAD:.0f} s"
        )
    if age <= dead:
        show(f"{describe_holder(holder)} gave its last heartbeat {age:.0f} s ago; taken over after {dead:.0f} s")
    return age > dead


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[bool]:
    """Let one machine at a time look and sign, also where flock does not reach: whether it is this one."""
    path = folder / ".lock.taking"
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):
            if _is_of_dead(path) or read_clock(folder) - os.stat(path).st_mtime > QUIET:  # killed in the moment between
                os.unlink(path)
        yield False
        return
    try:
        os.write(handle, json.dumps(describe_process()).encode())
        os.close(handle)
        yield True
    finally:
        path.unlink(missing_ok=True)


def _is_of_dead(path: Path) -> bool:
    try:
        signed = json.loads(path.read_bytes())
    except ValueError:  # not signed yet
        return False
    return is_here(signed) and not is_alive(signed)


@contextlib.contextmanager
def only_executor(run_dir: Path) -> Iterator[None]:
    """Hold a run's folder while it is executed; wait until another process, on whichever machine, has let go of it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / _RUNNING, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_held(run_dir: str | Path) -> bool:
    """Whether a process executes this run, on whichever machine that shares the folder."""
    try:
        with open(Path(run_dir) / _RUNNING, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # never executed, or a disk that cannot lock
        return False
    return False


def wait_until_free(folders: Sequence[Path], show: Callable[[str], None]) -> None:
    """Wait for runs that a killed runner has left on other machines, which end by themselves.

    Raises
    ------
    InputError
        A run is still executed after half a minute.
    """
    deadline = time.monotonic() + QUIET
    while held := [folder for folder in folders if is_held(folder)]:
        if time.monotonic() > deadline:
            raise InputError(f"{held[0]}: required a run that nobody executes, got one that goes on{_LEAVE}")
        show("waiting for the last processes of a killed run_grid.py to end")
        time.sleep(0.2)


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


def _sign(handle: int, folder: Path) -> None:
    os.set_inheritable(handle, True)
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(describe_process() | {"since": read_clock(folder)}).encode(), 0)
    os.fsync(handle)  # other machines see it from now on

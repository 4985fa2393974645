"""Runs on this machine: each is a process of its own, in one of several slots."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import IO, Any, ClassVar

from seglib import ranks
from seglib.files import PROJECT, RUNS_AT_ONCE, outputs_dir
from seglib.runs.family import kill_family
from seglib.runs.grid import Job
from seglib.runs.reasons import BEGIN
from seglib.runs.schedule import Place, Process
from seglib.runs.warm import WarmParent, WarmRun, is_possible

COMMAND = (sys.executable, "-m", "seglib.runs.execute")


class LocalProcess(Process):
    """A job that runs on this machine; see `schedule.Process`."""

    live: ClassVar[set[int]] = set()

    def __init__(self, process: subprocess.Popen | WarmRun, give_back: Callable[[], None], room: str = ""):
        self.process, self.give_back, self.room = process, give_back, room
        self.live.add(process.pid)

    def poll(self) -> int | None:
        code = self.process.poll()
        self.live.add(self.process.pid)  # of a forked one it is not known at once
        return code

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self, ended_well: bool) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.live.discard(self.process.pid)
        if not ended_well:
            kill_family(self.process.pid, keep=self.live)
        self.give_back()


class LocalMachine(Place):
    """Starts jobs as processes of this machine; see `schedule.Place`.

    Parameters
    ----------
    workers : runs at a time.
    environments : what each slot adds to the environment of its runs, instead; see `slots.choose_slots`.
    warm : fork them from a process that has the libraries imported, where that can be had and as soon as it has.
    """

    def __init__(self, workers: int = 1, environments: Sequence[Mapping[str, str]] = (), warm: bool = False):
        self.free = [*environments] or [{}] * workers
        self.slots, self.warm, self.parent, self.cold = len(self.free), warm and is_possible(), None, None
        self.rooms = Counter(map(_find_room, self.free))

    def has_free_room(self) -> bool:
        return bool(self._choose_room())

    def _choose_room(self) -> list[Mapping[str, str]]:
        """All slots of a room in which nothing runs; [] where there is none."""
        free = Counter(map(_find_room, self.free))
        room = next((room for room, number in self.rooms.items() if free[room] == number), None)
        return [slot for slot in self.free if _find_room(slot) == room]

    def _give_back(self, taken: Sequence[Mapping[str, str]]) -> None:
        self.free.extend(taken)
        self.slots += len(taken) - 1

    def start(self, job: Job, alone: bool = False) -> LocalProcess:
        at_once = 1 if alone else self.slots
        seen = {"SEGLIB_OUTPUTS": str(outputs_dir()), RUNS_AT_ONCE: str(at_once), ranks.COUNT: str(job.processes)}
        taken = self._choose_room() if alone else self.free[:1]  # when the process is there: a start may fail
        slot = taken[0]
        job.run_dir.mkdir(parents=True, exist_ok=True)
        with open(job.run_dir / "run.log", "a", encoding="utf-8") as log:
            print(f"{BEGIN}{time.strftime('%Y-%m-%d %H:%M:%S')}", file=log, flush=True)
        environment = os.environ | seen | slot
        start_cold = partial(_start_cold, job, environment)
        process = None
        if self.warm and job.processes == 1:  # several of one model find each other by what they were started with
            process = self._fork(job, environment, start_cold)
        if process is None:
            process = self.cold = start_cold()
        for each in taken:
            self.free.remove(each)
        self.slots -= len(taken) - 1
        return LocalProcess(process, partial(self._give_back, taken), _find_room(slot))

    def warm_up(self) -> bool:
        """Start the process that forks, once; return whether it has imported what it forks runs with."""
        if self.parent is None:
            self.parent = WarmParent(PROJECT)
            LocalProcess.live.add(self.parent.process.pid)
        self.parent.listen()
        return self.parent.ready

    def _fork(self, job: Job, environment: dict[str, str], start_cold: Callable[[], Any]) -> WarmRun | None:
        """The job, forked; None where it is to start by itself.

        It does so where the process that forks has ended, and while that one imports, one run at a time: a short run is
        over before, and many that import the same at once would wait longer for each other.
        """
        self.warm_up()
        is_first = self.cold is None or self.cold.poll() is not None
        if not self.parent.alive or (not self.parent.ready and is_first):
            return None
        with contextlib.suppress(OSError), open(job.run_dir / "run.log", "a", encoding="utf-8") as log:
            run = self.parent.start(log, environment, start_cold)
            _send(job, run.stdin)
            return run
        return None


def _find_room(slot: Mapping[str, str]) -> str:
    """What runs of a slot share their memory in: its GPUs, else this machine."""
    return slot.get("CUDA_VISIBLE_DEVICES", "")


def _start_cold(job: Job, environment: dict[str, str]) -> subprocess.Popen:
    with open(job.run_dir / "run.log", "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, cwd=PROJECT, env=environment,
            close_fds=False,  # the lock on the grid's folder is the one handle that is inheritable
            start_new_session=True,  # Ctrl-C reaches the parent alone, which ends its children in order
        )  # fmt: skip
    _send(job, process.stdin)
    return process


def _send(job: Job, stdin: IO[str]) -> None:
    with contextlib.suppress(BrokenPipeError):  # it ended already; its exit code says how
        stdin.write(json.dumps(asdict(job), default=str) + "\n")
        stdin.flush()  # and stays open: when this process is killed, its end tells the child

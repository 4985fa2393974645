"""Runs on this machine: each is a process of its own, in one of several slots."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import IO, Any, ClassVar

from seglib import ranks
from seglib.files import PROJECT, RUNS_AT_ONCE, outputs_dir
from seglib.runs.family import kill_family
from seglib.runs.grid import Job
from seglib.runs.reasons import BEGIN
from seglib.runs.warm import WarmParent, WarmRun, is_possible

COMMAND = (sys.executable, "-m", "seglib.runs.execute")


class LocalProcess:
    """A job that runs on this machine; see `schedule.Process`."""

    live: ClassVar[set[int]] = set()

    def __init__(self, process: subprocess.Popen | WarmRun, give_back: Callable[[], None]):
        self.process, self.give_back = process, give_back
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


class LocalMachine:
    """Starts jobs as processes of this machine; see `schedule.Place`.

    Parameters
    ----------
    workers : runs at a time.
    environments : what each slot adds to the environment of its runs, instead; see `slots.choose_slots`.
    warm : fork them from a process that has the libraries imported, where that can be had.
    """

    def __init__(self, workers: int = 1, environments: Sequence[Mapping[str, str]] = (), warm: bool = False):
        self.free = [*environments] or [{}] * workers
        self.slots, self.warm, self.parent = len(self.free), warm and is_possible(), None

    def start(self, job: Job) -> LocalProcess:
        seen = {"SEGLIB_OUTPUTS": str(outputs_dir()), RUNS_AT_ONCE: str(self.slots), ranks.COUNT: str(job.processes)}
        slot = self.free[0]  # taken when the process is there: a start that fails leaves it free
        job.run_dir.mkdir(parents=True, exist_ok=True)
        with open(job.run_dir / "run.log", "a", encoding="utf-8") as log:
            print(f"{BEGIN}{time.strftime('%Y-%m-%d %H:%M:%S')}", file=log, flush=True)
        environment = os.environ | seen | slot
        start_cold = partial(_start_cold, job, environment)
        process = None
        if self.warm and job.processes == 1:  # several of one model find each other by what they were started with
            process = self._fork(job, environment, start_cold)
        process = process or start_cold()
        self.free.pop(0)
        return LocalProcess(process, lambda: self.free.append(slot))

    def _fork(self, job: Job, environment: dict[str, str], start_cold: Callable[[], Any]) -> WarmRun | None:
        """The job, forked; None where the process that forks has ended."""
        if self.parent is None:
            self.parent = WarmParent(PROJECT)
            LocalProcess.live.add(self.parent.process.pid)
        self.parent.listen()
        if not self.parent.alive:
            return None
        with contextlib.suppress(OSError), open(job.run_dir / "run.log", "a", encoding="utf-8") as log:
            run = self.parent.start(log, environment, start_cold)
            _send(job, run.stdin)
            return run
        return None


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

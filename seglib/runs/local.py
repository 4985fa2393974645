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
from typing import ClassVar

from seglib import ranks
from seglib.files import PROJECT, RUNS_AT_ONCE, outputs_dir
from seglib.runs.family import kill_family
from seglib.runs.grid import Job
from seglib.runs.reasons import BEGIN

COMMAND = (sys.executable, "-m", "seglib.runs.execute")


class LocalProcess:
    """A job that runs on this machine; see `schedule.Process`."""

    live: ClassVar[set[int]] = set()

    def __init__(self, process: subprocess.Popen, give_back: Callable[[], None]):
        self.process, self.give_back = process, give_back
        self.live.add(process.pid)

    def poll(self) -> int | None:
        return self.process.poll()

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
    """

    def __init__(self, workers: int = 1, environments: Sequence[Mapping[str, str]] = ()):
        self.free = [*environments] or [{}] * workers
        self.slots = len(self.free)

    def start(self, job: Job) -> LocalProcess:
        seen = {"SEGLIB_OUTPUTS": str(outputs_dir()), RUNS_AT_ONCE: str(self.slots), ranks.COUNT: str(job.processes)}
        slot = self.free[0]  # taken when the process is there: a start that fails leaves it free
        job.run_dir.mkdir(parents=True, exist_ok=True)
        with open(job.run_dir / "run.log", "a", encoding="utf-8") as log:
            print(f"{BEGIN}{time.strftime('%Y-%m-%d %H:%M:%S')}", file=log, flush=True)
            process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, cwd=PROJECT,
                env=os.environ | seen | slot,
                close_fds=False,  # the lock on the grid's folder is the one handle that is inheritable
                start_new_session=True,  # Ctrl-C reaches the parent alone, which ends its children in order
            )  # fmt: skip
        with contextlib.suppress(BrokenPipeError):  # it ended already; its exit code says how
            process.stdin.write(json.dumps(asdict(job), default=str) + "\n")
            process.stdin.flush()  # and stays open: when this process is killed, its end tells the child
        self.free.pop(0)
        return LocalProcess(process, lambda: self.free.append(slot))

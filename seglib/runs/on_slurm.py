"""Runs on a SLURM cluster: each is a job, which SLURM starts again after its time limit or preemption, from its checkpoint.

A job is `python -m seglib.runs.on_slurm RUN_DIR TOKEN` in a script that sbatch gets on standard input. It needs no package
beside SLURM: submitit would send pickles, and asks accounting, which many clusters lack. One job per run and no array,
so that runs can be added, ended, found again and started again each for itself.
"""

import json
import os
import shlex
import signal
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seglib.errors import InputError
from seglib.files import PROJECT, sign, write_json
from seglib.runs.grid import Grid, Job, Run
from seglib.runs.lock import is_held
from seglib.runs.node import describe_here, find_differences, keep, show_progress, write_order
from seglib.runs.record import NAME, read_record, summarise_key, update_record
from seglib.runs.schedule import Place, Process
from seglib.runs.slurm import (
    NOTE,
    JobState,
    Queue,
    command,
    hold_jobs,
    last_line,
    name_options,
    read_note,
    stop_job,
)  # fmt: skip

MOST = 1000  # jobs at a time in SLURM's queue, where --workers says no other number
_MOST_IDLE = 3  # times in a row that a run is cut before it got further, as on a machine that is busy for a while
_LONGEST_END = 60  # [s] that a killed job has to go


class SlurmProcess(Process):
    """A run that was handed over to SLURM; see `schedule.Process`.

    Parameters
    ----------
    since : when it was handed over, on the monotonic clock [s]: what SLURM said before does not count.
    """

    def __init__(self, place: "SlurmCluster", run_dir: Path, note: Mapping[str, Any], since: float):
        self.place, self.run_dir, self.job, self.since = place, run_dir, note["job"], since
        self.detached, self.queued, self.code, self.seen = note["detached"], True, None, JobState()
        self.before = note["record"] and (*note["record"],)  # as it was when the run was handed over

    def poll(self) -> int | None:
        states = self.place.queue.look()
        if self.code is None and states is not None and self.place.queue.asked > self.since:
            self._take(states.get(self.job, JobState()))
        return self.code

    def _take(self, state: JobState) -> None:
        if state.is_queued and state != self.seen:
            show_progress(self.run_dir, f"queued in SLURM as job {self.job} ({state.reason})")
        self.seen, self.queued = state, state.is_queued
        if not state.is_live:
            self.code = self._read_code()

    def _read_code(self) -> int:
        """0: its record says how it ended; else run.log says why it could not."""
        record = read_record(self.run_dir) or {}
        if record and "process" not in record and sign(self.run_dir / NAME) != self.before:
            return 0
        with open(self.run_dir / "run.log", "a", encoding="utf-8") as log:
            words = self.seen.state.lower().replace("_", " ") or "gone"
            print(f"error: job {self.job} of SLURM is {words}", file=log)
        return 1

    def stop(self) -> None:
        stop_job(self.job, self.queued)

    def kill(self) -> None:
        if self.place.lost.is_set():
            return  # the runner that took over has found it
        command("scancel", "--full", "--signal=KILL", self.job)
        command("scancel", self.job)
        deadline = time.monotonic() + _LONGEST_END
        while is_held(self.run_dir) and time.monotonic() < deadline:
            time.sleep(0.2)
        self.code = -signal.SIGKILL

    def close(self, ended_well: bool) -> None:
        if not self.place.lost.is_set():
            (self.run_dir / NOTE).unlink(missing_ok=True)


class SlurmCluster(Place):
    """Hands runs over to SLURM; see `schedule.Place`.

    Parameters
    ----------
    here : `node.describe_here`.
    asked : what each job asks for, see `slurm.parse_options`.
    slots : jobs in SLURM's queue at a time.
    leaves : `--detach`: they go on without this process.
    lost : set once the grid's lock went to another machine, whose runner finds the jobs.
    """

    def __init__(self, here: dict[str, Any], asked: Mapping[str, str], slots: int, leaves: bool, lost: threading.Event):
        self.here, self.options, self.slots, self.leaves, self.lost = here, name_options(asked), slots, leaves, lost
        self.queue, self.jobs, self.held, self.acted = Queue(), set(), set(), 0.0
        if "cpus" in asked:  # SLURM binds a job to them on some clusters only; bits depend on the number of threads
            self.here["environment"] = {"OMP_NUM_THREADS": asked["cpus"]} | self.here["environment"]

    def withdraw_changed(self, runs: Sequence[Run]) -> None:
        """End jobs whose run is to go with other parameters, data or code by now; their folders are free then."""
        for run in runs:
            note = read_note(run.folder)
            if (run.folder / NOTE).exists() and ("job" not in note or note["key"] != summarise_key(run.key)):
                if "job" in note:
                    SlurmProcess(self, run.folder, note, 0).kill()
                (run.folder / NOTE).unlink(missing_ok=True)

    def hold(self, paused: bool) -> None:
        """See `schedule.Place`; what is queued again after its time waits too."""
        states = self.queue.look()
        if states is None or self.queue.asked < self.acted or self.leaves:
            return
        if jobs := self.jobs if paused else self.held:
            hold_jobs(jobs, states, paused)
            self.acted = time.monotonic()  # what SLURM said before does not count
        self.held = {*self.jobs} if paused else set()

    def start(self, job: Job) -> SlurmProcess:
        """Hand a run over, or find the job that it was handed over to before."""
        note = read_note(job.run_dir)
        if "job" not in note or note["key"] != summarise_key(job.key):
            return self._submit(job)
        if self.leaves and not note["detached"]:
            note["detached"] = True
            write_json(job.run_dir / NOTE, note)
        self.jobs.add(note["job"])
        self.held.add(note["job"])  # perhaps, by a command before this one
        return SlurmProcess(self, job.run_dir, note, 0)

    def _submit(self, job: Job) -> SlurmProcess:
        note = {
            "token": uuid.uuid4().hex,
            "key": summarise_key(job.key),
            "detached": self.leaves,
            "record": sign(job.run_dir / NAME),
            "order": write_order(job, self.here),
        }
        write_json(job.run_dir / NOTE, note)  # before the job, which asks for it
        script = shlex.join([sys.executable, "-m", "seglib.runs.on_slurm", str(job.run_dir), note["token"]])
        log = str(job.run_dir / "run.log").replace("\\", "\\\\").replace("%", "%%")
        answer = command(
            "sbatch", "--parsable", "--requeue", "--open-mode=append", f"--output={log}", f"--chdir={PROJECT}",
            f"--job-name={job.label}", *self.options, text=f"#!/bin/sh\nexec {script}\n",
        )  # fmt: skip
        if answer.returncode:
            (job.run_dir / NOTE).unlink()
            raise OSError(last_line(answer))
        note["job"] = answer.stdout.strip().partition(";")[0]
        show_progress(job.run_dir, f"queued in SLURM as job {note['job']}")
        write_json(job.run_dir / NOTE, note)
        self.jobs.add(note["job"])
        return SlurmProcess(self, job.run_dir, note, since=time.monotonic())


def ask_slurm(grid: Grid, asked: Mapping[str, str]) -> str:
    """What SLURM says of such a job, which is not handed over: when it could start, and where.

    Raises
    ------
    InputError
        SLURM does not take it; the grid wants GPUs otherwise than a job has them.
    """
    gpus, wanted = asked.get("gpus", "").rpartition(":")[2], grid.file.gpus_per_run
    if wanted > 1 and gpus != str(wanted):
        raise InputError(f"--slurm: required gpus={wanted}, as gpus_per_run in the grid file, got gpus={gpus or 0}")
    answer = command("sbatch", "--test-only", *name_options(asked), text="#!/bin/sh\n")
    if answer.returncode:
        raise InputError(f"--on slurm: required a job that SLURM takes, got: {last_line(answer)}")
    said = answer.stderr.strip().rpartition("\n")[2].removeprefix("sbatch: ")
    return f"SLURM: {said}" if said else ""


def open_slurm(
    grid: Grid,
    waiting: Sequence[Run],
    asked: Mapping[str, str],
    workers: int | None,
    leaves: bool,
    lost: threading.Event,
) -> SlurmCluster:
    """The cluster that this machine can hand runs over to.

    Raises
    ------
    InputError
        As `ask_slurm`.
    """
    ask_slurm(grid, asked)
    cluster = SlurmCluster(describe_here(grid), asked, workers or MOST, leaves, lost)
    cluster.withdraw_changed(waiting)
    return cluster


# In the job.


def main(run_dir: Path, token: str) -> int:
    """Keep a run until it ends; its exit code. SIGTERM: it is to end. SIGUSR1: its time is nearly up, it is to go on later."""
    stop, cut = threading.Event(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGUSR1, lambda *_: (cut.set(), stop.set()))
    note = read_note(run_dir)
    if note.get("token") != token:
        print("this job was withdrawn: its run was handed over again, or collected", flush=True)
        return 0
    order = json.loads(note["order"])
    os.environ.update(order["here"]["environment"])
    if problem := find_differences(order["here"]):
        print(f"error: {problem}", flush=True)
        return 1
    before = _sign_kept(run_dir, order)
    code = keep(order, stop)
    if (read_record(run_dir) or {}).get("status") == "ok":
        (run_dir / NOTE).unlink(missing_ok=True)  # nothing is left to collect
        return code
    if not cut.is_set():
        return code
    after = _sign_kept(run_dir, order)
    note["idle"] = note.get("idle", 0) + 1 if after == before else 0
    write_json(run_dir / NOTE, note)
    if not after or note["idle"] >= _MOST_IDLE:  # it would be cut for ever
        why = "the time of its job was up before it had kept anything new to go on from; give it more: --slurm time=..."
        update_record(run_dir, status="failed", error=why)
        return 1
    answer = command("scontrol", "requeue", os.environ["SLURM_JOB_ID"])
    if answer.returncode:
        print(f"error: scontrol requeue: {last_line(answer)}", flush=True)
    return answer.returncode


def _sign_kept(run_dir: Path, order: Mapping[str, Any]) -> dict[str, object]:
    """The state of what a run goes on from: last.pt, or files of a notebook's own; not what tells of it alone."""
    notebook = Path(order["job"]["notebook"])
    tell = {NAME, NOTE, "run.log", "progress.json", ".running", notebook.name, notebook.with_suffix(".html").name}
    return {path.name: sign(path) for path in run_dir.iterdir() if path.name not in tell and path.is_file()}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))

"""Which job runs next, in the slots of a place that can start jobs, and how each ended."""

import contextlib
import errno
import json
import math
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from seglib.errors import printable
from seglib.files import sign
from seglib.runs.grid import Job
from seglib.runs.reasons import explain, find_first_error, is_full
from seglib.runs.record import describe_key, read_record, update_record
from seglib.runs.watch import Orders
from seglib.text import fit, format_seconds

GRACE = 20  # [s] that a run which is to stop gets to save its notebook before it is killed
WELL = {"ok", "stopped", "left"}  # a run that is stopped early, or left for later, did what it should
SIGNS = ("progress.json", "run.log", "history.csv", "last.pt")  # of life, with the executed notebook
POLL = 0.25  # [s] between two looks at what runs


class Process(Protocol):
    """A job that was started.

    Attributes
    ----------
    queued : it waits for its turn elsewhere: neither its time nor its silence counts yet.
    detached : it goes on when this process ends or is interrupted; the same command finds it again.
    room : where it has one: what it shares its memory in, or may, with those of the same text.
    """

    queued: bool = False
    detached: bool = False

    def poll(self) -> int | None:
        """The exit code, negative for the signal that ended it; None until it has ended."""

    def stop(self) -> None:
        """Ask it to save and end."""

    def kill(self) -> None:
        """End it now; when this returns it writes no more."""

    def close(self, ended_well: bool) -> None:
        """Called once, after its end: clear what it left behind."""


class Place(Protocol):
    """Where jobs run: this machine, or others. `slots` is the number of jobs that it takes at a time.

    `leaves`: what was started is left to go on by itself, nobody waits for it here. `about`: a line on where this is.
    """

    slots: int
    leaves: bool = False
    about: str = ""

    def start(self, job: Job, alone: bool = False) -> Process:
        """Start a job; called only while a slot is free. OSError: it cannot be started, the others go on.

        `alone`: nothing else is started in its room until it ends; asked only of a place whose processes have rooms.
        """

    def has_free_room(self) -> bool:
        """Whether a job can be alone now."""

    def hold(self, paused: bool) -> None:
        """Called often: whether jobs that wait for their turn elsewhere are to stay there, as nothing starts here."""


class StatusLine:
    """Progress: one line that changes in place on a terminal; elsewhere a new line, at most every ten seconds."""

    def __init__(self):
        self.live, self.last, self.printed = sys.stdout.isatty(), "", 0.0

    def show(self, text: str) -> None:
        """Show what is going on now."""
        text = printable(text)
        if self.live:
            print(f"\r\x1b[K{fit(text, shutil.get_terminal_size().columns - 1)}", end="", flush=True)
        elif text != self.last and time.monotonic() - self.printed > 10:
            print(f"    {text}", flush=True)
            self.last, self.printed = text, time.monotonic()

    def keep(self, text: str) -> None:
        """Print a line that stays."""
        print(("\r\x1b[K" if self.live else "") + printable(text), flush=True)


@dataclass(frozen=True)
class _Active:
    """A job that runs: its process, its position in the list, when it began on the monotonic clock [s]."""

    job: Job
    process: Process
    position: str
    began: float
    pulse: "_Pulse" = field(default_factory=lambda: _Pulse())


class _Pulse:
    """When a job's turn came and its files changed last, on the monotonic clock [s]; whether it was ended since they did not."""

    def __init__(self):
        self.state, self.stalled = None, False
        self.wait()

    def wait(self) -> None:
        """Its turn has not come yet."""
        self.began = self.changed = time.monotonic()

    def measure(self, job: Job) -> float:
        """Seconds since its files changed."""
        state = [sign(job.run_dir / name) for name in (*SIGNS, job.notebook.name)]
        if state != self.state:
            self.state, self.changed = state, time.monotonic()
        return time.monotonic() - self.changed


def run_jobs(
    jobs: Sequence[Job],
    place: Place,
    report: Callable[[str], None],
    show: Callable[[str], None],
    *,
    prepare: Callable[[Job], Job] = lambda job: job,
    on_end: Callable[[Job, str], Sequence[Job]] = lambda job, status: (),
    leave: Callable[[Job], bool] = lambda job: False,
    fail_fast: bool = False,
    limit: float = math.inf,
    stall: float = math.inf,
    orders: Orders | None = None,
) -> bool:
    """Execute jobs in the slots of a place; return whether all are ok, or stopped where they should.

    What happens to the files of one run is that run's failure: the others go on. A run that ran out of memory beside
    another is tried once more, alone, when the others have ended.

    Parameters
    ----------
    report : takes a line that stays (a run began or ended).
    show : takes the line of what is going on now, about four times a second.
    prepare : called just before a job starts; makes room in its folder and returns the job to start.
    on_end : called after each job with its status; returns jobs that are to follow.
    leave : asked just before a job would start, whether it is left out instead.
    fail_fast : start no further job after one has failed.
    limit : [s] after which a run is stopped; it is `interrupted`, and goes on from there the next time.
    stall : [s] without a change of its files (`SIGNS`) after which a run is ended, started again once, and then failed.
    orders : what others ask while the jobs run.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C, when every process has ended; records say `interrupted`. Where the grid went to another machine.
    """
    jobs, waiting, active, statuses, seconds, revived = [*jobs], [*jobs], [], [], [], set()
    crowded, alone = set(), set()  # labels of those that run beside another; of those that are tried alone
    if orders:
        orders.expect(jobs)

    def end(job: Job, status: str) -> None:
        statuses.append(status)
        further = on_end(job, status)
        jobs.extend(further)
        if orders and further:
            orders.expect(further)
        waiting.extend(further)
        waiting.sort(key=lambda job: job.label in alone)

    try:
        while waiting or active:
            if orders:
                statuses += ["interrupted" for _ in _obey(orders, waiting, active, report)]
                place.hold(orders.paused)
            while waiting and len(active) < place.slots and not (orders and orders.paused):
                if waiting[0].label in alone and not place.has_free_room():
                    break
                position = f"[{len(jobs) - len(waiting) + 1}/{len(jobs)}]"
                job = waiting.pop(0)
                if leave(job):
                    statuses.append("left")
                    continue
                try:
                    job = prepare(job)
                    by_itself = {"alone": True} if job.label in alone else {}
                    with _interrupts_held_back():  # in between, a process would have begun that nobody ends or records
                        active.append(_Active(job, place.start(job, **by_itself), position, time.monotonic()))
                    crowded |= _find_crowded(active)
                    report(f"{position} {job.label}")
                except OSError as error:
                    report(f"{position} {job.label}: failed, not started: {explain(f'{error}', job.run_dir)[1]}")
                    end(job, "failed")
            time.sleep(POLL)
            for run in active:
                if run.process.queued:
                    run.pulse.wait()
            _stop_late(active, limit, report)
            _stop_stalled(active, stall, report)
            ended = [run for run in active if run.process.poll() is not None]
            paused = "paused | " if orders and orders.paused else ""
            show(paused + _describe(active, len(waiting), seconds, place.slots))
            for run in ended:
                active.remove(run)
                twice = run.pulse.stalled and run.job.label in revived
                unwanted = bool(orders) and run.job.label in orders.stopped
                status = _finish(run, report, interrupted=unwanted, stalled=stall if twice else 0)
                if run.pulse.stalled and not twice and status != "ok":
                    revived.add(run.job.label)
                    waiting.insert(0, run.job)
                    continue
                if status == "oom" and run.job.label in crowded - alone:
                    report(f"{run.position} {run.job.label}: once more, alone, when those ended that ran beside it")
                    alone.add(run.job.label)
                    waiting.append(run.job)
                    continue
                crowded.discard(run.job.label)
                seconds += [time.monotonic() - run.began] if status == "ok" else []
                end(run.job, status)
            if fail_fast and not WELL.issuperset(statuses):
                waiting.clear()
            if place.leaves and not waiting:
                break
    finally:
        left = [run for run in active if run.process.detached]
        active = [run for run in active if not run.process.detached]
        if active:  # Ctrl-C, or a disk that is full
            show("stopping ...")
            stop_all([run.process for run in active])
            for run in active:
                _finish(run, report, interrupted=True)
    return len(statuses) + len(left) == len(jobs) and WELL.issuperset(statuses)


def _find_crowded(active: Sequence[_Active]) -> set[str]:
    """Labels of the jobs that share their memory with another one."""
    rooms = [getattr(run.process, "room", None) for run in active]
    return {
        run.job.label for run, room in zip(active, rooms, strict=True) if room is not None and rooms.count(room) > 1
    }


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Let Ctrl-C, and the signals that end as it does, wait until the block is left."""
    came = []
    held = [number for number in signal.valid_signals() if signal.getsignal(number) is signal.default_int_handler]
    for number in held:
        signal.signal(number, lambda *_: came.append(True))
    try:
        yield
    finally:
        for number in held:
            signal.signal(number, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


def _stop_late(active: Sequence[_Active], limit: float, report: Callable[[str], None]) -> None:
    late = [run for run in active if time.monotonic() - run.pulse.began > limit and run.process.poll() is None]
    for run in late:
        report(f"{run.position} {run.job.label}: stopped after {format_seconds(limit)} (timeout_hours)")
    stop_all([run.process for run in late])


def _stop_stalled(active: Sequence[_Active], stall: float, report: Callable[[str], None]) -> None:
    quiet = [run for run in active if stall < math.inf and run.process.poll() is None]
    quiet = [run for run in quiet if run.pulse.measure(run.job) > stall]
    for run in quiet:
        run.pulse.stalled = True
        report(f"{run.position} {run.job.label}: ended: no sign of life for {format_seconds(stall)} (stall_minutes)")
    stop_all([run.process for run in quiet])


def _obey(orders: Orders, waiting: list[Job], active: list[_Active], report: Callable[[str], None]) -> list[Job]:
    """Do what is asked from elsewhere; return the jobs that were taken off the list."""
    orders.look()
    if orders.lost.is_set():
        for run in active:  # at once and without a word in its record, which is another machine's now
            run.process.kill()
            run.process.close(ended_well=False)
        active.clear()
        report("another machine took this one for dead and goes on with the grid; what ran here is ended")
        raise KeyboardInterrupt
    unwanted = [run for run in active if run.job.label in orders.stopped and run.process.poll() is None]
    for run in unwanted:
        report(f"{run.position} {run.job.label}: stopped (--stop)")
    stop_all([run.process for run in unwanted])
    dropped = [job for job in waiting if job.label in orders.stopped]
    for job in dropped:
        waiting.remove(job)
        report(f"{job.label}: not started (--stop)")
    return dropped


def _finish(run: _Active, report: Callable[[str], None], interrupted: bool = False, stalled: float = 0) -> str:
    """Say how a job ended; of one whose folder is gone or full that it failed."""
    try:
        status, detail = _read_end(run, interrupted, stalled)
    except OSError as error:
        status, detail = explain(f"{error}", run.job.run_dir)
    seconds = format_seconds(time.monotonic() - run.began)
    report(f"{run.position} {run.job.label}: {status}, {seconds}  {detail[:300]}".rstrip())
    return status


def _read_end(run: _Active, interrupted: bool, stalled: float) -> tuple[str, str]:
    """Status and detail of a job that ended; if its process could not say so itself, say it for it."""
    job, code = run.job, run.process.poll()
    run.process.close(ended_well=not code and not interrupted)
    if (code or stalled) and (read_record(job.run_dir) or {}).get("status") != "ok":  # it ended after its result
        log, silent = job.run_dir / "run.log", "the process of the run ended without a word"
        silent = os.strerror(errno.ENOSPC) if is_full(job.run_dir) else find_first_error(log) or silent
        found = find_first_error(log, or_last=False) or silent
        status, error = explain(found, job.run_dir)
        error = f"{error}; see {log}"
        if interrupted:
            status, error = "interrupted", "stopped before its end"
        elif stalled:
            status, error = "failed", f"no sign of life for {format_seconds(stalled)}, twice (stall_minutes)"
        elif code < 0:
            status, error = "killed", f"the process of the run was killed (signal {-code})"
        update_record(
            job.run_dir, status=status, error=error, params=job.parameters, varied=job.varied, **describe_key(job.key)
        )
    (job.run_dir / "progress.json").unlink(missing_ok=True)
    record = read_record(job.run_dir) or {}
    status, miou = record.get("status", "failed"), (record.get("metrics") or {}).get("miou")
    detail = f"mIoU {miou:.4f}" if status == "ok" and miou is not None else record.get("error") or ""
    return status, detail or ("" if record else f"{job.run_dir} has no record.json: was it moved or deleted?")


def stop_all(processes: Sequence[Process], grace: float = GRACE) -> None:
    """Ask every process to stop and save, and end those that have not within `grace` [s]."""
    for process in processes:
        process.stop()
    deadline = time.monotonic() + grace
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in processes:
        if process.poll() is None:
            process.kill()


def _describe(active: Sequence[_Active], waiting: int, seconds: Sequence[float], slots: int) -> str:
    """What each run does now, after the time that is left if all take as long as those that were ok [s]."""
    parts = []
    elapsed = [time.monotonic() - run.began for run in active]
    if seconds:
        mean = statistics.fmean(seconds)
        left = (waiting * mean + sum(max(0, mean - so_far) for so_far in elapsed)) / slots
        parts += [f"about {format_seconds(left)} left"] if left >= 1 else []
    queued = sum(run.process.queued for run in active)
    parts += [f"{queued} queued"] if queued else []
    for run, so_far in zip(active, elapsed, strict=True):
        if run.process.queued:
            continue
        parts.append(f"{run.position} {read_progress(run.job.run_dir) or f'starting {format_seconds(so_far)}'}")
    return " | ".join(parts)


def read_progress(run_dir: Path) -> str:
    """What a run says that it does; "" where it says nothing yet."""
    try:
        return json.loads((run_dir / "progress.json").read_text())["text"]
    except (OSError, ValueError, KeyError):  # not written yet
        return ""

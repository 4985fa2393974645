"""SLURM by its own commands: what a job asks for, how jobs are doing, and which run went to which job.

A run that was handed over has a note in its folder, `.slurm.json`: `token`, `key` of the run, `detached`, `order` for the
node, and `job`, its number. Whoever runs the same command later finds the run by it, whichever process wrote it.
"""

import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from seglib.errors import InputError, InputErrors, unknown_name
from seglib.files import read_json
from seglib.text import count_noun

NOTE = ".slurm.json"
LOOK = 5.0  # [s] between two questions to SLURM
_LONGEST = 120  # [s] that SLURM has to answer
_MOST_HELD = 500  # jobs in one command
_QUEUED = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_LIVE = {*_QUEUED, "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
_HELD = "JobHeldUser"  # the reason of a job that its user keeps from starting
_SIZE = re.compile(r"\d+[KMGT]?")
_FORMS = {  # of values that can be checked here; SLURM itself knows the others
    "cpus": (re.compile(r"[1-9]\d*"), "a whole number"),
    "gpus": (re.compile(r"([\w.-]+:)?[1-9]\d*"), "a number, or a kind and a number such as a100:1"),
    "mem": (_SIZE, "a number of MB, or such as 32G"),
}
_NAMES = {  # as `--slurm` names them -> as sbatch does
    "partition": "partition", "time": "time", "gpus": "gpus", "cpus": "cpus-per-task", "mem": "mem", "account": "account",
    "qos": "qos", "constraint": "constraint", "gres": "gres", "nodelist": "nodelist", "exclude": "exclude",
    "reservation": "reservation",
}  # fmt: skip
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d\d):\d\d|(\d+)-(\d+)(?::(\d\d))?")
_SPAN = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?")


def parse_options(text: str) -> dict[str, str]:
    """What each job asks for, checked: `partition=gpu,time=8h,gpus=1`; the time in minutes.

    Raises
    ------
    InputErrors
        An unknown name, or a value that SLURM would not take; a line for each.
    """
    pieces: list[str] = []
    for piece in text.split(",") if text else []:
        if "=" in piece or not pieces:
            pieces.append(piece)
        else:
            pieces[-1] += f",{piece}"  # nodelist=a,b
    asked, problems = {}, []
    for name, sign, value in (piece.strip().partition("=") for piece in pieces):
        form, words = _FORMS.get(name, (re.compile(r"[^\s-]\S*"), "a value without spaces"))
        minutes = _count_minutes(value) if name == "time" else None
        if not sign:
            problems.append(f"required NAME=VALUE, got {name!r}")
        elif name not in _NAMES:
            problems.append(unknown_name("option", name, _NAMES))
        elif name in asked:
            problems.append(f"{name}: required once, got it twice")
        elif name == "time" and not minutes:
            problems.append(f"time: required such as 8h, 90m, 1h30m or 1-00:00:00, at least a minute, got {value!r}")
        elif name != "time" and not form.fullmatch(value):
            problems.append(f"{name}: required {words}, got {value!r}")
        asked[name] = str(minutes or value)
    if problems:
        raise InputErrors(f"--slurm: {problem}" for problem in problems)
    return asked


def _count_minutes(text: str) -> int:
    """Minutes of `8h`, `1h30m` or `1-00:00:00`; 0 where it is none of these. A bare number could be either unit."""
    if match := _SPAN.fullmatch(text):
        days, hours, minutes = (int(part or 0) for part in match.groups())
    elif match := _CLOCK.fullmatch(text):
        parts = [int(part or 0) for part in match.groups()]
        days, hours, minutes = (first + second for first, second in zip(parts[:3], parts[3:], strict=True))
    else:
        return 0
    return (days * 24 + hours) * 60 + minutes


def name_options(asked: Mapping[str, str]) -> list[str]:
    """The same for sbatch, with the signal that tells a job in time that its time is nearly up."""
    minutes = int(asked.get("time", 20))
    before = min(120, minutes * 15)  # [s]
    return [f"--signal=B:USR1@{before}", *(f"--{_NAMES[name]}={value}" for name, value in asked.items())]


def command(*words: str, text: str = "") -> subprocess.CompletedProcess:
    """Run a command of SLURM's; one that is not here, or does not answer in time, has failed."""
    try:
        return subprocess.run(words, input=text, capture_output=True, text=True, timeout=_LONGEST)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 1, "", f"{words[0]}: no answer within {_LONGEST} s")
    except OSError as error:
        return subprocess.CompletedProcess(words, 1, "", f"{words[0]}: {error.strerror}")


def last_line(answer: subprocess.CompletedProcess) -> str:
    """What a command that failed said at last."""
    lines = answer.stderr.strip().splitlines() or [f"{answer.args[0]}: exit code {answer.returncode}"]
    return lines[-1]


class JobState(NamedTuple):
    """How a job is doing, in SLURM's words; `state` is empty of a job that it does not know any more."""

    state: str = ""
    reason: str = ""

    @property
    def is_live(self) -> bool:
        return self.state in _LIVE

    @property
    def is_queued(self) -> bool:
        return self.state in _QUEUED

    @property
    def is_held(self) -> bool:
        return self.reason == _HELD


class Queue:
    """How this user's jobs are doing, asked at most every `LOOK` seconds.

    Attributes
    ----------
    asked : when SLURM answered last, on the monotonic clock [s].
    """

    def __init__(self):
        self.tried = self.asked = -LOOK
        self._states: dict[str, JobState] | None = None

    def look(self) -> dict[str, JobState] | None:
        """Job number -> state; None while SLURM has not answered yet. Accounting, which many clusters lack, is not asked."""
        if time.monotonic() - self.tried >= LOOK:
            self.tried = time.monotonic()
            answer = command("squeue", "--me", "--noheader", "--states=all", "--format=%i|%T|%r")
            if answer.returncode == 0:
                rows = [line.strip().split("|", 2) for line in answer.stdout.splitlines()]
                self._states = {row[0]: JobState(*row[1:]) for row in rows if len(row) == 3}
                self.asked = self.tried
        return self._states


_queue = Queue()  # of a process that only shows


def read_note(run_dir: str | Path) -> dict[str, Any]:
    """The note of a run that was handed over and not collected yet; empty where it was not."""
    try:
        note = read_json(Path(run_dir) / NOTE)
    except (OSError, ValueError):  # InputError too: the process that wrote it was killed
        return {}
    return note if isinstance(note, dict) else {}


def find_handed_over(folders: Sequence[Path]) -> list[Path]:
    """Those of the runs that were handed over to SLURM and not collected yet."""
    return [folder for folder in folders if (folder / NOTE).exists()]


def require_collected(folders: Sequence[Path]) -> None:
    """Refuse to run elsewhere what was handed over to SLURM.

    Raises
    ------
    InputError
        One of the runs was.
    """
    if held := find_handed_over(folders):
        raise InputError(
            f"{held[0]}: handed over to SLURM (job {read_note(held[0]).get('job')}), as {len(held)} runs are; required"
            f" --on slurm, which collects it; or scancel the job and delete {NOTE} there"
        )


def describe_left(grid: Path) -> str:
    """How a grid's jobs are doing that nobody may be waiting for; "" where none is live, or no run was handed over."""
    jobs = _list_jobs(grid)
    if not jobs:
        return ""
    states = _queue.look()
    if states is None:
        return f"{len(jobs)} runs were handed over to SLURM, which does not answer here"
    live = [states[job] for job in jobs if job in states and states[job].is_live]
    queued, held = sum(state.is_queued for state in live), sum(state.is_held for state in live)
    paused = f" ({held} held; --resume)" if held else ""
    return f"with SLURM: {len(live) - queued} running, {queued} queued{paused}" if live else ""


def _list_jobs(grid: Path) -> list[str]:
    """Numbers of the jobs that a grid's runs were handed over to."""
    return [str(read_note(path.parent).get("job")) for path in grid.glob(f"*/{NOTE}")]


def hold_jobs(jobs: Iterable[str], states: Mapping[str, JobState], paused: bool) -> str:
    """Keep jobs that wait in the queue from starting, or let those go on that are kept so; returns how many, in words."""
    queued = [job for job in jobs if job in states and states[job].is_queued and states[job].is_held != paused]
    said = ""
    for at in range(0, len(queued), _MOST_HELD):
        answer = command("scontrol", "uhold" if paused else "release", ",".join(queued[at : at + _MOST_HELD]))
        said = f" ({last_line(answer)})" if answer.returncode else said  # one may have started meanwhile
    return f"{count_noun(len(queued), 'job')}{said}"


def _require_states() -> dict[str, JobState]:
    """How jobs are doing, by their number."""
    states = _queue.look()
    if states is None:
        raise InputError("required an answer of SLURM's squeue, got none; give the order on a machine of the cluster")
    return states


def hold_left(grid: Path, paused: bool) -> str:
    """Hold or release the jobs of a grid that nobody waits for; returns what was done."""
    jobs = hold_jobs(_list_jobs(grid), _require_states(), paused)
    return f"asked SLURM to {f'hold {jobs} in its queue; those that run go on' if paused else f'let {jobs} go on'}"


def stop_job(job: str, queued: bool) -> None:
    """Ask the process that keeps a job's run to save and end; a job that waits just goes."""
    if queued:
        command("scancel", "--state=PENDING", job)
    else:
        command("scancel", "--batch", "--signal=TERM", job)


def stop_handed_over(run_dir: Path) -> str:
    """End the job of a run that nobody waits for; returns what was done."""
    note = read_note(run_dir)
    if "job" not in note:
        raise InputError(f"--stop: required a run that was handed over to SLURM, got {run_dir.name}")
    state = _require_states().get(note["job"], JobState())
    if not state.is_live:
        raise InputError(
            f"--stop: required a job that is queued or runs, got {run_dir.name}, of which job {note['job']} has ended"
        )
    stop_job(note["job"], state.is_queued)
    return f"asked SLURM to end job {note['job']}, {run_dir.name}"

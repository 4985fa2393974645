"""In which order runs start: the longest first; before a `deadline`, each condition's first seed before any second one.

What a run takes is known from finished runs of its kind. Where none is, runs keep the grid's order.
"""

import datetime
import heapq
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from seglib.runs.conditions import BLOCKS, identify
from seglib.runs.cost import expect_cost, read_past_runs
from seglib.runs.record import read_history, read_record

if TYPE_CHECKING:
    from seglib.runs.grid import Grid, Job, Run
    from seglib.runs.grid_file import GridFile

AGAIN = 30  # [s] between two looks at what runs took, while there is a deadline
_NEEDED = "must be a time of day or a day and a time, quoted, such as '08:00' or '2026-12-01 08:00'"


def find_deadline_problems(file: "GridFile") -> list[str]:
    """What is wrong with `deadline`, a line."""
    try:
        read_deadline(file.deadline)
        return []
    except ValueError:
        return [f"{file.path}: `deadline` {_NEEDED}, got {file.deadline!r}"]


def read_deadline(value: Any, now: datetime.datetime | None = None) -> datetime.datetime | None:
    """The local time by which runs are to end; of a time of day the next one; None for "".

    YAML takes a day with a time to the second, not quoted, for a date.

    Raises
    ------
    ValueError
        It is no time.
    """
    if value == "":
        return None
    if isinstance(value, datetime.datetime):
        return value.astimezone().replace(tzinfo=None) if value.tzinfo else value
    now = now or datetime.datetime.now()
    for form in ("%H:%M", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S"):
        try:
            found = datetime.datetime.strptime(value.strip() if isinstance(value, str) else "", form)
        except ValueError:
            continue
        if form != "%H:%M":
            return found
        today = datetime.datetime.combine(now.date(), found.time())
        return today if today > now else today + datetime.timedelta(days=1)
    raise ValueError(value)


class Order:
    """Which jobs of a grid start first, and which are left for another time since they would end after its deadline.

    Attributes
    ----------
    left : labels of jobs that were not started.
    """

    def __init__(self, grid: "Grid"):
        self.grid, self.left, self.deadline = grid, [], read_deadline(grid.file.deadline)
        self.past, self.read = read_past_runs(grid.folder.parent), time.monotonic()
        self.turns = _count_turns(grid.runs) if self.deadline else {}

    def sort(self, jobs: Sequence["Job"]) -> list["Job"]:
        """The longest first; those of which nothing is known keep their places."""
        if self.grid.file.search:  # later trials wait for the results of the first ones
            return [*jobs]
        by_label = {job.label: job for job in jobs}
        return [by_label[label] for label in self._sort({label: self._expect(job) for label, job in by_label.items()})]

    def _sort(self, seconds: Mapping[str, float | None]) -> list[str]:
        """Labels, by what each takes; in every turn the known ones share out the places that they have."""
        turn = lambda label: self.turns.get(label, 0)  # noqa: E731
        labels = sorted(seconds, key=turn)
        known = [label for label in labels if seconds[label] is not None]
        known = iter(sorted(known, key=lambda label: (turn(label), -seconds[label])))
        return [label if seconds[label] is None else next(known) for label in labels]

    def leave(self, job: "Job") -> bool:
        """Whether a job that could start now is left: it would end after the deadline, or that is over."""
        if not self.deadline:
            return False
        if time.monotonic() - self.read > AGAIN:
            self.past, self.read = read_past_runs(self.grid.folder.parent), time.monotonic()
        left = (self.deadline - datetime.datetime.now()).total_seconds()
        if left > 0 and (self._expect(job) or 0) * _share_left(job) <= left:
            return False
        self.left.append(job.label)
        return True

    def describe_left(self) -> str:
        """One line: which jobs were left, and why; "" for none."""
        if not self.left:
            return ""
        shown = ", ".join(self.left[:3]) + (", ..." if len(self.left) > 3 else "")
        why = f"would end after the deadline, {self.deadline:%a %Y-%m-%d %H:%M}"
        return f"{len(self.left)} not started, since they {why}: {shown}; the same command starts them later"

    def foresee(self, runs: Sequence["Run"], slots: int) -> str:
        """One line: how many of the runs are expected to end before the deadline; "" without one."""
        if not self.deadline:
            return ""
        left = (self.deadline - datetime.datetime.now()).total_seconds()
        seconds = {run.name: self._expect(run) for run in runs}
        ends, inside, unknown = [0.0] * slots, 0, [*seconds.values()].count(None)
        for name in self._sort(seconds):
            if seconds[name] is not None and ends[0] + seconds[name] <= left:
                inside += 1
                heapq.heapreplace(ends, ends[0] + seconds[name])
        words = f"{inside} of {len(runs)} runs are expected to end by then, each condition's first seed first"
        words += f"; of {unknown} nothing is known yet" if unknown else ""
        return f"deadline {self.deadline:%a %Y-%m-%d %H:%M}: {words}"

    def _expect(self, job: "Job | Run") -> float | None:
        """Seconds from its start to its end; None where no run of its kind has ended."""
        cost = expect_cost(job.parameters, job.key.get("notebook", ""), self.past) if self.past else None
        return cost and cost.seconds


def _count_turns(runs: Sequence["Run"]) -> dict[str, int]:
    """By a run's name: how many runs of its condition stand before it."""
    seen, turns = {}, {}
    for run in runs:
        condition = identify({name: value for name, value in run.varied.items() if name not in BLOCKS})
        turns[run.name] = seen[condition] = seen.get(condition, -1) + 1
    return turns


def _share_left(job: "Job") -> float:
    """The part of a training that is still to do: it may go on from where it was, or stop early."""
    epochs: Any = job.parameters.get("epochs")
    if type(epochs) is not int or epochs < 1 or (read_record(job.run_dir) or {}).get("status") == "ok":
        return 1.0
    history: Sequence[Mapping[str, float]] = read_history(job.run_dir / "history.csv", ("epoch",))
    done = max((row["epoch"] for row in history), default=0)
    return max(0.0, ((job.stop_after or epochs) - done) / epochs)

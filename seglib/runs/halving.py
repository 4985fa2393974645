"""`stop: {rule: halving, after: [5, 10, 20], keep: 0.5}`: at each of these epochs the better half of the conditions goes on.

What is compared is a condition, by the mean over its seeds and folds: seeds that went on each for themselves would be
the lucky ones, and their mean too good. A condition goes on as soon as it is certain to be among the best, whatever the
others come to. So no slot waits for the last run, and who goes on does not depend on the order in which runs end.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from seglib.errors import unknown_name
from seglib.runs.conditions import divide_varied, identify
from seglib.runs.keys import calls, find_changes, is_finished
from seglib.runs.record import read_history, read_record, update_record
from seglib.text import count_noun

if TYPE_CHECKING:
    from seglib.runs.grid import Grid, Job
    from seglib.runs.grid_file import GridFile

_KEYS = ("rule", "after", "keep")


def find_stop_problems(file: "GridFile", notebook: Any, parameters: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with `stop`, a line each.

    Parameters
    ----------
    parameters : of each run, checked.
    """
    stop, where = file.stop, f"{file.path}: `stop`"
    if not stop:
        return []
    if not isinstance(stop, dict):
        return [f"{where} must be a mapping, such as {{rule: halving, after: [5, 10], keep: 0.5}}, got {stop!r}"]
    problems = [f"{where}: {unknown_name('key', key, _KEYS)}" for key in stop if key not in _KEYS]
    after, keep = stop.get("after"), stop.get("keep")
    if stop.get("rule") != "halving":
        problems.append(f"{where}: rule must be halving, got {stop.get('rule')!r}")
    whole = isinstance(after, list) and after and all(type(epoch) is int and epoch > 0 for epoch in after)
    if not whole or sorted({*after}) != after:
        problems.append(f"{where}: after must be a rising list of epochs, such as [5, 10, 20], got {after!r}")
    if type(keep) not in (int, float) or not 0 < keep < 1:
        problems.append(f"{where}: keep must be the share that goes on, between 0 and 1, got {keep!r}")
    if file.max_seeds:
        problems.append(f"{where} must have its seeds given, got `seeds: auto`, which adds some later; list them")
    if file.gpus_per_run > 1:
        problems.append(f"{where} must have runs of one process, got gpus_per_run: {file.gpus_per_run}")
    if "epochs" not in parameters[0] or not calls(notebook, ".epochs("):
        problems.append(
            f"{where}: {notebook} must have a parameter `epochs` and train in `for epoch in trainer.epochs():`, where a"
            " run can stop"
        )
    elif not problems and after[-1] >= (least := min(values["epochs"] for values in parameters)):
        problems.append(f"{where}: after must be below the {least} epochs of the runs, got {after[-1]}")
    return problems


class Standing(NamedTuple):
    """How many rungs a condition has passed; of one that has not passed all, its place so far at the next."""

    passed: int
    place: int = 0
    is_out: bool = False


def rank_conditions(
    scores: Mapping[str, Sequence[float | None]], keep: float, kept: Collection[str] = ()
) -> dict[str, Standing]:
    """Where each condition stands: it passes a rung once the `keep` best are certain to have it among them.

    Parameters
    ----------
    scores : of each condition at each rung, higher is better; None where it is not known yet.
    keep : share of the conditions of a rung, rounded up, that go on to the next.
    kept : conditions that go on to the end wherever they stand.

    Source: successive halving, Jamieson and Talwalkar (2016), AISTATS.
    """
    standings, numbers = dict.fromkeys(scores, Standing(0)), {name: number for number, name in enumerate(scores)}
    inside, size = [*scores], len(scores)
    rungs = len(next(iter(scores.values()), ()))
    for rung, chosen in enumerate(count_kept(size, keep, rungs)):
        known = [name for name in inside if scores[name][rung] is not None]
        known.sort(key=lambda name: (-scores[name][rung], numbers[name]))
        missing, inside = size - len(known), []
        for place, name in enumerate(known, 1):
            if place + missing <= chosen:
                inside.append(name)
                standings[name] = Standing(rung + 1)
            else:
                standings[name] = Standing(rung, place, place > chosen)
        size = chosen
    return standings | dict.fromkeys(kept, Standing(rungs))


def count_kept(conditions: int, keep: float, rungs: int) -> list[int]:
    """How many conditions go on from each rung."""
    counts = [conditions]
    for _ in range(rungs):
        counts.append(math.ceil(keep * counts[-1] - 1e-9))
    return counts[1:]


def score_history(history: Sequence[Mapping[str, float]], epoch: int, is_over: bool) -> float | None:
    """The best mIoU up to an epoch, that of averaged weights too, as a run keeps it; None before the epoch is reached.

    Parameters
    ----------
    history : rows of history.csv.
    is_over : whether training ended; `patience` can end it earlier.
    """
    if not is_over and max((row["epoch"] for row in history), default=0) < epoch:
        return None
    scores = (value for row in history if row["epoch"] <= epoch for name, value in row.items() if name.endswith("miou"))
    return max(scores, default=-math.inf)


class Halving:
    """Which runs of a grid go on, and how far, while one call of run_grid.py executes it.

    Parameters
    ----------
    waiting : names of the runs that this call may train.
    again : names of those whose results do not count, since they are to be made again.
    """

    def __init__(self, grid: "Grid", waiting: Collection[str], again: Collection[str] = ()):
        self.grid, self.waiting, self.unknown = grid, {*waiting}, {*again}
        self.after, self.keep = grid.file.stop["after"], grid.file.stop["keep"]
        self.goals: dict[str, int] = {}  # of the runs that were started: the epoch at which they stop, 0 for the last
        self.scores: dict[str, list[float | None]] = {}  # of each run at each rung, read when it ends
        self.places = {run.name: place for place, run in enumerate(grid.runs)}  # their keys may change meanwhile
        compared, _ = divide_varied(grid.varied)
        wanted = {name: value for name, value in grid.file.baseline.items() if name in compared}
        self.members: dict[str, list[str]] = {}
        self.kept = set()
        for run in grid.runs:
            values = {name: run.parameters.get(name) for name in compared}
            self.members.setdefault(identify(values), []).append(run.name)
            if wanted and identify(values) == identify(values | wanted):
                self.kept.add(identify(values))

    def find_stopped(self) -> dict[str, str]:
        """Why each run that stays stopped does, by its name."""
        scores = self._score()
        lines = {}
        for key, standing in rank_conditions(scores, self.keep, self.kept & scores.keys()).items():
            if standing.is_out and scores[key][standing.passed] > -math.inf:
                several = "mean " if len(self.members[key]) > 1 else ""
                line = (
                    f"stopped after epoch {self.after[standing.passed]}: {several}mIoU {scores[key][standing.passed]:.4f},"
                    f" place {standing.place}; the best {count_kept(len(scores), self.keep, standing.passed + 1)[-1]} go"
                    " on, and so does this one without `stop`"
                )
                lines |= dict.fromkeys(self.members[key], line)
        return lines

    def find_next(self, jobs: Mapping[str, "Job"], ended: "Job | None" = None, status: str = "") -> list["Job"]:
        """Those of the jobs that are to be started now, each with the epoch at which it stops; the first in the grid first.

        Parameters
        ----------
        ended : the job that just ended, and its status.
        """
        if ended is not None:
            self.unknown.discard(ended.label)
            self.scores.pop(ended.label, None)
            if status not in ("ok", "stopped"):
                self.waiting.discard(ended.label)  # it is not tried again now, and nobody waits for its score
        scores, chosen = self._score(), []
        for key, standing in rank_conditions(scores, self.keep, self.kept & scores.keys()).items():
            goal = 0 if standing.passed == len(self.after) else self.after[standing.passed]
            for name in self.members[key]:
                due = name in jobs and name in self.waiting and self.goals.get(name) != goal and not standing.is_out
                if due and (not goal or self._score_run(name)[standing.passed] is None):
                    chosen.append(replace(jobs[name], stop_after=goal))
                    self.goals[name] = goal
        self._note_stopped()
        return chosen

    def _note_stopped(self) -> None:
        """Say in their records why runs stay stopped."""
        for name, line in self.find_stopped().items():
            folder = self.grid.folder / name
            record = read_record(folder) or {}
            if record and record.get("status") not in ("ok", "failed", "oom") and record.get("error") != line:
                update_record(folder, status="stopped", error=line)

    def _score(self) -> dict[str, list[float | None]]:
        """Of each condition that takes part, at each rung."""
        scores = {}
        for key, names in self.members.items():
            rungs = [*zip(*map(self._score_run, names), strict=True)]
            if any(score is not None for score in rungs[0]) or self.waiting.intersection(names):
                scores[key] = [self._average(names, each) for each in rungs]
        return scores

    def _average(self, names: Sequence[str], scores: Sequence[float | None]) -> float | None:
        """The mean over a condition's runs; those that failed, or are not trained by this call, do not count."""
        if any(score is None and name in self.waiting for name, score in zip(names, scores, strict=True)):
            return None
        known = [score for score in scores if score is not None]
        return fmean(known) if known else -math.inf

    def _score_run(self, name: str) -> list[float | None]:
        """At each rung; a run that goes on keeps its scores, and is read again when it ends."""
        run, notebook = self.grid.runs[self.places[name]], self.grid.notebook
        if name not in self.scores:
            none = name in self.unknown or not run.folder.is_dir() or find_changes(run.folder, notebook, run.key)
            history = [] if none else read_history(run.folder / "history.csv")
            is_over = not none and is_finished(run.folder, notebook, run.key)
            self.scores[name] = [score_history(history, epoch, is_over) for epoch in self.after]
        return self.scores[name]


def share_epochs(grid: "Grid") -> float:
    """Share of all epochs of a grid that will be trained with its `stop`; 1 without."""
    if not grid.file.stop:
        return 1.0
    halving = Halving(grid, [])
    epochs = fmean(run.parameters["epochs"] for run in grid.runs)
    others = len(halving.members) - len(halving.kept)  # a baseline is trained to the end beside the best
    counts = count_kept(len(halving.members), halving.keep, len(halving.after))
    going = [others, *(min(count, others) for count in counts)]
    steps = [end - begin for begin, end in zip([0, *halving.after], [*halving.after, epochs], strict=True)]
    trained = len(halving.kept) * epochs + sum(count * step for count, step in zip(going, steps, strict=True))
    return trained / (len(halving.members) * epochs)


def describe_stops(grid: "Grid") -> str:
    """One line for a planned grid: how many conditions go how far; "" without `stop`."""
    if not grid.file.stop:
        return ""
    halving = Halving(grid, [])
    counts = count_kept(len(halving.members), halving.keep, len(halving.after))
    steps = [f"{count} on from epoch {epoch}" for count, epoch in zip(counts, halving.after, strict=True)]
    baseline = ", the baseline to the end" if halving.kept else ""
    return (
        f"halving: {count_noun(len(halving.members), 'condition')}, {', '.join(steps)}{baseline}: at most"
        f" {share_epochs(grid):.0%} of the epochs"
    )

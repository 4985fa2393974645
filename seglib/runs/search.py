"""`search: {lr: {log: [1e-5, 1e-2]}, encoder: [resnet18, resnet50]}` with `trials: 30`: Optuna proposes, the grid runs.

A trial is proposed from the results of all trials but the last few, whichever of those have ended: so the plan does not
depend on the order in which runs end. It is kept in search.json, and goes on from there. The best trials, chosen by one
seed, are lucky too: they are trained again with further seeds, and only these are compared.
"""

import itertools
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seglib.errors import InputError
from seglib.files import read_json, write_json
from seglib.runs.conditions import RunResult, identify
from seglib.runs.grid_file import name_runs
from seglib.runs.keys import is_finished
from seglib.runs.record import read_record
from seglib.runs.search_space import Space, describe_search, draw, is_in, read_space
from seglib.text import count_noun

if TYPE_CHECKING:
    from seglib.runs.grid import Grid, Run
    from seglib.runs.grid_file import GridFile

NAME = "search.json"
STARTUP = 10  # trials that are spread evenly before results count
BEST = 3  # trials that are trained again
LAG = 2  # trials before one whose results it does not wait for; more where there are more slots


def propose(
    space: Space, place: int, told: Sequence[tuple[Mapping, float | None]], others: Sequence[Mapping], seed: int
):
    """What a trial is to try: of the first ones evenly spread, then what Optuna's TPE makes of what is known.

    Parameters
    ----------
    place : of the trial.
    told : values of trials that have ended, and their scores; None of those that failed.
    others : values of trials whose results are not told.

    Source: Bergstra et al. (2011), NeurIPS; McKay et al. (1979), Technometrics 21 (the first ones).
    """
    seen = {identify(values) for values in (*(values for values, _ in told), *others)}
    for attempt in itertools.count():
        dice = random.Random(f"{seed} {place} {attempt}")
        if attempt == 0 and place < STARTUP:
            values = {name: draw(space, name, _spread(name, place, seed)) for name in space}
        elif attempt < STARTUP and place >= STARTUP:
            values = _ask_optuna(space, told, others, dice.getrandbits(32))
        else:
            values = {name: draw(space, name, dice.random()) for name in space}
        if identify(values) not in seen:
            return values
    raise AssertionError


def _spread(name: str, place: int, seed: int) -> float:
    """Latin hypercube: each parameter has one of the first trials in each of as many even parts."""
    dice = random.Random(f"{seed} {name}")
    order = sorted(range(STARTUP), key=lambda part: dice.random())
    return (order[place] + random.Random(f"{seed} {name} {place}").random()) / STARTUP


def _ask_optuna(space: Space, told: Sequence, others: Sequence[Mapping], seed: int) -> dict[str, Any]:
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    among = {
        name: CategoricalDistribution([*range(len(each))])
        if isinstance(each, list)
        else (IntDistribution if each.is_whole else FloatDistribution)(each.low, each.high, log=each.is_log)
        for name, each in space.items()
    }
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(n_startup_trials=1, seed=seed))
    for values, score in (*told, *((values, math.nan) for values in others)):
        state = TrialState.PRUNED if score is None else TrialState.RUNNING if math.isnan(score) else TrialState.COMPLETE
        numbers = {
            name: space[name].index(value) if isinstance(space[name], list) else value for name, value in values.items()
        }
        ended = {"value": score} if state == TrialState.COMPLETE else {}
        study.add_trial(create_trial(state=state, params=numbers, distributions=among, **ended))
    found = study.ask(among).params
    return {
        name: each[found[name]] if isinstance(each, list) else each.round(found[name]) for name, each in space.items()
    }


# The plan: which trials there are, and which of them are trained again.


def read_trials(folder: Path, file: "GridFile") -> list[dict[str, Any]]:
    """The trials that are proposed, in order: those kept in the folder that are searched now, and the first ones.

    Returns
    -------
    Of each: `values`; `told`, of how many trials it knew the result; `again`, whether it is trained with further seeds.

    Raises
    ------
    InputError
        The kept ones cannot be read.
    """
    space, path = read_space(file.search), folder / NAME
    try:
        kept = [trial for trial in read_json(path)["trials"] if is_in(trial["values"], space)]
    except FileNotFoundError:
        kept = []
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path}: required the trials of a search, got: {error}; delete it to begin again") from error
    trials = [trial for trial in kept if trial["values"] != file.baseline]
    if file.baseline:
        again = any(trial["again"] for trial in kept if trial["values"] == file.baseline)
        trials.insert(0, {"values": file.baseline, "told": 0, "again": again})
    trials = trials[: file.trials]
    while len(trials) < min(file.trials, STARTUP + bool(file.baseline)):
        _add_trial(trials, file, [])
    return trials


def _add_trial(trials: list[dict], file: "GridFile", scores: Sequence[float | None]) -> None:
    """Propose one more trial, from these scores of the first ones."""
    place, values = len(trials) - bool(file.baseline), [trial["values"] for trial in trials]
    told = [*zip(values, scores, strict=False)]
    proposed = propose(read_space(file.search), place, told, values[len(told) :], file.seeds[0])
    trials.append({"values": proposed, "told": len(told), "again": False})


def list_rows(trials: Sequence[Mapping[str, Any]], file: "GridFile") -> list[dict[str, Any]]:
    """What varies in each run: of the trials, then of those that are trained again with further seeds."""
    again = [trial["values"] | {"seed": seed} for trial in trials if trial["again"] for seed in file.seeds[1:]]
    return [trial["values"] for trial in trials] + again


def name_rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the runs; later ones do not change those of earlier ones."""
    names, seen = [], set()
    for row in rows:
        name = name_runs([row])[0]
        names.append(name if name.casefold() not in seen else name_runs([row, row])[0])  # with a mark of its values
        seen.add(names[-1].casefold())
    return names


class Search:
    """Which trials are proposed, and which are trained again, while one call of run_grid.py executes a grid.

    Parameters
    ----------
    count_slots : gives the number of runs at a time.
    again : names of the runs whose results do not count, since they are to be made again.
    """

    def __init__(self, grid: "Grid", count_slots: Callable[[], int], again: Collection[str] = ()):
        self.grid, self.count_slots, self.unknown = grid, count_slots, {*again}
        self.trials = read_trials(grid.folder, grid.file)
        self.ended: set[str] = set()  # without a result, in this call
        self.known: dict[str, float | None] = {}

    def extend(self, ended: str = "", status: str = "") -> list["Run"]:
        """Add the runs to the grid that can be started now, and return those that are not done.

        Parameters
        ----------
        ended : name of the run that just ended, and its status.
        """
        self.unknown.discard(ended)
        self.ended |= {ended} if status not in ("", "ok") else set()
        file, before = self.grid.file, len(self.grid.runs)
        while True:
            scores = self._score_first()
            lag = max(LAG, min(2 * (self.count_slots() - 1), max(STARTUP, file.trials // 4)))
            if len(self.trials) == file.trials or len(scores) < len(self.trials) - lag:
                break
            _add_trial(self.trials, file, scores[: max(0, len(self.trials) - lag)])
            self._add_runs()
        if len(scores) == file.trials:
            best = sorted((-score, place) for place, score in enumerate(scores) if score is not None)[:BEST]
            for place in (*(place for _, place in best), *([0] if file.baseline else [])):
                self.trials[place]["again"] = True
        self._add_runs()
        write_json(self.grid.folder / NAME, {"trials": self.trials})
        return [run for run in self.grid.runs[before:] if not is_finished(run.folder, self.grid.notebook, run.key)]

    def _add_runs(self) -> None:
        rows, there = list_rows(self.trials, self.grid.file), {run.name for run in self.grid.runs}
        new = [(name, row) for name, row in zip(name_rows(rows), rows, strict=True) if name not in there]
        if new:
            self.grid.runs.extend(self.grid.plan(*zip(*new, strict=True)))

    def _score_first(self) -> list[float | None]:
        """Scores of the trials up to the first whose result is not known; None of one that has no score."""
        scores, names = [], name_rows([trial["values"] for trial in self.trials])
        runs = {run.name: run for run in self.grid.runs}
        for name in names:
            if name not in self.known and name not in self.unknown:
                if is_finished(runs[name].folder, self.grid.notebook, runs[name].key):
                    metrics = (read_record(runs[name].folder) or {}).get("metrics") or {}
                    score = metrics.get("miou")
                    usable = isinstance(score, int | float) and math.isfinite(score)
                    self.known[name] = float(score) if usable else None
                elif name in self.ended:
                    self.known[name] = None
            if name not in self.known:
                break
            scores.append(self.known[name])
        return scores


# What is said of a search.


def count_later(grid: "Grid") -> tuple[int, int]:
    """How many trials and how many further seeds may come beside the runs that are known."""
    if not grid.file.search:
        return 0, 0
    file, trials = grid.file, read_trials(grid.folder, grid.file)
    planned = sum(trial["again"] for trial in trials)
    most = min(BEST + bool(file.baseline), file.trials)
    return file.trials - len(trials), max(0, most - planned) * (len(file.seeds) - 1)


def foresee_search(file: "GridFile") -> str:
    """One line for a planned search; "" without one."""
    if not file.search:
        return ""
    how = f", the first {STARTUP} spread evenly, the others by Optuna's TPE" if file.trials > STARTUP else ""
    again = f"the best {BEST}{' and the baseline' if file.baseline else ''} again with {_word_seeds(file.seeds[1:])}"
    return f"search: {describe_search(file)} with seed {file.seeds[0]}{how}; then {again}"


def choose_judged(file: "GridFile", rows: Sequence[RunResult]) -> list[RunResult]:
    """The runs that conditions are judged by: all, but of a search only those of seeds that did not choose them."""
    return [row for row in rows if not file.search or row.params.get("seed") in file.seeds[1:]]


def explain_search(file: "GridFile", rows: Sequence[RunResult]) -> list[str]:
    """What was searched, in sentences; none without a search."""
    if not file.search:
        return []
    scored = [row for row in rows if row.miou is not None and row.params.get("seed") == file.seeds[0]]
    line = f"Searched {describe_search(file)}, one seed each ({file.seeds[0]})."
    if not scored:
        return [line]
    best = max(scored, key=lambda row: row.miou)
    line += (
        f" Best of {count_noun(len(scored), 'trial')}: {best.run}, {best.miou:.4f}; chosen for that, it was lucky too, and"
        " one seed gets no verdict."
    )
    if any(row.miou is not None for row in choose_judged(file, rows)):
        line += f" What was trained again is judged by {_word_seeds(file.seeds[1:])} alone, which chose nothing."
    return [line]


def _word_seeds(seeds: Sequence[int]) -> str:
    words = " and ".join(filter(None, [", ".join(map(str, seeds[:-1])), str(seeds[-1])]))
    return f"seed{'s' if len(seeds) > 1 else ''} {words}"

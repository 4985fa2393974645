"""What `search` of a grid file says: ranges and choices of parameters, checked and settled; without Optuna.

`{uniform: [LOW, HIGH]}`, `log` (evenly in the logarithm), `int`, `log_int` (both ends belong to it), or a list of choices.
"""

import importlib.util
import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from seglib.errors import InputError, InputErrors, unknown_name
from seglib.runs.conditions import BLOCKS, identify
from seglib.text import count_noun

if TYPE_CHECKING:
    from seglib.runs.grid_file import GridFile

SEEDS = 3  # of what is trained again, that of the trials among them, where the grid file gives none
MOST_CORNERS, MOST_TRIALS = 500, 10_000
_KINDS = ("uniform", "log", "int", "log_int")
_EXAMPLE = "{lr: {log: [1e-5, 1e-2]}, batch_size: {int: [2, 16]}, encoder: [resnet18, resnet50]}"
_NOT_SEARCHED = (*BLOCKS, "run_dir")


class Range(NamedTuple):
    """Numbers from `low` to `high`."""

    kind: str
    low: float
    high: float

    def at(self, share: float) -> float:
        """The number at a share of the way, from 0 to below 1, evenly; of `log` in its logarithm."""
        low, high = (self.low, self.high + 1) if self.is_whole else (self.low, self.high)
        value = low * (high / low) ** share if self.is_log else low + (high - low) * share
        return min(math.floor(value), self.high) if self.is_whole else self.round(value)

    def round(self, value: float) -> float:
        """To about a thousandth of what may matter, so that a run's name says all of it."""
        if self.is_whole:
            return int(value)
        step = min(abs(value) if self.is_log else math.inf, self.high - self.low) / 1000
        return min(max(round(value, math.ceil(-math.log10(step))), self.low), self.high)

    @property
    def count(self) -> float:
        return self.high - self.low + 1 if self.is_whole else math.inf

    @property
    def is_log(self) -> bool:
        return self.kind.startswith("log")

    @property
    def is_whole(self) -> bool:
        return self.kind.endswith("int")

    def __contains__(self, value: object) -> bool:
        kinds = int if self.is_whole else int | float
        return isinstance(value, kinds) and not isinstance(value, bool) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}{' (log)' if self.is_log else ''}"


Space = dict[str, Range | list]


def read_space(search: Mapping[str, Any]) -> Space:
    """What is searched, once `find_search_problems` has nothing to say of it."""
    return {
        name: value if isinstance(value, list) else Range(kind := next(iter(value)), *value[kind])
        for name, value in search.items()
    }


def describe_space(search: Mapping[str, Any]) -> str:
    """`lr 1e-05..0.01 (log), encoder of 2`."""
    space = read_space(search)
    return ", ".join(f"{name} {f'of {len(each)}' if isinstance(each, list) else each}" for name, each in space.items())


def draw(space: Space, name: str, share: float) -> Any:
    """A parameter's value at a share of the way through what is searched, from 0 to below 1."""
    among = space[name]
    return among[int(share * len(among))] if isinstance(among, list) else among.at(share)


def find_search_problems(file: "GridFile") -> list[str]:
    """What is wrong with `search` and `trials`, a line each."""
    search, where = file.search, f"{file.path}: `search`"
    if not search:
        return [f"{file.path}: `trials` belongs to `search`; add that, or take it out"] if file.trials else []
    if not isinstance(search, dict):
        return [f"{where} must be a mapping, such as {_EXAMPLE}, got {search!r}"]
    problems = [f"{where}: {name} {problem}" for name, among in search.items() if (problem := _refuse(among))]
    problems += [f"{where}: {name} must stand in one place, got `fixed` too" for name in search if name in file.fixed]
    problems += [f"{where}: {name} is not searched; leave it out" for name in search if name in _NOT_SEARCHED]
    with_ = {"grid": file.axes, "runs": file.listed, "stop": file.stop, "seeds: auto": file.max_seeds}
    with_ |= {"one_factor": file.one_factor, "factors": file.factors}
    problems += [f"{where} must stand without `{key}`; take one out" for key, given in with_.items() if given]
    if type(file.trials) is not int or not 1 <= file.trials <= MOST_TRIALS:
        problems.append(f"{file.path}: `trials` must be a whole number from 1 to {MOST_TRIALS:,}, got {file.trials!r}")
    if len(file.seeds) == 1:
        problems.append(f"{where} must have two `seeds` or more: that of the trials, and those of the best; got 1")
    problems += [f"{file.path}: `baseline`: {name} is not in `search`" for name in file.baseline if name not in search]
    if importlib.util.find_spec("optuna") is None:
        problems.append(f"{where}: required optuna, got none; pip install 'seglib[search]'")
    return problems


def _refuse(among: Any) -> str:
    """What is wrong with what one parameter is searched in; "" for nothing."""
    if isinstance(among, list) and among:
        return "" if len({*map(identify, among)}) == len(among) else f"must have different choices, got {among!r}"
    pair = next(iter(among.values())) if isinstance(among, dict) and len(among) == 1 else None
    kind = next(iter(among)) if pair else ""
    if kind not in _KINDS or not isinstance(pair, list) or len(pair) != 2:
        kinds = ", ".join(f"{{{each}: [LOW, HIGH]}}" for each in _KINDS)
        return f"must be a list of choices, or one of {kinds}, got {among!r}"
    if any(type(end) not in (int, float) or not math.isfinite(end) for end in pair) or not pair[0] < pair[1]:
        return f"must be two numbers, the lower one first, got {pair!r}"
    if kind.endswith("int") and any(type(end) is not int for end in pair):
        return f"must be between whole numbers, got {pair!r}"
    return (
        f"must be above 0 to be searched by its logarithm, got {pair!r}" if kind[:3] == "log" and pair[0] <= 0 else ""
    )


def set_search(file: "GridFile", overrides: Mapping[str, Any]) -> "GridFile":
    """Apply the command line: a list gives choices (of seed: the seeds), one value takes a parameter out of the search."""
    lists = {name: value for name, value in overrides.items() if isinstance(value, list) and name != "seed"}
    single = {name: value for name, value in overrides.items() if not isinstance(value, list)}
    seeds = [] if "seed" in single else overrides.get("seed", file.seeds)
    search = {name: among for name, among in (file.search | lists).items() if name not in single}
    if not search:
        raise InputError(f"{file.path}: `search`: required a parameter that --set leaves open, got none")
    baseline = {name: value for name, value in file.baseline.items() if name in search}
    fixed = {name: value for name, value in (file.fixed | single).items() if name not in lists}
    return replace(file, search=search, fixed=fixed, baseline=baseline, seeds=seeds)


def settle_search(file: "GridFile", base: Mapping[str, Any]) -> "GridFile":
    """Fill in what a search may leave out: the seeds, the values of the baseline; no more trials than there are.

    Parameters
    ----------
    base : what a run has where it is not searched.
    """
    if "seed" not in base:
        raise InputError(f"{file.path}: `search`: {file.notebook} must have a parameter `seed`, got none")
    if unknown := [name for name in file.search if name not in base]:
        raise InputErrors(f"{file.path}: `search`: {unknown_name('parameter', name, base)}" for name in unknown)
    space, first = read_space(file.search), base["seed"]
    seeds = file.seeds or [first, *(first + 21 * number for number in range(1, SEEDS))]
    baseline = {name: file.baseline.get(name, base[name]) for name in space if file.baseline}
    fixed = {name: value for name, value in file.fixed.items() if name != "seed"}
    for name, value in baseline.items():
        if not is_in({name: value}, {name: space[name]}):
            among = f"one of {space[name]}" if isinstance(space[name], list) else space[name]
            raise InputError(f"{file.path}: `baseline`: {name} must be {among}, as in `search`, got {value!r}")
    sizes = [len(each) if isinstance(each, list) else each.count for each in space.values()]
    trials = min(file.trials, math.prod(sizes))
    return replace(file, seeds=seeds, baseline=baseline, fixed=fixed, trials=trials)


def is_in(values: Mapping[str, Any], space: Space) -> bool:
    return values.keys() == space.keys() and all(value in space[name] for name, value in values.items())


def list_corners(file: "GridFile") -> list[dict[str, Any]]:
    """What is checked before anything starts: the baseline, each choice, both ends of each range and a place between."""
    space = read_space(file.search)
    known = {
        name: each if isinstance(each, list) else list(dict.fromkeys([each.at(0), each.at(0.37), each.at(1)]))
        for name, each in space.items()
    }
    if math.prod(map(len, known.values())) <= MOST_CORNERS:
        rows = [dict(zip(known, values, strict=True)) for values in itertools.product(*known.values())]
    else:
        first = {name: values[0] for name, values in known.items()}
        rows = [first, *(first | {name: value} for name, values in known.items() for value in values[1:])]
    return rows if file.baseline in (*rows, {}) else [file.baseline, *rows]


def describe_search(file: "GridFile") -> str:
    """`lr 1e-05..0.01 (log), encoder of 2; 30 trials`; "" without a search."""
    return f"{describe_space(file.search)}; {count_noun(file.trials, 'trial')}" if file.search else ""

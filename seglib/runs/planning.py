"""Before and while a grid runs: which differences it will be able to see, and which seeds are still worth their time."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from statistics import median_low
from typing import TYPE_CHECKING, Any

from seglib.runs.conditions import ENOUGH, Condition, RunResult, divide_varied, identify, summarise_conditions
from seglib.text import count_noun

if TYPE_CHECKING:
    from seglib.evaluation.verdicts import Noise
    from seglib.runs.grid import Grid

HOPELESS = 0.25  # chance of a verdict under which a condition gets no further seeds


def foresee(
    parameters: Sequence[Mapping[str, Any]],
    varied: Sequence[str],
    baseline: Mapping[str, object],
    earlier: "Callable[[], tuple[Noise | None, int]]",
    max_seeds: int = 0,
) -> str:
    """One line for a planned grid: which differences it will be able to see; "" where it has one condition.

    Parameters
    ----------
    parameters : of each run.
    earlier : gives the noise that is known already, see `measure_earlier_noise`.
    max_seeds : of a grid that chooses its seeds; what it sees is said for conditions that get all of them.
    """
    compared, blocks = divide_varied(varied)
    places = [{name: values.get(name) for name in compared} for values in parameters]
    keys = [*map(identify, places)]
    counts, conditions = Counter(keys), dict(zip(keys, places, strict=True)).values()
    wanted = {name: value for name, value in baseline.items() if name in compared}
    references = {identify(place | wanted) for place in conditions} & counts.keys()
    others = [count for key, count in counts.items() if key not in references]
    if len(counts) < 2:
        return ""
    usual, word = median_low(others or counts.values()), "block" if len(blocks) > 1 else (blocks or ["seed"])[0]
    plan = f"{count_noun(usual, word.replace('_', ' '))} x {len(counts)} conditions"
    plan = f"2 to {plan}" if max_seeds > 2 else plan
    if not wanted or not references:
        return f"{plan}: no verdict will be possible without a `baseline`; name one"
    noise, grids = earlier()
    if noise is None and max(counts.values()) == 1:
        return f"{plan}: no verdict will be possible, the noise is not known; two seeds of each would make it known"
    if noise is None:
        return f"{plan}: what they will see is not known; two seeds on this data, epochs and image size make it known"
    from seglib.evaluation.verdicts import Noise, share_level, smallest_visible

    df = _foresee_df(counts, usual, min(counts[key] for key in references), noise.df)
    visible = smallest_visible(Noise(noise.variance, df), usual, len(others) / share_level(max_seeds, max_seeds))
    known = f"noise of {count_noun(grids, 'earlier grid')}, {noise.df:.0f} df"
    return f"{plan}: differences from {visible:.3f} at 80 % power ({known})"


def _foresee_df(counts: Mapping[str, int], usual: int, least: int, earlier: float = 0) -> float:
    """Degrees of freedom of a usual comparison when all runs have a score, as `compare_conditions` counts them."""
    cells = sum(counts.values())
    if min(usual, least) > (2 if len(counts) == 2 else 1):  # paired
        own, grid = usual - 1, cells - max(counts.values()) - len(counts) + 1
    else:
        own, grid = usual + least - 2, cells - len(counts)
    df = own + min(6, max(0, grid - own))
    return df if df >= ENOUGH else df + min(6, earlier)


def find_needed(
    grid: "Grid",
    rows: Sequence[RunResult],
    tried: Collection[str] = (),
    earlier: "Callable[[], Noise | None] | None" = None,
) -> set[str]:
    """Names of the runs that are worth their time so far: all of them, except in a grid that chooses its seeds.

    Such a grid begins with two seeds of each condition. When these have ended, conditions that can't be told from their
    baseline get one more, and so does the baseline, until they are told, hopeless, or have `max_seeds`. Hopeless: the
    chance that more seeds tell is under 25 %. The seeds are gone through again from the first on, so that the answer is the
    same whenever it is asked.

    Parameters
    ----------
    rows : of each run, from `leaderboard.collect_runs`.
    tried : names of runs that are not run again though they failed.
    earlier : as in `summarise_conditions`.
    """
    if not grid.file.max_seeds:
        return {run.name for run in grid.runs}
    known = {row.run: replace(row, params=run.parameters) for row, run in zip(rows, grid.runs, strict=True)}
    plan, references = _plan_seeds(grid)
    levels = dict.fromkeys(plan, 2)
    while True:
        needed = [name for key, seeds in plan.items() for names in seeds[: levels[key]] for name in names]
        if not all(known[name].status == "ok" or name in tried for name in needed):
            return set(needed)
        options = {"worthwhile": grid.file.worthwhile, "earlier": earlier, "max_seeds": grid.file.max_seeds}
        judged = summarise_conditions([known[name] for name in needed], grid.varied, grid.file.baseline, **options)
        items = {identify(item.values): item for item in judged.conditions}
        further = [key for key, item in items.items() if levels[key] < len(plan[key]) and _is_worth_a_seed(item)]
        if not further:
            return set(needed)
        for key in further:
            levels[key] += 1
            levels[references[key]] = max(levels[references[key]], levels[key])


def _plan_seeds(grid: "Grid") -> tuple[dict[str, list[list[str]]], dict[str, str]]:
    """Of each condition the names of its runs, seed by seed, and the condition that is its baseline."""
    compared, _ = divide_varied(grid.varied)
    wanted = {name: value for name, value in grid.file.baseline.items() if name in compared}
    plan: dict[str, dict[int, list[str]]] = {}
    references = {}
    for run in grid.runs:
        values = {name: run.parameters.get(name) for name in compared}
        key = identify(values)
        plan.setdefault(key, {}).setdefault(run.parameters["seed"], []).append(run.name)
        references[key] = identify(values | wanted)
    return {key: list(seeds.values()) for key, seeds in plan.items()}, references


def _is_worth_a_seed(item: Condition) -> bool:
    from seglib.evaluation.verdicts import UNKNOWN

    if item.seeds < 2:
        return bool(item.n)  # the other one failed
    return item.verdict == UNKNOWN and (item.chance or 0) >= HOPELESS

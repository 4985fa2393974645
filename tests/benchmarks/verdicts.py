"""How often verdicts are wrong, how often intervals hold the truth, and what is seen: `python tests/benchmarks/verdicts.py`.

Grids of conditions that do not differ, scored with the noise of seeds (standard deviation 0.006) that share a part of it,
and the same grids with one condition 0.02 better. One line per kind of grid; a minute for each 1,000 grids. With --records
each grid is written to disk as its runs' records and judged as the leaderboard does; the intervals are then those that
are drawn, which hold for all comparisons together. With --auto: what `seeds: auto` comes to, against all five seeds.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from seglib.evaluation.verdicts import compare_conditions
from seglib.runs.conditions import RunResult, summarise_conditions
from seglib.runs.grid_file import GridFile
from seglib.runs.leaderboard import collect_runs
from seglib.runs.planning import find_needed

SD, GAIN = 0.006, 0.02
TOLD = {"better": 1, "worse": -1}


def draw(rng: np.random.Generator, seeds: int, conditions: int, shared: float, kind: str) -> pd.DataFrame:
    size = seeds, conditions
    own = rng.normal(size=size) if kind == "normal" else rng.standard_t(3, size=size) / 3**0.5
    return pd.DataFrame(0.5 + SD * (shared**0.5 * rng.normal(size=(seeds, 1)) + (1 - shared) ** 0.5 * own))


def judge_records(scores: pd.DataFrame) -> pd.DataFrame:
    """low, high and verdict of each condition but the first, by the leaderboard's own functions."""
    with tempfile.TemporaryDirectory() as folder:
        for seed, lr in product(scores.index, scores.columns):
            run = Path(folder, f"lr={lr},seed={seed}")
            run.mkdir()
            record = {"status": "ok", "params": {"lr": lr, "seed": seed}, "metrics": {"miou": scores.loc[seed, lr]}}
            (run / "record.json").write_text(json.dumps(record))
        rows = collect_runs(folder, sorted(path.name for path in Path(folder).iterdir()), ["lr", "seed"])
    judged = {
        item.label: (item.low, item.high, item.verdict)
        for item in summarise_conditions(rows, ["lr", "seed"], {"lr": 0}).conditions
        if item.verdict != "baseline"
    }
    table = pd.DataFrame.from_dict(judged, orient="index", columns=["low", "high", "verdict"])
    return table.set_axis(table.index.astype(int))


def choose_seeds(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores of the runs that `seeds: auto` makes, NaN for those that it leaves out."""
    runs = [
        SimpleNamespace(name=f"{seed} {lr}", parameters={"lr": lr, "seed": seed})
        for seed in scores.index
        for lr in scores.columns
    ]
    file = GridFile("", "", "", {}, {}, [], {"lr": 0}, [], max_seeds=len(scores))
    grid, seen = SimpleNamespace(runs=runs, varied=["lr", "seed"], file=file), scores * np.nan
    while True:
        values = [seen.loc[run.parameters["seed"], run.parameters["lr"]] for run in runs]
        rows = [
            RunResult(run.name, "ok" if value > 0 else "planned", {}, run.parameters, {"miou": value})
            for run, value in zip(runs, values, strict=True)
        ]
        needed = find_needed(grid, rows)
        chosen = pd.DataFrame({lr: [f"{seed} {lr}" in needed for seed in scores.index] for lr in scores})
        if chosen.equals(seen.notna()):
            return seen
        seen = scores.where(chosen)


def measure_auto(grids: int) -> None:
    print("noise   shared  conditions  better by      any wrong verdict  verdicts of five seeds  of their runs")
    gains = {"none": lambda count: 0, "one, 0.02": lambda count: np.eye(count)[1] * GAIN,
             "half, +-0.02": lambda count: GAIN * np.array([0, 1, 0, -1, 0, 1, 0, -1, 0, 1][:count])}  # fmt: skip
    for kind, shared, conditions, name in product(("normal", "t3"), (0.0, 0.37), (2, 4, 10), gains):
        rng, truth = np.random.default_rng([conditions, 5]), gains[name](conditions) + np.zeros(conditions)
        wrong, same, cost = 0, [], []
        for _ in range(grids):
            scores = draw(rng, 5, conditions, shared, kind) + truth
            seen = choose_seeds(scores)
            words = compare_conditions(seen, 0, looks=seen.count(), max_looks=5)["verdict"].map(TOLD).fillna(0)
            wrong += ((words != 0) & (words != np.sign(truth[1:]))).any()
            same.extend(words == compare_conditions(scores, 0)["verdict"].map(TOLD).fillna(0))
            cost.append(seen.notna().to_numpy().mean())
        figures = f"{wrong / grids:>17.1%}  {np.mean(same):>22.1%}  {np.mean(cost):>13.1%}"
        print(f"{kind:<8}{shared:<8}{conditions:>10}  {name:<13}{figures}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--grids", type=int, default=400, help="of each kind")
    parser.add_argument("--records", action="store_true", help="through records on disk")
    parser.add_argument("--auto", action="store_true", help="seeds: auto against five seeds of each")
    options = parser.parse_args()
    if options.auto:
        measure_auto(options.grids)
    else:
        measure(options.grids, judge_records if options.records else lambda scores: compare_conditions(scores, 0))


def measure(grids: int, judge: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    print("noise   shared  conditions  seeds  any wrong verdict  intervals that hold  gain of 0.02 seen")
    for kind, shared, conditions, seeds in product(("normal", "t3"), (0.0, 0.37), (2, 4, 10), (2, 3, 5)):
        rng = np.random.default_rng([conditions, seeds])
        wrong, held, seen = 0, [], 0
        for _ in range(grids):
            scores = draw(rng, seeds, conditions, shared, kind)
            frame = judge(scores)
            wrong += frame["verdict"].isin(["better", "worse"]).any()
            held.extend((frame["low"] < 0) & (frame["high"] > 0))
            scores[1] += GAIN
            seen += judge(scores).loc[1, "verdict"] == "better"
        figures = f"{wrong / grids:>17.1%}  {np.mean(held):>19.1%}  {seen / grids:>17.1%}"
        print(f"{kind:<8}{shared:<8}{conditions:>10}{seeds:>7}{figures}", flush=True)


if __name__ == "__main__":
    main()

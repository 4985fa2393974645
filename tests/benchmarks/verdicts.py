"""How often verdicts are wrong, how often intervals hold the truth, and what is seen: `python tests/benchmarks/verdicts.py`.

Grids of conditions that do not differ, scored with the noise of seeds (standard deviation 0.006) that share a part of it,
and the same grids with one condition 0.02 better. One line per kind of grid; a minute for each 1,000 grids. With --records
each grid is written to disk as its runs' records and judged as the leaderboard does; the intervals are then those that
are drawn, which hold for all comparisons together.
"""

import argparse
import json
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from seglib.evaluation.verdicts import compare_conditions
from seglib.runs.conditions import summarise_conditions
from seglib.runs.leaderboard import collect_runs

SD, GAIN = 0.006, 0.02


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--grids", type=int, default=400, help="of each kind")
    parser.add_argument("--records", action="store_true", help="through records on disk")
    options = parser.parse_args()
    grids, judge = options.grids, judge_records if options.records else lambda scores: compare_conditions(scores, 0)
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

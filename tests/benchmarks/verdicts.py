"""How often verdicts are wrong, how often intervals hold the truth, and what is seen: `python tests/benchmarks/verdicts.py`.

Grids of conditions that do not differ, scored with the noise of seeds (standard deviation 0.006) that share a part of it,
and the same grids with one condition 0.02 better. One line per kind of grid; a minute for each 1,000 grids.
"""

import argparse
from itertools import product

import numpy as np
import pandas as pd

from seglib.evaluation.verdicts import compare_conditions

SD, GAIN = 0.006, 0.02


def draw(rng: np.random.Generator, seeds: int, conditions: int, shared: float, kind: str) -> pd.DataFrame:
    size = seeds, conditions
    own = rng.normal(size=size) if kind == "normal" else rng.standard_t(3, size=size) / 3**0.5
    return pd.DataFrame(0.5 + SD * (shared**0.5 * rng.normal(size=(seeds, 1)) + (1 - shared) ** 0.5 * own))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--grids", type=int, default=400, help="of each kind")
    grids = parser.parse_args().grids
    print("noise   shared  conditions  seeds  any wrong verdict  intervals that hold  gain of 0.02 seen")
    for kind, shared, conditions, seeds in product(("normal", "t3"), (0.0, 0.37), (2, 4, 10), (2, 3, 5)):
        rng = np.random.default_rng([conditions, seeds])
        wrong, held, seen = 0, [], 0
        for _ in range(grids):
            scores = draw(rng, seeds, conditions, shared, kind)
            frame = compare_conditions(scores, 0)
            wrong += frame["verdict"].isin(["better", "worse"]).any()
            held.extend((frame["low"] < 0) & (frame["high"] > 0))
            scores[1] += GAIN
            seen += compare_conditions(scores, 0).loc[1, "verdict"] == "better"
        figures = f"{wrong / grids:>17.1%}  {np.mean(held):>19.1%}  {seen / grids:>17.1%}"
        print(f"{kind:<8}{shared:<8}{conditions:>10}{seeds:>7}{figures}", flush=True)


if __name__ == "__main__":
    main()

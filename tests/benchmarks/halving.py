"""Whether the best condition survives `stop: {rule: halving}`, and at what cost: `python tests/benchmarks/halving.py`.

16 conditions, keep 0.5. Real curves: halving.csv has the val mIoU by epoch of 16 trainings, params/quickstart.yaml at 64 px with
20 epochs, lr 0.0003, 0.001, 0.003, 0.01 times 4 losses, seed 21. They are played as they are, and with seeds of their own: each
run better or worse by 0.013 (SD) for good, and by 0.01 in each epoch. Made scores: of normal ones that have the given rank
correlation with the final score at the three rungs. The winner is the condition that would be best with all epochs.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from scipy import stats

from seglib.runs.halving import count_kept, rank_conditions

KEEP, SEED_SD, EPOCH_SD = 0.5, 0.013, 0.01
RUNGS = ((2, 4, 8), (3, 6, 10), (4, 8, 12))


def play(scores: np.ndarray, rng: np.random.Generator) -> set[int]:
    """Conditions that are trained to the end, when one run after the other reaches its rung, in a random order.

    scores : (conditions, rungs).
    """
    known = {number: [None] * scores.shape[1] for number in range(len(scores))}
    while True:
        standings = rank_conditions(known, KEEP)
        due = [
            number
            for number, each in standings.items()
            if each.passed < scores.shape[1] and known[number][each.passed] is None
        ]
        if not due:
            return {number for number, each in standings.items() if each.passed == scores.shape[1]}
        number = rng.choice(due)
        known[number][standings[number].passed] = scores[number, standings[number].passed]


def share(conditions: int, rungs: tuple[int, ...], epochs: int) -> float:
    counts, ends = [conditions, *count_kept(conditions, KEEP, len(rungs))], [0, *rungs, epochs]
    return float(np.dot(counts, np.diff(ends)) / (conditions * epochs))


def read_curves() -> np.ndarray:
    with open(Path(__file__).with_suffix(".csv")) as file:
        return np.array([row[1:] for row in csv.reader(file)][1:], float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--orders", type=int, default=2000)
    orders, rng, curves = parser.parse_args().orders, np.random.default_rng(0), read_curves()
    conditions, epochs = curves.shape
    for rungs in RUNGS:
        columns, cost = [epoch - 1 for epoch in rungs], share(conditions, rungs, epochs)
        so_far = np.maximum.accumulate(curves, axis=1)
        kept = [int(so_far[:, -1].argmax()) in play(so_far[:, columns], rng) for _ in range(orders)]
        lost, survived = [], []
        for _ in range(orders):
            noise = SEED_SD * rng.normal(size=(conditions, 1)) + EPOCH_SD * rng.normal(size=curves.shape)
            best = np.maximum.accumulate(curves + noise, axis=1)
            left = play(best[:, columns], rng)
            survived.append(int(best[:, -1].argmax()) in left)
            lost.append(best[:, -1].max() - best[[*left], -1].max())
        rank = [stats.spearmanr(so_far[:, column], so_far[:, -1]).statistic for column in columns]
        print(
            f"real curves, after {rungs} of {epochs}: rank correlation {np.round(rank, 2)}, {cost:.0%} of the epochs; the"
            f" winner survives {np.mean(kept):.1%} of {orders} orders, {np.mean(survived):.1%} of {orders} grids with other"
            f" seeds, where {np.mean(lost):.4f} mIoU is lost on average"
        )
    for wanted in ((0.5, 0.7, 0.8), (0.7, 0.8, 0.9), (0.8, 0.9, 0.95), (0.9, 0.95, 0.98)):
        pearson = 2 * np.sin(np.pi * np.array(wanted) / 6)  # of normal scores
        survived = []
        for _ in range(orders):
            final = rng.normal(size=(conditions, 1))
            scores = pearson * final + np.sqrt(1 - pearson**2) * rng.normal(size=(conditions, 3))
            survived.append(int(final.argmax()) in play(scores, rng))
        print(f"made scores, rank correlation {wanted}: the winner survives {np.mean(survived):.1%} of {orders} grids")


if __name__ == "__main__":
    main()

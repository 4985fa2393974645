"""Which epoch is the best, by what score and with which weights, and when no better one is waited for any more."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from seglib.vocabulary import AVERAGES

BETTER = {"miou": 1, "miou_image": 1, "accuracy": 1, "loss": -1}  # 1: higher is better


def rank(scores: Mapping[str, float], select_by: str) -> float:
    """A score, higher is better; the worst where it is no number: nothing would ever be better than NaN."""
    score = BETTER[select_by] * scores[_column(select_by)]
    return -math.inf if math.isnan(score) else score


def is_over(rows: Sequence[Mapping], epochs: int, patience: int, select_by: str) -> bool:
    """Whether no epoch follows these: all were made, or the plain weights have not become better for `patience` epochs."""
    ranks = [rank(row, select_by) for row in rows]
    waited = len(ranks) - 1 - ranks.index(max(ranks)) if ranks else 0
    return len(rows) >= epochs or bool(patience and waited >= patience)


def find_best(history: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The best by each score: {"miou": {"epoch", "weights" ("plain", "ema", ...), "score"}, ...}."""
    best = {}
    for select_by, sign in BETTER.items():
        columns = {"plain": _column(select_by)} | {name: f"{name}_{_column(select_by)}" for name in AVERAGES}
        scores = {name: sign * (sign * history[column]).max() for name, column in columns.items() if column in history}
        scores = {name: score for name, score in scores.items() if not math.isnan(score)}
        if scores:
            weights = max(scores, key=lambda name: sign * scores[name])
            row = history[columns[weights]].eq(scores[weights]).idxmax()
            best[select_by] = {
                "epoch": int(history.loc[row, "epoch"]),
                "weights": weights,
                "score": float(scores[weights]),
            }
    return best


def _column(select_by: str) -> str:
    return "val_loss" if select_by == "loss" else select_by

"""Averages of weights against the plain weights of the same trainings: what is kept is the better, so it cannot tell."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, variance
from typing import TYPE_CHECKING

from seglib.runs.conditions import BLOCKS, RunResult, identify
from seglib.runs.leaderboard import read_average_scores

if TYPE_CHECKING:
    from seglib.evaluation.verdicts import Noise


def explain_averages(
    grid_dir: str | Path, rows: Sequence[RunResult], varied: Sequence[str], worthwhile: float = 0.005
) -> list[str]:
    """A sentence that says what is compared, then a line per average: its mean difference from the plain weights.

    The differences of one training are paired; their variance is shrunk toward that of the grid's other averages as in
    `evaluation.verdicts`, and the intervals are for all averages together (Holm).
    """
    compared, found = [name for name in varied if name not in BLOCKS], {}
    for row in (row for row in rows if row.miou is not None):
        label = ", ".join(f"{name}={row.texts.get(name, '-')}" for name in compared)
        place = identify({name: row.params.get(name) for name in compared})
        for name, (score, plain) in read_average_scores(Path(grid_dir) / row.run, row.params).items():
            found.setdefault((place, f"{name} ({label})" if label else name), []).append(score - plain)
    if not found:
        return []
    return [
        "Averages against the plain weights of the same trainings, each in its own best epoch by mIoU. A run keeps the better"
        " of both, chosen on the validation images that score it, so its own score cannot show that an average lost; conditions"
        " that differ in averaging are compared by their averages' scores.",
        *_judge(found, worthwhile),
    ]


def _judge(differences: dict[tuple[str, str], list[float]], worthwhile: float) -> list[str]:
    """For each average, by condition and label: mean difference, interval and verdict."""
    import pandas as pd

    from seglib.evaluation.verdicts import judge_differences

    noises, rows = {label: _measure(values) for label, values in differences.items()}, {}
    for label, values in differences.items():
        noise = noises[label].borrow(_pool(noises, label))
        error = math.sqrt(noise.variance / len(values)) or math.nan  # trainings that all agree say nothing of noise
        rows[label] = fmean(values), error, noise.df, len(values)
    frame = pd.DataFrame(rows.values(), columns=["difference", "error", "df", "blocks"])
    lines = []
    for (_, label), row in zip(rows, judge_differences(frame, worthwhile).itertuples(), strict=True):
        known = math.isfinite(row.family_low)
        interval = f" [{row.family_low:+.4f}, {row.family_high:+.4f}]" if known else ""
        lines.append(f"{label} {row.difference:+.4f}{interval} over {row.blocks}, {row.verdict}")
    return lines


def _measure(values: Sequence[float]) -> "Noise":
    from seglib.evaluation.verdicts import Noise

    return Noise(variance(values), len(values) - 1) if len(values) > 1 else Noise()


def _pool(noises: "dict[tuple[str, str], Noise]", besides: tuple[str, str]) -> "Noise":
    """The noise of all others."""
    from seglib.evaluation.verdicts import Noise

    total = Noise()
    for label, noise in noises.items():
        total = total.pool(noise) if label != besides else total
    return total

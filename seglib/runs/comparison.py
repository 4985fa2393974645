"""Are two conditions' scores further apart than seeds are? A t interval and Holm's correction, on plain numbers."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

Scores = Sequence[tuple[object, float]]  # (seed, score)


class Interval(NamedTuple):
    """95 % t interval of a difference of means, two-sided p value of "no difference", and whether seeds were paired."""

    low: float
    high: float
    p: float
    paired: bool


def compare_means(ours: Scores, theirs: Scores) -> Interval | None:
    """Interval of mean(ours) - mean(theirs); None when the seeds made no spread, so that nothing says what noise is.

    With x ours, y theirs, s sample standard deviations (n - 1) and t the quantile of Student's t:

    - paired, when both have the same seeds: d_i = x_i - y_i; mean(d) +- t(0.975, n - 1) * s_d / sqrt(n)
    - Welch otherwise: se^2 = s_x^2/n_x + s_y^2/n_y; mean(x) - mean(y) +- t(0.975, df) * se,
      df = se^4 / ((s_x^2/n_x)^2 / (n_x - 1) + (s_y^2/n_y)^2 / (n_y - 1))

    Parameters
    ----------
    ours, theirs : sequence of (seed, score)
        At least two each.

    Source: Welch (1947), Biometrika 34.
    """
    from scipy.special import stdtr, stdtrit  # numpy with it: only a finished grid needs them

    paired, error, df = _standard_error(ours, theirs)
    if error < 1e-12:
        return None
    difference = fmean(score for _, score in ours) - fmean(score for _, score in theirs)
    half = float(stdtrit(df, 0.975)) * error
    return Interval(difference - half, difference + half, 2 * float(stdtr(df, -abs(difference) / error)), paired)


def correct_holm(p_values: list[float]) -> list[float]:
    """Holm's corrected p values, in the order given: of m sorted upwards, p(k) becomes max_{j<=k} min(1, (m-j+1) p(j)).

    Source: Holm (1979), Scandinavian Journal of Statistics 6.
    """
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def _standard_error(ours: Scores, theirs: Scores) -> tuple[bool, float, float]:
    """(paired, standard error of the difference of means, degrees of freedom)."""
    x, y = dict(ours), dict(theirs)
    if x.keys() == y.keys() and len(x) == len(ours) and len(y) == len(theirs):
        return True, stdev(x[seed] - y[seed] for seed in x) / math.sqrt(len(x)), len(x) - 1
    a, b = (stdev(score for _, score in scores) ** 2 / len(scores) for scores in (ours, theirs))
    spread = a**2 / (len(ours) - 1) + b**2 / (len(theirs) - 1)
    return False, math.sqrt(a + b), (a + b) ** 2 / spread if spread else math.inf

"""Verdicts: whether a condition's score differs from its baseline's by more than seeds and folds do by themselves.

A *block* is what conditions share beside what is compared: a seed, a fold, or both. Scores stand in a table of blocks
(rows) and conditions (columns), NaN where a run has none.
"""

from __future__ import annotations  # a plan of runs needs the noise, and no pandas

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit  # scipy.stats itself takes half a second to import

if TYPE_CHECKING:
    import pandas as pd

BORROWED = 6  # degrees of freedom that a comparison borrows from the rest of the grid, at most
ALPHA = 0.05  # of a family of comparisons
POWER = 0.8
MOST_BLOCKS = 50  # more are not advised
UNKNOWN = "can't tell yet"


@dataclass(frozen=True)
class Noise:
    """Variance of a score between blocks, and the degrees of freedom with which it is known (0: not at all)."""

    variance: float = 0.0
    df: float = 0.0

    def borrow(self, other: Noise) -> Noise:
        """Shrunk toward another noise, which counts with at most `BORROWED` degrees of freedom."""
        return self.pool(Noise(other.variance, min(BORROWED, other.df)))

    def pool(self, other: Noise) -> Noise:
        """The mean of both variances, weighted by their degrees of freedom."""
        df = self.df + other.df
        return Noise((self.df * self.variance + other.df * other.variance) / df, df) if df else Noise()

    @property
    def std(self) -> float:
        """Standard deviation; NaN where nothing is known."""
        return math.sqrt(self.variance) if self.df else math.nan


def measure_noise(scores: pd.DataFrame | np.ndarray) -> Noise:
    """The noise of a grid: the residual of score = condition + block, or within conditions where that has under 2 df."""
    table = np.asarray(scores, float)
    residual = _fit_two_way(table)
    return residual if residual.df > 1 else _pool_columns(table)


def compare_conditions(
    scores: pd.DataFrame,
    baseline: Hashable | Mapping,
    *,
    worthwhile: float = 0.005,
    earlier: Noise | None = None,
    looks: Mapping[Hashable, int] | None = None,
    max_looks: int = 0,
    others: int = 0,
) -> pd.DataFrame:
    """Compare each condition with its baseline.

    The variance of a condition's own paired differences is shrunk toward twice the residual variance of the grid's other
    differences, which counts with at most 6 degrees of freedom; a t interval has the sum of both. Without shared blocks
    the variances within conditions take their place, and for two conditions of two seeds too, where a pair has one
    degree of freedom. p values are corrected for all comparisons by Holm's method.

    Parameters
    ----------
    scores : blocks in rows, conditions in columns, NaN where there is none.
    baseline : one of the columns, or a mapping of each condition that is compared to its own.
    worthwhile : smallest difference worth having: where the verdict's interval lies within it, both are equal.
    earlier : noise of earlier grids, of one score, for where this grid's has under 5 degrees of freedom.
    looks, max_looks : where conditions get seeds until they are told: how many each has so far, and may get. Each look
        spends a share of the level (`share_level`), so that all of them together are wrong no more often than one.
    others : conditions that were stopped since they did worse: comparisons too, or the best of many would look better.

    Returns
    -------
    One row per comparison, by the condition's name: `difference`, `error`, `df`, `paired`, `blocks`, and the columns of
    `judge_differences`. With `max_looks` also `chance`: that it is told better or worse once it has all its seeds.

    Source: simulated in tests/evaluation/test_verdicts.py.
    """
    import pandas as pd

    table, names = scores.to_numpy(float), list(scores.columns)
    noises = _fit_two_way(table), _pool_columns(table), earlier or Noise()
    pairs = baseline if isinstance(baseline, Mapping) else {name: baseline for name in names if name != baseline}
    places = {name: (names.index(name), names.index(other)) for name, other in pairs.items()}
    rows = {name: _compare_columns(table, *pair, *noises) for name, pair in places.items()}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["difference", "error", "df", "paired", "blocks"])
    if not max_looks:
        return judge_differences(frame, worthwhile, others=others)
    taken = np.array([looks[name] for name in frame.index])
    shares = np.array([share_level(count, max_looks) for count in taken])
    frame = judge_differences(frame, worthwhile, shares, others)
    last = frame["level"].to_numpy() / shares * share_level(max_looks, max_looks)
    return frame.assign(chance=_foresee(frame, max_looks / np.clip(taken, 1, max_looks), last))


def judge_differences(
    differences: pd.DataFrame, worthwhile: float = 0.005, shares: np.ndarray | float = 1.0, others: int = 0
) -> pd.DataFrame:
    """Verdicts of differences for all of them together (Holm).

    Parameters
    ----------
    differences : one row each: `difference`, its standard `error` (NaN: not known), `df`, `blocks` (how many made it).
    shares : of the level that each may use now.
    others : comparisons that count with them, and are told nothing of.

    Returns
    -------
    The rows with `low`, `high` (95 % interval of this difference alone), `p` (divided by its share), `p_holm`, `level`,
    `family_low`, `family_high` (the interval that the verdict goes by, of 1 - `level`), `verdict` and `more_blocks` (how
    many more would probably tell; NaN where it is told, or more than 50). Where nothing is known of the noise, these are
    NaN and the verdict is "can't tell yet".

    Source: Holm (1979), Scandinavian Journal of Statistics 6.
    """
    frame = differences.copy()
    with np.errstate(invalid="ignore", divide="ignore"):
        p = 2 * stdtr(frame["df"].to_numpy(), -(frame["difference"] / frame["error"]).abs().to_numpy())
    frame["p"] = np.minimum(1, p / shares)
    frame["p_holm"], level = correct_holm(frame["p"], others=others)
    frame["level"] = level * shares
    for names, each in ((("low", "high"), ALPHA), (("family_low", "family_high"), frame["level"])):
        half = -stdtrit(frame["df"].to_numpy(), np.asarray(each) / 2) * frame["error"]
        frame[names[0]], frame[names[1]] = frame["difference"] - half, frame["difference"] + half
    frame["verdict"] = [_word(row, worthwhile) for row in frame.itertuples()]
    frame["more_blocks"] = [_count_more(row, worthwhile) for row in frame.itertuples()]
    return frame


def share_level(looks: int, max_looks: int) -> float:
    """The share of the level that may be used after `looks` seeds of `max_looks`; the first look is after two.

    The last look has 0.65, those before it a half together. As looks see each other's seeds, that is less than the whole:
    0.78 to 0.99 of it for 3 to 10 seeds and levels from 0.05 to 0.0025, of normal scores.

    Source: simulated in tests/evaluation/test_verdicts.py; the idea is that of alpha spending, Lan and DeMets (1983).
    """
    if max_looks <= 2:
        return 1.0
    return 0.65 if looks >= max_looks else 0.5 / (max_looks - 2)


def _foresee(frame: pd.DataFrame, growth: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Chance that each is told at a last look of that level, with `growth` times the blocks of now.

    The blocks to come are expected to differ as those of now do, by a mean that is known as well as it is now.
    """
    difference, error, df, blocks = frame[["difference", "error", "df", "blocks"]].to_numpy(float).T
    last = error / np.sqrt(growth)
    bar, spread = -stdtrit(df + blocks * (growth - 1), level / 2) * last, np.sqrt(error**2 - last**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return stdtr(df, (difference - bar) / spread) + stdtr(df, (-difference - bar) / spread)


def correct_holm(p: pd.Series, alpha: float = ALPHA, others: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Holm's corrected p values, and the level of each one's step; NaN are no comparisons.

    An interval of level 1 - step leaves out 0 exactly where the corrected p is at most `alpha`. `others` are comparisons
    with p = 1.

    Source: Holm (1979), Scandinavian Journal of Statistics 6.
    """
    values = np.asarray(p, float)
    order = np.argsort(values)[: int(np.isfinite(values).sum())]  # NaN come last
    count = len(order)
    factors = count + others - np.arange(count)
    corrected, steps = np.full(len(values), np.nan), np.full(len(values), alpha)
    corrected[order] = np.minimum(1, np.maximum.accumulate(factors * values[order]))
    rejected = int((corrected[order] <= alpha).sum())
    steps[order] = alpha / np.maximum(factors, count + others - rejected)
    return corrected, steps


def shrink_means(scores: pd.DataFrame, noise: Noise) -> pd.Series:
    """Each condition's mean, drawn toward the grid's by as much as noise explains of their spread.

    The best of k means is too high by selection; this is its honest expectation (empirical Bayes, normal prior).
    """
    means, error = scores.mean(), noise.variance / scores.count()
    spread = max(0.0, means.var(ddof=1) - error.mean()) if len(means) > 1 and noise.df else 0.0
    share = spread / (spread + error) if noise.df and spread else float(not noise.df)
    return means.mean() + share * (means - means.mean())


def smallest_visible(noise: Noise, blocks: int, comparisons: int = 1) -> float:
    """The difference that is called better in 80 % of grids, at Holm's first step; NaN where no noise is known.

    Parameters
    ----------
    noise : of one score, as `measure_noise` gives it.
    blocks : that both sides share.
    """
    if not noise.df or blocks < 1:
        return math.nan
    reach = stdtrit(noise.df, POWER) - stdtrit(noise.df, ALPHA / (2 * comparisons))
    return float(reach * math.sqrt(2 * noise.variance / blocks))


def _compare_columns(
    table: np.ndarray, column: int, baseline: int, residual: Noise, within: Noise, earlier: Noise
) -> tuple[float, float, float, bool, int]:
    """Difference, standard error, degrees of freedom, whether blocks are paired, and how many there are.

    table : (blocks, conditions); `residual` and `within` are its noise, with paired blocks and without.
    """
    ours, theirs = table[:, column], table[:, baseline]
    pairs = (ours - theirs)[~np.isnan(ours - theirs)]
    ours, theirs = ours[~np.isnan(ours)], theirs[~np.isnan(theirs)]
    if not (len(ours) and len(theirs)):
        return math.nan, math.nan, math.nan, False, 0
    alone = (~np.isnan(table)).any(axis=0).sum() == 2
    paired = len(pairs) > (2 if alone else 1)
    if paired:  # the noise of the difference of two scores is twice that of one
        own = Noise(pairs.var(ddof=1), len(pairs) - 1)
        grid, earlier = (Noise(2 * noise.variance, noise.df) for noise in (residual, earlier))
        factor, difference = 1 / len(pairs), pairs.mean()
    else:
        own, grid = _pool_columns(table[:, [column, baseline]]), within
        factor, difference = 1 / len(ours) + 1 / len(theirs), ours.mean() - theirs.mean()
    # No run counts twice: the grid lends what is not this comparison's own.
    noise = own.borrow(Noise(grid.variance, max(0, grid.df - own.df)))
    noise = noise.borrow(earlier) if noise.df < 5 else noise
    blocks = len(pairs) if paired else min(len(ours), len(theirs))
    if not noise.df or noise.variance < 1e-24:  # seeds that change nothing say nothing of noise
        return difference, math.nan, math.nan, paired, blocks
    return difference, math.sqrt(noise.variance * factor), noise.df, paired, blocks


def _pool_columns(table: np.ndarray) -> Noise:
    """Variance within columns."""
    counts = (~np.isnan(table)).sum(axis=0)
    columns = table[:, counts > 0]
    df = int(np.maximum(counts - 1, 0).sum())
    return Noise(float(np.nansum((columns - np.nanmean(columns, axis=0)) ** 2) / df), df) if df else Noise()


def _fit_two_way(table: np.ndarray) -> Noise:
    """Residual variance of score = condition + block by least squares, for any cells that are missing."""
    blocks, conditions = np.nonzero(~np.isnan(table))
    scores, cells = table[blocks, conditions], np.arange(len(blocks))
    design = np.zeros((len(cells), sum(table.shape)))
    design[cells, blocks] = design[cells, table.shape[0] + conditions] = 1
    solution, _, rank, _ = np.linalg.lstsq(design, scores, rcond=None)
    df = len(cells) - int(rank)
    return Noise(float(((scores - design @ solution) ** 2).sum() / df), df) if df else Noise()


def _word(row: tuple, worthwhile: float) -> str:
    if row.p_holm <= ALPHA:
        return "better" if row.difference > 0 else "worse"
    inside = -worthwhile <= row.family_low and row.family_high <= worthwhile
    return "equal" if inside else UNKNOWN


def _count_more(row: tuple, worthwhile: float) -> float:
    """Further blocks after which this difference would be told with a power of 80 %, or shown to be none."""
    if row.verdict != UNKNOWN or not np.isfinite(row.error) or not row.blocks:
        return math.nan
    more = np.arange(1, MOST_BLOCKS - row.blocks + 1)
    df, error = row.df + more, row.error * np.sqrt(row.blocks / (row.blocks + more))
    visible = (stdtrit(df, POWER) - stdtrit(df, row.level / 2)) * error
    enough = more[visible <= max(abs(row.difference), worthwhile)]
    return float(enough[0]) if len(enough) else math.nan


def correlate_ranks(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Spearman's rank correlation and its 95 % interval, which needs 5 pairs; NaN where it cannot be told.

    Of a perfect order the interval is that of the next to perfect one, up to 1: five pairs are in order by chance too.

    Source: Bonett and Wright (2000), Psychometrika 65: the standard error of Fisher's z of rank correlations.
    """
    count = len(first)
    if count < 5 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan, math.nan, math.nan
    from scipy import stats

    rho = float(stats.spearmanr(first, second).statistic)
    next_to_perfect = 1 - 12 / (count * (count**2 - 1))
    shown = min(max(rho, -next_to_perfect), next_to_perfect)
    half = -ndtri(ALPHA / 2) * math.sqrt((1 + shown**2 / 2) / (count - 3))
    low, high = np.tanh([math.atanh(shown) - half, math.atanh(shown) + half]).tolist()
    return rho, low if rho > -next_to_perfect else -1.0, high if rho < next_to_perfect else 1.0


def describe_submissions(scores: pd.DataFrame) -> list[str]:
    """What scores that came say of those that were expected: the gap, the next candidate, the ranking; a line each.

    Parameters
    ----------
    scores : one row per submission: `name`, `expected` (validation's score), `came` (the leaderboard's), 0..1, NaN where
        there is none.
    """
    known = scores.dropna(subset=["expected"])
    both, waiting = known[known["came"].notna()], known[known["came"].isna()]
    gaps, count = both["came"] - both["expected"], len(both)
    if not count:
        return []
    mean, spread = gaps.mean(), gaps.std() if count > 1 else math.nan
    reach = -stdtrit(count - 1, ALPHA / 2) * spread if count > 1 else math.nan
    half, known = reach / math.sqrt(count), count > 1
    interval = f"95 % interval {mean - half:+.4f} to {mean + half:+.4f}" if known else "one score has no interval"
    lines = [f"leaderboard minus expected: {mean:+.4f} on average, {interval} (n = {count})"]
    if len(waiting):
        best, candidate = scores["came"].max(), waiting.loc[waiting["expected"].idxmax()]
        expected, half = candidate["expected"] + mean, reach * math.sqrt(1 + 1 / count)
        gain = expected - best
        word = "can't tell" if not known else "yes" if gain > half else "no" if gain <= 0 else "perhaps"
        why = f"the gap alone moves a score by ±{half:.4f}" if known else "one score does not say how far the gap moves"
        lines.append(
            f"next, {candidate['name']}: {expected:.4f} expected on the leaderboard, {gain:+.4f} to the best so far; {why}."
            f" Worth a submission? {word}"
        )
    rho, low, high = correlate_ranks(both["expected"].to_numpy(), both["came"].to_numpy())
    rank = f"{rho:.3f}, 95 % interval {low:.2f} to {high:.2f}"
    if math.isnan(rho):
        rank = f"cannot be told from {'fewer than 5 scores' if count < 5 else 'scores that are all the same'}"
    return [*lines, f"whether a better expected score ranks better (Spearman): {rank} (n = {count})"]

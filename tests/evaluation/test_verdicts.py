import numpy as np
import pandas as pd
import pytest
from scipy import stats

from seglib.evaluation.verdicts import (
    Noise,
    compare_conditions,
    correct_holm,
    correlate_ranks,
    describe_submissions,
    measure_noise,
    shrink_means,
    smallest_visible,
)

SD = 0.006


def draw(rng, blocks, conditions, shared=0.37, kind="normal"):
    """Scores of conditions that do not differ, from blocks that share a part of their variance."""
    own = (
        rng.normal(size=(blocks, conditions))
        if kind == "normal"
        else rng.standard_t(3, size=(blocks, conditions)) / 3**0.5
    )
    return pd.DataFrame(0.5 + SD * (np.sqrt(shared) * rng.normal(size=(blocks, 1)) + np.sqrt(1 - shared) * own))


def test_two_conditions_alone_are_the_paired_t_test():
    scores = draw(np.random.default_rng(1), 5, 2)
    (row,) = compare_conditions(scores, 0).itertuples()
    test = stats.ttest_rel(scores[1], scores[0])
    interval = test.confidence_interval(0.95)
    assert (row.p, row.low, row.high) == pytest.approx((test.pvalue, interval.low, interval.high))
    assert row.df == 4
    assert row.paired


@pytest.mark.parametrize("shift", [0, 2])
def test_two_seeds_or_other_seeds_are_the_pooled_t_test(shift):
    """Two pairs have one degree of freedom; without shared seeds there are none."""
    ours, theirs = [0.50, 0.52], [0.55, 0.56]
    scores = pd.DataFrame({"a": pd.Series(ours), "b": pd.Series(theirs, index=[shift, shift + 1])})
    (row,) = compare_conditions(scores, "a").itertuples()
    test = stats.ttest_ind(theirs, ours)
    interval = test.confidence_interval(0.95)
    assert (row.p, row.low, row.high) == pytest.approx((test.pvalue, interval.low, interval.high))
    assert not row.paired


def test_the_variance_of_a_comparison_is_shrunk_by_six_degrees_of_freedom_at_most():
    scores = draw(np.random.default_rng(2), 3, 9)
    row = compare_conditions(scores, 0).loc[4]
    own = (scores[4] - scores[0]).var(ddof=1)
    values = scores - scores.mean() - scores.mean(axis=1).to_numpy()[:, None] + scores.to_numpy().mean()
    grid = 2 * (values**2).to_numpy().sum() / (2 * 8)
    error = np.sqrt((2 * own + 6 * grid) / 8 / 3)
    assert row.df == 2 + 6
    assert row.p == pytest.approx(2 * stats.t.sf(abs(row.difference) / error, 8))


def test_holm_by_hand_and_its_steps_agree_with_the_verdicts():
    corrected, steps = correct_holm(pd.Series([0.04, 0.01, np.nan, 0.02]))
    np.testing.assert_allclose(corrected, [0.04, 0.03, np.nan, 0.04])
    np.testing.assert_allclose(steps, [0.05, 0.05 / 3, 0.05, 0.05 / 2])


def test_the_interval_of_the_verdict_leaves_out_zero_exactly_where_it_says_better_or_worse():
    rng = np.random.default_rng(3)
    for _ in range(60):
        scores = draw(rng, 3, 6) + rng.choice([0, 0, 0.01, 0.02], size=6)
        frame = compare_conditions(scores, 0)
        outside = (frame["family_low"] > 0) | (frame["family_high"] < 0)
        assert (outside == frame["verdict"].isin(["better", "worse"])).all()
        assert (frame["family_low"] <= frame["low"] + 1e-12).all()


def test_equal_needs_an_interval_within_what_is_worth_having():
    scores = pd.DataFrame({"a": [0.5, 0.51, 0.52, 0.53], "b": [0.5001, 0.5099, 0.5201, 0.5299]})
    assert compare_conditions(scores, "a").loc["b", "verdict"] == "equal"
    assert compare_conditions(scores, "a", worthwhile=0.0001).loc["b", "verdict"] == "can't tell yet"


def test_a_condition_without_noise_can_not_be_told_and_earlier_grids_help():
    scores = pd.DataFrame({"a": [0.50], "b": [0.56]})
    row = compare_conditions(scores, "a").loc["b"]
    assert row["verdict"] == "can't tell yet"
    assert row["difference"] == pytest.approx(0.06)
    assert np.isnan(row["p"])
    helped = compare_conditions(scores, "a", earlier=Noise(SD**2, 20)).loc["b"]
    assert helped["verdict"] == "better"
    assert helped["df"] == 6


def test_a_failed_baseline_seed_does_not_drop_the_pairing_of_the_others():
    scores = draw(np.random.default_rng(4), 5, 3)
    scores.loc[2, 0] = np.nan
    frame = compare_conditions(scores, 0)
    assert frame["paired"].all()
    assert frame.loc[1, "difference"] == pytest.approx((scores[1] - scores[0]).drop(2).mean())


def test_a_condition_without_a_score_is_a_row_that_says_nothing():
    scores = pd.DataFrame({"a": [0.5, 0.51], "b": [np.nan, np.nan], "c": [0.6, 0.61]})
    frame = compare_conditions(scores, "a")
    assert frame.loc["b"].drop(["paired", "verdict", "blocks", "level"]).isna().all()
    assert frame.loc["c", "verdict"] == "better"


def test_more_blocks_would_tell():
    """By simulation: after so many more, about 80 % of grids tell the difference that was seen."""
    rng, told = np.random.default_rng(5), 0
    scores = pd.DataFrame(rng.normal(size=(3, 4)) * SD)
    scores -= scores.mean()
    scores[1] += 0.012
    more = int(compare_conditions(scores, 0).loc[1, "more_blocks"])
    assert 1 <= more <= 10
    sd = measure_noise(scores).std
    for _ in range(100):
        table = pd.DataFrame(rng.normal(size=(3 + more, 4)) * sd)
        table[1] += 0.012
        told += compare_conditions(table, 0).loc[1, "verdict"] == "better"
    assert 0.6 <= told / 100 <= 0.95


def test_the_smallest_visible_difference_is_seen_in_eight_of_ten_grids():
    rng, told = np.random.default_rng(6), 0
    size = smallest_visible(Noise(SD**2, 8), blocks=3)
    for _ in range(200):
        table = pd.DataFrame(rng.normal(size=(3, 5)) * SD)
        table[1] += size
        told += compare_conditions(table, 0).loc[1, "p"] < 0.05
    assert 0.7 <= told / 200 <= 0.9


def test_the_best_of_conditions_that_do_not_differ_is_expected_near_the_mean():
    rng = np.random.default_rng(7)
    scores = pd.DataFrame(rng.normal(size=(3, 10)) * SD)
    shrunk = shrink_means(scores, measure_noise(scores))
    assert shrunk.max() < 0.6 * scores.mean().max()
    apart = scores + np.arange(10) * 0.1
    np.testing.assert_allclose(shrink_means(apart, measure_noise(apart)), apart.mean(), atol=0.001)


@pytest.mark.parametrize("kind", ["normal", "t3"])
@pytest.mark.parametrize(("blocks", "conditions"), [(2, 2), (3, 4), (2, 10)])
def test_conditions_that_do_not_differ_are_rarely_called_better_or_worse(kind, blocks, conditions):
    rng, errors, covered = np.random.default_rng([blocks, conditions]), 0, []
    grids = 250
    for _ in range(grids):
        frame = compare_conditions(draw(rng, blocks, conditions, kind=kind), 0)
        errors += frame["verdict"].isin(["better", "worse"]).any()
        covered.extend((frame["low"] < 0) & (frame["high"] > 0))
    assert errors / grids <= 0.05 + 3 * (0.05 * 0.95 / grids) ** 0.5
    assert np.mean(covered) >= 0.91


def test_a_gain_of_three_standard_deviations_is_seen_by_two_seeds_of_ten_conditions():
    rng, told = np.random.default_rng(8), 0
    for _ in range(150):
        scores = draw(rng, 2, 11)
        scores[1] += 0.02
        told += compare_conditions(scores, 0).loc[1, "verdict"] == "better"
    assert told / 150 > 0.5  # 65 %; a t test of its own two pairs sees 4 %


def test_the_rank_correlation_is_scipy_s_with_an_interval_and_needs_five():
    first, second = np.random.default_rng(0).random((2, 9)).round(1)
    rho, low, high = correlate_ranks(first, second)
    assert rho == pytest.approx(stats.spearmanr(first, second).statistic) and -1 < low < rho < high < 1
    for pairs in ([], [1, 2, 3], [1, 2, 3, 4], [5, 5, 5, 5, 5]):
        assert np.isnan(correlate_ranks(np.array(pairs), np.arange(len(pairs)))).all()
    rho, low, high = correlate_ranks(np.arange(5), np.arange(5))
    assert rho == pytest.approx(1) and high == 1 and low < 0


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9])
def test_the_interval_of_a_rank_correlation_holds_the_truth(correlation):
    rng, held = np.random.default_rng(1), []
    for _ in range(300):
        first, noise = rng.normal(size=(2, 8))
        _, low, high = correlate_ranks(first, correlation * first + (1 - correlation**2) ** 0.5 * noise)
        held.append(low <= 6 / np.pi * np.arcsin(correlation / 2) <= high)
    assert np.mean(held) > 0.92


def describe(expected, came, waiting=()):
    names = [f"{number}.csv" for number in range(len(expected) + len(waiting))]
    came = [*came, *([np.nan] * len(waiting))]
    return describe_submissions(pd.DataFrame({"name": names, "expected": [*expected, *waiting], "came": came}))


def test_scores_that_came_say_what_the_next_is_worth():
    expected, came = [0.50, 0.51, 0.52, 0.53], [0.541, 0.549, 0.561, 0.569]
    gap, rank = describe(expected, came)
    assert gap == "leaderboard minus expected: +0.0400 on average, 95 % interval +0.0382 to +0.0418 (n = 4)"
    assert rank.endswith("cannot be told from fewer than 5 scores (n = 4)")
    words = [describe(expected, came, [score])[1].rpartition("? ")[2] for score in (0.54, 0.531, 0.52)]
    assert words == ["yes", "perhaps", "no"]
    assert describe(expected, came, [0.54, 0.2])[1].startswith(
        "next, 4.csv: 0.5800 expected on the leaderboard, +0.0110 to"
    )
    assert describe([0.5], [0.54], [0.6])[1].endswith("Worth a submission? can't tell")
    assert describe([0.5], [np.nan]) == describe([], []) == []
    assert describe([*expected, 0.54], [*came, 0.58])[1].endswith(
        "(Spearman): 1.000, 95 % interval -0.17 to 1.00 (n = 5)"
    )

import itertools

import pytest
from scipy import stats

from seglib.runs.leaderboard import compare_means, correct_holm

OURS, THEIRS = [0.4123, 0.4150, 0.4101], [0.3966, 0.4012, 0.3990]


def seeded(scores, first=0):
    return list(enumerate(scores, first))


def test_conditions_with_the_same_seeds_are_compared_pair_by_pair():
    interval = compare_means(seeded(OURS), seeded(THEIRS))
    expected = stats.ttest_rel(OURS, THEIRS)
    assert interval.paired
    assert interval.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (interval.low, interval.high) == pytest.approx(expected.confidence_interval(0.95), rel=1e-9)


def test_pairs_are_matched_by_seed_and_not_by_order():
    ours = seeded(OURS)
    assert compare_means(ours[::-1], seeded(THEIRS)) == pytest.approx(compare_means(ours, seeded(THEIRS)))


@pytest.mark.parametrize("theirs", [seeded(THEIRS, first=1), seeded([*THEIRS, 0.402]), [(None, s) for s in THEIRS]])
def test_conditions_with_other_seeds_are_compared_by_welch(theirs):
    interval = compare_means(seeded(OURS), theirs)
    expected = stats.ttest_ind(OURS, [score for _, score in theirs], equal_var=False)
    assert not interval.paired
    assert interval.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (interval.low, interval.high) == pytest.approx(expected.confidence_interval(0.95), rel=1e-9)


def test_scores_that_no_seed_changes_say_nothing_about_noise():
    assert compare_means(seeded([0.5, 0.5]), seeded([0.4, 0.4], first=5)) is None
    assert compare_means(seeded([0.42, 0.43]), seeded([0.40, 0.41])) is None  # one difference, whatever the seed


@pytest.mark.parametrize("order", [*itertools.permutations([0.01, 0.04, 0.03, 0.005])])
def test_holm_corrects_each_p_value_whatever_the_order(order):
    worked = {0.005: 0.02, 0.01: 0.03, 0.03: 0.06, 0.04: 0.06}  # 4 x 0.005, 3 x 0.01, 2 x 0.03, then not below it
    assert correct_holm(list(order)) == pytest.approx([worked[p] for p in order])


def test_holm_leaves_one_p_value_alone_and_stops_at_one():
    assert correct_holm([0.03]) == [0.03]
    assert correct_holm([0.9, 0.8]) == [1.0, 1.0]
    assert correct_holm([]) == []

import numpy as np
import pytest
from scipy import stats

from seglib.evaluation.compare import (
    OUTCOMES,
    choose_changes,
    compare_class_iou,
    compare_images,
    compare_noises,
    count_outcomes,
    estimate_noise,
    find_interval,
    find_scenes,
    show_outcomes,
)
from seglib.evaluation.metrics import pooled_miou
from seglib.evaluation.verdicts import Noise


def random_triples(images=4, seed=0):
    rng = np.random.default_rng(seed)
    truths = rng.integers(0, 3, (images, 9, 9)).astype(np.uint8)
    preds = [
        np.where(rng.random(truths.shape) < share, truths, rng.integers(0, 3, truths.shape)) for share in (0.6, 0.3)
    ]
    truths[rng.random(truths.shape) < 0.1] = 255
    return truths, *(pred.astype(np.uint8) for pred in preds)


def random_confusions(images, right, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 20, (images, 3, 3)) + np.eye(3, dtype=int) * rng.integers(0, right, (images, 1, 1))


def test_outcomes_say_who_is_right():
    truth, pred_a, pred_b = np.array([[0, 1, 1, 1, 255]]), np.array([[0, 1, 0, 0, 1]]), np.array([[0, 0, 1, 0, 1]])
    outcome = show_outcomes(truth.astype(np.uint8), pred_a.astype(np.uint8), pred_b.astype(np.uint8))
    assert outcome.tolist() == [[0, 1, 2, 3, 255]]
    assert OUTCOMES == ("both", "only_a", "only_b", "neither")


def test_outcomes_are_counted_by_class_and_by_image():
    truths, preds_a, preds_b = random_triples()
    by_class, by_image = count_outcomes(zip(truths, preds_a, preds_b, strict=True), list("xyz"))
    right = {"both": (True, True), "only_a": (True, False), "only_b": (False, True), "neither": (False, False)}
    for column, (name, (a, b)) in enumerate(right.items()):
        is_so = ((preds_a == truths) == a) & ((preds_b == truths) == b) & (truths != 255)
        assert by_class[name].tolist() == [int((is_so & (truths == c)).sum()) for c in range(3)]
        assert by_image[:, column].tolist() == is_so.sum((1, 2)).tolist()


def test_disagreements_show_each_run_s_best_images():
    by_image = np.array([[0, 5, 1, 0], [0, 0, 9, 0], [0, 50, 0, 0], [0, 3, 3, 0]])
    words = ("only A", "only B")
    chosen, titles = choose_changes(by_image[:, 1], by_image[:, 2], [10, 11, 12, 13], 3, words)
    assert chosen == [2, 0, 1]
    assert titles[0] == "image 12\nonly A 50 px\nonly B 0 px"
    assert choose_changes([5], [1], [10], 5)[0] == [0]


def bootstrap(a, b, resamples):
    rng, drawn = np.random.default_rng(5), []
    for _ in range(resamples):
        chosen = rng.integers(0, len(a), len(a))
        drawn.append(pooled_miou(a[chosen]) - pooled_miou(b[chosen]))
    return np.quantile(drawn, [0.025, 0.975])


def test_the_difference_is_that_of_the_pooled_scores():
    a, b = random_confusions(30, 100, 0), random_confusions(30, 30, 1)
    difference, low, high = compare_images(a, b, np.arange(30))
    assert difference == pytest.approx(pooled_miou(a) - pooled_miou(b))
    assert 0 < low < difference < high
    table = compare_class_iou(a, b, list("xyz"))
    assert table["difference"].mean() == pytest.approx(difference)


def test_a_run_does_not_differ_from_itself():
    a = random_confusions(10, 50, 4)
    assert compare_images(a, a, np.arange(10)) == (0, 0, 0)


def find(names, groups=None):
    scenes, how = find_scenes(groups, names)
    return scenes.tolist(), how


def test_scenes_are_the_data_s_groups_and_images_without_one_are_alone():
    scenes, how = find(["a.png"] * 6, ["x", "x", None, "y", "", float("nan")])
    assert (scenes, how) == ([0, 0, 1, 2, 3, 4], "5 scenes (by the data's groups)")
    assert find([f"{i}.png" for i in range(4)], [7, 7, 8, 9])[0] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    "names",
    [
        ["0001TP_006690.png", "0001TP_006720.png", "0006R0_f00930.png", "0006R0_f00960.png", "Seq05VD_f00930.png"],
        ["a_0_01_leftImg8bit.png", "a_0_02_leftImg8bit.png", "a_1_01_leftImg8bit.png", "a_1_02_leftImg8bit.png",
         "b_0_01_leftImg8bit.png"],
        ["bear/0010.jpg", "bear/0020.jpg", "cat/0010.jpg", "cat/0020.jpg", "dog/0010.jpg"],
    ],
)  # fmt: skip
def test_scenes_are_guessed_from_file_names_that_differ_in_their_last_number(names):
    assert find(names) == ([0, 0, 1, 1, 2], "3 scenes (guessed from file names)")
    assert find(names, [None] * 5)[0] == [0, 0, 1, 1, 2]


def test_images_whose_names_say_nothing_are_scenes_of_their_own():
    assert find(["tree.png", "house.png", "b3.png"]) == (
        [0, 1, 2], "3 images, each a scene of its own (guessed from file names)"
    )  # fmt: skip


def test_one_video_is_cut_into_stretches_of_neighbours_and_that_is_said():
    names = [f"video_{number}.png" for number in (7, 8, 9, 100, 101, 10, 11, 12, 13, 14)]
    scenes, how = find(names)
    assert scenes == [0, 0, 1, 4, 4, 1, 2, 2, 3, 3]
    assert how == (
        "5 stretches of neighbouring images, too alike for what other scenes would say (1 scene guessed from file names)"
    )
    assert find(names, ["a"] * 9 + ["b"])[1].endswith("(2 scenes by the data's groups)")
    assert find([3, 1, 2])[0] == [2, 0, 1] and find(["a1.png"])[0] == [0]


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=(12, 1))
    noise = estimate_noise(lambda total: float(total[0]), values, np.arange(12))
    assert noise.std == pytest.approx(np.sqrt(11 / 12) * np.sqrt(((values - values.mean()) ** 2).sum()))
    assert noise.df == pytest.approx(11)
    low, high = find_interval(1.0, noise)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 11, 1.0, noise.std))


def test_images_of_one_scene_count_as_one():
    a, b = random_confusions(12, 60, 2), random_confusions(12, 50, 3)
    alone = compare_images(a, b, np.arange(12))
    repeated = [np.repeat(side, 4, axis=0) for side in (a, b)]
    assert compare_images(*repeated, np.repeat(np.arange(12), 4)) == pytest.approx(alone)
    single = compare_images(*repeated, np.arange(48))
    assert single[2] - single[1] < 0.6 * (alone[2] - alone[1])
    assert np.isnan(compare_images(a, b, np.zeros(12, int))[1:]).all()


def test_the_interval_of_single_images_is_near_that_of_the_bootstrap():
    a, b = random_confusions(200, 60, 2), random_confusions(200, 50, 3)
    difference, low, high = compare_images(a, b, np.arange(200))
    assert difference == pytest.approx(pooled_miou(a) - pooled_miou(b))
    np.testing.assert_allclose([low, high], bootstrap(a, b, 3000), atol=0.1 * (high - low))


def make_runs(seeds, images, gain, seed_noise, image_noise, seed):
    """Two sides of runs whose IoU of two classes is their share of right pixels, over images in scenes of 4."""
    rng = np.random.default_rng(seed)
    scene = np.repeat(rng.normal(0, image_noise, images // 4), 4)
    sides = []
    for shift in (gain, 0):
        right = 0.6 + shift + rng.normal(0, seed_noise, (seeds, 1)) + (scene if shift else 0)
        hits = np.round(500 * np.broadcast_to(right, (seeds, images))).astype(int)
        sides.append(np.stack([np.stack([hits, 500 - hits], -1), np.stack([500 - hits, hits], -1)], -2))
    return sides


def test_both_noises_are_named_apart_and_add_up():
    a, b = make_runs(3, 40, 0.05, 0.02, 0.03, 0)
    scenes = np.repeat(np.arange(10), 4)
    found = compare_noises(a, b, scenes)
    scores = [[pooled_miou(run) for run in side] for side in (a, b)]
    assert found["difference"] == pytest.approx(np.mean(scores[0]) - np.mean(scores[1]))
    assert found["std_error"] ** 2 == pytest.approx(found["seed_std_error"] ** 2 + found["image_std_error"] ** 2)
    seeds = stats.ttest_ind(*scores).confidence_interval(0.95)
    assert (found["seed_low"], found["seed_high"]) == pytest.approx((seeds.low, seeds.high))
    assert found["seed_df"] == 4 and found["image_df"] == pytest.approx(9) and 4 < found["df"] < 13
    one = compare_noises(a[:1], b[:1], scenes)
    assert np.isnan([one["low"], one["seed_low"]]).all() and one["image_low"] < one["difference"] < one["image_high"]
    known = compare_noises(a[:1], b[:1], scenes, Noise(0.01**2, 5))
    assert known["seed_std_error"] == pytest.approx(0.01) and known["low"] < known["image_low"]


def test_one_run_more_of_the_same_scene_says_nothing_of_seeds():
    a, b = make_runs(2, 40, 0.05, 0.0, 0.03, 1)
    found = compare_noises(a, b, np.repeat(np.arange(10), 4))
    assert found["seed_std_error"] == 0 and found["low"] == pytest.approx(found["image_low"])


def test_intervals_of_other_scenes_hold_the_truth_where_those_of_images_do_not():
    held = []
    for trial in range(100):
        a, b = make_runs(1, 32, 0.05, 0.0, 0.05, trial)
        intervals = [compare_images(a[0], b[0], scenes)[1:] for scenes in (np.repeat(np.arange(8), 4), np.arange(32))]
        truth = 0.65 / 1.35 - 0.6 / 1.4
        held.append([low <= truth <= high for low, high in intervals])
    by_scene, by_image = np.mean(held, 0)
    assert by_scene > 0.88 and by_image < 0.75

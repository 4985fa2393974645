from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import matthews_corrcoef

from seglib.data.dataset import Subset
from seglib.errors import InputError
from seglib.evaluation.compare import choose_changes
from seglib.evaluation.metrics import mean_iou, pooled_miou
from seglib.inference import selection
from seglib.inference.ensemble import Ensemble
from seglib.inference.selection import (
    SEARCHES,
    deal_images,
    find_greedy,
    judge_searches,
    recommend_weights,
    select_greedily,
    survey_members,
    trace_selection,
)
from seglib.inference.stores import describe_store, open_store, write_store
from seglib.inference.votes import score_weighted, soft_vote, tabulate_changes

CLASSES, COUNT, SIZE = ["Background", "Paper", "Metal"], 12, 16


def make_truth(masks, groups=None):
    pixels = SimpleNamespace(image_ids=np.arange(len(masks)), image_size=SIZE, read=lambda index: (None, masks[index]))
    names = [f"{chr(97 + number)}.jpg" for number in range(len(masks))]
    images = pd.DataFrame({"group": groups or [None] * len(masks), "file_name": names})
    data = SimpleNamespace(class_names=tuple(CLASSES), images=images, json_path=SimpleNamespace(name="val.json"))
    return Subset(data, pixels, np.arange(len(masks)))


def make_store(folder, probabilities):
    array = (255 * probabilities).round().astype(np.uint8)
    names = [f"{image}.jpg" for image in range(len(array))]
    about = describe_store(np.arange(len(array)), names, CLASSES, SIZE, "uint8", {})
    write_store(folder, about, lambda start: iter([array]), len(array))
    return open_store(folder)


def guess(masks, skill, seed, heat=1.0):
    """Probabilities that know the truth by `skill`; divided by `heat` before the softmax, which calibrates them."""
    noise = np.random.default_rng(seed).normal(size=(len(masks), 3, SIZE, SIZE))
    logits = noise + skill * (masks[:, None] == np.arange(3)[:, None, None])
    odds = np.exp(logits / heat)
    return odds / odds.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Truth with ignored pixels, and four members: good, fair, fair, worse than chance."""
    masks = (
        np.random.default_rng(0).choice([0, 1, 2, 255], (COUNT, SIZE, SIZE), p=[0.6, 0.2, 0.1, 0.1]).astype(np.uint8)
    )
    folder = tmp_path_factory.mktemp("stores")
    stores = [make_store(folder / f"m{n}", guess(masks, skill, n + 1)) for n, skill in enumerate((2, 1.2, 1.2, -1))]
    truth = make_truth(masks)
    return stores, truth, survey_members(stores, truth, folds=3, pixels=10**6)


def test_a_survey_scores_each_member(scene):
    stores, truth, survey = scene
    for store, confusion in zip(stores, survey.confusions, strict=True):
        np.testing.assert_array_equal(confusion, score_weighted([store], truth))


def test_correlation_of_errors_equals_scikit_learn(scene):
    stores, truth, survey = scene
    masks = np.stack([truth.read(image)[1] for image in range(COUNT)])
    valid = masks != 255
    wrong = [(np.stack(list(soft_vote([store]))) != masks)[valid] for store in stores]
    phi = Ensemble.correlate_errors(SimpleNamespace(survey=survey))
    np.testing.assert_allclose(phi, [[matthews_corrcoef(a, b) for a in wrong] for b in wrong], atol=1e-12)


def test_a_sample_of_all_disputed_pixels_scores_exactly(scene):
    stores, truth, survey = scene
    assert (survey.stands_for == 1).all()
    for drawn in ((0, 1, 2, 3), (0,) * 7 + (1,) * 3, (1, 2, 2, 2, 2, 3, 3, 3, 3, 3), (2,)):
        counts, exact = (
            survey.count_next(drawn[:-1])[drawn[-1]],
            score_weighted(stores, truth, np.bincount(drawn, minlength=4)),
        )
        assert mean_iou(counts.sum(0)) == pytest.approx(pooled_miou(exact), abs=1e-12)
        for fold in range(3):
            np.testing.assert_array_equal(counts[fold], exact[survey.fold_of_image == fold].sum(0))


def test_a_small_sample_stands_for_all_valid_pixels(scene):
    stores, truth, survey = scene
    small = survey_members(stores, truth, pixels=COUNT * 20, seed=1)
    assert len(small.labels) == COUNT * 16  # four fifths of the pixels
    assert not (small.labels == 255).any()
    assert small.stands_for.sum() + small.agreed.sum() == pytest.approx(survey.confusions[0].sum())
    np.testing.assert_array_equal(small.confusions, survey.confusions)
    again = survey_members(stores, truth, pixels=COUNT * 20, seed=1)
    np.testing.assert_array_equal(small.planes, again.planes)
    assert not np.array_equal(small.planes, survey_members(stores, truth, pixels=COUNT * 20, seed=2).planes)


def test_greedy_selection_equals_trying_all_by_hand(scene):
    stores, truth, survey = scene
    (path, _), drawn = select_greedily(survey, draws=4), []
    for expected in path:
        scores = [
            pooled_miou(score_weighted(stores, truth, np.bincount([*drawn, member], minlength=4)))
            for member in range(4)
        ]
        assert scores[expected] == pytest.approx(max(scores), abs=2e-4)
        drawn.append(expected)
    assert path[0] == 0
    assert 3 not in path


def test_weights_of_a_path_end_at_its_best_draw(scene, monkeypatch):
    monkeypatch.setattr(selection, "select_greedily", lambda *_: ([2, 0, 2, 1], [0.4, 0.5, 0.7, 0.6]))
    assert find_greedy(scene[2]).tolist() == [1 / 3, 0, 2 / 3, 0]


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_beats_the_mean_where_a_member_is_worse_than_chance(scene, name):
    stores, truth, survey = scene
    weights = SEARCHES[name](survey)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    assert weights[3] < 0.05
    mean, found = (pooled_miou(score_weighted(stores, truth, given)) for given in ([1] * 4, weights))
    assert found > mean + 0.02
    np.testing.assert_array_equal(SEARCHES[name](survey), weights)


def test_a_searchs_gain_is_judged_on_images_that_it_did_not_see(scene):
    stores, truth, survey = scene
    judged, weights = judge_searches(stores, truth, survey, ("greedy", "best"))
    table, (recommended, text) = judged.set_index("weights"), recommend_weights(judged)
    assert table.index.tolist() == ["mean", "greedy", "best"]
    assert table.loc["greedy", "searched"] == pytest.approx(
        pooled_miou(score_weighted(stores, truth, weights["greedy"]))
    )
    assert table.loc["greedy", "gain"] == pytest.approx(table.loc["greedy", "held_out"] - table.loc["mean", "held_out"])
    assert table.loc["greedy", "low"] < table.loc["greedy", "gain"] < table.loc["greedy", "high"]
    assert recommended == table["gain"].idxmax()
    assert "use it" in text
    with pytest.raises(InputError, match="unknown search 'gredy'; did you mean 'greedy'"):
        judge_searches(stores, truth, survey, ("gredy",))


def test_a_search_that_only_fits_its_images_is_not_recommended(scene):
    """Three copies of one member: no weighting changes anything."""
    stores, truth, _ = scene
    same = [stores[0]] * 3
    table, _ = judge_searches(same, truth, survey_members(same, truth, folds=3))
    recommended, text = recommend_weights(table)
    assert recommended == "mean"
    assert "greedy: cross-validated gain +0.0000 mIoU [+0.0000, +0.0000]: not above 0 for certain" in text


def test_held_out_images_take_no_part_in_their_own_weights(scene):
    stores, truth, survey = scene
    for fold in range(3):
        seen = np.flatnonzero(survey.fold_of_image != fold)
        images = Subset(truth.data, truth.pixels, truth.indices[seen])
        alone = survey_members([store.take(seen) for store in stores], images, pixels=10**6)
        assert select_greedily(survey, fold) == select_greedily(alone)
        for find in SEARCHES.values():
            np.testing.assert_array_equal(find(survey, fold), find(alone))


def test_each_image_is_scored_with_the_weights_of_the_other_folds(scene, monkeypatch):
    stores, truth, survey = scene
    weights = {None: np.ones(4), 0: np.eye(4)[0], 1: np.eye(4)[3], 2: np.ones(4)}
    monkeypatch.setitem(SEARCHES, "greedy", lambda survey, held_out=None: weights[held_out] / weights[held_out].sum())
    table, _ = judge_searches(stores, truth, survey, ("greedy",))
    expected = sum(
        score_weighted(stores, truth, weights[fold])[survey.fold_of_image == fold].sum(0) for fold in range(3)
    )
    assert table["held_out"][1] == pytest.approx(mean_iou(expected))


def test_images_of_a_group_are_in_one_fold():
    masks = np.zeros((8, SIZE, SIZE), np.uint8)
    folds = deal_images(make_truth(masks, ["a", "b", "a", None, None, "b", "a", None]), 2, seed=0)
    assert folds[0] == folds[2] == folds[6]
    assert folds[1] == folds[5]
    assert set(folds) == {0, 1}
    assert len(set(deal_images(make_truth(masks), 9, seed=0))) == 8
    with pytest.raises(InputError, match="folds: required 2 or more, got 1"):
        deal_images(make_truth(masks), 1, seed=0)


def test_one_video_is_dealt_by_stretches_and_it_is_said(capsys):
    truth = make_truth(np.zeros((10, SIZE, SIZE), np.uint8), ["a"] * 10)
    folds = deal_images(truth, 4, seed=0)
    assert (folds[::2] == folds[1::2]).all() and set(folds) == {0, 1, 2, 3}
    assert "judged on 5 stretches of neighbouring images, too alike" in capsys.readouterr().out
    np.testing.assert_array_equal(folds, deal_images(truth, 4, seed=0))


def test_one_image_has_weights_that_are_not_judged(scene):
    stores, truth, _ = scene
    stores, truth = [store.take([0]) for store in stores], Subset(truth.data, truth.pixels, truth.indices[:1])
    survey = survey_members(stores, truth)
    table, weights = judge_searches(stores, truth, survey, ("greedy",))
    recommended, text = recommend_weights(table)
    assert (recommended, list(weights)) == ("mean", ["mean", "greedy"])
    assert text == "one image: nothing is left to judge a search on, so the plain mean is recommended, not judged"
    greedy = table.iloc[1]
    assert greedy["searched"] > table["searched"][0] and np.isnan(greedy["held_out"])
    curve = trace_selection(survey, list("abcd"))
    assert curve["held_out"].isna().all() and curve["searched"].notna().all()


def test_the_curve_has_what_was_searched_and_what_was_held_out(scene):
    stores, truth, survey = scene
    curve = trace_selection(survey, list("abcd"), draws=6)
    assert curve["draw"].tolist() == [1, 2, 3, 4, 5, 6]
    assert curve["member"].iloc[0] == "a"
    assert curve["searched"].iloc[0] == pytest.approx(pooled_miou(score_weighted(stores[:1], truth)), abs=2e-4)
    assert curve["held_out"].iloc[0] == pytest.approx(curve["searched"].iloc[0])  # "a" is the best of every part
    assert curve["best_mean"].iloc[3] == pytest.approx(pooled_miou(score_weighted(stores, truth)), abs=2e-4)
    assert curve["best_mean"].iloc[4:].isna().all()


def test_changes_are_counted_and_the_images_with_most_of_them_chosen(scene):
    stores, truth, _ = scene
    was, now = (np.stack(list(soft_vote(each))) for each in (stores[:1], stores[:3]))
    table = tabulate_changes(truth, was, now)
    masks = np.stack([truth.read(image)[1] for image in range(COUNT)])
    valid = masks != 255
    assert table["won"].tolist() == (valid & (now == masks) & (was != masks)).sum((1, 2)).tolist()
    assert table["lost"].tolist() == (valid & (was == masks) & (now != masks)).sum((1, 2)).tolist()
    assert table["wrong_both"].tolist() == (valid & (was != now) & (was != masks) & (now != masks)).sum((1, 2)).tolist()
    net = table["won"] - table["lost"]
    positions, titles = choose_changes(table["won"], table["lost"], table["image_id"], 4)
    assert net[positions[0]] == net.max()
    assert net[positions[2]] == net.min()
    assert (
        titles[0] == f"image {positions[0]}\nwon {table['won'][positions[0]]} px\nlost {table['lost'][positions[0]]} px"
    )


def test_a_mean_is_counted_once_whoever_asks(scene, monkeypatch):
    stores, truth, _ = scene
    survey = survey_members(stores, truth, folds=3)
    curve = trace_selection(survey, list("abcd"))
    monkeypatch.setattr(selection.Survey, "_count", None)  # another count would fail
    judge_searches(stores, truth, survey)
    pd.testing.assert_frame_equal(trace_selection(survey, list("abcd")), curve)

"""What validation decided is applied as it was measured: votes, specialists, CRF, components, on any images."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from seglib.data.dataset import Subset, open_data
from seglib.errors import InputError
from seglib.evaluation.compare import measure_gain
from seglib.evaluation.metrics import image_miou, iou_per_class, pooled_miou
from seglib.inference import ensemble as module
from seglib.inference import predict as predict_module
from seglib.inference.ensemble import Ensemble
from seglib.inference.postprocess import remove_small_components
from seglib.inference.predict import predict_validation
from seglib.inference.selection import describe_ensemble
from seglib.inference.stores import describe_store, open_store, write_store
from seglib.inference.votes import read_pair, score_weighted
from seglib.zoo.crf import CrfParams, dense_crf

SIZE, IMAGES = 64, 3


@pytest.fixture(scope="module")
def truth(small_data):
    _, val = open_data(str(small_data), "train.json", "val.json", split="given", folds=2, fold=0, seed=1, paint_order="area",
                       background="class", image_size=SIZE, cache=False)  # fmt: skip
    return replace(val, indices=val.indices[:IMAGES])


@pytest.fixture(scope="module")
def write(tmp_path_factory, truth):
    """A store of given probabilities (N, C, S, S)."""

    def write(probabilities, class_names=None):
        folder = tmp_path_factory.mktemp("store") / "store"
        names = list(class_names or truth.data.class_names)
        file_names = truth.data.images["file_name"].to_numpy()[truth.indices].tolist()
        about = describe_store(truth.image_ids, file_names, names, SIZE, "uint8", {"weights_sha256": "0"})
        stored = np.round(255 * probabilities).astype(np.uint8)
        write_store(folder, about, lambda start: iter([stored[start:]]), IMAGES, None)
        return open_store(folder)

    return write


@pytest.fixture(scope="module")
def stores(write, truth):
    shape = IMAGES, SIZE, SIZE
    rng, alpha = np.random.default_rng(5), np.full(truth.data.num_classes, 0.4)
    return [write(rng.dirichlet(alpha, shape).transpose(0, 3, 1, 2)) for _ in range(3)]


@pytest.fixture
def plain(stores, truth, tmp_path):
    """Three members of equal weights."""
    members = [SimpleNamespace(name=name, folders=(name,), image_size=SIZE) for name in "abc"]
    options = {"device": "cpu", "size": SIZE}
    return Ensemble(members, [], options, folder=tmp_path, stores=stores, images=truth, weights=np.ones(3))


@pytest.fixture
def advised(plain, write, truth):
    """The same with a specialist of class 3, who is sure of it in the first eight rows and sure that there is none else."""
    sure = np.zeros((IMAGES, 2, SIZE, SIZE))
    sure[:, 0, 8:], sure[:, 1, :8] = 1, 1
    specialist = write(sure, [truth.data.class_names[0], truth.data.class_names[3]])
    return replace(plain, special_stores=[specialist], specialists=[SimpleNamespace(name="s", folders=("s",))])


def predict(ensemble):
    return np.stack(list(ensemble.predict_masks()))


def found(step, chosen, on=True):
    return {"step": step, "on": on, "chosen": chosen}


def test_masks_are_those_of_the_weighted_probabilities(plain, stores):
    weighed = replace(plain, weights=np.array([1.0, 2.0, 0.0]))
    probabilities = [np.stack([store.read_probabilities(place) for place in range(IMAGES)]) for store in stores]
    expected = (probabilities[0] + 2 * probabilities[1]).argmax(1)
    assert (predict(weighed) == expected).mean() > 0.999  # sums of quantised probabilities may tie
    merged = np.stack(list(weighed.average()))
    assert np.allclose(merged.sum(1), 1, atol=1e-5) and (merged.argmax(1) == expected).mean() > 0.9999


def test_the_crf_refines_the_merged_probabilities_and_components_go_last(plain, truth):
    params = CrfParams(smoothness_weight=2, smoothness_sigma=2, appearance_weight=2, appearance_sigma=5, iterations=2)
    sizes = [0] + [20] * (truth.data.num_classes - 1)
    preds = predict(replace(plain, crf=found("crf", vars(params)), components=found("components", sizes)))
    for place, (probabilities, pred) in enumerate(zip(plain.average(), preds, strict=True)):
        refined = dense_crf(truth.read(place)[0], probabilities, params).argmax(0).astype(np.uint8)
        assert np.array_equal(pred, remove_small_components(refined, sizes))
    assert not np.array_equal(preds, predict(plain))


def test_members_are_scored_one_by_one(plain, stores, truth):
    table, classes = plain.tabulate_members(), truth.data.class_names
    assert table.columns.tolist() == ["member", "miou", "miou_image", "accuracy", *classes]
    for (_, row), name, store in zip(table.iterrows(), "abc", stores, strict=True):
        confusion = score_weighted([store], truth)
        assert (row["member"], row["miou"]) == (name, pytest.approx(pooled_miou(confusion)))
        assert row["miou_image"] == pytest.approx(image_miou(confusion))
        np.testing.assert_allclose(row[list(classes)].astype(float), iou_per_class(confusion.sum(0)))


def test_a_step_that_is_off_changes_nothing(plain, truth):
    off = found("components", [50] * truth.data.num_classes, on=False)
    decided = replace(plain, crf=found("crf", None, on=False), components=off)
    assert np.array_equal(predict(plain), predict(decided))


@pytest.mark.parametrize("options", [{"specialist_weight": 100.0}, {"specialist_confidence": 0.5}])
def test_a_specialist_counts_for_its_own_class_by_weight_or_where_it_is_sure(advised, options):
    assert (predict(replace(advised, **options))[:, :8] == 3).all()
    assert not (predict(advised)[:, :8] == 3).all()


@pytest.mark.parametrize("vote", ["geometric", "hard"])
def test_other_votes_are_taken(plain, vote):
    preds, soft = predict(plain.set_vote(vote)), predict(plain)
    assert preds.shape == soft.shape and 0.3 < (preds == soft).mean() < 1
    assert plain.set_vote("soft").steps == ()
    assert plain.set_vote(vote).tabulate_steps()["step"].tolist() == [f"{vote} vote"]


def test_a_member_that_is_named_decides_ties(plain):
    assert plain.set_vote("hard", "b").tie_break == 1
    with pytest.raises(InputError, match="unknown member 'd'"):
        plain.set_vote("hard", "d")


def test_folds_of_a_member_share_its_weight_on_test_images(plain, stores, truth, monkeypatch):
    members = [SimpleNamespace(name=name, folders=folders) for name, folders in (("a", ("1",)), ("b", ("2", "3")))]
    decided = replace(plain, members=members, stores=stores[:2], weights=np.array([1.0, 3.0]), tie_break=1)
    monkeypatch.setattr(module, "predict_test", lambda members, **options: stores)
    monkeypatch.setattr(Ensemble, "open_test_images", lambda self, json_name: truth)
    tested = decided.predict_test("test.json")
    assert (tested.weights.tolist(), tested.tie_break) == ([1.0, 1.5, 1.5], 1)
    assert [name for name, _ in tested.name_results()] == stores[0].file_names


def test_a_specialist_of_folds_is_the_mean_of_them_on_test_images(advised, stores, truth, monkeypatch):
    special = replace(advised, specialists=[SimpleNamespace(name="s", folders=("1", "2", "3"))])
    monkeypatch.setattr(module, "predict_test", lambda members, **options: stores)
    monkeypatch.setattr(Ensemble, "open_test_images", lambda self, json_name: truth)
    (average,) = special.predict_test("test.json").special_stores
    expected = np.mean([store.read_probabilities(1) for store in stores], axis=0)
    np.testing.assert_allclose(average.read_probabilities(1), expected, atol=0.501 / 255)


def test_kept_masks_are_counted_and_named(plain, truth, tmp_path):
    masks = plain.masks
    assert np.array_equal(np.load(tmp_path / "masks_voted.npy", allow_pickle=False), predict(plain))
    assert plain.confusion.sum() == sum((truth.read(i)[1] != 255).sum() for i in range(IMAGES))
    assert np.trace(plain.confusion.sum(0)) == sum((masks[i] == truth.read(i)[1]).sum() for i in range(IMAGES))
    named = dict(plain.name_results())
    assert [*named] == truth.data.images["file_name"].tolist()[:IMAGES]
    assert np.array_equal(named[[*named][1]], masks[1])
    assert next(plain.name_results("probabilities"))[1].shape == (truth.data.num_classes, SIZE, SIZE)


def test_the_crf_search_sees_images_probabilities_and_truth(plain, stores, truth, monkeypatch):
    seen = []
    result = {"step": "crf", "on": False, "chosen": None, "before": 0.5, "after": 0.5, "miou_chosen": 0.5, "tried": []}

    def search(read, count, candidates, device, progress, scenes):
        seen.extend(read(number) for number in range(count))
        return result | {"points": 0.0, "low": 0.0, "high": 0.0, "held_out": None}

    monkeypatch.setattr(module.postprocess, "search_crf", search)
    refined = plain.try_crf(candidates=2, count=2)
    image, probabilities, mask = seen[1]
    assert len(seen) == 2 and np.array_equal(image, truth.read(2)[0]) and np.array_equal(mask, truth.read(2)[1])
    expected = sum(store.read_probabilities(2) for store in stores) / 3
    assert np.allclose(probabilities, expected, atol=0.01)
    assert np.array_equal(predict(refined), predict(plain))
    assert refined.tabulate_steps().iloc[0][["step", "used", "held_out"]].tolist() == [
        "CRF", False, True
    ]  # fmt: skip


def test_steps_that_are_not_asked_for_leave_no_row(plain):
    assert plain.try_views({}) is plain.try_crf(0, 3) is plain.try_specialists() is plain
    assert plain.try_components(False).steps == ()


def test_components_are_removed_from_the_masks_of_before_and_kept_as_final(plain, tmp_path):
    final = plain.try_components()
    assert np.array_equal(np.load(tmp_path / "masks_final.npy", allow_pickle=False), predict(final))
    assert np.array_equal(final.masks, predict(final))
    assert final.steps[0]["step"] == "components"


def test_the_expected_miou_is_the_mean_and_what_is_gained_on_images_not_seen(plain):
    weighed = plain.weigh({"a": 1.0, "c": 3.0}, plain.judge_weights())
    assert weighed.weights.tolist() == [1, 0, 3]
    steps = weighed.tabulate_steps()
    assert steps["step"].tolist() == ["plain mean, beside the best member", "weights: given"]
    assert weighed.miou_held_out == pytest.approx(weighed.miou)
    greedy = plain.weigh("greedy", plain.judge_weights())
    gains = [step["after"] - step["before"] for step in greedy.steps if step["held_out"]]
    assert len(gains) == 1 and greedy.miou_held_out == min(plain.mean_miou + gains[0], greedy.miou)
    with pytest.raises(InputError, match="unknown member 'd'"):
        plain.weigh({"d": 1.0}, plain.judge_weights())


def confusions(rights):
    return np.array([[[right, 10 - right], [10 - right, right]] for right in rights])


def test_a_step_is_taken_where_its_gain_is_sure_over_other_scenes(plain, monkeypatch):
    monkeypatch.setitem(vars(plain), "scenes", np.arange(4))
    before, other = confusions([5, 5, 5, 5]), replace(plain)
    for after, used in (([7, 6, 6, 7], True), ([9, 9, 5, 5], False), ([9, 5, 5, 5], False), ([5, 5, 5, 5], False)):
        chosen = plain._choose("TTA", other, before, confusions(after))
        assert bool(chosen.steps[0]["used"]) == used
        assert chosen.steps[0]["chosen_on"] == "all, on or off"
    monkeypatch.setitem(vars(plain), "scenes", np.zeros(4, int))
    assert not plain._choose("TTA", other, before, confusions([9, 9, 9, 9])).steps[0]["used"]


def test_useless_steps_are_kept_in_five_of_a_hundred_trials_at_most():
    rng, kept = np.random.default_rng(0), []
    for _ in range(400):
        scenes = np.repeat(np.arange(8), 5)
        shift = np.repeat(rng.normal(0, 20, 8), 5).round().astype(int)  # a whole scene gains or loses
        before, after = (1000 * np.eye(2, dtype=int) + 500 * (1 - np.eye(2, dtype=int)) for _ in range(2))
        sides = [np.stack([matrix + change * (2 * np.eye(2, dtype=int) - 1) for change in changes])
                 for matrix, changes in ((before, 0 * shift), (after, shift))]  # fmt: skip
        kept.append(measure_gain(*sides, scenes)["low"] > 0)
    assert np.mean(kept) <= 0.05


def test_a_crf_that_gains_on_its_images_and_not_on_all_is_off_and_adds_nothing(plain, monkeypatch):
    """The search sees two images and a great gain; on all three the CRF does harm."""

    def search(read, count, candidates, device, progress, scenes):
        for number in range(count):
            read(number)
        gain = {"before": 0.1, "after": 0.5, "points": 40.0, "low": 30.0, "high": 50.0}
        chosen = vars(CrfParams(smoothness_weight=8, smoothness_sigma=8, appearance_weight=0, iterations=2))
        held_out = plain.confusion[[0, 2]]
        return {
            "step": "crf",
            "on": True,
            "chosen": chosen,
            **gain,
            "miou_chosen": 0.5,
            "tried": [],
            "held_out": held_out,
        }

    monkeypatch.setattr(module.postprocess, "search_crf", search)
    refined = plain.try_crf(candidates=1, count=2)
    assert not refined.crf["on"] and not refined.steps[0]["used"]
    assert refined.miou_held_out == pytest.approx(plain.mean_miou)
    assert np.array_equal(predict(refined), predict(plain))


def test_the_expected_score_never_exceeds_what_all_images_gave(plain):
    row = {"step": "CRF", "before": 0.1, "after": 0.9, "used": True, "held_out": True}
    hopeful = plain._change(steps=(row,))
    assert hopeful.miou_held_out == pytest.approx(plain.miou)


def test_an_ensemble_below_its_best_member_says_so(plain):
    line = plain.summarise()
    alone = plain.tabulate_members()["miou"].max()
    assert ("NOT better; with weights: best" in line) == (plain.miou_held_out <= alone)
    assert f"has {alone:.4f}" in line and plain.describe()["result"] == line
    assert plain.describe()["best_member"]["miou"] == pytest.approx(alone)
    beside = {"before": 0.5, "after": 0.49, "points": -1.0, "low": -2.0, "high": 0.5}
    assert "a, has 0.5000: NOT better; with weights: best that member predicts alone" in describe_ensemble(
        0.49, "a", beside
    )
    assert ": not surely better (" in describe_ensemble(0.51, "a", beside | {"after": 0.51})
    assert ": surely better (" in describe_ensemble(0.51, "a", beside | {"low": 0.1})


def test_pictures_are_resized_by_nearest_neighbour(truth):
    image, mask = read_pair(truth, 1, 32)
    assert np.array_equal(image, truth.read(1)[0][::2, ::2]) and np.array_equal(mask, truth.read(1)[1][::2, ::2])


def test_folds_predict_all_images_each_by_the_model_that_did_not_see_it(tmp_path, monkeypatch):
    folds, classes = {0: [3, 1], 1: [0, 2]}, ["Background", "Paper", "Metal"]
    pixels = SimpleNamespace(image_ids=np.arange(4), image_size=64)

    def load(folder, data_dir):
        return SimpleNamespace(fold=folder, val_images=Subset(SimpleNamespace(), pixels, np.sort(folds[folder])))

    def predict(run, images, *, device, size):
        ids = images.image_ids
        about = describe_store(ids, [f"{i}.jpg" for i in ids], classes, size, "uint8", {})
        array = np.full((len(ids), 3, size, size), 10 * run.fold, np.uint8) + ids[:, None, None, None].astype(np.uint8)
        write_store(tmp_path / f"store{run.fold}", about, lambda start: iter([array]), 4)
        return open_store(tmp_path / f"store{run.fold}")

    monkeypatch.setattr(predict_module, "load_finished_run", load)
    monkeypatch.setattr(predict_module, "predict_run", predict)
    members = [SimpleNamespace(folders=(0, 1), focus_classes=[])]
    (store,), truth = predict_validation(members, device="cpu", size=4)
    assert truth.image_ids.tolist() == store.image_ids.tolist() == [0, 1, 2, 3]
    assert store.file_names == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert [int(store.read(place)[0, 0, 0]) for place in range(4)] == [10, 1, 12, 3]

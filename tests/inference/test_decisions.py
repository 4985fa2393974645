"""What validation decided is applied as it was measured: votes, specialists, CRF, components, on any images."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seglib.data.dataset import open_data
from seglib.evaluation.metrics import pooled_miou
from seglib.inference.ensemble import (
    Decisions,
    MaskPairs,
    Samples,
    average,
    count_masks,
    gains_in_both_halves,
    keep_masks,
    name_images,
    predict_masks,
    remove_components,
    split_masks,
)
from seglib.inference.postprocess import Tuned, remove_small_components
from seglib.inference.stores import describe_store, open_store, write_store
from seglib.zoo.crf import CrfParams, dense_crf

CPU = torch.device("cpu")
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
        about = describe_store(truth.image_ids, file_names, names, SIZE, "uint8", {})
        write_store(
            folder, about, lambda start: iter([np.round(255 * probabilities[start:]).astype(np.uint8)]), IMAGES, None
        )
        return open_store(folder)

    return write


@pytest.fixture(scope="module")
def drawn(truth):
    rng = np.random.default_rng(5)
    return [
        rng.dirichlet(np.full(truth.data.num_classes, 0.4), (IMAGES, SIZE, SIZE)).transpose(0, 3, 1, 2)
        for _ in range(3)
    ]


@pytest.fixture(scope="module")
def stores(write, drawn):
    return [write(probabilities) for probabilities in drawn]


def collect(votes):
    return np.concatenate([preds for _, preds in votes])


def make_tuned(step, chosen):
    return Tuned(step, True, chosen, 0.0, 0.0, 0.0, [0.0, 0.0], [])


def test_masks_are_those_of_the_weighted_probabilities(stores, truth):
    decisions = Decisions("soft", np.array([1.0, 2.0, 0.0]))
    preds = collect(predict_masks(decisions, stores, [], truth, CPU))
    expected = sum(weight * store.read(0, IMAGES) for weight, store in zip((1, 2), stores, strict=False)).argmax(1)
    assert (preds == expected).mean() > 0.999  # sums of quantised probabilities may tie
    merged = np.concatenate([probabilities for _, probabilities in average(decisions, stores, [])])
    assert np.allclose(merged.sum(1), 1, atol=1e-5) and (merged.argmax(1) == expected).mean() > 0.9999


def test_the_crf_refines_the_merged_probabilities_and_components_go_last(stores, truth):
    params = CrfParams(smoothness_weight=2, smoothness_sigma=2, appearance_weight=2, appearance_sigma=5, iterations=2)
    sizes = [0] + [20] * (truth.data.num_classes - 1)
    plain = Decisions("soft", np.ones(3))
    decisions = replace(plain, crf=make_tuned("crf", vars(params)), components=make_tuned("components", sizes))
    preds = collect(predict_masks(decisions, stores, [], truth, CPU))
    for (start, probabilities), pred in zip(average(plain, stores, []), preds, strict=True):
        refined = dense_crf(truth.read(start)[0], probabilities[0], params).argmax(0).astype(np.uint8)
        assert np.array_equal(pred, remove_small_components(refined, sizes))
    assert not np.array_equal(preds, collect(predict_masks(plain, stores, [], truth, CPU)))


def test_a_step_that_is_off_changes_nothing(stores, truth):
    plain = Decisions("soft", np.ones(3))
    off = replace(make_tuned("components", [50] * truth.data.num_classes), on=False)
    decided = replace(plain, crf=replace(make_tuned("crf", None), on=False), components=off)
    votes = [collect(predict_masks(decisions, stores, [], truth, CPU)) for decisions in (plain, decided)]
    assert np.array_equal(*votes)


def test_a_specialist_counts_for_its_own_class_by_weight_or_where_it_is_sure(stores, truth, write):
    name = truth.data.class_names[3]
    sure = np.zeros((IMAGES, 2, SIZE, SIZE))
    sure[:, 0], sure[:, 1, :8] = 1, 1
    sure[:, 0, :8] = 0
    specialist = write(sure, [truth.data.class_names[0], name])
    without = collect(predict_masks(Decisions("soft", np.ones(3)), stores, [specialist], truth, CPU))
    for options in ({"specialist_weight": 100.0}, {"specialist_confidence": 0.5}):
        preds = collect(predict_masks(Decisions("soft", np.ones(3), **options), stores, [specialist], truth, CPU))
        assert (preds[:, :8] == 3).all() and not (without[:, :8] == 3).all()


@pytest.mark.parametrize("vote", ["geometric", "hard"])
def test_other_votes_are_taken(stores, truth, vote):
    preds = collect(predict_masks(Decisions(vote, np.ones(3)), stores, [], truth, CPU))
    soft = collect(predict_masks(Decisions("soft", np.ones(3)), stores, [], truth, CPU))
    assert preds.shape == soft.shape and 0.3 < (preds == soft).mean() < 1


def test_folds_of_a_member_share_its_weight():
    members = [SimpleNamespace(folders=["a"]), SimpleNamespace(folders=["b", "c"])]
    decisions = Decisions("soft", np.array([1.0, 3.0])).for_runs(members)
    assert decisions.weights.tolist() == [1.0, 1.5, 1.5]


def test_kept_masks_are_counted_and_named(stores, truth, tmp_path):
    masks = keep_masks(
        tmp_path / "masks.npy", predict_masks(Decisions("soft", np.ones(3)), stores, [], truth, CPU), IMAGES, SIZE
    )
    assert np.array_equal(np.load(tmp_path / "masks.npy", allow_pickle=False), masks[:])
    assert np.array_equal(masks[[2, 0]], np.stack([masks[2], masks[0]])) and masks[1:].shape == (IMAGES - 1, SIZE, SIZE)
    confusion = count_masks(truth, masks)
    assert confusion.sum() == sum((truth.read(i)[1] != 255).sum() for i in range(IMAGES))
    right = sum((masks[i] == truth.read(i)[1]).sum() for i in range(IMAGES))
    assert np.trace(confusion.sum(0)) == right
    named = dict(name_images(split_masks(masks), truth))
    assert [*named] == truth.data.images["file_name"].tolist()[:IMAGES]
    assert np.array_equal(named[[*named][1]], masks[1])
    pairs = [*MaskPairs(truth, masks)]
    assert len(pairs) == IMAGES and np.array_equal(pairs[2][0], truth.read(2)[1])
    cleaned = collect(
        remove_components(split_masks(masks), make_tuned("components", [0] + [9] * (truth.data.num_classes - 1)))
    )
    assert np.array_equal(cleaned[0], remove_small_components(masks[0], [0] + [9] * (truth.data.num_classes - 1)))


def test_samples_of_the_crf_search_are_images_probabilities_and_truth(stores, truth):
    samples = Samples(Decisions("soft", np.ones(3)), stores, [], truth, np.array([2, 0]))
    image, probabilities, mask = samples[0]
    assert len(samples) == 2 and np.array_equal(image, truth.read(2)[0]) and np.array_equal(mask, truth.read(2)[1])
    expected = sum(store.read(2, 3)[0] for store in stores) / 3
    assert np.allclose(probabilities, expected, atol=0.01)


def test_a_gain_counts_where_both_halves_have_it():
    def confusions(rights):
        return np.array([[[right, 10 - right], [10 - right, right]] for right in rights])

    before = confusions([5, 5, 5, 5])
    assert gains_in_both_halves(before, confusions([6, 5, 5, 7]))
    assert not gains_in_both_halves(before, confusions([9, 9, 5, 5]))
    assert pooled_miou(confusions([9, 9, 5, 5])) > pooled_miou(before)

import json

import numpy as np
import pytest
import torch

from seglib.errors import InputError
from seglib.evaluation.findings import summarise_probabilities
from seglib.inference import predict as module
from seglib.inference.predict import (
    choose_spread,
    count_confusion,
    count_differing,
    describe_agreement,
    open_predictions,
    predict,
    probability_of_labels,
    take_images,
)
from seglib.inference.runs import load_finished_run

CPU = torch.device("cpu")


@pytest.fixture
def run(run_dir):
    return load_finished_run(run_dir)


def forbid_predicting(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("predicted again")

    monkeypatch.setattr(module, "predict_batches", refuse)


def test_predictions_give_the_run_s_own_confusion(run):
    predictions = open_predictions(run, CPU)
    assert predictions.preds.dtype == np.uint8
    assert predictions.preds.shape == (len(run.val_images), 64, 64)
    confusion = count_confusion(run, predictions.preds)
    np.testing.assert_array_equal(confusion, run.confusion)
    assert "exactly, all" in describe_agreement(run, confusion)


def test_predictions_of_one_image_are_those_kept(run):
    predictions = open_predictions(run, CPU)
    images, truths, preds = predict(run.model, run.val_images, [2, 0], CPU, "float32")
    for expected, taken in zip(
        (images, truths, preds), take_images(run.val_images, predictions.preds, [2, 0]), strict=True
    ):
        np.testing.assert_array_equal(taken, expected)


def test_kept_predictions_are_read_and_not_made_again(run, monkeypatch):
    first = open_predictions(run, CPU)
    forbid_predicting(monkeypatch)
    again = open_predictions(run, CPU)
    np.testing.assert_array_equal(again.preds, first.preds)
    np.testing.assert_array_equal(again.softmin, first.softmin)
    assert again.probabilities is None


@pytest.mark.parametrize("damage", ["other weights", "other images", "no predictions", "broken json"])
def test_stale_predictions_are_made_again(run, damage):
    open_predictions(run, CPU)
    facts = json.loads((run.folder / "predictions.json").read_text())
    if damage == "other weights":
        (run.folder / "predictions.json").write_text(json.dumps(facts | {"weights_sha256": "0"}))
    elif damage == "other images":
        (run.folder / "predictions.json").write_text(json.dumps(facts | {"image_ids": [1]}))
    elif damage == "no predictions":
        (run.folder / "predictions.npy").unlink()
    else:
        (run.folder / "predictions.json").write_text("{")
    calls = []
    open_predictions(run, CPU, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(4, 6), (6, 6)]
    assert json.loads((run.folder / "predictions.json").read_text()) == facts


def test_probabilities_are_kept_where_asked_for(run):
    open_predictions(run, CPU)
    predictions = open_predictions(run, CPU, keep_probabilities=True)
    assert predictions.probabilities.dtype == np.float16
    assert predictions.probabilities.shape == (6, len(run.class_names), 64, 64)
    np.testing.assert_allclose(predictions.probabilities.astype(np.float32).sum(1), 1, atol=5e-3)
    top = np.take_along_axis(predictions.probabilities, predictions.preds[:, None].astype(int), axis=1)[:, 0]
    np.testing.assert_array_equal(top, predictions.probabilities.max(1))


def test_label_quality_is_that_of_the_whole_validation_set_at_once(run):
    predictions = open_predictions(run, CPU, keep_probabilities=True)
    masks = torch.from_numpy(np.stack([run.val_images.read(position)[1] for position in range(6)]))
    whole = summarise_probabilities(torch.from_numpy(predictions.probabilities.astype(np.float32)), masks)
    np.testing.assert_allclose(predictions.given, whole["given"], atol=1e-3)
    np.testing.assert_allclose(predictions.softmin, whole["softmin"], atol=1e-3)
    assert predictions.reliability[..., 0].sum() == masks.numel()


def test_a_killed_prediction_leaves_nothing_that_is_taken_for_whole(run):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_predictions(run, CPU, progress=stop)
    assert not list(run.folder.glob("*predictions*"))
    np.testing.assert_array_equal(count_confusion(run, open_predictions(run, CPU).preds), run.confusion)


def test_few_other_pixels_are_said_and_many_refused(run):
    preds = open_predictions(run, CPU).preds.copy()
    preds[0, 0, :3] = (preds[0, 0, :3] + 1) % len(run.class_names)
    words = describe_agreement(run, count_confusion(run, preds))
    assert "decided otherwise than in confusion.npz" in words
    preds[:2] = (preds[:2] + 1) % len(run.class_names)
    with pytest.raises(InputError, match=r"required predictions that give the run's confusion\.npz"):
        count_confusion(run, preds)


def test_differing_pixels_are_counted_once():
    assert count_differing(np.array([[[5, 0], [2, 1]]]), np.array([[[4, 1], [2, 1]]])) == 1
    assert count_differing(np.eye(2, dtype=int)[None], np.eye(2, dtype=int)[None]) == 0


def test_probability_of_labels_is_the_model_s(run):
    predictions = open_predictions(run, CPU, keep_probabilities=True)
    given = probability_of_labels(run, [1], CPU)[0]
    mask = run.val_images.read(1)[1]
    expected = np.take_along_axis(predictions.probabilities[1], mask[None].astype(int), axis=0)[0]
    np.testing.assert_allclose(given, expected, atol=2e-3)


def test_a_spread_goes_from_the_worst_to_the_best_image():
    perfect, half, wrong, empty = np.diag([4, 4]), np.full((2, 2), 2), np.array([[0, 4], [4, 0]]), np.zeros((2, 2), int)
    chosen, scores = choose_spread(np.stack([half, perfect, empty, wrong]), 3)
    assert chosen.tolist() == [3, 0, 1]
    np.testing.assert_allclose(scores, [0, 1 / 3, 1])

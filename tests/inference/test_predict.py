"""Predictions of a run: kept once, in views and windows, the same for the analysis of one run and for an ensemble."""

import json
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from seglib.data.coco import load_coco
from seglib.data.images import read_image
from seglib.data.pixels import resize_image
from seglib.errors import InputError, InputErrors
from seglib.evaluation.metrics import summarise_probabilities
from seglib.files import write_json
from seglib.inference import predict as module
from seglib.inference.predict import (
    count_confusion,
    count_differing,
    describe_agreement,
    open_predictions,
    open_test_images,
    predict_run,
    predict_test,
    predict_validation,
    probability_of_labels,
    take_images,
)
from seglib.inference.runs import load_finished_run
from seglib.inference.stores import open_store
from seglib.inference.views import quantise, resize_probabilities
from seglib.inference.votes import score_weighted
from seglib.submission import read_file_names
from seglib.training.checkpoint import hash_weights, load_checkpoint, save_checkpoint
from seglib.training.scoring import predict, predict_logits

CPU = torch.device("cpu")
FLIPPED = {"flips": ["none", "horizontal"]}


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


def whole_probabilities(run):
    """(N, C, S, S) float32, and (N, S, S) uint8 masks, of all validation images."""
    positions = range(len(run.val_images))
    masks = torch.from_numpy(np.stack([run.val_images.read(position)[1] for position in positions]))
    return np.stack([plain_probabilities(run, run.val_images, position) for position in positions]), masks


def test_kept_predictions_are_read_and_serve_an_ensemble_and_the_other_way_round(run, monkeypatch):
    first = open_predictions(run, CPU)
    forbid_predicting(monkeypatch)
    again = open_predictions(run, CPU)
    np.testing.assert_array_equal(again.preds, first.preds)
    np.testing.assert_array_equal(again.softmin, first.softmin)
    store = predict_run(run, run.val_images, device=CPU)
    assert store.folder == first.store.folder
    np.testing.assert_array_equal(np.stack([store.read(place).argmax(0) for place in range(6)]), first.preds)


def test_what_an_ensemble_predicted_serves_the_analysis(run, monkeypatch):
    predict_run(run, run.val_images, device=CPU)
    forbid_predicting(monkeypatch)
    np.testing.assert_array_equal(count_confusion(run, open_predictions(run, CPU).preds), run.confusion)


def test_files_of_earlier_versions_stay_and_are_not_looked_at(run):
    (run.folder / "predictions.json").write_text('{"weights_sha256": "0"}')
    (run.folder / "predictions.npy").write_bytes(b"")
    calls = []
    open_predictions(run, CPU, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(4, 6), (6, 6)]


def test_finer_probabilities_are_kept_where_asked_for(run, monkeypatch):
    open_predictions(run, CPU, keep_probabilities=True)
    forbid_predicting(monkeypatch)
    store = predict_run(run, run.val_images, device=CPU, dtype="float16")
    assert store.dtype == np.float16
    np.testing.assert_allclose(store.read_probabilities(0).sum(0), 1, atol=5e-3)


def test_label_quality_is_that_of_the_whole_validation_set_at_once(run):
    predictions, (probabilities, masks) = open_predictions(run, CPU), whole_probabilities(run)
    each = [summarise_probabilities(torch.from_numpy(p), mask) for p, mask in zip(probabilities, masks, strict=True)]
    whole = {name: np.stack([scores[name] for scores in each]) for name in each[0]}
    np.testing.assert_allclose(predictions.given, whole["given"], atol=1e-3)
    np.testing.assert_allclose(predictions.softmin, whole["softmin"], atol=1e-3)
    np.testing.assert_allclose(predictions.reliability[..., 1].sum(1), whole["reliability"][..., 1].sum(1), rtol=2e-3)
    assert predictions.reliability[..., 0].sum() == masks.numel()


def test_a_killed_prediction_leaves_nothing_that_is_taken_for_whole(run):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_predictions(run, CPU, progress=stop)
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
    mask = run.val_images.read(1)[1].copy()
    mask[0, :3] = 255
    store = predict_run(run, run.val_images, device=CPU, dtype="float16")
    given = probability_of_labels(store, mask[None], [1])[0]
    assert (given[0, :3] == 1).all()
    mask[0, :3] = 0
    expected = np.take_along_axis(plain_probabilities(run, run.val_images, 1), mask[None].astype(int), axis=0)[0]
    np.testing.assert_allclose(given.ravel()[3:], expected.ravel()[3:], atol=2e-3)


@pytest.fixture
def own_data(small_data, tmp_path):
    """A data folder that the test may change."""
    return shutil.copytree(small_data, tmp_path / "own")


def plain_probabilities(run, subset, position):
    return predict_logits(run.model, subset.read(position)[0], CPU, "float32").softmax(0).numpy()


def change_weights(run_dir):
    """Train the run again, as far as its files can tell."""
    best = load_checkpoint(run_dir / "best.pt", required=("model",))
    next(iter(best["model"].values())).mul_(1.5)
    save_checkpoint(run_dir / "best.pt", best)
    record = json.loads((run_dir / "record.json").read_text())
    write_json(run_dir / "record.json", record | {"weights_sha256": hash_weights(best["model"])})
    return load_finished_run(run_dir)


def kept_folders(run):
    return sorted(path.name for path in (run.folder / "probabilities").iterdir() if path.is_dir())


def test_validation_predictions_are_the_run_s_own(run):
    store = predict_run(run, run.val_images, device=CPU)
    assert (store.dtype, store.size, store.class_names) == (np.uint8, 64, run.class_names)
    np.testing.assert_array_equal(store.image_ids, run.val_images.image_ids)
    confusion = score_weighted([store], run.val_images)
    np.testing.assert_array_equal(confusion, run.confusion)
    np.testing.assert_array_equal(
        confusion,
        count_confusion(run, np.stack([store.read(place).argmax(0) for place in range(len(store))]).astype(np.uint8)),
    )
    for position in range(len(store)):
        expected = plain_probabilities(run, run.val_images, position)
        np.testing.assert_allclose(store.read_probabilities(position), expected, atol=1.51 / 255)
    assert store.origin["weights_sha256"] == run.record["weights_sha256"]
    assert (store.origin["run"], store.origin["weights_file"], store.origin["tta"]) == (
        run.folder.name,
        "best.pt",
        ["plain@64"],
    )


def test_float16_keeps_probabilities_to_its_own_precision(run):
    store = predict_run(run, run.val_images, device=CPU, dtype="float16")
    np.testing.assert_allclose(store.read_probabilities(1), plain_probabilities(run, run.val_images, 1), atol=5e-4)


def test_what_is_kept_is_not_predicted_again(run, monkeypatch):
    first = predict_run(run, run.val_images, device=CPU, tta=FLIPPED, merge="logits")
    forbid_predicting(monkeypatch)
    again = predict_run(run, run.val_images, device=CPU, tta=[FLIPPED, FLIPPED], merge="logits", batch_size=2)
    assert again.folder == first.folder
    with pytest.raises(AssertionError, match="predicted again"):
        predict_run(run, run.val_images, device=CPU, tta=FLIPPED)


def test_other_requests_are_kept_beside_each_other(run):
    for options in ({}, {"size": 32}, {"dtype": "float16"}, {"tta": FLIPPED}):
        predict_run(run, run.val_images, device=CPU, **options)
    assert len(kept_folders(run)) == 4


def test_a_killed_prediction_goes_on_and_gives_the_same_bytes(run, run_dir, tmp_path):
    whole = predict_run(
        load_finished_run(shutil.copytree(run_dir, tmp_path / "other")), run.val_images, device=CPU, batch_size=2
    )

    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_run(run, run.val_images, device=CPU, batch_size=2, progress=stop)
    calls = []
    store = predict_run(run, run.val_images, device=CPU, batch_size=2, progress=lambda done, total: calls.append(done))
    assert calls == [6]
    assert (store.folder / "probabilities.npy").read_bytes() == (whole.folder / "probabilities.npy").read_bytes()
    assert kept_folders(run) == [store.folder.name]


def test_weights_that_changed_are_predicted_again_and_the_old_stay_until_then(run, run_dir):
    old = predict_run(run, run.val_images, device=CPU)
    tta = predict_run(run, run.val_images, device=CPU, tta=FLIPPED)
    run = change_weights(run_dir)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_run(run, run.val_images, device=CPU, progress=stop)
    assert open_store(old.folder).origin["weights_sha256"] != run.record["weights_sha256"]
    new = predict_run(run, run.val_images, device=CPU)
    assert new.origin["weights_sha256"] == run.record["weights_sha256"]
    assert not np.array_equal(new.read(0), old.read(0))
    assert kept_folders(run) == sorted([new.folder.name, tta.folder.name])


def test_images_that_changed_are_predicted_again(run, own_data):
    images = open_test_images(run, "test.json", str(own_data))
    old = predict_run(run, images, device=CPU)
    path = own_data / old.file_names[0]
    shutil.copy(own_data / old.file_names[1], path)
    images = open_test_images(run, "test.json", str(own_data))
    new = predict_run(run, images, device=CPU)
    assert new.folder != old.folder and not old.folder.exists()
    np.testing.assert_array_equal(new.read(0), new.read(1))


def test_data_that_moved_is_predicted_once(run, own_data, tmp_path, monkeypatch):
    first = predict_run(run, open_test_images(run, "test.json", str(own_data)), device=CPU)
    forbid_predicting(monkeypatch)
    moved = open_test_images(run, "test.json", str(shutil.copytree(own_data, tmp_path / "moved")))
    assert predict_run(run, moved, device=CPU).folder == first.folder


def test_a_damaged_store_is_made_again_with_a_warning(run):
    store = predict_run(run, run.val_images, device=CPU)
    (store.folder / "probabilities.npy").write_bytes(b"")
    with pytest.warns(UserWarning, match="required a whole store of probabilities, got a damaged one"):
        again = predict_run(run, run.val_images, device=CPU)
    np.testing.assert_array_equal(score_weighted([again], run.val_images), run.confusion)


def test_test_images_are_opened_as_training_opened_its_own(run, own_data):
    images = open_test_images(run, "test.json", str(own_data))
    data = load_coco(own_data, "test.json")
    assert len(images) == len(data.images) > 0
    row = data.images.iloc[1]
    image, mask = images.read(1)
    expected = resize_image(read_image(row["path"], (row["width"], row["height"])), 64)
    np.testing.assert_array_equal(image, expected)
    assert (mask == 0).all()
    store = predict_run(run, images, device=CPU)
    assert store.file_names == data.images["file_name"].tolist()
    np.testing.assert_allclose(store.read_probabilities(1), plain_probabilities(run, images, 1), atol=1.51 / 255)


def test_annotations_of_a_test_set_are_not_looked_at(run):
    images = open_test_images(run, "val.json")
    assert len(images.data.annotations) == 0
    np.testing.assert_array_equal(images.read(0)[0], run.val_images.read(0)[0])


def test_a_test_set_without_categories_has_the_classes_of_the_run(run, own_data):
    expected = open_test_images(run, "test.json", str(own_data))
    write_json(own_data / "test.json", {"images": json.loads((own_data / "test.json").read_text())["images"]})
    images = open_test_images(run, "test.json", str(own_data))
    assert images.data.class_names == tuple(run.class_names) and images.data.category_ids == expected.data.category_ids
    assert read_file_names(own_data / "test.json") == expected.data.images["file_name"].tolist()
    assert predict_run(run, images, device=CPU).class_names == run.class_names


def test_a_test_set_with_missing_images_is_refused(run, own_data):
    (own_data / load_coco(own_data, "test.json").images["file_name"][0]).unlink()
    with pytest.raises(InputErrors, match="missing-image"):
        open_test_images(run, "test.json", str(own_data))


def add_final_weights(run):
    best = load_checkpoint(run.folder / "best.pt", required=("model",))
    weights = {name: weight * 1.1 if weight.is_floating_point() else weight for name, weight in best["model"].items()}
    save_checkpoint(run.folder / "final.pt", best | {"model": weights})
    return hash_weights(weights)


def test_the_final_weights_predict_where_they_are_asked_for(run):
    sha256 = add_final_weights(run)
    store = predict_run(run, open_test_images(run, "val.json"), device=CPU, final=True)
    assert (store.origin["weights_file"], store.origin["weights_sha256"]) == ("final.pt", sha256)
    validated = predict_run(run, run.val_images, device=CPU)
    assert store.folder.is_dir(), "both are answers, of other weights"
    assert validated.origin["weights_file"] == "best.pt"
    assert not np.array_equal(store.read(0), validated.read(0))
    np.testing.assert_array_equal(score_weighted([validated], run.val_images), run.confusion)


def test_images_without_annotations_are_not_taken_for_a_test_set(run):
    add_final_weights(run)
    unannotated = open_test_images(run, "val.json")  # as a specialist sees photographs that have none of its classes
    assert predict_run(run, unannotated, device=CPU).origin["weights_file"] == "best.pt"


def test_final_weights_are_those_of_test_images_alone(run):
    sha256, members = add_final_weights(run), [SimpleNamespace(folders=(run.folder,), focus_classes=[])]
    (validated,), _ = predict_validation(members, device=CPU)
    (tested,) = predict_test(members, "test.json", device=CPU)
    assert (validated.origin["weights_file"], tested.origin["weights_sha256"]) == ("best.pt", sha256)


def test_final_weights_of_other_classes_are_refused(run):
    best = load_checkpoint(run.folder / "best.pt", required=("model",))
    save_checkpoint(run.folder / "final.pt", best | {"class_names": ["a", "b"]})
    with pytest.raises(InputError, match=r"final\.pt: required the run's classes .*, got a, b"):
        predict_run(run, open_test_images(run, "test.json"), device=CPU, final=True)


def test_nearest_probabilities_give_the_mask_that_the_leaderboard_resizes(run):
    whole, small = (predict_run(run, run.val_images, device=CPU, size=size) for size in (0, 32))
    np.testing.assert_array_equal(small.read(2), whole.read(2)[:, ::2, ::2])
    assert score_weighted([small], run.val_images).sum() * 4 == run.confusion.sum()


def test_probabilities_are_resized_by_nearest_neighbour_or_enlarged_smoothly():
    probabilities = torch.rand(1, 3, 6, 6, generator=torch.manual_seed(0)).softmax(1)
    assert torch.equal(resize_probabilities(probabilities, 3), probabilities[..., ::2, ::2])
    assert torch.equal(resize_probabilities(probabilities, 4), probabilities[:, :, [0, 1, 3, 4]][..., [0, 1, 3, 4]])
    for size in (6, 9):
        smooth = resize_probabilities(probabilities, size)
        torch.testing.assert_close(smooth.sum(1), torch.ones(1, size, size))
        torch.testing.assert_close(smooth.mean((2, 3)), probabilities.mean((2, 3)), rtol=0, atol=0.05)


def test_enlarged_probabilities_are_linear_between_pixels(run):
    small, large = (predict_run(run, run.val_images, device=CPU, dtype="float16", size=size) for size in (0, 128))
    for plane, enlarged in zip(small.read_probabilities(0), large.read_probabilities(0), strict=True):
        np.testing.assert_allclose(enlarged, cv2.resize(plane, (128, 128), interpolation=cv2.INTER_LINEAR), atol=1e-3)
    assert not np.array_equal(large.read(0), small.read(0).repeat(2, 1).repeat(2, 2)), "blocks of repeated pixels"


def test_rounding_to_uint8_keeps_every_argmax():
    logits = torch.randn(4, 12, 32, 32, generator=torch.manual_seed(1)) * 0.01  # nearly equal: ties wherever one looks
    probabilities = logits.softmax(1)
    stored = quantise(probabilities, "uint8")
    assert ((probabilities * 255).round().argmax(1) != probabilities.argmax(1)).float().mean() > 0.3
    assert torch.equal(stored.argmax(1), probabilities.argmax(1))
    assert (stored - probabilities * 255).abs().max() <= 1.501
    assert quantise(torch.tensor([0.0, 1.0]).view(1, 2, 1, 1), "uint8").flatten().tolist() == [0, 255]


def test_tta_merges_views_of_the_model(run):
    store = predict_run(run, run.val_images, device=CPU, tta=FLIPPED, dtype="float16")
    image = run.val_images.read(3)[0]
    flipped = (
        predict_logits(run.model, np.ascontiguousarray(image[:, ::-1]), CPU, "float32").softmax(0).numpy()[..., ::-1]
    )
    expected = (plain_probabilities(run, run.val_images, 3) + flipped) / 2
    np.testing.assert_allclose(store.read_probabilities(3), expected, atol=1e-3)


def test_sliding_windows_see_the_image_at_its_larger_size(run):
    store = predict_run(run, run.val_images, device=CPU, sliding={"size": 128, "overlap": 0}, dtype="float16")
    assert store.size == 64
    large = load_finished_run(run.folder).val_images.data
    row = large.images.iloc[int(run.val_images.indices[2])]
    image = resize_image(read_image(row["path"], (row["width"], row["height"])), 128)
    corner = predict_logits(run.model, image[:64, 64:], CPU, "float32").softmax(0).numpy()
    np.testing.assert_allclose(store.read_probabilities(2)[:, :32, 32:], corner[:, ::2, ::2], atol=1e-3)


class OneSize(nn.Module):
    """A network that takes images of one size only, as some transformers do."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        if images.shape[-1] != 64:
            raise AssertionError(f"Input height ({images.shape[-1]}) doesn't match model (64).")
        return self.network(images)


def test_a_model_of_one_size_is_refused_by_name_before_anything_is_predicted(run, monkeypatch):
    run.model.network = OneSize(run.model.network)
    forbid_predicting(monkeypatch)
    with pytest.raises(
        InputError, match=r"tta: scales give 96 px, which .*run cannot take: encoder .* takes one image size only"
    ):
        predict_run(run, run.val_images, device=CPU, tta={"scales": [1.0, 1.5]})


def test_a_model_that_gives_nan_is_refused(run):
    with torch.no_grad():
        next(run.model.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="required probabilities, got NaN from the model"):
        predict_run(run, run.val_images, device=CPU)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"merge": "logit"}, "predict_run: unknown merge 'logit'; did you mean 'logits'"),
        ({"dtype": "uint16"}, "predict_run: unknown dtype 'uint16'; did you mean"),
        ({"size": -1}, "size must be 1 to 4096 px, or 0 for the model's 64, got -1"),
    ],
)
def test_unknown_options_are_refused(run, options, words):
    with pytest.raises(InputError, match=words):
        predict_run(run, run.val_images, device=CPU, **options)


def test_two_runs_are_scored_together(two_runs, run, tmp_path):
    other = load_finished_run(shutil.copytree(two_runs[1], tmp_path / "other"))
    stores = [predict_run(each, run.val_images, device=CPU) for each in (run, other)]
    confusion = score_weighted(stores, run.val_images, [0.25, 0.75])
    pairs = ((stores[0].read(place), stores[1].read(place)) for place in range(len(stores[0])))
    preds = [(a * np.float64(0.25) + b * np.float64(0.75)).argmax(0) for a, b in pairs]
    np.testing.assert_array_equal(confusion.sum(1), [np.bincount(pred.ravel(), minlength=12) for pred in preds])
    np.testing.assert_array_equal(score_weighted(stores, run.val_images, [1, 0]), run.confusion)


def test_a_store_is_scored_with_its_own_images_only(run):
    store = predict_run(run, run.val_images, device=CPU)
    with pytest.raises(InputError, match=r"required predictions of the .* images of test\.json"):
        score_weighted([store], open_test_images(run, "test.json"))

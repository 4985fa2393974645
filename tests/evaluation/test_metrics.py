import json

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
import torch

from seglib import parts, register
from seglib.errors import InputError
from seglib.evaluation.metrics import (
    RELIABILITY_BINS,
    batch_miou,
    calibration_error,
    compute_metrics,
    confusion_per_image,
    find_signs,
    image_miou,
    iou_per_class,
    load_confusion,
    load_scene_names,
    mean_iou,
    pixel_accuracy,
    pooled_miou,
    precision_per_class,
    recall_per_class,
    save_confusion,
    summarise_probabilities,
    tabulate_reliability,
)
from seglib.files import write_json
from seglib.parameters import parse_parameters
from seglib.rules import check_parameters

# Up to 32 classes on a multiple of 4 pixels are counted in lanes, everything else as on a GPU.
CLASSES = [2, 3, 11, 12, 15, 16, 30, 32, 33, 200, 256]
SIZES = [(8, 6), (7, 5)]
IDS = torch.zeros(1, 4, 4, dtype=torch.int64)


def random_masks(num_classes, size=(8, 6), images=3, seed=0):
    """Ids of a few classes, so that others are absent; a tenth of the truth is ignored."""
    rng = np.random.default_rng([seed, num_classes])
    present = rng.choice(num_classes, size=min(num_classes, 7), replace=False)
    truth = rng.choice(present, size=(images, *size))
    pred = np.where(rng.random(truth.shape) < 0.5, truth, rng.integers(0, num_classes, truth.shape))
    truth[rng.random(truth.shape) < 0.1] = 255
    return torch.from_numpy(truth.astype(np.uint8)), torch.from_numpy(pred.astype(np.uint8))


def count_in_a_loop(truth, pred, num_classes):
    counts = np.zeros((len(truth), num_classes, num_classes), dtype=np.int64)
    for image in range(len(truth)):
        for t, p in zip(truth[image].flatten().tolist(), pred[image].flatten().tolist(), strict=True):
            if t != 255:
                counts[image, t, p] += 1
    return counts


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_classes", CLASSES)
def test_counts_equal_a_loop_over_the_pixels(num_classes, size):
    truth, pred = random_masks(num_classes, size)
    expected = count_in_a_loop(truth, pred, num_classes)
    for dtype in (torch.uint8, torch.int64):
        counts = confusion_per_image(truth.to(dtype), pred.to(dtype), num_classes)
        assert counts.dtype == torch.int64
        np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("num_classes", range(2, 31))
def test_scores_equal_scikit_learn(num_classes):
    truth, pred = random_masks(num_classes, size=(16, 16), images=1, seed=1)
    confusion = confusion_per_image(truth, pred, num_classes)[0].numpy()
    t, p = truth[truth != 255].numpy(), pred[truth != 255].numpy()
    labels = np.arange(num_classes)
    np.testing.assert_array_equal(confusion, sklearn.metrics.confusion_matrix(t, p, labels=labels))

    seen = np.union1d(t, p)
    close = {"rtol": 0, "atol": 1e-12}
    np.testing.assert_allclose(mean_iou(confusion), sklearn.metrics.jaccard_score(t, p, average="macro"), **close)
    of_class = sklearn.metrics.jaccard_score(t, p, labels=seen, average=None)
    np.testing.assert_allclose(iou_per_class(confusion)[seen], of_class, **close)
    np.testing.assert_allclose(pixel_accuracy(confusion), sklearn.metrics.accuracy_score(t, p), **close)
    for ours, theirs in (
        (precision_per_class, sklearn.metrics.precision_score),
        (recall_per_class, sklearn.metrics.recall_score),
    ):
        expected = theirs(t, p, labels=labels, average=None, zero_division=np.nan)
        np.testing.assert_allclose(ours(confusion), expected, **close)


def test_strided_masks_are_counted_pixel_by_pixel():
    truth, pred = random_masks(11)
    counts = confusion_per_image(truth.transpose(1, 2), pred.transpose(1, 2), 11)
    assert torch.equal(counts, confusion_per_image(truth, pred, 11))


def test_the_largest_codes_stay_apart():
    # 32 classes fill the range of int16: the last class in every lane, and an ignored pixel beside it.
    truth, pred = torch.full((1, 4, 4), 31, dtype=torch.uint8), torch.full((1, 4, 4), 31, dtype=torch.uint8)
    truth[0, 0, 0] = 255
    counts = confusion_per_image(truth, pred, 32)
    assert counts[0, 31, 31] == 15
    assert counts.sum() == 15


def test_prediction_of_an_ignored_pixel_does_not_count():
    truth, pred = random_masks(11)
    changed = torch.where(truth == 255, 10 - pred, pred)
    assert not torch.equal(changed, pred)
    assert torch.equal(confusion_per_image(truth, changed, 11), confusion_per_image(truth, pred, 11))


def test_no_images_and_only_ignored_pixels_count_nothing():
    empty = torch.zeros(0, 8, 8, dtype=torch.uint8)
    assert confusion_per_image(empty, empty, 11).shape == (0, 11, 11)
    void = torch.full((2, 8, 8), 255, dtype=torch.uint8)
    assert confusion_per_image(void, torch.zeros_like(void), 11).sum() == 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("truth_id", "pred_id", "words"),
    [
        (200, 0, r"truth must be ignore_index=255 or a class id from 0 to 10, got 200 \(2 such pixels\); check num_cl"),
        (11, 0, "got 11 "),
        (254, 0, "got 254 "),
        (-1, 0, "got -1 "),
        (256 + 3, 0, "got 259 "),
        (0, 11, r"pred must be a class id from 0 to 10, got 11 \(2 such pixels\)"),
        (3, 200, "pred must be .* got 200 "),
        (3, -1, "pred must be .* got -1 "),
        (3, 256 + 3, "pred must be .* got 259 "),
        (3, 2**32 + 3, "pred must be .* got 4294967299 "),
    ],
)
def test_foreign_ids_are_refused_by_name(truth_id, pred_id, words, size):
    truth, pred = (mask.long() for mask in random_masks(11, size))
    truth[1, 2, 3:5], pred[1, 2, 3:5] = truth_id, pred_id
    small = [mask if mask.min() < 0 or mask.max() > 255 else mask.to(torch.uint8) for mask in (truth, pred)]
    for masks in ((truth, pred), small):
        with pytest.raises(InputError, match=words):
            confusion_per_image(*masks, 11)


@pytest.mark.parametrize(
    ("truth", "pred", "options", "words"),
    [
        (IDS.float(), IDS, {}, "truth must hold integer class ids, got torch.float32; take logits.argmax"),
        (IDS, IDS.bool(), {}, "pred must hold integer class ids, got torch.bool"),
        (IDS, IDS[:, :3], {}, r"must have one shape, got \(1, 4, 4\) and \(1, 3, 4\)"),
        (IDS[0], IDS[0], {}, r"must be \(N, H, W\), got \(4, 4\)"),
        (IDS, IDS, {"num_classes": 257}, "num_classes must be 1 to 256"),
    ],
)
def test_unusable_arguments_are_refused(truth, pred, options, words):
    with pytest.raises(InputError, match=words):
        confusion_per_image(truth, pred, **{"num_classes": 11, **options})


def test_absent_class_is_left_out_of_the_mean():
    confusion = np.array([[6, 2, 0], [0, 4, 0], [0, 0, 0]])
    np.testing.assert_array_equal(iou_per_class(confusion), [6 / 8, 4 / 6, np.nan])
    assert mean_iou(confusion) == pytest.approx((6 / 8 + 4 / 6) / 2)


def test_class_that_is_only_predicted_counts_zero():
    assert mean_iou([[6, 2], [0, 0]]) == pytest.approx((6 / 8 + 0) / 2)


def test_mean_of_batches_is_not_the_pooled_score():
    per_image = np.array([[[8, 0], [0, 0]], [[4, 2], [2, 0]]])
    assert batch_miou(per_image, batch_size=1) == pytest.approx((1 + (4 / 8 + 0) / 2) / 2)  # 0.625
    assert pooled_miou(per_image) == pytest.approx((12 / 16 + 0) / 2)  # 0.375
    assert batch_miou(per_image, batch_size=2) == pooled_miou(per_image)


def test_mean_of_images_lets_a_small_image_weigh_as_much_as_a_large_one():
    per_image = np.array([[[1000, 0], [0, 1000]], [[1, 1], [0, 1]]])
    assert image_miou(per_image) == pytest.approx((1 + 0.5) / 2)
    assert pooled_miou(per_image) == pytest.approx((1001 / 1002 + 1001 / 1002) / 2)


def test_last_batch_may_be_short():
    rng = np.random.default_rng(0)
    per_image = rng.integers(0, 9, (7, 3, 3))
    expected = np.mean([mean_iou(per_image[i : i + 3].sum(0)) for i in (0, 3, 6)])
    assert batch_miou(per_image, 3) == pytest.approx(expected, abs=1e-12)
    assert batch_miou(per_image, 1) == pytest.approx(image_miou(per_image), abs=1e-12)


def test_image_without_valid_pixels_is_left_out():
    per_image = np.array([[[3, 1], [0, 2]], [[0, 0], [0, 0]]])
    assert image_miou(per_image) == batch_miou(per_image, 1) == mean_iou(per_image[0])


@pytest.mark.filterwarnings("error")
def test_scores_of_nothing_are_nan_without_a_warning():
    for per_image in (np.zeros((2, 3, 3), np.int64), np.zeros((0, 3, 3), np.int64)):
        metrics = compute_metrics(per_image, ["a", "b", "c"], batch_size=4)
        scores = [metrics[name] for name in ("miou", "miou_image", "miou_batch", "accuracy")]
        assert np.isnan([*scores, *metrics["iou"].values()]).all()


def test_metrics_hold_every_score_by_name(tmp_path):
    per_image = confusion_per_image(*random_masks(3), 4)
    metrics = compute_metrics(per_image, ["Background", "Paper", "Glass", "없음"], batch_size=2)
    assert list(metrics) == ["miou", "miou_image", "miou_batch", "accuracy", "iou"]
    assert metrics["miou"] == pooled_miou(per_image)
    assert metrics["miou_image"] == image_miou(per_image)
    assert metrics["miou_batch"] == batch_miou(per_image, 2)
    assert metrics["accuracy"] == pixel_accuracy(per_image) == pixel_accuracy(per_image.sum(0))
    assert list(metrics["iou"].values())[:3] == iou_per_class(per_image.sum(0))[:3].tolist()

    write_json(tmp_path / "record.json", metrics)
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert record["iou"]["없음"] is None
    assert record["miou"] == metrics["miou"]


@pytest.mark.parametrize(
    ("shape", "names", "batch_size", "words"),
    [
        ((2, 3, 3), ["a", "b"], 1, r"\(2, 3, 3\) int64 and 2 names"),
        ((3, 3), ["a", "b", "c"], 1, r"must be \(images, classes, classes\) .* got \(3, 3\)"),
        ((2, 3, 3), ["a", "b", "a"], 1, "class names must differ, got a, b, a"),
        ((2, 3, 3), ["a", "b", "c"], 0, "batch_size must be at least 1, got 0"),
    ],
)
def test_metrics_refuse_what_does_not_fit(shape, names, batch_size, words):
    with pytest.raises(InputError, match=words):
        compute_metrics(np.ones(shape, np.int64), names, batch_size)


@pytest.mark.parametrize(
    "image_ids", [[7, 3, 11], torch.tensor([7, 3, 11]), pd.Series(["b/1.jpg", "a/22.jpg", "사진.jpg"])]
)
def test_saved_confusion_is_read_back_whole(tmp_path, image_ids):
    per_image = confusion_per_image(*random_masks(2), 2)
    path = tmp_path / "run" / "confusion.npz"
    save_confusion(path, per_image, image_ids, ["배경", "Paper"])
    assert [file.name for file in path.parent.iterdir()] == ["confusion.npz"]
    confusion, ids, names = load_confusion(path)
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(confusion, per_image)
    assert ids.tolist() == list(image_ids)
    assert names == ["배경", "Paper"]


def test_scenes_names_are_kept_with_the_counts(tmp_path):
    images = pd.DataFrame({"group": ["a", None, 3], "file_name": ["x1.jpg", "강/2.jpg", "3.png"]})
    save_confusion(tmp_path / "new.npz", np.ones((3, 2, 2), np.int64), [5, 6, 7], ["a", "b"], images)
    save_confusion(tmp_path / "old.npz", np.ones((3, 2, 2), np.int64), [5, 6, 7], ["a", "b"])
    assert load_scene_names(tmp_path / "new.npz") == {5: ["a", "x1.jpg"], 6: ["", "강/2.jpg"], 7: ["3", "3.png"]}
    assert load_scene_names(tmp_path / "old.npz") == {}
    assert load_confusion(tmp_path / "new.npz")[1].tolist() == [5, 6, 7]


def test_equal_counts_give_equal_files(tmp_path):
    for name, dtype in (("one.npz", np.int64), ("two.npz", np.uint16)):
        save_confusion(tmp_path / name, np.ones((2, 2, 2), dtype), [1, 2], ["a", "b"])
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_refused_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "confusion.npz"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match=r"image_ids must be one number or text for each of 2 images, got \(1,\)"):
        save_confusion(path, np.ones((2, 2, 2), np.int64), [1], ["a", "b"])
    with pytest.raises(InputError, match=r"integer counts .* float64"):
        save_confusion(path, np.ones((2, 2, 2)), [1, 2], ["a", "b"])
    assert path.read_bytes() == b"old"


def foreign_files(folder):
    """Files that are no confusion file, with what the refusal says."""
    good = folder / "good.npz"
    save_confusion(good, np.arange(400).reshape(4, 10, 10), [1, 2, 3, 4], list("abcdefghij"))
    content = good.read_bytes()
    arrays = dict(np.load(good))

    def written(name, write):
        with open(folder / name, "wb") as file:
            write(file)
        return folder / name

    flipped = bytearray(content)
    flipped[200] ^= 0xFF
    return [
        (folder / "missing.npz", "FileNotFoundError"),
        (folder, "IsADirectoryError"),
        (written("empty.npz", lambda file: None), "BadZipFile"),
        (written("text.npz", lambda file: file.write(b"epoch,miou\n")), "BadZipFile"),
        (written("half.npz", lambda file: file.write(content[: len(content) // 2])), "BadZipFile"),
        (written("flipped.npz", lambda file: file.write(flipped)), "must be a file of save_confusion"),
        (written("array.npz", lambda file: np.save(file, np.ones(3))), "BadZipFile"),
        (written("other.npz", lambda file: np.savez(file, weights=np.ones(3))), "KeyError"),
        (written("pickle.npz", lambda file: np.savez(file, **{**arrays, "image_ids": np.array([{}] * 4)})), "pickle"),
        (written("ids.npz", lambda file: np.savez(file, **{**arrays, "image_ids": np.arange(3)})), r"got \(3,\) int64"),
        (written("names.npz", lambda file: np.savez(file, **{**arrays, "class_names": np.arange(10)})), "list of text"),
        (
            written("flat.npz", lambda file: np.savez(file, **{**arrays, "confusion": np.arange(4)})),
            r"got \(4,\) int64",
        ),
    ]


def test_foreign_and_broken_files_are_refused_by_name(tmp_path):
    for path, words in foreign_files(tmp_path):
        with pytest.raises(InputError, match=words) as caught:
            load_confusion(path)
        assert str(caught.value).startswith(f"{path}: ")


@pytest.fixture
def own_metrics(monkeypatch):
    monkeypatch.setattr(parts, "_registered", {})


def test_own_metrics_are_computed_beside_the_others(own_metrics):
    @register("metric")
    def wrong_share(confusion, higher_is_better: bool = False):
        return 1 - confusion.trace() / confusion.sum()

    @register("metric")
    def least_iou(confusion):
        return np.nanmin(iou_per_class(confusion))

    per_image = confusion_per_image(*random_masks(4), 4)
    metrics = compute_metrics(per_image, list("abcd"), batch_size=2)
    assert metrics["wrong_share"] == pytest.approx(1 - metrics["accuracy"])
    assert metrics["least_iou"] == min(metrics["iou"].values()) and type(metrics["least_iou"]) is float
    assert find_signs() == {"miou": 1, "miou_image": 1, "accuracy": 1, "loss": -1, "wrong_share": -1, "least_iou": 1}
    least_iou.higher_is_better = False
    assert find_signs()["least_iou"] == -1


def test_an_own_metric_that_gives_no_number_is_one_line(own_metrics):
    @register("metric")
    def per_class(confusion):
        return confusion.diagonal()

    with pytest.raises(InputError, match=r"metric per_class: required a number for a matrix \(C, C\), got array"):
        compute_metrics(np.ones((2, 3, 3), np.int64), list("abc"), 1)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("miou", "confusion", "got that of a shipped metric; rename yours"),
        ("val_loss", "confusion", "got that of a shipped metric; rename yours"),
        ("mine", "confusion, beta", "required a default for each argument after confusion"),
        ("mine", "", r"required the arguments mine\(confusion, \*, ...\), got \(none\)"),
    ],
)
def test_metrics_that_cannot_be_computed_are_refused_where_they_are_registered(own_metrics, name, arguments, words):
    scope = {}
    exec(f"def {name}({arguments}): return 0.0", scope)
    with pytest.raises(InputError, match=words):
        register("metric")(scope[name])


def test_select_by_may_name_an_own_metric(own_metrics):
    schema = parse_parameters('select_by: str = "miou"\nparts: list[str] = []\n')
    register("metric")(lambda_named("least_iou"))
    assert check_parameters(schema, {"select_by": "least_iou", "parts": []})[1] == {}
    refused = check_parameters(schema, {"select_by": "least_ios", "parts": []})[1]
    assert refused["select_by"].startswith("unknown select_by 'least_ios'; did you mean 'least_iou'")


def lambda_named(name):
    metric = lambda confusion: 0.0  # noqa: E731
    metric.__name__ = name
    return metric


# How far probabilities can be trusted.


def random_batch(seed=0, images=3):
    rng = np.random.default_rng(seed)
    probabilities = torch.from_numpy(rng.normal(size=(images, 4, 8, 8)) * 2).softmax(dim=1)
    masks = rng.integers(0, 4, (images, 8, 8)).astype(np.uint8)
    masks[rng.random(masks.shape) < 0.1] = 255
    return probabilities, torch.from_numpy(masks)


def summarise(probabilities, masks):
    each = [summarise_probabilities(*pair) for pair in zip(probabilities, masks, strict=True)]
    return {name: np.stack([scores[name] for scores in each]) for name in each[0]}


def given_by_hand(probabilities, mask):
    return np.array([probabilities[mask[y, x], y, x] for y, x in np.argwhere(mask != 255)])


def test_softmin_is_the_formula_of_lad_and_mueller():
    probabilities, masks = random_batch()
    scores = summarise(probabilities, masks)
    for image in range(3):
        p = given_by_hand(probabilities[image].numpy(), masks[image].numpy())
        weights = np.exp((1 - p) / 0.1)
        assert scores["softmin"][image] == pytest.approx((p * weights).sum() / weights.sum())
        assert scores["given"][image] == pytest.approx(p.mean())


def test_one_contradicted_region_lowers_the_softmin_more_than_the_mean():
    probabilities = torch.full((1, 2, 10, 10), 0.02)
    probabilities[:, 0] = 0.98
    masks = torch.zeros(1, 10, 10, dtype=torch.uint8)
    clean = summarise(probabilities, masks)
    masks[0, :2, :2] = 1
    doubtful = summarise(probabilities, masks)
    assert doubtful["softmin"] < 0.05 < 0.9 < doubtful["given"] < clean["given"] == pytest.approx(0.98)


def test_an_image_without_valid_pixels_has_no_score():
    probabilities, masks = random_batch()
    masks[1] = 255
    scores = summarise(probabilities, masks)
    assert np.isnan(scores["softmin"]).tolist() == [False, True, False]
    assert not scores["reliability"][1].any()


def test_reliability_and_calibration_error_equal_a_loop_over_the_bins():
    probabilities, masks = random_batch(images=5)
    reliability = summarise(probabilities, masks)["reliability"]
    valid = masks.numpy() != 255
    confidence = probabilities.amax(dim=1).numpy()[valid]
    pred, label = probabilities.argmax(dim=1).numpy()[valid], masks.numpy()[valid]
    table, error = tabulate_reliability(reliability), 0
    for number in range(RELIABILITY_BINS):
        chosen = np.floor(confidence * RELIABILITY_BINS) == number
        if not chosen.any():
            assert number / RELIABILITY_BINS not in table.index
            continue
        row = table.loc[number / RELIABILITY_BINS]
        accuracy = sklearn.metrics.accuracy_score(label[chosen], pred[chosen])
        assert row["pixels"] == chosen.sum()
        assert row["accuracy"] == pytest.approx(accuracy)
        assert row["confidence"] == pytest.approx(confidence[chosen].mean())
        error += chosen.mean() * abs(accuracy - confidence[chosen].mean())
    assert calibration_error(reliability) == pytest.approx(error)
    assert table["share"].sum() == pytest.approx(1)


def test_certainty_of_one_falls_into_the_last_bin():
    probabilities = torch.zeros(1, 2, 2, 2)
    probabilities[:, 1] = 1
    table = tabulate_reliability(summarise(probabilities, torch.ones(1, 2, 2, dtype=torch.uint8))["reliability"])
    assert table["pixels"].tolist() == [4]
    assert calibration_error(np.array([[[4, 4.0, 4]]])) == 0

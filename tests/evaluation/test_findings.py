import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score

from seglib.evaluation import findings
from seglib.evaluation.errors import choose_images, tabulate_classes, tabulate_confusions, tabulate_images
from seglib.evaluation.findings import (
    RELIABILITY_BINS,
    calibration_error,
    summarise_probabilities,
    tabulate_reliability,
)

NAMES = ["Background", "Paper", "Metal", "Glass"]
CONFUSION = np.array([[90, 10, 0, 0], [30, 20, 0, 0], [5, 0, 0, 0], [0, 0, 0, 0]])


def test_classes_say_mean_extremes_and_what_is_at_zero():
    text = findings.describe_classes(tabulate_classes(CONFUSION, NAMES))
    assert "mIoU **0.3333** over 3 classes, from Metal (0.000) to Background (0.667)" in text
    assert "At zero: Metal; they alone hold back 33.3 points" in text


def test_the_next_thing_to_work_on_is_the_most_costly_confusion():
    text = findings.describe_confusions(tabulate_confusions(CONFUSION, NAMES))
    assert "**Metal taken for Background**, 100% of its pixels" in text
    assert "of 3 confusions hold 100%" in text
    assert findings.describe_confusions(tabulate_confusions(np.diag([3, 4, 5, 6]), NAMES)) == "Nothing is confused."


def images():
    per_image = np.stack([CONFUSION, np.diag([9, 9, 0, 0]), np.diag([9, 0, 0, 0]), np.zeros((4, 4), int)])
    return tabulate_images(per_image, [10, 11, 12, 13]).assign(softmin=[0.5, 0.2, 0.9, np.nan])


def test_images_say_range_and_the_most_costly():
    text = findings.describe_images(images())
    assert text.startswith("Images score from 0.333 to 1.000 (median 1.000). The most costly is 10:")


def test_images_are_chosen_worst_costly_doubtful_or_typical_first():
    table = images()
    assert choose_images(table, "miou", 2)[0] == [0, 1]
    assert choose_images(table, "gain", 1)[0] == [0]
    assert choose_images(table, "softmin", 2)[0] == [1, 0]
    assert choose_images(table, "miou", 9)[0] == [0, 1, 2]  # the image without valid pixels has no score
    assert choose_images(table, "miou", 1)[1] == ["image 10\nmIoU 0.333"]
    assert "label 0.200" in choose_images(table, "softmin", 1)[1][0]


def test_typical_images_are_the_middle_and_the_best():
    scores = pd.DataFrame({"image_id": range(9), "miou": np.arange(9) / 10, "gain": 0.0})
    assert choose_images(scores, "typical", 4)[0] == [3, 4, 7, 8]
    assert choose_images(scores, "typical", 1)[0] == [4]


def test_objects_say_what_was_found_and_what_is_left_out():
    table = pd.DataFrame({"objects": [30, 10], "found": [0.1, 0.9], "missed": [30, 90]}, index=["≤ 8 px", "> 96 px"])
    text = findings.describe_objects(table, 2)
    assert "Of 40 objects **30% are found** at IoU 0.5: 10% of the 30 of ≤ 8 px, 90% of the 10 of > 96 px." in text
    assert "Most missed pixels belong to objects of > 96 px (75%). 2 objects" in text
    assert findings.describe_objects(table.head(0), 2) == "No annotated object has a visible pixel."


def test_kinds_say_which_is_most_and_what_it_means():
    text = findings.describe_kinds(pd.Series({"boundary": 60, "extent": 30, "segment": 10}), 0.8)
    assert "60% boundary, 30% extent, 10% segment. Mostly **boundary**: edges" in text
    assert (
        findings.describe_kinds(pd.Series({"boundary": 0, "extent": 0, "segment": 0}), np.nan) == "No pixel is wrong."
    )


def test_calibration_says_in_which_direction():
    reliability = np.zeros((1, 15, 3))
    reliability[0, 13] = 100, 90, 80
    assert "**overconfident** by 0.100" in findings.describe_calibration(tabulate_reliability(reliability), 0.1)
    reliability[0, 13] = 100, 90, 100
    assert "**underconfident** by 0.100" in findings.describe_calibration(tabulate_reliability(reliability), 0.1)


def test_labels_name_the_most_doubtful_images():
    assert findings.describe_labels(images(), 2) == "Look again at the labels of images 11, 10."


def test_a_difference_is_a_verdict_only_where_the_interval_excludes_zero():
    seen = findings.describe_difference(0.01, -0.01, 0.02, "5 scenes", "Seeds.")
    assert seen.startswith(
        "A minus B: **+0.0100** mIoU on these images. Would other images change who is ahead? it could,"
    )
    assert seen.endswith("-0.0100 to +0.0200 over 5 scenes. Would other seeds? Seeds.")
    assert "ahead? hardly, 95 % interval" in findings.describe_difference(0.01, 0.005, 0.02, "5 scenes", "Seeds.")
    assert "not known, 1 scene say" in findings.describe_difference(0.01, np.nan, np.nan, "1 scene", "Seeds.")


def random_batch(seed=0, images=3):
    rng = np.random.default_rng(seed)
    probabilities = torch.from_numpy(rng.normal(size=(images, 4, 8, 8)) * 2).softmax(dim=1)
    masks = rng.integers(0, 4, (images, 8, 8)).astype(np.uint8)
    masks[rng.random(masks.shape) < 0.1] = 255
    return probabilities, torch.from_numpy(masks)


def given_by_hand(probabilities, mask):
    return np.array([probabilities[mask[y, x], y, x] for y, x in np.argwhere(mask != 255)])


def test_softmin_is_the_formula_of_lad_and_mueller():
    probabilities, masks = random_batch()
    scores = summarise_probabilities(probabilities, masks)
    for image in range(3):
        p = given_by_hand(probabilities[image].numpy(), masks[image].numpy())
        weights = np.exp((1 - p) / 0.1)
        assert scores["softmin"][image] == pytest.approx((p * weights).sum() / weights.sum())
        assert scores["given"][image] == pytest.approx(p.mean())


def test_one_contradicted_region_lowers_the_softmin_more_than_the_mean():
    probabilities = torch.full((1, 2, 10, 10), 0.02)
    probabilities[:, 0] = 0.98
    masks = torch.zeros(1, 10, 10, dtype=torch.uint8)
    clean = summarise_probabilities(probabilities, masks)
    masks[0, :2, :2] = 1
    doubtful = summarise_probabilities(probabilities, masks)
    assert doubtful["softmin"] < 0.05 < 0.9 < doubtful["given"] < clean["given"] == pytest.approx(0.98)


def test_an_image_without_valid_pixels_has_no_score():
    probabilities, masks = random_batch()
    masks[1] = 255
    scores = summarise_probabilities(probabilities, masks)
    assert np.isnan(scores["softmin"]).tolist() == [False, True, False]
    assert not scores["reliability"][1].any()


def test_reliability_and_calibration_error_equal_a_loop_over_the_bins():
    probabilities, masks = random_batch(images=5)
    reliability = summarise_probabilities(probabilities, masks)["reliability"]
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
        accuracy = accuracy_score(label[chosen], pred[chosen])
        assert row["pixels"] == chosen.sum()
        assert row["accuracy"] == pytest.approx(accuracy)
        assert row["confidence"] == pytest.approx(confidence[chosen].mean())
        error += chosen.mean() * abs(accuracy - confidence[chosen].mean())
    assert calibration_error(reliability) == pytest.approx(error)
    assert table["share"].sum() == pytest.approx(1)


def test_certainty_of_one_falls_into_the_last_bin():
    probabilities = torch.zeros(1, 2, 2, 2)
    probabilities[:, 1] = 1
    table = tabulate_reliability(
        summarise_probabilities(probabilities, torch.ones(1, 2, 2, dtype=torch.uint8))["reliability"]
    )
    assert table["pixels"].tolist() == [4]
    assert calibration_error(np.array([[[4, 4.0, 4]]])) == 0

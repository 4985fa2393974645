import numpy as np
import pandas as pd

from seglib.evaluation.errors import choose_images, tabulate_classes, tabulate_confusions, tabulate_images
from seglib.evaluation.metrics import tabulate_reliability
from seglib.inference import analysis

NAMES = ["Background", "Paper", "Metal", "Glass"]
CONFUSION = np.array([[90, 10, 0, 0], [30, 20, 0, 0], [5, 0, 0, 0], [0, 0, 0, 0]])


def test_classes_say_mean_extremes_and_what_is_at_zero():
    text = analysis.describe_classes(tabulate_classes(CONFUSION, NAMES))
    assert "mIoU **0.3333** over 3 classes, from Metal (0.000) to Background (0.667)" in text
    assert "At zero: Metal; they alone hold back 33.3 points" in text


def test_the_next_thing_to_work_on_is_the_most_costly_confusion():
    text = analysis.describe_confusions(tabulate_confusions(CONFUSION, NAMES))
    assert "**Metal taken for Background**, 100% of its pixels" in text
    assert "of 3 confusions hold 100%" in text
    assert analysis.describe_confusions(tabulate_confusions(np.diag([3, 4, 5, 6]), NAMES)) == "Nothing is confused."


def images():
    per_image = np.stack([CONFUSION, np.diag([9, 9, 0, 0]), np.diag([9, 0, 0, 0]), np.zeros((4, 4), int)])
    return tabulate_images(per_image, [10, 11, 12, 13]).assign(softmin=[0.5, 0.2, 0.9, np.nan])


def test_images_say_range_and_the_most_costly():
    text = analysis.describe_images(images())
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


def test_a_spread_goes_from_the_worst_to_the_best_image():
    perfect, half, wrong, empty = np.diag([4, 4]), np.full((2, 2), 2), np.array([[0, 4], [4, 0]]), np.zeros((2, 2), int)
    table = tabulate_images(np.stack([half, perfect, empty, wrong]), [7, 8, 9, 10])
    chosen, titles = choose_images(table, "spread", 3)
    assert chosen == [3, 0, 1]
    assert titles == ["image 10\nmIoU 0.000", "image 7\nmIoU 0.333", "image 8\nmIoU 1.000"]
    assert choose_images(table, "spread", 2)[0] == [3, 1]


def test_objects_say_what_was_found_and_what_is_left_out():
    table = pd.DataFrame({"objects": [30, 10], "found": [0.1, 0.9], "missed": [30, 90]}, index=["≤ 8 px", "> 96 px"])
    text = analysis.describe_objects(table, 2)
    assert "Of 40 objects **30% are found** at IoU 0.5: 10% of the 30 of ≤ 8 px, 90% of the 10 of > 96 px." in text
    assert "Most missed pixels belong to objects of > 96 px (75%). 2 objects" in text
    assert analysis.describe_objects(table.head(0), 2) == "No annotated object has a visible pixel."


def test_kinds_say_which_is_most_and_what_it_means():
    text = analysis.describe_kinds(pd.Series({"boundary": 60, "extent": 30, "segment": 10}), 0.8)
    assert "60% boundary, 30% extent, 10% segment. Mostly **boundary**: edges" in text
    assert (
        analysis.describe_kinds(pd.Series({"boundary": 0, "extent": 0, "segment": 0}), np.nan) == "No pixel is wrong."
    )


def test_calibration_says_in_which_direction():
    reliability = np.zeros((1, 15, 3))
    reliability[0, 13] = 100, 90, 80
    assert "**overconfident** by 0.100" in analysis.describe_calibration(tabulate_reliability(reliability), 0.1)
    reliability[0, 13] = 100, 90, 100
    assert "**underconfident** by 0.100" in analysis.describe_calibration(tabulate_reliability(reliability), 0.1)


def test_labels_name_the_most_doubtful_images():
    assert analysis.describe_labels(images(), 2) == "Look again at the labels of images 11, 10."


def test_a_difference_is_a_verdict_only_where_the_interval_excludes_zero():
    seen = analysis.describe_difference(0.01, -0.01, 0.02, "5 scenes", "Seeds.")
    assert seen.startswith(
        "A minus B: **+0.0100** mIoU on these images. Would other images change who is ahead? it could,"
    )
    assert seen.endswith("-0.0100 to +0.0200 over 5 scenes. Would other seeds? Seeds.")
    assert "ahead? hardly, 95 % interval" in analysis.describe_difference(0.01, 0.005, 0.02, "5 scenes", "Seeds.")
    assert "not known, 1 scene say" in analysis.describe_difference(0.01, np.nan, np.nan, "1 scene", "Seeds.")

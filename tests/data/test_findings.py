"""The summary says the numbers of the tables, in words."""

import numpy as np
import pandas as pd

from seglib.data import eda
from seglib.data.analysis import PaintedCounts
from seglib.data.eda import ALL


def counts(class_pixels=((60, 30, 0, 10),), covered=40, disputed=2):
    left = pd.DataFrame({64: [1]})
    return PaintedCounts(np.array(class_pixels), np.array([covered]), np.array([disputed]), left)


def classes(paper, glass):
    return pd.DataFrame({"annotations": [0, paper, glass]}, index=["Background", "Paper", "Glass"])


def test_errors_are_named_and_training_is_said_to_refuse():
    problems = pd.DataFrame(
        {"severity": ["error", "error", "warning"], "problem": ["rle-sum", "rle-sum", "exif-rotated"]}
    )
    assert eda.describe_problems(problems) == (
        "**Annotations:** 2 errors (rle-sum) and 1 warnings; training refuses this data until they are mended."
    )
    assert eda.describe_problems(problems.iloc[:0]) == "**Annotations:** no errors, 0 warnings."


def test_imbalance_is_a_ratio_of_the_classes_that_there_are():
    told = eda.describe_classes(classes(40, 10), counts())
    assert "Paper has 40 annotations, 4 times as many as Glass (10); 1 of 2 classes have fewer than 20, 0 none." in told
    assert "60.0 % of all pixels are background, 10.0 % are ignored." in told
    assert "1 none" in eda.describe_classes(classes(40, 0), counts())
    assert eda.describe_classes(classes(0, 0), counts()) == "**Classes:** no annotation can be painted."


def test_sizes_and_vanished_objects_are_counted():
    sizes = pd.DataFrame({"objects": [4], "median": [18.0], "<=8": [0.25], "<=20": [0.5]}, index=[ALL])
    assert eda.describe_sizes(sizes, 256) == (
        "**Sizes:** at 256 px the median object is 18 px across; 25.0 % are at or under 8 px, 50.0 % are at or under 20 px."
    )
    vanished = pd.DataFrame(
        {"objects": [8, 5, 3], "vanish at 256": [0, 0, 0], "vanish at 128": [2, 0, 2]}, index=[ALL, "Paper", "Glass"]
    )
    assert eda.describe_vanished(vanished) == (
        "**Resizing:** of 8 objects, at 256 px 0 objects (0.0 %) vanish; "
        "at 128 px 2 objects (25.0 %) vanish, most of them Glass (2)."
    )


def test_overlaps_count_annotations_and_disputed_pixels():
    overlaps = pd.DataFrame({"first": [1, 1], "second": [2, 3]})
    pairs = pd.DataFrame({"class_a": ["Metal", "Paper"], "class_b": ["Metal", "Glass"], "overlaps": [9, 2]})
    told = eda.describe_overlaps(pd.DataFrame(index=range(6)), overlaps, pairs, counts())
    assert "3 of 6 annotations (50.0 %) overlap another" in told
    assert "disagree in 2 px, 5.0 % of the objects' pixels, in 1 images" in told
    assert "Paper and Glass share most pixels (2 pairs of annotations)" in told
    nothing = eda.describe_overlaps(pd.DataFrame(index=range(6)), overlaps.iloc[:0], pairs, counts())
    assert "no two annotations overlap" in nothing


def compared(train, val):
    numbers = np.transpose([train, val, train, val])
    columns = pd.MultiIndex.from_product([["annotations", "pixels"], ["train", "val"]])
    return pd.DataFrame(numbers, index=["Background", "Paper", "Glass"], columns=columns)


def test_split_names_the_divergence_and_classes_that_val_lacks():
    subset = np.array(["train", "train", "val"])
    told = eda.describe_split(subset, compared([0, 5, 5], [0, 4, 0]))
    assert "2 images train, 1 validate" in told
    assert "divergence 0.3113 of annotations" in told
    assert told.endswith("; absent from val: Glass.")
    assert "no validation images" in eda.describe_split(subset[:2], compared([0, 5, 5], [0, 0, 0]))


def test_copies_across_and_within_are_told_apart():
    near = pd.DataFrame({"exact": [True, False, False], "across": [True, True, False]})
    told = eda.describe_duplicates(near)
    assert told.startswith(
        "**Copies:** 1 pairs of images with one content stand on both sides of the split, and 1 pairs"
    )
    assert "within train or val there are 0 and 1: a random split would" in told


def test_what_needs_pixels_says_so_without_them():
    for told in (
        eda.describe_duplicates(None),
        eda.describe_colours(None, None),
        eda.describe_pipelines(None),
    ):
        assert "there are no pixels" in told


def test_faults_of_a_pipeline_are_repeated():
    sound = pd.DataFrame({"pipeline": ["flips", "none"], "step": ["HorizontalFlip", "NoOp"], "problem": ["", ""]})
    assert "no fault found in flips and none" in eda.describe_pipelines(sound)
    told = eda.describe_pipelines(sound.assign(step="Normalize", problem=["normalised twice (8 of 8)", ""]))
    assert told == "**Augmentation:** flips, Normalize: normalised twice (8 of 8)."

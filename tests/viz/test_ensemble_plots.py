import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb

from seglib.viz.charts import plot_class_gains, plot_error_correlation, plot_member_curve, plot_members
from seglib.viz.pictures import CHANGES, plot_change_rows
from seglib.viz.plots import IGNORED, class_colours

NAMES = ["Background", "Paper", "Metal"]


def texts_of(axis):
    return [text.get_text() for text in axis.texts]


def test_the_colours_of_changes_are_no_class_colours():
    assert not {to_hex(colour / 255) for colour in class_colours(60)} & set(CHANGES.values())


def test_members_have_a_row_each_and_the_best_of_a_column_is_framed():
    table = pd.DataFrame({"member": ["a", "b"], "miou": [0.4, 0.5], "miou_image": [0, 0], "accuracy": [1, 1],
                          "Paper": [0.3, 0.2], "Metal": [0.1, 0.7], "Glass": [np.nan, 0]})  # fmt: skip
    axis = plot_members(table).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    assert texts_of(axis) == ["0.400", "0.300", "0.100", "-", "0.500", "0.200", "0.700", "0.000"]
    assert sorted((round(box.get_x() - 0.04), round(box.get_y() - 0.06)) for box in axis.patches) == [
        (0, 1),
        (1, 0),
        (2, 1),
    ]


@pytest.mark.parametrize(("count", "shown"), [(12, 12), (60, 12)])
def test_of_more_than_twelve_classes_those_are_shown_on_which_members_differ_and_the_title_says_so(count, shown):
    classes = {f"class {number}": [0.5, 0.5 - number / 100] for number in range(count)}
    table = pd.DataFrame({"member": ["a", "b"], "miou": [0.4, 0.5], "miou_image": 0, "accuracy": 1, **classes})
    axis = plot_members(table).axes[0]
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == ["mIoU", *[f"class {number}" for number in range(count - shown, count)]]
    assert ("(12 of 60, where members differ most)" in axis.get_title()) == (count > shown)


def test_correlations_are_written_into_the_pairs():
    axis = plot_error_correlation(np.array([[1, 0.25], [0.25, 1]]), ["a", "b"]).axes[0]
    assert texts_of(axis) == ["0.25", "0.25"]


def test_the_curve_names_who_was_drawn():
    curve = pd.DataFrame({"draw": [1, 2], "member": ["a", "b"], "searched": [0.5, 0.6], "held_out": [0.5, 0.55],
                          "best_mean": [0.5, np.nan]})  # fmt: skip
    axis, below = plot_member_curve(curve, 0.52).axes
    assert [label.get_text() for label in below.get_yticklabels()] == ["a", "b"]
    assert below.lines[0].get_xydata().tolist() == [[1, 0], [2, 1]]
    assert "plain mean of all: 0.5200" in [text.get_text() for text in axis.get_legend().get_texts()]


def test_gains_are_sorted_and_absent_classes_left_out():
    table = pd.DataFrame({"class": NAMES, "iou_a": [0.5, 0.8, np.nan], "iou_b": [0.6, 0.5, np.nan]})
    axis = plot_class_gains(table.assign(difference=table["iou_a"] - table["iou_b"]), "a").axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["Paper", "Background"]
    assert {"+30.00", "-10.00", "0.500 → 0.800"} <= set(texts_of(axis))


def test_changed_pixels_are_won_lost_or_wrong_both_times():
    truth, before, after = (np.array([row], np.uint8) for row in ([1, 1, 1, 1, 255], [0, 1, 0, 1, 0], [1, 0, 2, 1, 1]))
    masks = (each[None] for each in (truth, before, after))
    figure = plot_change_rows(np.zeros((1, 1, 5, 3), np.uint8), *masks, NAMES, ("best", "vote"), ["x"])
    shown = figure.axes[4].images[0].get_array()[0]
    colours = [tuple(round(255 * part) for part in to_rgb(colour)) for colour in CHANGES.values()]
    assert [tuple(pixel) for pixel in shown.tolist()] == [*colours, (160, 160, 160), IGNORED]


def test_a_row_shows_image_truth_both_answers_and_the_change():
    masks = np.zeros((2, 4, 4), np.uint8)
    figure = plot_change_rows(
        np.zeros((2, 4, 4, 3), np.uint8), masks, masks, masks + 1, NAMES, ("best", "vote"), ["x", "y"]
    )
    assert [axis.get_title() for axis in figure.axes[:5]] == ["image", "truth", "best", "vote", "changed by the vote"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["Background", "Paper", *(f"changed: {kind}" for kind in CHANGES)]

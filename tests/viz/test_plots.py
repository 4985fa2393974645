"""Figures: the same colour for a class everywhere, legends of what is shown, files written."""

import numpy as np
import pandas as pd
import pytest

from seglib.viz.comparison import plot_condition_curves
from seglib.viz.pictures import plot_batch, plot_predictions, show_errors
from seglib.viz.plots import (
    IGNORED,
    class_colours,
    colour_mask,
    plot_class_iou,
    plot_history,
    plot_schedule,
    save_figure,
)

NAMES = ["Background", "Paper", "Metal"]
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
MASKS = np.zeros((2, 16, 16), np.uint8)
MASKS[:, 4:8], MASKS[1, :2] = 1, 255


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("count", [2, 12, 21, 60, 255])
def test_colours_are_distinct_and_do_not_depend_on_the_number_of_classes(count):
    colours = class_colours(count)
    assert colours.shape == (count, 3)
    assert len(np.unique(colours, axis=0)) == count
    assert np.array_equal(colours[: min(count, 12)], class_colours(12)[:count])


def test_ids_that_are_no_class_are_grey():
    coloured = colour_mask(np.array([[0, 1, 2, 255]], np.uint8), 3)
    assert np.array_equal(coloured[0, :3], class_colours(3))
    assert tuple(coloured[0, 3]) == IGNORED


def test_errors_are_red_where_wrong_and_grey_where_ignored():
    truth, pred = np.array([[1, 1, 255]], np.uint8), np.array([[1, 2, 2]], np.uint8)
    right, wrong, ignored = show_errors(np.zeros((1, 3, 3), np.uint8), truth, pred)[0]
    assert tuple(wrong) == (204, 30, 30)
    assert tuple(ignored) == IGNORED
    assert len(set(right.tolist())) == 1


def test_a_batch_has_a_legend_of_the_classes_it_shows():
    assert legend_of(plot_batch(IMAGES, MASKS, NAMES)) == ["Background", "Paper", "(ignored)"]


def test_predictions_have_a_row_an_image_and_both_sides_classes_in_the_legend():
    figure = plot_predictions(IMAGES, MASKS, np.full_like(MASKS, 2), NAMES, ["a", "b"])
    assert len(figure.axes) == 8
    assert legend_of(figure) == ["Background", "Paper", "Metal", "(ignored)"]


def test_one_epoch_without_a_score_can_be_drawn():
    row = {
        "epoch": 1,
        "lr": 0.1,
        "train_loss": 1.0,
        "val_loss": 2.0,
        "miou": np.nan,
        "miou_image": np.nan,
        "memory_mb": 5.0,
    }
    assert plot_history(pd.DataFrame([row]), 3).axes[0].get_title() == "loss"


def test_absent_classes_are_said_not_drawn_as_zero():
    axis = plot_class_iou({"Background": 0.9, "Paper": 0.0, "Metal": float("nan")}, 0.45).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["Background", "Paper"]
    assert "absent from truth and prediction: Metal" in axis.get_title()


def test_a_saved_figure_is_a_png_under_figures(tmp_path):
    figure = plot_batch(IMAGES, MASKS, NAMES)
    assert save_figure(figure, tmp_path, "batch") is figure
    assert (tmp_path / "figures" / "batch.png").read_bytes().startswith(b"\x89PNG")


def test_a_schedule_is_drawn_once_for_groups_of_the_same_rate_and_apart_for_others():
    ramp = np.linspace(0.1, 0, 20)
    same = plot_schedule(np.stack([ramp, ramp], axis=1), steps_per_epoch=5).axes[0]
    apart = plot_schedule(np.stack([ramp, ramp / 10], axis=1), steps_per_epoch=5).axes[0]
    assert [len(axis.get_lines()) for axis in (same, apart)] == [1, 2]
    assert [text.get_text() for text in apart.get_legend().get_texts()] == ["up to 0.1", "up to 0.01"]
    assert apart.get_xlim() == (0, 4)


@pytest.mark.parametrize(
    ("count", "words"), [(2, "validation mIoU"), (9, "validation mIoU (the first 8 of 9 conditions)")]
)
def test_curves_of_conditions_say_which_are_left_out(count, words):
    rows = [(f"lr={n}", epoch, 0.1 * epoch, 1 / epoch) for n in range(count) for epoch in (1, 2, 3)]
    curves = pd.DataFrame(rows, columns=["condition", "epoch", "miou", "val_loss"])
    figure = plot_condition_curves(curves, [f"lr={n}" for n in range(count)])
    assert figure.axes[0].get_title() == words
    assert legend_of(figure) == [f"lr={n}" for n in range(min(8, count))]

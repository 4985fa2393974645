import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from seglib.evaluation.compare import OUTCOMES, count_outcomes
from seglib.evaluation.errors import (
    KINDS,
    count_error_kinds,
    gain_of_confusions,
    lost_to_confusions,
    tabulate_classes,
    tabulate_confusions,
)
from seglib.evaluation.metrics import tabulate_reliability
from seglib.viz import pictures
from seglib.viz.charts import (
    MAX_CLASSES,
    plot_class_table,
    plot_confusion,
    plot_gains,
    plot_kinds,
    plot_outcomes,
    plot_reliability,
)
from seglib.viz.pictures import KIND_COLOURS, OUTCOME_COLOURS
from seglib.viz.plots import IGNORED, class_colours

NAMES = ["Background", "Paper", "Metal"]
CONFUSION = np.array([[90, 10, 0], [30, 20, 0], [0, 0, 0]])
TRUTH = np.zeros((1, 12, 12), np.uint8)
TRUTH[0, 2:6, 2:6], TRUTH[0, 10:] = 1, 255
IMAGES = np.full((1, 12, 12, 3), 100, np.uint8)


def tick_labels(axis):
    return [label.get_text() for label in axis.get_yticklabels()]


def legend_of(holder):
    return [text.get_text() for text in holder.get_texts()]


def test_the_colours_beside_masks_are_no_class_colours():
    classes = {to_hex(colour / 255) for colour in class_colours(60)}
    assert not classes & {*KIND_COLOURS.values(), *OUTCOME_COLOURS.values()}
    assert (tuple(KIND_COLOURS), tuple(OUTCOME_COLOURS)) == (KINDS, OUTCOMES)


def test_class_bars_fill_the_union_and_absent_classes_are_left_out():
    figure = plot_class_table(tabulate_classes(CONFUSION, NAMES), 0.5)
    axis = figure.axes[0]
    assert tick_labels(axis) == ["Background  0.692", "Paper  0.333"]
    ends = [bar.get_x() + bar.get_width() for bar in axis.containers[-1]]
    assert ends == pytest.approx([1, 1])


def plot_matrices(confusion, names):
    return plot_confusion(confusion, sum(lost_to_confusions(confusion)), gain_of_confusions(confusion), names)


def test_confusion_has_four_matrices_of_the_present_classes():
    figure = plot_matrices(CONFUSION, NAMES)
    assert [axis.get_title() for axis in figure.axes] == [
        "pixels (log)", "% of the true class", "mIoU points lost (add up)", "mIoU points won if fixed alone"
    ]  # fmt: skip
    assert tick_labels(figure.axes[0]) == NAMES[:2]
    assert sorted(text.get_text() for text in figure.axes[1].texts if text.get_text()) == ["10", "40", "60", "90"]


def test_of_many_classes_the_most_costly_are_shown():
    confusion = np.diag(np.full(40, 10))
    confusion[5, 6] = 10
    figure = plot_matrices(confusion, [f"c{index}" for index in range(40)])
    assert len(tick_labels(figure.axes[0])) == MAX_CLASSES
    assert {"c5", "c6"} <= set(tick_labels(figure.axes[0]))
    assert f"the {MAX_CLASSES} most costly of 40" in figure._supxlabel.get_text()


def test_gains_name_true_and_predicted_class():
    axis = plot_gains(tabulate_confusions(CONFUSION, NAMES)).axes[0]
    assert tick_labels(axis)[0] == "Paper  taken for  Background"
    assert axis.texts[0].get_text().startswith("+")


def test_a_perfect_run_has_figures_too():
    perfect = np.diag([5, 6, 0])
    assert plot_matrices(perfect, NAMES).axes
    assert plot_gains(tabulate_confusions(perfect, NAMES)).axes


def test_kinds_point_left_where_missed_and_right_where_invented():
    pred = np.zeros_like(TRUTH[0])
    pred[8:10, 8:10] = 2
    table, _ = count_error_kinds([(TRUTH[0], pred)], NAMES)
    axis = plot_kinds(table, [140, 16, 4], [0.9, 0, 0], [0.8, 0, np.nan]).axes[0]
    widths = [[round(bar.get_width()) for bar in container] for container in axis.containers]
    assert widths[KINDS.index("segment")] == [0, -100, 0]
    assert widths[3 + KINDS.index("segment")] == [0, 0, 100]


def test_reliability_says_its_error():
    reliability = np.zeros((1, 15, 3))
    reliability[0, 14], reliability[0, 3] = (100, 99, 90), (10, 2.5, 2)
    figure = plot_reliability(tabulate_reliability(reliability), 0.0864)
    assert "0.0864" in figure.axes[0].get_title()
    np.testing.assert_allclose(figure.axes[0].lines[1].get_xydata(), [[0.25, 0.2], [0.99, 0.9]])


def test_outcomes_fill_each_class_s_bar():
    table, _ = count_outcomes([(TRUTH[0], TRUTH[0] % 255, np.zeros_like(TRUTH[0]))], NAMES)
    axis = plot_outcomes(table, "A", "B").axes[0]
    assert tick_labels(axis) == NAMES[:2]
    assert [bar.get_width() for bar in axis.containers[1]] == [0, 100]
    assert legend_of(axis.get_legend()) == ["both right", "only A", "only B", "neither"]


def test_kind_rows_paint_kinds_and_ignored_pixels():
    kinds = np.zeros_like(TRUTH)
    kinds[0, 2:6, 2:6] = 3
    figure = pictures.plot_kind_rows(IMAGES, TRUTH, TRUTH * 0, kinds, NAMES, ["one"])
    error = figure.axes[3].images[0].get_array()
    assert tuple(error[3, 3]) == tuple(round(255 * part) for part in to_rgb(KIND_COLOURS["segment"]))
    assert tuple(error[11, 0]) == IGNORED
    assert [axis.get_title() for axis in figure.axes] == ["image", "truth", "prediction", "error"]
    errors = [f"error: {kind}" for kind in KINDS]
    assert legend_of(figure.legends[0]) == ["Background", "Paper", "(ignored)", *errors]


def test_label_rows_are_dark_where_the_label_is_unlikely():
    given = np.ones(TRUTH.shape)
    given[0, 0, 0] = 0
    shaded = pictures.plot_label_rows(IMAGES, TRUTH, TRUTH, given, NAMES, ["one"]).axes[3].images[0].get_array()
    assert shaded[0, 0].sum() < 30 < 600 < shaded[1, 1].sum()


def test_duel_rows_have_a_panel_a_run_and_the_winners():
    winners = np.zeros_like(TRUTH)
    winners[0, 0, 0] = 1
    figure = pictures.plot_duel_rows(IMAGES, TRUTH, TRUTH, TRUTH * 0, winners, NAMES, ("A", "B"), ["one"])
    assert [axis.get_title() for axis in figure.axes] == ["image", "truth", "A", "B", "who is right"]
    shown = figure.axes[4].images[0].get_array()
    assert tuple(shown[0, 0]) == tuple(round(255 * part) for part in to_rgb(OUTCOME_COLOURS["only_a"]))


def test_pictures_are_shown_as_jpeg():
    figure = pictures.plot_label_rows(IMAGES, TRUTH, TRUTH, np.ones(TRUTH.shape), NAMES, ["one"])
    assert pictures.show_pictures(figure).data.startswith(b"\xff\xd8")

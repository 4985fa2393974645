"""Figures of the EDA: readable with 3 and with 60 classes, in Korean too, and drawn from what the tables say."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from seglib.viz import charts, pictures

FEW = ["Background", "종이", "Glass", "Metal"]
MANY = ["Background", *(f"A class with a long name {number}" for number in range(60))]


@pytest.fixture(params=[FEW, MANY], ids=["3 classes in Korean", "60 classes"])
def names(request):
    return request.param


def make_objects(names, count=300):
    """Objects of all classes but the last."""
    rng = np.random.default_rng(0)
    class_ids = rng.integers(1, len(names) - 1, count)
    values = {name: rng.random(count) for name in ("x", "y")}
    values |= {"size": np.exp(rng.normal(3, 1, count)), "aspect": np.exp(rng.normal(0, 1, count))}
    frame = pd.DataFrame({"image": rng.integers(0, 20, count), "class_id": class_ids, **values})
    return frame.assign(class_name=np.array(names, object)[class_ids])


def make_classes(names):
    counts = np.bincount(make_objects(names)["class_id"], minlength=len(names))
    return pd.DataFrame({"annotations": counts, "images": counts // 2, "pixels": counts * 1000 + 5}, index=names)


def make_compared(names):
    counts = make_classes(names)["annotations"].to_numpy()
    shares = np.transpose([counts / counts.sum(), counts[::-1] / counts.sum()])
    columns = [
        (what, part)
        for what in ("annotations", "pixels", "annotation_share", "pixel_share")
        for part in ("train", "val")
    ]
    return pd.DataFrame(np.hstack([shares] * 4), index=names, columns=pd.MultiIndex.from_tuples(columns))


def make_vanished(names):
    index = ["(all)", *names[1:]]
    return pd.DataFrame(
        {"objects": 9, "vanish at 256": 0, "share at 256": 0.0, "vanish at 128": 3, "share at 128": 1 / 3}, index
    )


def draw_all(names):
    objects, rng = make_objects(names), np.random.default_rng(0)
    counts = pd.DataFrame(rng.integers(0, 9, (len(names) - 1,) * 2), names[1:], names[1:])
    pairs = pd.DataFrame({"class_a": names[1:3], "class_b": names[1:3], "pixels": [9.0, 4.0], "overlaps": [3, 1]})
    present = rng.random((20, len(names))) < 0.3
    return {
        "classes": charts.plot_class_counts(make_classes(names)),
        "contents": charts.plot_image_contents(rng.integers(0, 99, (20, len(names) + 1)), present, objects),
        "cooccurrence": charts.plot_cooccurrence(counts),
        "sizes": charts.plot_object_sizes(objects, (8, 20, 32, 96), 256),
        "by class": charts.plot_by_class(objects, "size", "size [px]", (8, 20), names),
        "vanished": charts.plot_vanished(make_vanished(names)),
        "positions": charts.plot_positions(objects, names),
        "pairs": charts.plot_class_pairs(pairs),
        "subsets": charts.plot_subsets(make_compared(names)),
    }


def find_unseen_labels(axis):
    """Labels of ticks beyond the axis' ends, which are not drawn."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]


def find_overlaps(figure):
    """Pairs of texts that are drawn over one another."""
    renderer = figure.canvas.get_renderer()
    unseen = {label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in find_unseen_labels(axis)}
    texts = [text for text in figure.findobj(plt.Text) if text.get_visible() and text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text not in unseen]
    found = []
    for i, (one, box) in enumerate(boxes):
        for other, second in boxes[i + 1 :]:
            across = min(box.x1, second.x1) - max(box.x0, second.x0)
            down = min(box.y1, second.y1) - max(box.y0, second.y0)
            if across > 2 and down > 2:
                found.append((one, other))
    return found


def test_no_text_covers_another_and_no_letter_is_missing(names):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for what, figure in draw_all(names).items():
            plt.figure(figure)  # closed figures have lost their canvas
            figure.set_dpi(100)
            figure.canvas.draw()
            assert find_overlaps(figure) == [], what
            plt.close(figure)


def test_all_classes_have_a_row_and_the_most_frequent_is_on_top_below_the_background(names):
    classes = make_classes(names)
    axis = charts.plot_class_counts(classes).axes[0]
    rows = [label.get_text() for label in axis.get_yticklabels()]
    assert sorted(rows) == sorted(names)
    assert rows[:2] == ["Background", classes["annotations"].idxmax()] and axis.yaxis_inverted()


def test_shares_at_or_under_the_limits_are_written_above_the_lines():
    objects = pd.DataFrame({"size": [4.0, 8.0, 9.0, 100.0]})
    axis = charts.plot_object_sizes(objects, (8, 96), 256).axes[0]
    assert [text.get_text() for text in axis.texts] == ["50 % ≤ 8 px", "75 % ≤ 96 px"]


def test_a_class_that_loses_no_object_is_not_listed():
    vanished = make_vanished(FEW)
    vanished.loc["Glass", ["vanish at 128", "share at 128"]] = 0
    labels = [label.get_text() for label in charts.plot_vanished(vanished).axes[0].get_yticklabels()]
    assert labels == ["(all) (9)", "종이 (9)", "Metal (9)"]


def test_figures_can_be_drawn_of_no_objects():
    nothing = make_objects(FEW).iloc[:0]
    charts.plot_object_sizes(nothing, (8, 20), 256)
    charts.plot_by_class(nothing, "size", "size", (8,), FEW)
    charts.plot_positions(nothing, FEW)


def test_policies_are_shown_with_the_image_or_alone():
    mask = np.zeros((16, 16), np.uint8)
    mask[4:9] = 1
    layers = [(mask.astype(int), {"class_id": mask, "longest": mask, "area": mask * 2})] * 2
    photograph = np.zeros((16, 16, 3), np.uint8)
    alone = pictures.plot_policies([None] * 2, layers, ["a", "b"], FEW)
    whole = pictures.plot_policies([photograph] * 2, layers, ["a", "b"], FEW)
    assert (len(alone.axes), len(whole.axes)) == (10, 12)
    disagreement = whole.axes[5].images[0].get_array()
    assert np.array_equal((disagreement == [204, 30, 30]).all(axis=-1), mask == 1)
    assert [text.get_text() for text in whole.legends[0].get_texts()] == FEW[:3]


def test_copies_stand_side_by_side():
    image = np.zeros((8, 8, 3), np.uint8)
    figure = pictures.plot_copies([(image, image)] * 4, [("train\na.jpg", "val\nb.jpg")] * 4, ["same file"] * 4)
    assert len(figure.axes) == 8
    assert figure.axes[0].get_title() == "train\na.jpg"


def test_augmented_samples_stand_above_their_masks():
    pair = np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 255, np.uint8)
    figure = pictures.plot_augmentations([pair] * 2, [[pair] * 3] * 2, FEW)
    assert len(figure.axes) == 2 * 2 * 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["(ignored)"]


def test_maps_of_positions_say_how_many_classes_are_left_out():
    objects = make_objects(MANY)
    figure = charts.plot_positions(objects, MANY)
    assert figure.get_supxlabel() == f"the 11 classes with the most objects, of {objects['class_id'].nunique()}"
    assert charts.plot_positions(make_objects(FEW), FEW).get_supxlabel() == ""

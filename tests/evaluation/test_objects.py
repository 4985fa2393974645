from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from seglib.data.coco import CocoData, load_coco
from seglib.data.dataset import open_data
from seglib.evaluation.errors import lost_to_confusions
from seglib.evaluation.objects import SIZE_BINS, measure_objects, price_missed, summarise_objects, wilson_interval

SIZE = 40


def box(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def one_image(*objects, size=SIZE, crowd=()):
    """Data of one image with id 7; objects are (class_id, segmentation)."""
    rows = [(i, 7, c, c, np.nan, int(i in crowd), shape) for i, (c, shape) in enumerate(objects)]
    columns = ["annotation_id", "image_id", "category_id", "class_id", "area", "iscrowd", "segmentation"]
    images = pd.DataFrame({"image_id": [7], "file_name": ["a.jpg"], "width": [size], "height": [size], "group": [None]})
    return CocoData(
        Path("a.json"), Path(), images, pd.DataFrame(rows, columns=columns), ("Background", "A", "B"), (1, 2)
    )


def draw(*boxes):
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for class_id, left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = class_id
    return mask


def measure(data, truth, pred):
    return measure_objects(data, [7], [(truth, pred)])


def test_an_object_predicted_in_part_has_recall_and_iou_by_hand():
    table = measure(one_image((1, box(10, 10, 20, 20))), draw((1, 10, 10, 20, 20)), draw((1, 10, 10, 16, 25)))
    row = table.iloc[0]
    assert (row["size"], row["visible"], row["hit"], row["missed"]) == (10, 100, 60, 40)
    assert row["recall"] == 0.6
    assert row["iou"] == 60 / (100 + 30)  # 6 x 5 invented pixels below it
    assert not row["found"]


def test_neighbours_that_the_prediction_joins_are_found_each():
    data = one_image((1, box(5, 5, 15, 15)), (1, box(16, 5, 26, 15)))
    truth = draw((1, 5, 5, 15, 15), (1, 16, 5, 26, 15))
    table = measure(data, truth, draw((1, 5, 5, 26, 15)))
    assert table["iou"].tolist() == [100 / 110, 100 / 110]
    assert table["found"].all()


def test_regions_that_do_not_touch_the_object_are_not_its_own():
    data, truth = one_image((1, box(5, 5, 15, 15))), draw((1, 5, 5, 15, 15))
    table = measure(data, truth, draw((1, 5, 5, 15, 15), (1, 20, 20, 35, 35), (2, 15, 5, 20, 15)))
    assert table["iou"].tolist() == [1]


def test_what_is_painted_over_an_object_is_no_pixel_of_it():
    data = one_image((1, box(0, 0, 20, 20)), (2, box(0, 0, 20, 10)))
    truth = draw((1, 0, 0, 20, 20), (2, 0, 0, 20, 10))
    table = measure(data, truth, truth)
    assert table["visible"].tolist() == [200, 200]
    assert table["size"].tolist() == [20, np.sqrt(200)]
    assert table["recall"].tolist() == [1, 1]


def test_a_hidden_object_has_no_recall_and_counts_nowhere():
    data = one_image((1, box(5, 5, 10, 10)), (2, box(0, 0, 20, 20)))
    truth = draw((2, 0, 0, 20, 20))
    table = measure(data, truth, truth)
    assert np.isnan(table["recall"].iloc[0])
    assert not table["found"].iloc[0]
    assert summarise_objects(table, "class_id", 100)["objects"].tolist() == [1]


def test_crowds_are_no_objects():
    data = one_image((1, box(5, 5, 10, 10)), (1, box(20, 20, 30, 30)), crowd=[1])
    assert measure(data, draw(), draw())["annotation_id"].tolist() == [0]


def test_ignored_pixels_are_not_invented():
    truth, pred = draw((1, 5, 5, 15, 15), (255, 15, 5, 25, 15)), draw((1, 5, 5, 25, 15))
    assert measure(one_image((1, box(5, 5, 15, 15))), truth, pred)["iou"].tolist() == [1]


@pytest.mark.parametrize(
    ("side", "label"), [(8, "≤ 8 px"), (9, "8–20 px"), (20, "8–20 px"), (32, "20–32 px"), (33, "32–96 px")]
)
def test_size_bins_include_their_upper_end(side, label):
    table = measure(one_image((1, box(0, 0, side, side))), draw(), draw())
    assert table["bin"].tolist() == [label]


def test_sizes_are_those_in_the_resized_image():
    data = one_image((1, box(20, 20, 40, 40)), size=2 * SIZE)
    assert measure(data, draw((1, 10, 10, 20, 20)), draw())["size"].tolist() == [10]


def test_every_missed_pixel_of_real_masks_belongs_to_one_object(small_data):
    names = {"split": "given", "folds": 5, "fold": 0, "seed": 0, "paint_order": "class_id", "background": "class"}
    _, val_images = open_data(small_data, "train.json", "val.json", image_size=64, cache=True, **names)
    truths = [val_images.read(position)[1] for position in range(len(val_images))]
    rng = np.random.default_rng(0)
    preds = [np.where(rng.random(truth.shape) < 0.7, truth, 0).astype(np.uint8) for truth in truths]
    table = measure_objects(load_coco(small_data, "val.json"), val_images.image_ids, zip(truths, preds, strict=True))
    classes = val_images.data.num_classes
    confusion = np.zeros((classes, classes), int)
    for truth, pred in zip(truths, preds, strict=True):
        np.add.at(confusion, (truth, pred), 1)
    missed = confusion.sum(1) - np.diagonal(confusion)
    by_class = table.groupby("class_id")["missed"].sum().reindex(range(classes), fill_value=0)
    assert by_class.tolist() == missed.tolist()
    assert table["recall"].dropna().between(0.3, 1).all()
    points = price_missed(table, confusion, val_images.data.class_names)
    assert points.to_numpy().sum() == pytest.approx(100 * lost_to_confusions(confusion)[0].sum())


def test_intervals_hold_their_estimates_and_shrink_with_more_images():
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"image_id": np.arange(400) // 4, "recall": rng.random(400), "visible": 9, "missed": 1})
    table = table.assign(found=table["recall"] > 0.4, bin=pd.Categorical(["≤ 8 px"] * 400, list(SIZE_BINS)))
    many, few = (summarise_objects(part, "bin", 500).iloc[0] for part in (table, table.head(40)))
    for row in (many, few):
        assert row["found_low"] < row["found"] < row["found_high"]
        assert row["recall_low"] < row["recall"] < row["recall_high"]
    assert many["recall_high"] - many["recall_low"] < few["recall_high"] - few["recall_low"]
    error = table.groupby("image_id")["recall"].mean().std() / 10  # 100 images of 4 objects each
    assert many["recall_high"] - many["recall_low"] == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_wilson_interval_by_the_formula():
    low, high = wilson_interval(0, 10)
    assert low == pytest.approx(0, abs=1e-12)
    assert high == pytest.approx(1.96**2 / (10 + 1.96**2), abs=1e-4)

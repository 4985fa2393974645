from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage, stats

from seglib.data.coco import CocoData, load_coco
from seglib.data.dataset import open_data
from seglib.evaluation.errors import (
    BOUNDARY,
    EXTENT,
    KINDS,
    SEGMENT,
    SIZE_BINS,
    boundary_iou,
    choose_width,
    classify_errors,
    count_error_kinds,
    find_boundary,
    gain_of_confusions,
    gain_of_images,
    lost_to_confusions,
    lost_to_missed,
    measure_objects,
    merge_kinds,
    summarise_objects,
    tabulate_classes,
    tabulate_confusions,
    tabulate_images,
)
from seglib.evaluation.metrics import image_miou, mean_iou

SEEDS = range(30)


def random_confusion(seed, num_classes=6):
    """Counts with zeros, absent classes, and classes that are only predicted or only true."""
    rng = np.random.default_rng(seed)
    confusion = rng.integers(0, 100, (num_classes, num_classes)) * (rng.random((num_classes, num_classes)) < 0.6)
    np.fill_diagonal(confusion, rng.integers(0, 500, num_classes))
    if seed % 3 == 0:
        confusion[2, :] = confusion[:, 2] = 0  # absent
    if seed % 2 == 0:
        confusion[4, :] = 0  # only invented
        confusion[:4, 4] = 0
        confusion[5, 4] = 7  # by one confusion: fixing it takes the class out of the mean
    if seed % 5 == 0:
        confusion[:, 1] = 0  # never predicted
    return confusion


def move_and_score(confusion, true, predicted):
    moved = confusion.copy()
    moved[true, true] += moved[true, predicted]
    moved[true, predicted] = 0
    return mean_iou(moved) - mean_iou(confusion)


@pytest.mark.parametrize("seed", SEEDS)
def test_gain_is_the_rise_of_the_miou_when_the_pixels_are_moved(seed):
    confusion = random_confusion(seed)
    gain = gain_of_confusions(confusion)
    for true, predicted in np.argwhere(1 - np.eye(len(confusion))):
        assert gain[true, predicted] == pytest.approx(move_and_score(confusion, true, predicted), abs=1e-12)
    assert (np.diagonal(gain) == 0).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_lost_parts_add_up_to_the_missing_miou(seed):
    confusion = random_confusion(seed)
    missed, invented = lost_to_confusions(confusion)
    assert (missed + invented).sum() == pytest.approx(1 - mean_iou(confusion), abs=1e-12)


def test_lost_parts_of_a_confusion_by_hand():
    # Class 0: 6 hits, union 10; class 1: 2 hits, union 6. Three zeros are taken for ones, one the other way.
    missed, invented = lost_to_confusions([[6, 3], [1, 2]])
    np.testing.assert_allclose(missed, [[0, 3 / 10 / 2], [1 / 6 / 2, 0]])
    np.testing.assert_allclose(invented, [[0, 3 / 6 / 2], [1 / 10 / 2, 0]])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_class_s_iou_and_its_lost_parts_are_one(seed):
    confusion = random_confusion(seed)
    table = tabulate_classes(confusion, list("abcdef"))
    whole = table[["iou", "lost_missed", "lost_invented"]].sum(axis=1, skipna=False)
    present = confusion.sum(0) + confusion.sum(1) > 0
    np.testing.assert_allclose(whole[present], 1)
    assert whole[~present].isna().all()
    assert table["pixels"].sum() == confusion.sum()


def test_the_table_of_confusions_is_sorted_by_gain_and_complete():
    confusion = random_confusion(1)
    table = tabulate_confusions(confusion, list("abcdef"))
    assert table["gain"].is_monotonic_decreasing
    assert table["pixels"].sum() == confusion.sum() - np.trace(confusion)
    assert table["lost"].sum() == pytest.approx(1 - mean_iou(confusion))
    first = table.iloc[0]
    true, predicted = "abcdef".index(first["true"]), "abcdef".index(first["predicted"])
    assert first["gain"] == pytest.approx(gain_of_confusions(confusion).max())
    assert first["share"] == confusion[true, predicted] / confusion[true].sum()


def test_an_image_s_gain_is_the_pooled_miou_with_it_made_perfect():
    per_image = np.stack([random_confusion(seed) for seed in range(5)])
    gains = gain_of_images(per_image)
    for index in range(5):
        perfect = per_image.copy()
        perfect[index] = np.diag(perfect[index].sum(1))
        assert gains[index] == pytest.approx(mean_iou(perfect.sum(0)) - mean_iou(per_image.sum(0)))


def test_an_image_without_valid_pixels_has_no_score_and_no_gain():
    table = tabulate_images(np.stack([random_confusion(1), np.zeros((6, 6), int)]), [10, 11])
    assert table["image_id"].tolist() == [10, 11]
    assert np.isnan(table.loc[1, ["miou", "accuracy"]].astype(float)).all()
    assert table.loc[1, "gain"] == 0
    assert table["miou"].mean() == pytest.approx(image_miou([random_confusion(1)]))


def test_a_perfect_matrix_costs_nothing():
    assert not gain_of_confusions(np.diag([3, 4])).any()
    assert len(tabulate_confusions(np.diag([3, 4]), ["a", "b"])) == 0


def test_a_matrix_without_pixels_costs_nothing():
    empty = np.zeros((3, 3), int)
    assert not gain_of_confusions(empty).any()
    assert not sum(lost_to_confusions(empty)).any()


EIGHT = np.ones((3, 3), bool)


def random_pair(seed, size=32, num_classes=4):
    """Blobs, and the same blobs shifted, with some blobs repainted: all kinds occur; a part is ignored."""
    rng = np.random.default_rng(seed)
    noise = ndimage.zoom(rng.integers(0, num_classes, (8, 8)), size // 8, order=0).astype(np.uint8)
    pred = np.roll(noise, rng.integers(-2, 3, 2), (0, 1))
    for _ in range(4):
        top, left = rng.integers(0, size - 8, 2)
        pred[top : top + rng.integers(2, 9), left : left + rng.integers(2, 9)] = rng.integers(0, num_classes)
    if seed % 2:
        noise[rng.random(noise.shape) < 0.1] = 255
        noise[:5, :7] = 255
    return noise, pred


def near(mask, width):
    """By comparing each pixel with each."""
    points = np.argwhere(mask)
    if not len(points):
        return mask
    grid = np.argwhere(np.ones_like(mask))
    distance = np.sqrt(((grid[:, None] - points[None]) ** 2).sum(-1)).min(1)
    return (np.round(distance) <= width).reshape(mask.shape)


def classify_slowly(truth, pred, width):
    """The definition, word by word, with whole images, scipy and loops over segments."""
    valid = truth != 255
    result = np.zeros((2, *truth.shape), np.uint8)
    for c in range(4):
        is_true, is_pred = truth == c, pred == c
        hit, rest = is_true & is_pred, ~is_true & ~is_pred & valid
        for side, (wrong, region) in enumerate(((is_true & ~is_pred, is_true), (is_pred & ~is_true & valid, is_pred))):
            labels, count = ndimage.label(region, EIGHT)
            for number in range(1, count + 1):
                segment = labels == number
                result[side][segment & wrong] = EXTENT if (segment & hit).any() else SEGMENT
            strips = wrong & near(wrong & near(hit, width) & near(rest, width), width)
            labels, count = ndimage.label(strips, EIGHT)
            for number in range(1, count + 1):
                around = ndimage.binary_dilation(labels == number, EIGHT)
                if (around & hit).any() and (around & rest).any():
                    result[side][labels == number] = BOUNDARY
    return result


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("seed", range(8))
def test_kinds_equal_the_definition_on_random_masks(seed, width):
    truth, pred = random_pair(seed)
    expected = classify_slowly(truth, pred, width)
    np.testing.assert_array_equal(classify_errors(truth, pred, width), expected)


def test_random_masks_have_errors_of_all_kinds():
    kinds = np.stack([classify_slowly(*random_pair(seed), 2) for seed in range(8)])
    assert set(np.unique(kinds[:, 0])) == set(np.unique(kinds[:, 1])) == {0, BOUNDARY, EXTENT, SEGMENT}


@pytest.mark.parametrize("seed", range(8))
def test_boundary_extent_and_segment_are_all_wrong_pixels(seed):
    pairs = [random_pair(seed), random_pair(seed + 100)]
    wrong = sum(int(((truth != pred) & (truth != 255)).sum()) for truth, pred in pairs)
    by_class, overall = count_error_kinds(iter(pairs), list("abcd"))
    assert overall.sum() == wrong
    for side in ("missed", "invented"):
        assert by_class[[f"{side}_{kind}" for kind in KINDS]].to_numpy().sum() == wrong
    missed = [sum(int(((t == c) & (p != c)).sum()) for t, p in pairs) for c in range(4)]
    assert by_class[[f"missed_{kind}" for kind in KINDS]].sum(axis=1).tolist() == missed
    invented = [sum(int(((t != c) & (p == c) & (t != 255)).sum()) for t, p in pairs) for c in range(4)]
    assert by_class[[f"invented_{kind}" for kind in KINDS]].sum(axis=1).tolist() == invented


def draw(*boxes, size=40):
    mask = np.zeros((size, size), np.uint8)
    for class_id, top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = class_id
    return mask


def test_an_object_that_is_missed_is_a_segment_and_one_that_is_too_large_an_extent():
    truth = draw((1, 5, 5, 15, 15), (2, 25, 5, 30, 10))
    pred = draw((1, 5, 5, 15, 35))
    missed, invented = classify_errors(truth, pred, 2)
    assert (missed[25:30, 5:10] == SEGMENT).all()
    assert (invented[5:15, 20:30] == EXTENT).all()
    assert (merge_kinds(missed, invented)[25:30, 5:10] == SEGMENT).all()


def test_an_object_that_is_a_pixel_too_wide_is_a_boundary():
    missed, invented = classify_errors(draw((1, 10, 10, 20, 20)), draw((1, 9, 9, 21, 21)), 2)
    ring = draw((1, 9, 9, 21, 21), (0, 10, 10, 20, 20)) == 1
    assert (merge_kinds(missed, invented)[ring] == BOUNDARY).all()


def test_what_is_right_or_ignored_has_no_kind():
    truth, pred = random_pair(1)
    for kinds in classify_errors(truth, pred, 2):
        np.testing.assert_array_equal(kinds > 0, (truth != pred) & (truth != 255))


def test_boundary_width_is_a_share_of_the_diagonal_and_never_zero():
    assert [choose_width(512, 512), choose_width(20, 20), choose_width(360, 480, 0.02)] == [7, 1, 12]


def boundary_slowly(mask, distance):
    """Cheng et al.: the pixels of a class that are within d of a pixel that is not of it, or is not in the image."""
    size = len(mask)
    edge = np.zeros(mask.shape, bool)
    for y, x in np.ndindex(mask.shape):
        for dy, dx in np.ndindex(2 * distance + 1, 2 * distance + 1):
            v, u = y + dy - distance, x + dx - distance
            edge[y, x] |= not (0 <= v < size and 0 <= u < size) or mask[v, u] != mask[y, x]
    return edge


@pytest.mark.parametrize("distance", [1, 3])
def test_boundary_pixels_equal_a_loop_over_all_neighbours(distance):
    mask, _ = random_pair(2, size=24)
    np.testing.assert_array_equal(find_boundary(mask, distance), boundary_slowly(mask, distance))


@pytest.mark.parametrize("seed", range(4))
def test_boundary_iou_equals_the_definition_summed_over_images(seed):
    pairs = [random_pair(seed, size=64), random_pair(seed + 50, size=64)]
    both, either, near_wrong, wrong = np.zeros(5), np.zeros(5), 0, 0
    for truth, pred in pairs:
        pred = np.where(truth == 255, 255, pred)
        truth_edge, pred_edge = boundary_slowly(truth, 2), boundary_slowly(pred, 2)  # 2 % of 90.5 px
        for c in range(5):
            g, p = (truth == c) & truth_edge, (pred == c) & pred_edge
            both[c], either[c] = both[c] + (g & p).sum(), either[c] + (g | p).sum()
        near_wrong, wrong = near_wrong + ((truth != pred) & truth_edge).sum(), wrong + (truth != pred).sum()
    iou, share = boundary_iou(iter(pairs), 5)
    np.testing.assert_allclose(iou[:4], both[:4] / either[:4])
    assert np.isnan(iou[4])
    assert share == near_wrong / wrong


def test_boundary_iou_punishes_a_shift_that_iou_hardly_sees():
    truth = draw((1, 10, 10, 90, 90), size=100)
    pred = draw((1, 12, 12, 92, 92), size=100)
    iou, _ = boundary_iou([(truth, pred)], 2)
    inside, union = ((truth == 1) & (pred == 1)).sum(), ((truth == 1) | (pred == 1)).sum()
    assert inside / union > 0.9 > 0.5 > iou[1]


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


def paint(*boxes):
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for class_id, left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = class_id
    return mask


def measure(data, truth, pred):
    return measure_objects(data, [7], [(truth, pred)])


def test_an_object_predicted_in_part_has_recall_and_iou_by_hand():
    table = measure(one_image((1, box(10, 10, 20, 20))), paint((1, 10, 10, 20, 20)), paint((1, 10, 10, 16, 25)))
    row = table.iloc[0]
    assert (row["size"], row["visible"], row["hit"], row["missed"]) == (10, 100, 60, 40)
    assert row["recall"] == 0.6
    assert row["iou"] == 60 / (100 + 30)  # 6 x 5 invented pixels below it
    assert not row["found"]


def test_neighbours_that_the_prediction_joins_are_found_each():
    data = one_image((1, box(5, 5, 15, 15)), (1, box(16, 5, 26, 15)))
    truth = paint((1, 5, 5, 15, 15), (1, 16, 5, 26, 15))
    table = measure(data, truth, paint((1, 5, 5, 26, 15)))
    assert table["iou"].tolist() == [100 / 110, 100 / 110]
    assert table["found"].all()


def test_regions_that_do_not_touch_the_object_are_not_its_own():
    data, truth = one_image((1, box(5, 5, 15, 15))), paint((1, 5, 5, 15, 15))
    table = measure(data, truth, paint((1, 5, 5, 15, 15), (1, 20, 20, 35, 35), (2, 15, 5, 20, 15)))
    assert table["iou"].tolist() == [1]


def test_what_is_painted_over_an_object_is_no_pixel_of_it():
    data = one_image((1, box(0, 0, 20, 20)), (2, box(0, 0, 20, 10)))
    truth = paint((1, 0, 0, 20, 20), (2, 0, 0, 20, 10))
    table = measure(data, truth, truth)
    assert table["visible"].tolist() == [200, 200]
    assert table["size"].tolist() == [20, np.sqrt(200)]
    assert table["recall"].tolist() == [1, 1]


def test_a_hidden_object_has_no_recall_and_counts_nowhere():
    data = one_image((1, box(5, 5, 10, 10)), (2, box(0, 0, 20, 20)))
    truth = paint((2, 0, 0, 20, 20))
    table = measure(data, truth, truth)
    assert np.isnan(table["recall"].iloc[0])
    assert not table["found"].iloc[0]
    assert summarise_objects(table.assign(scene=0), "class_id")["objects"].tolist() == [1]


def test_crowds_are_no_objects():
    data = one_image((1, box(5, 5, 10, 10)), (1, box(20, 20, 30, 30)), crowd=[1])
    assert measure(data, paint(), paint())["annotation_id"].tolist() == [0]


def test_ignored_pixels_are_not_invented():
    truth, pred = paint((1, 5, 5, 15, 15), (255, 15, 5, 25, 15)), paint((1, 5, 5, 25, 15))
    assert measure(one_image((1, box(5, 5, 15, 15))), truth, pred)["iou"].tolist() == [1]


@pytest.mark.parametrize(
    ("side", "label"), [(8, "≤ 8 px"), (9, "8–20 px"), (20, "8–20 px"), (32, "20–32 px"), (33, "32–96 px")]
)
def test_size_bins_include_their_upper_end(side, label):
    table = measure(one_image((1, box(0, 0, side, side))), paint(), paint())
    assert table["bin"].tolist() == [label]


def test_sizes_are_those_in_the_resized_image():
    data = one_image((1, box(20, 20, 40, 40)), size=2 * SIZE)
    assert measure(data, paint((1, 10, 10, 20, 20)), paint())["size"].tolist() == [10]


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
    points = lost_to_missed(table, confusion, val_images.data.class_names)
    assert points.to_numpy().sum() == pytest.approx(100 * lost_to_confusions(confusion)[0].sum())


def test_intervals_hold_their_estimates_and_shrink_with_more_images():
    rng = np.random.default_rng(1)
    scenes = np.arange(400) // 4
    table = pd.DataFrame({"image_id": scenes, "scene": scenes, "recall": rng.random(400), "visible": 9, "missed": 1})
    table = table.assign(found=table["recall"] > 0.4, bin=pd.Categorical(["≤ 8 px"] * 400, list(SIZE_BINS)))
    many, few = (summarise_objects(part, "bin").iloc[0] for part in (table, table.head(40)))
    for row in (many, few):
        assert row["found_low"] < row["found"] < row["found_high"]
        assert row["recall_low"] < row["recall"] < row["recall_high"]
    assert many["recall_high"] - many["recall_low"] < few["recall_high"] - few["recall_low"]
    error = table.groupby("image_id")["recall"].mean().std() / 10  # 100 images of 4 objects each
    assert many["recall_high"] - many["recall_low"] == pytest.approx(2 * 1.984 * error, rel=0.01)


def objects_of(scenes, found):
    table = pd.DataFrame({"scene": scenes, "recall": 0.0, "visible": 9, "missed": 9, "found": found})
    return summarise_objects(table.assign(bin="a"), "bin").iloc[0]


def test_the_interval_of_a_share_is_wilsons_with_as_many_objects_as_scenes_are_worth():
    none = objects_of(range(10), False)
    count = 10 * (1.96 / stats.t.isf(0.025, 9)) ** 2
    assert none["found_low"] == pytest.approx(0, abs=1e-12)
    assert none["found_high"] == pytest.approx(1.96**2 / (count + 1.96**2), abs=1e-4)
    found = np.random.default_rng(0).random(2000) < 0.6
    alone = objects_of(range(2000), found)
    wilson = stats.binomtest(int(found.sum()), 2000).proportion_ci(0.95, method="wilson")
    assert (alone["found_low"], alone["found_high"]) == pytest.approx((wilson.low, wilson.high), abs=2e-4)
    alike = objects_of(np.repeat(range(100), 20), np.repeat(found[:100], 20))
    hundred = objects_of(range(100), found[:100])
    assert (alike["found_low"], alike["found_high"]) == pytest.approx(
        (hundred["found_low"], hundred["found_high"]), abs=1e-3
    )


def test_the_interval_of_a_share_holds_the_truth_where_objects_of_a_scene_are_alike():
    rng, held = np.random.default_rng(3), []
    for _ in range(300):
        found = rng.random((12, 10)) < rng.beta(2, 2, (12, 1))
        row = objects_of(np.repeat(range(12), 10), found.ravel())
        held.append(row["found_low"] < 0.5 < row["found_high"])
    assert 0.9 < np.mean(held) < 0.99


@pytest.mark.parametrize(("alike", "worth"), [(False, 200), (True, 10)])
def test_none_found_counts_as_many_objects_as_their_recall_is_worth(alike, worth):
    """200 objects of 10 scenes: independent ones count as about 200, those alike within a scene as 10."""
    rng = np.random.default_rng(3)
    recall = np.repeat(rng.uniform(0, 0.4, 10), 20) if alike else rng.uniform(0, 0.4, 200)
    table = pd.DataFrame({"bin": "a", "scene": np.repeat(np.arange(10), 20), "visible": 9, "missed": 5})
    row = summarise_objects(table.assign(recall=recall, found=False), "bin").iloc[0]
    high = stats.binomtest(0, worth).proportion_ci(0.95, method="wilson").high
    assert row["found"] == 0 and row["found_low"] == pytest.approx(0, abs=1e-12)
    assert high * 0.6 < row["found_high"] < high * 2.2  # nine degrees of freedom, and the jackknife's own noise

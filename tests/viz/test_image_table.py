"""The table behind sorting and filtering, against the project's metrics and scipy."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from seglib.evaluation.metrics import confusion_per_image, mean_iou
from seglib.viz.image_table import (
    Choice,
    MaskSource,
    build_image_table,
    count_confusion,
    image_miou,
    list_sorts,
    measure_objects,
    select_images,
)


class Data:
    """Masks (N, H, W) as a data set of black images."""

    def __init__(self, masks):
        self.masks, self.image_ids = masks, [100 + index for index in range(len(masks))]
        self.class_names = ["Background", "Paper", "Metal", "Glass"]

    def __len__(self):
        return len(self.masks)

    def read(self, position):
        mask = self.masks[position]
        return np.zeros((*mask.shape, 3), np.uint8), mask


def make_masks(seed, count=6):
    """Blocks of 4 px of random classes, a few ignored."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (count, 8, 8), p=[0.5, 0.2, 0.15, 0.1, 0.05])
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


@pytest.fixture
def table_and_masks():
    truth, a, b = make_masks(0), np.minimum(make_masks(1), 3), np.minimum(make_masks(2), 3)
    truth[4][truth[4] == 3] = 0  # an image without Glass
    a[3] = np.where(truth[3] == 255, 0, truth[3])  # a perfect prediction
    return build_image_table(MaskSource(Data(truth), {"a": a, "b": b})), truth, a, b


def test_confusion_and_miou_are_those_of_the_metrics(table_and_masks):
    table, truth, *runs = table_and_masks
    for run, preds in enumerate(runs):
        for position, (true, pred) in enumerate(zip(truth, preds, strict=True)):
            reference = confusion_per_image(torch.from_numpy(true)[None], torch.from_numpy(pred)[None], 4)[0].numpy()
            assert (count_confusion(true, pred, 4)[:, :4] == reference).all()
            assert table.miou[position, run] == pytest.approx(mean_iou(reference))
            rows = table.confused.query("run == @run and position == @position")
            assert rows["pixels"].sum() == reference.sum() - np.trace(reference)


def test_a_predicted_id_that_is_no_class_counts_as_wrong():
    confusion = count_confusion(np.array([[1, 1]], np.uint8), np.array([[1, 200]], np.uint8), 2)
    assert confusion.tolist() == [[0, 0, 0], [0, 1, 1]]
    assert image_miou(confusion) == 0.5


def test_an_image_without_a_valid_pixel_has_no_miou_and_comes_last():
    truth = np.stack([np.full((8, 8), 255, np.uint8), np.zeros((8, 8), np.uint8)])
    table = build_image_table(MaskSource(Data(truth), np.zeros((2, 8, 8), np.uint8)))
    assert np.isnan(table.miou[0, 0])
    assert select_images(table, 2, Choice("worst mIoU")).tolist() == [1, 0]
    assert select_images(table, 2, Choice("best mIoU")).tolist() == [1, 0]


def test_objects_are_connected_components_of_eight_neighbours():
    mask = make_masks(5, 1)[0]
    found = measure_objects(mask, np.bincount(mask.ravel(), minlength=256)[:4])
    for class_id in (1, 2, 3):
        labels, _ = ndimage.label(mask == class_id, structure=np.ones((3, 3)))
        areas = np.bincount(labels.ravel())[1:]
        assert sorted(found[found[:, 0] == class_id, 1]) == sorted(areas)
    assert (found[:, 0] != 0).all()


def test_sorts_by_miou_difference_share_confusion_and_object_size(table_and_masks):
    table, truth, a, _ = table_and_masks
    gap = table.miou[:, 0] - table.miou[:, 1]
    assert select_images(table, 6, Choice("worst mIoU", run=1)).tolist() == np.argsort(table.miou[:, 1]).tolist()
    assert select_images(table, 6, Choice("best mIoU"))[0] == 3
    assert select_images(table, 6, Choice("first run ahead")).tolist() == np.argsort(-gap).tolist()
    assert select_images(table, 6, Choice("second run ahead")).tolist() == np.argsort(gap).tolist()
    shares = [(mask == 2).mean() for mask in truth]
    assert (
        select_images(table, 6, Choice("class share", true_class=2)).tolist()
        == np.argsort(-np.array(shares), kind="stable").tolist()
    )
    confused = [((t == 1) & (p == 2)).sum() for t, p in zip(truth, a, strict=True)]
    chosen = select_images(table, 6, Choice("confused pixels", true_class=1, predicted=2))
    assert np.array(confused)[chosen].tolist() == sorted([n for n in confused if n], reverse=True)
    assert table.objects["across"].to_numpy() ** 2 == pytest.approx(table.objects["area"].to_numpy())
    smallest = table.objects.groupby("position")["across"].min()
    assert (
        select_images(table, 6, Choice("smallest object")).tolist()
        == smallest.sort_values(kind="stable").index.tolist()
    )


def test_filters_keep_images_with_the_class_the_confusion_and_a_small_object(table_and_masks):
    table, truth, a, _ = table_and_masks
    assert 4 not in select_images(table, 6, Choice(true_class=3))
    pair = [i for i in range(6) if ((truth[i] == 1) & (a[i] == 2)).any()]
    assert select_images(table, 6, Choice(true_class=1, predicted=2)).tolist() == pair
    wrong = [i for i in range(6) if ((truth[i] != 3) & (truth[i] != 255) & (a[i] == 3)).any()]
    assert select_images(table, 6, Choice(predicted=3)).tolist() == wrong
    small = table.objects.query("class_id == 2 and across < 5")["position"].unique().tolist()
    assert select_images(table, 6, Choice(true_class=2, under=5)).tolist() == small


def test_without_filters_and_sorting_no_table_is_needed():
    assert not Choice().needs_table
    assert all(
        choice.needs_table
        for choice in (Choice("class share"), Choice(true_class=0), Choice(predicted=0), Choice(under=1))
    )
    assert select_images(None, 3, Choice()).tolist() == [0, 1, 2]


def test_without_truth_the_first_run_is_the_reference():
    a, b = np.minimum(make_masks(1), 3), np.minimum(make_masks(2), 3)
    source = MaskSource(Data(make_masks(0)), {"a": a, "b": b}, truth=False)
    table = build_image_table(source)
    assert table.miou[2, 0] == pytest.approx(image_miou(count_confusion(a[2], b[2], 4)))
    assert "agreement with a, worst first" in list_sorts(source)


def test_progress_is_told_image_by_image():
    told = []
    build_image_table(MaskSource(Data(make_masks(0, 3))), lambda done, count: told.append((done, count)))
    assert told == [(1, 3), (2, 3), (3, 3)]

"""Mixes of samples: every pixel keeps its source's label, and draws depend on (seed, epoch, index) alone."""

import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as mask_api

from seglib.data.coco import CocoData
from seglib.data.dataset import Subset, open_data
from seglib.data.loader import SampleMixing
from seglib.data.masks import segmentation_to_rle
from seglib.errors import InputError

SIZE = 64
NAMES = ("Background", "Can", "Paper", "Glass", "Rope")
WORDS = {"seed": 1, "epoch": 2, "index": 3}


def box(left, top, width, height):
    right, bottom = left + width, top + height
    return [[left, top, right, top, right, bottom, left, bottom]]


def make_subset(objects, ignored=(), indices=None):
    """Images of one class each, red 20 times the class everywhere and green the image's number, so that resizing and
    the borders of objects change neither; `objects` are (class id, segmentation) of each image."""
    images, masks, rows = [], [], []
    for number, (class_id, segmentation) in enumerate(objects):
        image = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        image[..., 0], image[..., 1] = 20 * class_id, number
        mask = mask_api.decode(segmentation_to_rle(segmentation, SIZE, SIZE)) * np.uint8(class_id)
        if number in ignored:
            mask[:, :8] = 255
        images.append(image), masks.append(mask)
        rows.append((number, number, class_id, class_id, 1.0, 0, segmentation))
    columns = ["annotation_id", "image_id", "category_id", "class_id", "area", "iscrowd", "segmentation"]
    count = len(objects)
    table = pd.DataFrame({"image_id": range(count), "file_name": "", "width": SIZE, "height": SIZE, "group": None})
    data = CocoData(Path("train.json"), Path(), table, pd.DataFrame(rows, columns=columns), NAMES, (1, 2, 3, 4))
    pixels = SimpleNamespace(
        read=lambda index: (images[index].copy(), masks[index].copy()), image_ids=np.arange(count), image_size=SIZE
    )
    return Subset(data, pixels, np.arange(count) if indices is None else np.array(indices))


def four_images():
    return make_subset([(k, box(6 * k, 4 * k, 10 + 3 * k, 8 + 4 * k)) for k in (1, 2, 3, 4)], ignored=(1,))


def mix(name, subset, position=0, words=WORDS, **options):
    return SampleMixing({name: {"p": 1.0, **options}}, subset)(*subset.read(position), **words)


def assert_labels_are_their_pixels(image, mask):
    is_object = (mask != 0) & (mask != 255)
    assert np.array_equal(image[..., 0][is_object], 20 * mask[is_object])


@pytest.fixture(scope="module")
def synthetic(small_data):
    return open_data(str(small_data), "train.json", "val.json", split="given", folds=4, fold=0, seed=1,
                     paint_order="class_id", background="class", image_size=64, cache=False)[0]  # fmt: skip


ALL = {"mosaic": 1.0, "background": 1.0, "copy_paste": 1.0}


@pytest.mark.parametrize("name", ALL)
def test_mixes_give_uint8_of_the_same_size_and_leave_their_input_alone(name):
    subset = four_images()
    image, mask = subset.read(2)
    before = image.copy(), mask.copy()
    mixed, mixed_mask = SampleMixing({name: 1.0}, subset)(image, mask, 1, 1, 1)
    assert (mixed.dtype, mixed.shape) == (np.uint8, (SIZE, SIZE, 3))
    assert (mixed_mask.dtype, mixed_mask.shape) == (np.uint8, (SIZE, SIZE))
    assert np.array_equal(image, before[0])
    assert np.array_equal(mask, before[1])


@pytest.mark.parametrize("mixing", [{name: 1.0} for name in ALL] + [ALL], ids=[*ALL, "all"])
def test_every_label_is_that_of_its_pixels_source(mixing):
    subset = four_images()
    changed = 0
    for index in range(30):
        image, mask = subset.read(index % 4)
        mixed, mixed_mask = SampleMixing(mixing, subset)(image, mask, 1, 1, index)
        assert_labels_are_their_pixels(mixed, mixed_mask)
        changed += not np.array_equal(mixed, image)
    assert changed > 15


def test_the_same_words_give_the_same_sample_whatever_was_drawn_before(synthetic):
    mixing, sample = SampleMixing(ALL, synthetic), synthetic.read(0)
    first = mixing(*sample, **WORDS)
    mixing(*sample, 5, 5, 5)
    np.random.default_rng().random(5)
    for again in (mixing, SampleMixing(ALL, synthetic), pickle.loads(pickle.dumps(mixing))):
        image, mask = again(*sample, **WORDS)
        assert np.array_equal(image, first[0])
        assert np.array_equal(mask, first[1])


@pytest.mark.parametrize("changed", WORDS)
def test_each_of_seed_epoch_and_index_changes_the_sample(synthetic, changed):
    mixing, sample = SampleMixing(ALL, synthetic), synthetic.read(0)
    assert len({mixing(*sample, **(WORDS | {changed: value}))[0].tobytes() for value in range(8)}) == 8


@pytest.mark.parametrize("p, lowest, highest", [(0.0, 0, 0), (0.3, 60, 122), (1.0, 300, 300)])
def test_p_is_the_share_of_samples_that_are_mixed(p, lowest, highest):
    subset = four_images()
    image, mask = subset.read(0)
    mixing = SampleMixing({"background": {"p": p, "replace_with": "black"}}, subset)
    mixed = sum(not np.array_equal(mixing(image, mask, 1, 1, index)[0], image) for index in range(300))
    assert lowest <= mixed <= highest  # 4 standard deviations around 90


def test_mixes_of_batches_are_passed_over():
    subset = four_images()
    image, mask = subset.read(0)
    mixed, mixed_mask = SampleMixing({"cutmix": 1.0, "mixup": 1.0}, subset)(image, mask, 1, 1, 1)
    assert np.array_equal(mixed, image)
    assert np.array_equal(mixed_mask, mask)


def test_mosaic_has_the_sample_and_others_around_a_centre_in_the_middle_half():
    subset = four_images()
    cuts = []
    for index in range(200):
        image, _ = mix("mosaic", subset, words=WORDS | {"index": index})
        number = image[..., 1]
        assert 0 in number  # the sample itself
        corners = number[0, 0], number[0, -1], number[-1, 0], number[-1, -1]
        if len(set(corners)) == 4:
            row, column = np.argmax(number[:, 0] != corners[0]), np.argmax(number[0] != corners[0])
            for quadrant, corner in zip(
                (number[:row, :column], number[:row, column:], number[row:, :column], number[row:, column:]),
                corners,
                strict=True,
            ):
                assert (quadrant == corner).all()
            cuts += [row, column]
    assert len(cuts) > 16
    assert SIZE // 4 <= min(cuts) < max(cuts) <= SIZE * 3 // 4


def test_mosaic_copies_image_and_mask_pixel_by_pixel_at_their_own_scale():
    """Pixels say where they come from: red the row, green the column, blue the image."""
    subset = four_images()
    ys, xs = np.mgrid[:SIZE, :SIZE].astype(np.uint8)
    images = [np.dstack([ys, xs, np.full_like(ys, number)]) for number in range(4)]
    masks = [((ys * (number + 3) + xs) % 7).astype(np.uint8) for number in range(4)]
    subset.pixels.read = lambda index: (images[index], masks[index])
    for index in range(20):
        image, mask = mix("mosaic", subset, words=WORDS | {"index": index})
        rows, columns, numbers = (image[..., channel] for channel in range(3))
        assert np.array_equal(mask, np.stack(masks)[numbers, rows, columns])
        steps = np.diff(rows.astype(int), axis=0)
        assert np.mean(steps == 1) >= 1 - 2 / (SIZE - 1)  # but where quadrants meet


@pytest.mark.parametrize("replace_with", ["mean", "black", "noise"])
def test_what_is_no_object_is_filled_and_labels_stay(replace_with):
    subset = four_images()
    image, mask = subset.read(1)
    mixed, mixed_mask = mix("background", subset, 1, replace_with=replace_with)
    objects = (mask != 0) & (mask != 255)
    assert np.array_equal(mixed_mask, mask)
    assert np.array_equal(mixed[objects], image[objects])
    filled = mixed[~objects]
    if replace_with == "noise":
        assert filled.std() == pytest.approx(73.9, abs=3)  # of 0 to 255, all alike
    else:
        expected = image.reshape(-1, 3).mean(0).round() if replace_with == "mean" else np.zeros(3)
        assert (filled == expected).all()


def test_objects_are_laid_over_another_image_with_its_own_mask():
    subset = four_images()
    image, mask = subset.read(0)
    seen = set()
    for index in range(30):
        mixed, mixed_mask = mix("background", subset, words=WORDS | {"index": index})
        objects = mask == 1
        (other,) = set(np.unique(mixed[..., 1][~objects]))
        other_image, other_mask = subset.read(int(other))
        assert np.array_equal(mixed, np.where(objects[..., None], image, other_image))
        assert np.array_equal(mixed_mask, np.where(objects, mask, other_mask))
        seen.add(other)
    assert len(seen) == 4


def test_pasted_objects_are_whole_and_overwrite_pixels_and_labels():
    triangle = [[20, 30, 36, 32, 24, 44]]
    subset = make_subset([(0, box(0, 0, 1, 1)), (3, triangle)])
    subset = replace(subset, data=replace(subset.data, annotations=subset.data.annotations.iloc[1:]))
    image = subset.read(0)[0]
    source, source_mask = subset.read(1)
    flips = 0
    for index in range(40):
        words = WORDS | {"index": index}
        mixed, mixed_mask = mix("copy_paste", subset, words=words, count=[1, 1], scale=[1.0, 1.0])
        pasted = mixed_mask == 3
        assert pasted.sum() == (source_mask == 3).sum()
        assert np.array_equal(mixed[~pasted], image[~pasted])
        got, expected = mixed[pasted], source[source_mask == 3]
        flipped = source[:, ::-1][source_mask[:, ::-1] == 3]
        assert np.array_equal(got, expected) or np.array_equal(got, flipped)
        flips += np.array_equal(got, flipped)
    assert 8 <= flips <= 32


def test_what_lies_below_another_object_is_not_pasted():
    subset = make_subset([(1, box(10, 10, 20, 20)), (2, box(10, 10, 20, 20))])
    original = subset.pixels.read

    def read(index):
        image, mask = original(index)
        mask[10:30, 10:20][mask[10:30, 10:20] == 1] = 4  # the left half is covered by something else
        return image, mask

    subset.pixels.read = read
    for index in range(20):
        words = WORDS | {"index": index}
        _, mask = mix("copy_paste", subset, 1, words=words, classes=["Can"], count=[1, 1], scale=[1.0, 1.0])
        assert 0 < (mask == 1).sum() <= 10 * 21


def test_objects_are_scaled_within_the_range_and_never_beyond_the_image():
    subset = make_subset([(1, box(4, 4, 20, 10)), (2, box(0, 0, 40, 40))])
    widths = []
    for index in range(60):
        words = WORDS | {"index": index}
        image, mask = mix("copy_paste", subset, 1, words=words, classes=["Can"], count=[1, 1], scale=[0.5, 2.0])
        assert_labels_are_their_pixels(image, mask)
        columns = np.flatnonzero((mask == 1).any(0))
        widths.append(columns[-1] - columns[0] + 1)
    assert min(widths) >= 10
    assert max(widths) <= 42
    assert max(widths) - min(widths) > 20
    _, mask = mix("copy_paste", subset, 0, classes=["Paper"], count=[1, 1], scale=[5.0, 5.0])
    assert (mask == 2).all(axis=0).any()  # as tall as the image, and inside it


def test_classes_are_drawn_evenly_however_rare_they_are():
    subset = make_subset(
        [(1, box(5 * k, 10, 6, 6)) for k in range(9)] + [(2, box(10, 10, 6, 6)), (4, box(10, 30, 6, 6))]
    )
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    mixing = SampleMixing({"copy_paste": {"p": 1.0, "count": [1, 1]}}, subset)
    drawn = [int(mixing(image, image[..., 0], 1, 1, index)[1].max()) for index in range(600)]
    assert [drawn.count(class_id) / 600 for class_id in (1, 2, 4)] == pytest.approx([1 / 3] * 3, abs=0.07)


def test_only_chosen_classes_are_pasted():
    subset = four_images()
    canvas = np.zeros((SIZE, SIZE, 3), np.uint8)
    mixing = SampleMixing({"copy_paste": {"p": 1.0, "classes": ["Paper", "Rope"]}}, subset)
    seen = {value for index in range(40) for value in np.unique(mixing(canvas, canvas[..., 0], 1, 1, index)[1])}
    assert seen == {0, 2, 4}


def test_the_number_of_objects_is_within_count():
    """Objects of one pixel on an empty canvas: they seldom hide each other."""
    subset = make_subset([(1, box(20, 20, 1, 1))])
    size = (subset.read(0)[1] == 1).sum()
    canvas = np.zeros((SIZE, SIZE, 3), np.uint8)
    mixing = SampleMixing({"copy_paste": {"p": 1.0, "count": [2, 4], "scale": [1.0, 1.0]}}, subset)
    counts = [np.count_nonzero(mixing(canvas, canvas[..., 0], 1, 1, index)[1]) / size for index in range(200)]
    assert max(counts) == 4
    assert np.mean(counts) == pytest.approx(3, abs=0.3)


def test_objects_come_from_the_subset_alone():
    subset = make_subset([(k, box(10, 10, 9, 9)) for k in (1, 2, 3, 4)], indices=[3, 1])
    canvas = np.zeros((SIZE, SIZE, 3), np.uint8)
    mixing = SampleMixing({"copy_paste": 1.0}, subset)
    seen = {value for index in range(40) for value in np.unique(mixing(canvas, canvas[..., 0], 1, 1, index)[1])}
    assert seen == {0, 2, 4}


def test_annotations_without_pixels_are_drawn_again():
    nothing = [[5.2, 5.2, 5.3, 5.2, 5.3, 5.3]]
    subset = make_subset([(1, nothing), (1, nothing), (1, box(30, 30, 9, 9))])
    canvas = np.zeros((SIZE, SIZE, 3), np.uint8)
    mixing = SampleMixing({"copy_paste": {"p": 1.0, "count": [1, 1]}}, subset)
    pasted = [mixing(canvas, canvas[..., 0], 1, 1, index)[1].any() for index in range(50)]
    assert np.mean(pasted) > 0.85  # one try alone: a third


def test_where_nothing_can_be_pasted_the_sample_stays():
    subset = make_subset([(1, [[5.2, 5.2, 5.3, 5.2, 5.3, 5.3]])])
    image, mask = subset.read(0)
    mixed, mixed_mask = mix("copy_paste", subset)
    assert np.array_equal(mixed, image)
    assert np.array_equal(mixed_mask, mask)


@pytest.mark.parametrize("compressed", [True, False])
def test_run_length_encodings_are_pasted_like_polygons(compressed):
    polygon = box(12, 9, 17, 11)
    rle = mask_api.merge(mask_api.frPyObjects(polygon, SIZE, SIZE))
    rle["counts"] = rle["counts"].decode()
    if not compressed:
        flat = mask_api.decode(rle).ravel(order="F")
        edges = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1]))
        rle["counts"] = np.diff(edges, prepend=0).tolist()
    got = []
    for segmentation in (polygon, rle):
        subset = make_subset([(1, segmentation)])
        got.append(mix("copy_paste", subset)[1])
    assert np.array_equal(*got)


def test_a_class_that_the_data_does_not_have_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="unknown class 'Glas'; did you mean 'Glass'") as caught:
        SampleMixing({"copy_paste": {"classes": ["Glas"]}}, four_images())
    assert "copy_paste" in str(caught.value)
    with pytest.raises(InputError, match="unknown class 'Background'"):
        SampleMixing({"copy_paste": {"classes": ["Background"]}}, four_images())


def test_mixed_synthetic_samples_have_the_classes_of_the_data(synthetic):
    mixing = SampleMixing(ALL, synthetic)
    for position in range(10):
        _, mask = mixing(*synthetic.read(position), 1, 1, position)
        assert set(np.unique(mask)) <= {*range(synthetic.data.num_classes)}

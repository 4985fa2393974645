import numpy as np
import pytest
from scipy import ndimage

from seglib.evaluation.errors import (
    BOUNDARY,
    EXTENT,
    KINDS,
    SEGMENT,
    boundary_iou,
    choose_width,
    classify_errors,
    count_error_kinds,
    find_boundary,
    merge_kinds,
)

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

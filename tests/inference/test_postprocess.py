"""Components against scipy; searches on images where it is known what helps and what does not."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from seglib.data.coco import CocoData
from seglib.errors import InputError
from seglib.evaluation.metrics import pooled_miou
from seglib.inference.postprocess import (
    compare_objects,
    describe_step,
    draw_crf_candidates,
    remove_small_components,
    search_crf,
    search_min_pixels,
)
from seglib.zoo.crf import CrfParams

SIZE, CLASSES = 32, 3
CRF = CrfParams(smoothness_weight=1, appearance_weight=4, appearance_sigma=8, iterations=3)


def blobs(seed, size=SIZE):
    rng = np.random.default_rng(seed)
    fields = [cv2.GaussianBlur(rng.normal(size=(size, size)), (0, 0), size / 10) for _ in range(CLASSES)]
    return np.argmax(fields, axis=0).astype(np.uint8)


def sample(seed):
    """Colours follow the truth, probabilities are the truth with independent noise: a CRF helps."""
    rng, truth = np.random.default_rng(seed), blobs(seed)
    image = np.array([[40, 40, 40], [200, 60, 60], [60, 60, 220]])[truth] + rng.normal(0, 8, (SIZE, SIZE, 3))
    logits = 1.5 * np.eye(CLASSES)[truth].transpose(2, 0, 1) + rng.normal(size=(CLASSES, SIZE, SIZE))
    probabilities = (np.exp(logits) / np.exp(logits).sum(0)).astype(np.float32)
    return image.clip(0, 255).astype(np.uint8), probabilities, truth


def speckled(seed, class_id=1, specks=12):
    """(truth, pred): pred is the truth with single pixels of class_id."""
    rng, truth = np.random.default_rng(seed), blobs(seed)
    pred = truth.copy()
    pred[rng.integers(0, SIZE, specks), rng.integers(0, SIZE, specks)] = class_id
    return truth, pred


def small_components(mask, min_pixels):
    """Pixels of components that are too small, by scipy."""
    small = np.zeros(mask.shape, bool)
    for class_id, number in enumerate(min_pixels):
        labels, count = ndimage.label(mask == class_id, structure=np.ones((3, 3)))
        areas = ndimage.sum_labels(np.ones(mask.shape), labels, range(1, count + 1))
        small |= np.isin(labels, 1 + np.flatnonzero(areas < number))
    return small


@pytest.mark.parametrize("min_pixels", [(0, 0, 0), (0, 9, 0), (5, 2, 40), (30, 30, 30)])
def test_small_components_go_to_the_nearest_pixel_that_stays(min_pixels):
    for seed in range(3):
        mask = speckled(seed, specks=200)[1]
        small, result = small_components(mask, min_pixels), remove_small_components(mask, min_pixels)
        np.testing.assert_array_equal(result[~small], mask[~small])
        kept = np.argwhere(~small)
        for place in np.argwhere(small):
            distances = np.square(kept - place).sum(1)
            nearest = kept[distances == distances.min()]
            assert result[tuple(place)] in mask[tuple(nearest.T)]


def test_a_component_of_exactly_the_number_stays_and_corners_connect():
    mask = np.zeros((8, 8), np.uint8)
    mask[1, 1] = mask[2, 2] = mask[3, 3] = 1
    np.testing.assert_array_equal(remove_small_components(mask, [0, 3]), mask)
    assert not remove_small_components(mask, [0, 4]).any()


def test_a_hole_is_filled_by_the_class_around_it():
    mask = np.full((9, 9), 2, np.uint8)
    mask[4, 4:6] = 0
    assert (remove_small_components(mask, [3, 0, 0]) == 2).all()


def test_a_mask_of_small_components_alone_is_left_as_it_is():
    mask = np.indices((4, 4)).sum(0).astype(np.uint8) % 2
    np.testing.assert_array_equal(remove_small_components(mask, [100, 100]), mask)


def test_masks_that_are_no_class_ids_are_refused():
    with pytest.raises(InputError, match=r"mask must be \(H, W\) uint8 class ids, got \(4, 4\) int64"):
        remove_small_components(np.zeros((4, 4), np.int64), [0])
    with pytest.raises(InputError, match="a number for every class, got 2 and a mask with class id 2"):
        remove_small_components(np.full((4, 4), 2, np.uint8), [0, 0])


def test_a_crf_that_helps_is_switched_on_and_estimated_on_the_other_half():
    samples = [sample(seed) for seed in range(4)]
    tuned = search_crf(samples.__getitem__, len(samples), [CRF, CrfParams(appearance_weight=0.01, smoothness_weight=0)])
    assert tuned["on"]
    assert CrfParams(**tuned["chosen"]) == CRF
    assert tuned["low"] > 0 and tuned["points"] > 2
    assert tuned["after"] == tuned["miou_chosen"] == tuned["tried"][0]["miou"] > tuned["before"]
    assert "crf: on; mIoU 0." in describe_step(tuned)


def test_a_crf_that_cannot_help_is_switched_off():
    certain = np.eye(CLASSES, dtype=np.float32)
    perfect = [(image, certain[truth].transpose(2, 0, 1), truth) for image, _, truth in map(sample, range(2))]
    tuned = search_crf(perfect.__getitem__, 2, [CRF])
    assert not tuned["on"]
    assert tuned["chosen"] is None
    assert tuned["before"] == tuned["after"] == tuned["miou_chosen"] == 1
    assert "crf: off" in describe_step(tuned)


def test_what_helps_one_half_only_is_switched_off():
    def right_already(seed):
        image, _, truth = sample(seed)
        return image, (0.3 + 0.1 * np.eye(CLASSES)[truth]).transpose(2, 0, 1).astype(np.float32), truth

    samples = [sample(0), sample(1), right_already(2), right_already(3)]
    tuned = search_crf(samples.__getitem__, 4, [CRF])
    assert CrfParams(**tuned["chosen"]) == CRF
    assert tuned["miou_chosen"] > tuned["before"]
    assert not tuned["on"]


def test_each_half_is_scored_with_what_the_other_chose():
    strong, weak = CRF, CrfParams(smoothness_weight=0.2, appearance_weight=0, iterations=1)
    samples = [sample(seed) for seed in range(4)]
    scores = {h: search_crf(samples[2 * h : 2 * h + 2].__getitem__, 2, [strong, weak]) for h in (0, 1)}
    assert all(scores[h]["tried"][0]["miou"] > scores[h]["tried"][1]["miou"] for h in (0, 1))
    tuned = search_crf(samples.__getitem__, len(samples), [weak, strong])
    assert [pooled_miou(tuned["held_out"][2 * h : 2 * h + 2]) for h in (0, 1)] == [
        scores[h]["tried"][0]["miou"] for h in (0, 1)
    ]


def test_halves_are_of_scenes_and_one_scene_is_never_switched_on():
    samples = [sample(seed) for seed in range(4)]
    found = search_crf(samples.__getitem__, 4, [CRF], scenes=np.array([5, 7, 5, 7]))
    alone = search_crf(
        [samples[0], samples[2], samples[1], samples[3]].__getitem__, 4, [CRF], scenes=np.array([0, 0, 1, 1])
    )
    assert (found["points"], found["low"]) == pytest.approx((alone["points"], alone["low"]))
    assert not search_crf(samples.__getitem__, 4, [CRF], scenes=np.zeros(4, int))["on"]


def test_ignored_pixels_do_not_count():
    samples = [sample(seed) for seed in range(2)]
    hidden = [
        (image, p, np.where(np.arange(SIZE) < SIZE // 2, 255, truth).astype(np.uint8)) for image, p, truth in samples
    ]
    wrong = [(image, np.where(np.arange(SIZE) < SIZE // 2, p[[1, 2, 0]], p), truth) for image, p, truth in hidden]
    off = CrfParams(smoothness_weight=0, appearance_weight=0)
    assert search_crf(hidden.__getitem__, 2, [off])["before"] == search_crf(wrong.__getitem__, 2, [off])["before"]
    pairs = [(truth, p.argmax(0).astype(np.uint8)) for _, p, truth in hidden]
    assert (
        search_min_pixels(pairs.__getitem__, len(pairs), CLASSES, [4])["before"]
        == search_crf(hidden.__getitem__, 2, [off])["before"]
    )


def test_specks_of_one_class_are_removed_of_that_class():
    pairs = [speckled(seed) for seed in range(12)]
    tuned = search_min_pixels(pairs.__getitem__, len(pairs), CLASSES, sizes=(2, 8))
    assert tuned["on"]
    assert tuned["chosen"][1] >= 2
    assert tuned["chosen"][0] == tuned["chosen"][2] == 0
    assert tuned["after"] > tuned["before"]
    cleaned = [remove_small_components(pred, tuned["chosen"]) for _, pred in pairs]
    assert sum((c != t).sum() for c, (t, _) in zip(cleaned, pairs, strict=True)) < sum((p != t).sum() for t, p in pairs)


def test_removal_that_cannot_help_is_switched_off():
    pairs = [(blobs(seed), blobs(seed)) for seed in range(4)]
    tuned = search_min_pixels(pairs.__getitem__, 4, CLASSES)
    assert not tuned["on"]
    assert tuned["chosen"] is None
    assert tuned["points"] == tuned["low"] == 0


def test_images_are_read_one_at_a_time():
    reads, seen = [], []
    search_crf(
        lambda i: reads.append(i) or sample(i), 3, [CRF, CRF], progress=lambda done, total: seen.append((done, total))
    )
    assert reads == [0, 1, 2]
    assert seen == [(i, 6) for i in range(1, 7)]


def test_candidates_are_seeded_different_and_grow_with_the_image():
    candidates = draw_crf_candidates(20, seed=3, image_size=512)
    assert candidates == draw_crf_candidates(20, seed=3, image_size=512)
    assert candidates != draw_crf_candidates(20, seed=4, image_size=512)
    assert len(set(candidates)) == 20
    half = draw_crf_candidates(20, seed=3, image_size=256)
    assert [c.appearance_sigma for c in candidates] == [2 * c.appearance_sigma for c in half]
    assert [c.colour_sigma for c in candidates] == [c.colour_sigma for c in half]
    with pytest.raises(InputError, match="count must be from 1 to 768, got 0"):
        draw_crf_candidates(0, seed=0, image_size=256)


def test_one_image_is_never_switched_on():
    crf = search_crf([sample(0)].__getitem__, 1, [CRF])
    components = search_min_pixels([speckled(0)].__getitem__, 1, CLASSES, sizes=(2,))
    assert (
        crf["miou_chosen"] > crf["before"] == crf["after"]
    )  # it helps this image, and nothing says that it helps another
    assert components["miou_chosen"] > components["before"]
    for tuned in (crf, components):
        assert not tuned["on"]
        assert describe_step(tuned).endswith("one scene has nothing to test a choice on")


def test_no_image_and_no_candidate_are_refused():
    with pytest.raises(InputError, match="search_crf: required at least one image, got none"):
        search_crf([].__getitem__, 0, [CRF])
    with pytest.raises(InputError, match="candidates must hold parameters to try, got none"):
        search_crf([sample(0), sample(1)].__getitem__, 2, [])


def test_erased_small_objects_show_in_the_recall_by_size():
    boxes = [(4, 4, 8, 8), (10, 10, 30, 30)]
    rows = [(i, 7, 1, 1, np.nan, 0, [[a, b, c, b, c, d, a, d]]) for i, (a, b, c, d) in enumerate(boxes)]
    columns = ["annotation_id", "image_id", "category_id", "class_id", "area", "iscrowd", "segmentation"]
    images = pd.DataFrame({"image_id": [7], "file_name": ["a.jpg"], "width": [SIZE], "height": [SIZE], "group": [None]})
    data = CocoData(Path("a.json"), Path(), images, pd.DataFrame(rows, columns=columns), ("Background", "A"), (1,))
    truth = np.zeros((SIZE, SIZE), np.uint8)
    for a, b, c, d in boxes:
        truth[b:d, a:c] = 1
    table = compare_objects(data, [7], [(truth, truth, remove_small_components(truth, [0, 50]))], [0])
    assert table["recall_before"].tolist() == [1, 1]
    assert table["recall_after"].tolist() == [0, 1]
    assert table["found_after"].tolist() == [0, 1]
    assert list(table.index) == ["≤ 8 px", "8–20 px"]

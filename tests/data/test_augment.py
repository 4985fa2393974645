"""Augmentation: image and mask move together, and samples depend on (seed, epoch, index) alone."""

import numpy as np
import pytest

from seglib.data.augment import PRESETS, augment, build_augmentation

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
MASK = IMAGE[..., 0] // 32


@pytest.mark.parametrize("name", PRESETS)
def test_image_and_mask_move_together(name):
    for index in range(8):
        image, mask = augment(build_augmentation(name), IMAGE, MASK, 1, 1, index)
        assert np.array_equal(image[..., 0] // 32, mask)
        assert (image.dtype, mask.dtype) == (np.uint8, np.uint8)


def test_none_changes_nothing():
    image, mask = augment(build_augmentation("none"), IMAGE, MASK, 1, 1, 1)
    assert np.array_equal(image, IMAGE)
    assert np.array_equal(mask, MASK)


def test_the_same_seed_epoch_and_index_give_the_same_sample_whatever_was_drawn_before():
    augmentation = build_augmentation("flips")
    first = augment(augmentation, IMAGE, MASK, 1, 2, 3)[0]
    augment(augmentation, IMAGE, MASK, 1, 2, 4)
    assert np.array_equal(first, augment(augmentation, IMAGE, MASK, 1, 2, 3)[0])
    assert np.array_equal(first, augment(build_augmentation("flips"), IMAGE, MASK, 1, 2, 3)[0])


@pytest.mark.parametrize("changed", ["seed", "epoch", "index"])
def test_each_of_seed_epoch_and_index_changes_the_samples(changed):
    augmentation = build_augmentation("flips")
    words = [{"seed": 1, "epoch": 1, "index": 1} | {changed: value} for value in range(12)]
    assert len({augment(augmentation, IMAGE, MASK, **w)[0].tobytes() for w in words}) > 3


def test_flips_are_independent_of_each_other():
    augmentation = build_augmentation("flips")
    outcomes = {augment(augmentation, IMAGE, MASK, 5, 1, index)[0].tobytes() for index in range(200)}
    assert len(outcomes) == 8  # all symmetries of the square; flips that always go together reach fewer

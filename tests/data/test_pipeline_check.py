"""Each planted fault is found in its step, and a sound pipeline has none."""

import albumentations as A
import cv2
import numpy as np
import pytest

from seglib.data.augment import build_augmentation
from seglib.data.augment_check import check_pipeline


@pytest.fixture(scope="module")
def samples():
    """Eight blurred pictures with masks of ids 0, 3 and 6, of 7 classes."""
    rng = np.random.default_rng(0)
    images = [cv2.resize(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8), (32, 32)) for _ in range(8)]
    masks = [cv2.resize(rng.integers(0, 3, (4, 4)).astype(np.uint8) * 3, (32, 32), interpolation=cv2.INTER_NEAREST)
             for _ in range(8)]  # fmt: skip
    return list(zip(images, masks, strict=True))


def check(samples, *steps, training=True, background="class"):
    """The problem of each step, by its place; 0 is the input."""
    return check_pipeline(A.Compose(list(steps)), samples, 7, training=training, background=background)[
        "problem"
    ].tolist()


def halve_rows(image, **kwargs):
    return image[::2]


def paint_pink(image, **kwargs):
    return np.full_like(image, (250, 120, 200))


def to_int64(mask, **kwargs):
    return mask.astype(np.int64)


def shift_ids(mask, **kwargs):
    return np.where(mask == 3, 4, mask).astype(np.uint8)


def add_nan(image, **kwargs):
    return np.where(image > 0.5, np.nan, image).astype(np.float32)


@pytest.mark.parametrize("name", ["none", "flips", "elastic", "dropout", "crop", "trivial"])
def test_the_presets_are_sound(samples, name):
    table = check_pipeline(build_augmentation(name, 32), samples, 7, training=True, background="ignore")
    assert table["problem"].tolist() == [""] * len(table)
    assert table["step"].tolist() == [
        "(as loaded)",
        *(type(step).__name__ for step in build_augmentation(name, 32).transforms),
    ]


def test_dtype_and_range_are_told_after_each_step(samples):
    table = check_pipeline(
        A.Compose([A.ToFloat(), A.HorizontalFlip(p=0.5)]), samples, 7, training=True, background="class"
    )
    assert table["image_dtype"].tolist() == ["uint8", "float32", "float32"]
    low, high = min(i.min() for i, _ in samples), max(i.max() for i, _ in samples)
    assert table["image_max"].tolist() == pytest.approx([high, high / 255, high / 255])
    assert table["image_min"].tolist() == pytest.approx([low, low / 255, low / 255])
    assert table["random"].tolist() == [False, False, True]


def test_normalising_once_is_sound_and_twice_is_found(samples):
    assert check(samples, A.Normalize()) == ["", ""]
    _, first, second = check(samples, A.Normalize(), A.Normalize())
    assert first == ""
    assert second.startswith("normalised twice: ")
    assert "(48 of 48)" in second


def test_normalising_twice_with_the_second_in_units_is_found(samples):
    assert "normalised twice" in check(samples, A.Normalize(), A.Normalize(max_pixel_value=1.0))[2]


def test_dividing_by_255_twice_is_found(samples):
    assert "divided by 255 twice" in check(samples, A.ToFloat(), A.Normalize())[2]


def test_floats_that_are_never_normalised_are_found(samples):
    assert "never normalised" in check(samples, A.ToFloat())[1]


def test_images_that_turn_black_or_of_one_colour_are_found(samples):
    assert "image becomes black" in check(samples, A.RandomBrightnessContrast(brightness_limit=(-1, -1), p=1))[1]
    assert "image becomes of one colour" in check(samples, A.Lambda(image=paint_pink, p=1))[1]


def test_black_and_constant_images_are_found_as_loaded(samples):
    mask = samples[0][1]
    flat = [(np.full((32, 32, 3), value, np.uint8), mask) for value in (0, 90)]
    assert check([*samples[:6], *flat]) == ["image is black (1 of 8); image is of one colour (1 of 8)"]


def test_random_steps_are_found_in_a_pipeline_that_is_not_for_training(samples):
    _, resize, flip = check(samples, A.Resize(32, 32), A.HorizontalFlip(p=0.2), training=False)
    assert resize == ""
    assert flip.startswith("random, and this pipeline is not for training")


def test_interpolated_masks_get_ids_that_did_not_exist(samples):
    turned = A.Rotate(limit=(30, 30), mask_interpolation=cv2.INTER_LINEAR, p=1)
    assert "mask gets ids that did not exist: 1, 2, 4, 5" in check(samples, turned)[1]


def test_filling_with_background_is_a_fault_only_where_background_is_no_class(samples):
    covered = [(image, np.maximum(mask, 3)) for image, mask in samples]
    turn = A.Rotate(limit=(30, 30), border_mode=cv2.BORDER_CONSTANT, fill_mask=0, p=1)
    assert check(covered, turn, background="class")[1] == ""
    assert "mask gets ids that did not exist: 0" in check(covered, turn, background="ignore")[1]
    ignored = A.Rotate(limit=(30, 30), border_mode=cv2.BORDER_CONSTANT, fill_mask=255, p=1)
    assert check(covered, ignored, background="ignore")[1] == ""


def test_ids_that_are_moved_are_found(samples):
    assert "mask gets ids that did not exist: 4" in check(samples, A.Lambda(mask=shift_ids, p=1))[1]


def test_ids_that_are_no_class_are_found_as_loaded(samples):
    assert "mask has ids that are no class: 9" in check([(image, mask * 0 + 9) for image, mask in samples])[0]


def test_masks_of_another_dtype_or_size_and_values_that_are_not_finite_are_found(samples):
    assert "mask is not uint8: int64" in check(samples, A.Lambda(mask=to_int64, p=1))[1]
    assert "image and mask differ in size: (16, 32) and (32, 32)" in check(samples, A.Lambda(image=halve_rows, p=1))[1]
    assert "not finite" in check(samples, A.Normalize(), A.Lambda(image=add_nan, p=1))[2]


def test_the_pipeline_that_was_checked_is_left_as_it_was(samples):
    pipeline = A.Compose([A.HorizontalFlip(p=0.5)])
    state = pipeline.transforms[0].random_generator.bit_generator.state
    check_pipeline(pipeline, samples, 7, training=True, background="class")
    assert pipeline.transforms[0].random_generator.bit_generator.state == state

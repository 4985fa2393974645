"""Augmentation: image and mask move together, and samples depend on (seed, epoch, index) alone."""

import random

import cv2
import numpy as np
import pytest

from seglib.data import augment as augment_module
from seglib.data.augment import PRESETS, augment, build_augmentation, list_transforms

SIZE = 64
IMAGE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
MASK = IMAGE[..., 0] // 32
MOVING = {"flips", "blur", "elastic", "distort", "crop", "trivial", "autoaugment"}  # presets that move pixels


@pytest.fixture(scope="module")
def patches():
    """An image of four flat colours, and the mask with the ids 2, 3, 5, 7 of these colours."""
    quarters = cv2.resize(
        np.random.default_rng(2).permutation(16).reshape(4, 4).astype(np.uint8) % 4, (SIZE, SIZE), interpolation=0
    )
    colours = np.array([[40, 80, 200], [200, 50, 60], [60, 190, 90], [210, 200, 120]], np.uint8)
    return colours[quarters], np.array([2, 3, 5, 7], np.uint8)[quarters]


def has_one_colour_a_class(image, mask):
    """Whether the pixels of each class have one colour, borders left out; 255 is no class."""
    for class_id in set(np.unique(mask)) - {255}:
        inside = cv2.erode((mask == class_id).astype(np.uint8), np.ones((9, 9)), borderValue=0) == 1
        if inside.any() and image[inside].std(axis=0).max() > 10:
            return False
    return True


@pytest.mark.parametrize("name", ["none", "flips"])
def test_image_and_mask_move_together_to_the_pixel(name):
    for index in range(8):
        image, mask = augment(build_augmentation(name, SIZE), IMAGE, MASK, 1, 1, index)
        assert np.array_equal(image[..., 0] // 32, mask)


@pytest.mark.parametrize("name", sorted(MOVING))
def test_after_presets_that_move_pixels_the_mask_still_lies_on_its_objects(name, patches):
    augmentation = build_augmentation(name, SIZE)
    outputs = [augment(augmentation, *patches, 1, 1, index) for index in range(60)]
    assert all(has_one_colour_a_class(*output) for output in outputs)
    assert len({mask.tobytes() for _, mask in outputs}) > 5
    mismatched = sum(not has_one_colour_a_class(image, patches[1]) for image, _ in outputs)
    assert mismatched > 5  # the measure sees a mask that did not follow


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - MOVING))
def test_the_other_presets_leave_the_mask_alone_and_change_the_image(name):
    augmentation = build_augmentation(name, SIZE)
    outputs = [augment(augmentation, IMAGE, MASK, 1, 1, index) for index in range(20)]
    assert all(np.array_equal(mask, MASK) for _, mask in outputs)
    assert any(not np.array_equal(image, IMAGE) for image, _ in outputs) == (name != "none")


@pytest.mark.parametrize("size", [32, 160])
@pytest.mark.parametrize("name", PRESETS)
def test_presets_keep_size_type_and_ids_at_any_image_size(name, size):
    image, mask = cv2.resize(IMAGE, (size, size)), cv2.resize(MASK * 30 + 1, (size, size), interpolation=0)
    augmentation = build_augmentation(name, size)
    for index in range(6):
        new_image, new_mask = augment(augmentation, image, mask, 3, 1, index)
        assert (new_image.shape, new_mask.shape) == (image.shape, mask.shape)
        assert (new_image.dtype, new_mask.dtype) == (np.uint8, np.uint8)
        assert set(np.unique(new_mask)) <= {*np.unique(mask), 255}
        assert 0.3 < new_image.astype(float).std() / image.std() < 2  # the picture is still one


def test_none_changes_nothing():
    image, mask = augment(build_augmentation("none", SIZE), IMAGE, MASK, 1, 1, 1)
    assert np.array_equal(image, IMAGE)
    assert np.array_equal(mask, MASK)


def test_where_there_is_no_data_the_mask_is_ignored():
    image, mask = augment(build_augmentation([{"Rotate": {"limit": [45, 45], "p": 1}}], SIZE), IMAGE, MASK, 1, 1, 1)
    assert mask[0, 0] == 255
    assert image[0, 0].tolist() == [0, 0, 0]


def test_holes_keep_their_labels():
    image, mask = augment(build_augmentation([{"CoarseDropout": {"p": 1}}], SIZE), IMAGE, MASK, 1, 1, 1)
    assert (image == 0).all(axis=2).any()
    assert np.array_equal(mask, MASK)


def test_the_same_seed_epoch_and_index_give_the_same_sample_whatever_was_drawn_before():
    augmentation = build_augmentation("flips", SIZE)
    first = augment(augmentation, IMAGE, MASK, 1, 2, 3)[0]
    augment(augmentation, IMAGE, MASK, 1, 2, 4)
    assert np.array_equal(first, augment(augmentation, IMAGE, MASK, 1, 2, 3)[0])
    assert np.array_equal(first, augment(build_augmentation("flips", SIZE), IMAGE, MASK, 1, 2, 3)[0])


# Not without options, or too slow here (it takes seconds an image at 512 px).
NEED_OPTIONS = {"Crop", "CropAndPad", "GridElasticDeform", "LongestMaxSize", "RandomSizedCrop", "SmallestMaxSize"}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", sorted(list_transforms().keys() - NEED_OPTIONS - {"PiecewiseAffine"}))
def test_no_transform_draws_from_a_global_stream_or_depends_on_threads(name):
    spec = [{name: {"p": 1}}]
    first = augment(build_augmentation(spec, SIZE), IMAGE, MASK, 1, 2, 3)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    cv2.setRNGSeed(5)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1 if threads > 1 else 2)
    again = build_augmentation(spec, SIZE)
    augment(again, IMAGE, MASK, 9, 9, 9)
    second = augment(again, IMAGE, MASK, 1, 2, 3)
    cv2.setNumThreads(threads)
    assert all(np.array_equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("changed", ["seed", "epoch", "index"])
def test_each_of_seed_epoch_and_index_changes_the_samples(changed):
    augmentation = build_augmentation("flips", SIZE)
    words = [{"seed": 1, "epoch": 1, "index": 1} | {changed: value} for value in range(12)]
    assert len({augment(augmentation, IMAGE, MASK, **w)[0].tobytes() for w in words}) > 3


def test_flips_are_independent_of_each_other():
    augmentation = build_augmentation("flips", SIZE)
    outcomes = {augment(augmentation, IMAGE, MASK, 5, 1, index)[0].tobytes() for index in range(200)}
    assert len(outcomes) == 8  # all symmetries of the square; flips that always go together reach fewer


def draw_both(step, size, monkeypatch, samples=8):
    """What our own transforms make of a picture, and what albumentations' do, from the same draws."""
    picture = cv2.resize(np.random.default_rng(3).integers(0, 255, (20, 20, 3), np.uint8), (size, size + 5))
    mask = cv2.resize(np.arange(100, dtype=np.uint8).reshape(10, 10), (size, size + 5), interpolation=cv2.INTER_NEAREST)
    ours = build_augmentation([step], size)
    monkeypatch.setattr(augment_module, "FASTER", {})
    plain = build_augmentation([step], size)
    assert type(ours.transforms[0]) is not type(plain.transforms[0])
    return [[augment(each, picture, mask, 5, 1, index) for index in range(samples)] for each in (ours, plain)]


@pytest.mark.parametrize(
    "step",
    [
        {"RandomRotate90": {"p": 1}},
        {"GlassBlur": {"sigma": 0.5, "max_delta": 1, "iterations": 1, "p": 1}},
        {"GlassBlur": {"sigma": 0.7, "max_delta": 4, "iterations": 3, "p": 1}},
        {"GlassBlur": {"max_delta": 1, "iterations": 1, "mode": "exact", "p": 1}},
        {"RandomFog": {"alpha_coef": 0.03, "p": 1}},
        {"RandomFog": {"alpha_coef": 0.2, "fog_coef_range": [0.1, 0.2], "p": 1}},
        {"ElasticTransform": {"sigma": 3, "alpha": 30, "p": 1}},
        {"ElasticTransform": {"sigma": 20, "alpha": 30, "approximate": True, "p": 1}},
    ],
)
def test_faster_transforms_give_the_pixels_of_albumentations_own(step, monkeypatch):
    for one, other in zip(*draw_both(step, SIZE, monkeypatch), strict=True):
        assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])


@pytest.mark.parametrize("size", [64, 250])
@pytest.mark.parametrize("options", [{"noise_distribution": "uniform"}, {"same_dxdy": True}, {"sigma": 31.0}])
def test_elastic_displacements_are_those_of_one_wide_gaussian(size, options, monkeypatch):
    step = {"ElasticTransform": {"sigma": 12.8, "alpha": 200, "p": 1} | options}
    for one, other in zip(*draw_both(step, size, monkeypatch, 3), strict=True):
        assert np.abs(one[0].astype(int) - other[0]).max() <= 1 and (one[1] != other[1]).mean() < 5e-4
        assert (one[1] != one[1][:, :1]).any()


def test_nested_steps_draw_from_the_stream_of_the_sample_independently_of_each_other():
    pair = [{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}]
    nested = [
        {"Sequential": {"transforms": pair, "p": 1}},
        {"OneOf": {"transforms": ["RandomRotate90", "InvertImg"], "p": 1}},
        {"SomeOf": {"transforms": [{"ChannelShuffle": {"p": 0.5}}, {"Solarize": {"p": 0.5}}], "n": 2}},
    ]
    augmentation, twin = build_augmentation(nested, SIZE), build_augmentation(nested, SIZE)
    outputs = [augment(augmentation, IMAGE, MASK, 5, 1, index)[0].tobytes() for index in range(150)]
    assert outputs[::-1] == [augment(twin, IMAGE, MASK, 5, 1, index)[0].tobytes() for index in range(150)][::-1]
    assert len(set(outputs)) > 40


def test_two_steps_of_even_chance_go_together_in_a_quarter_of_the_samples():
    augmentation = build_augmentation(
        [{"InvertImg": {"p": 0.5}}, {"OneOf": {"transforms": ["VerticalFlip"], "p": 0.5}}], SIZE
    )
    outputs = [augment(augmentation, IMAGE, MASK, 5, 1, index) for index in range(400)]
    flipped = np.array([not np.array_equal(mask, MASK) for _, mask in outputs])
    inverted = np.array(
        [image[0, 0, 0] == 255 - IMAGE[-int(flip), 0, 0] for (image, _), flip in zip(outputs, flipped, strict=True)]
    )
    assert (flipped & inverted).mean() == pytest.approx(0.25, abs=0.06)
    assert (flipped & ~inverted).mean() == pytest.approx(0.25, abs=0.06)

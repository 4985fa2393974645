"""Steps as YAML gives them are built as they say, and each mistake is refused in one line that names the fix."""

import warnings

import albumentations as A
import cv2
import pytest
import yaml

from seglib.data.augment import PRESETS, build_steps, list_transforms
from seglib.errors import InputError


def build(text):
    return build_steps(yaml.safe_load(text), 64)


def build_one(text):
    (step,) = build(text)
    return step


def list_names(steps):
    return [type(step).__name__ for step in steps]


def refusal_of(text):
    with pytest.raises(InputError) as caught:
        build(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_preset_and_a_list_that_names_it_are_the_same_steps():
    assert list_names(build("flips")) == ["HorizontalFlip", "VerticalFlip", "RandomRotate90"]
    assert list_names(build("[flips, CLAHE]")) == [*list_names(build("flips")), "CLAHE"]
    assert build("none") == build("[]") == []


@pytest.mark.parametrize("name", ["blur", "elastic"])
def test_blur_and_elastic_start_with_the_flips(name):
    assert list_names(build(name))[:3] == list_names(build("flips"))


def test_options_are_the_transforms_options():
    step = build_one("[{ElasticTransform: {alpha: 40, sigma: 1e1, p: 0.25}}]")  # PyYAML reads 1e1 as text
    assert (step.alpha, step.sigma, step.p) == (40, 10, 0.25)
    assert build_one("[HorizontalFlip]").p == build_one("[HorizontalFlip: ]").p == 0.5


def test_lists_become_tuples():
    step = build_one("[{CoarseDropout: {num_holes_range: [2, 5], hole_height_range: [0.1, 0.3], fill: [1, 2, 3]}}]")
    assert (step.num_holes_range, step.hole_height_range, step.fill) == ((2, 5), (0.1, 0.3), (1, 2, 3))


def test_constants_of_opencv_go_by_their_names():
    assert build_one("[{Rotate: {border_mode: cv2.BORDER_REFLECT_101}}]").border_mode == cv2.BORDER_REFLECT_101


def test_sizes_that_are_required_are_the_images():
    assert build_one("[RandomResizedCrop]").size == (64, 64)
    assert (build_one("[Resize]").height, build_one("[Resize]").width) == (64, 64)
    assert (build_one("[PadIfNeeded]").min_height, build_one("[PadIfNeeded]").min_width) == (64, 64)
    assert build_one("[{Resize: {height: 32}}]").height == 32


def test_masks_are_filled_with_ignore_where_a_transform_leaves_no_data_and_keep_labels_in_holes():
    assert build_one("[Affine]").fill_mask == 255
    assert build_one("[{Affine: {fill_mask: 0}}]").fill_mask == 0
    assert build_one("[CoarseDropout]").fill_mask is None
    assert build_one("[CropNonEmptyMaskIfExists]").ignore_values == [255]


def test_compositions_hold_steps_and_a_preset_in_a_choice_is_one_step():
    step = build_one("[{OneOf: [flips, CLAHE, {Sequential: [Blur, flips]}]}]")
    assert list_names(step.transforms) == ["Sequential", "CLAHE", "Sequential"]
    assert step.transforms[0].p == 1
    assert list_names(step.transforms[2].transforms) == ["Blur", "Sequential"]
    step = build_one("[{SomeOf: {transforms: [Blur, CLAHE, InvertImg], n: 2, p: 0.3}}]")
    assert (type(step), step.n, step.p, step.replace) == (A.SomeOf, 2, 0.3, False)
    assert build_one("[{OneOf: [Blur]}]").p == 0.5


@pytest.mark.parametrize("name", sorted(list_transforms()))
def test_every_transform_is_built_by_its_name_or_says_which_option_it_needs(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            assert type(build_one(f"[{name}]")).__name__ == name
        except InputError as error:
            assert any(word in str(error) for word in ("is required", "must be specified", "cannot be None"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("flps", "unknown preset 'flps'; did you mean 'flips'?"),
        ("[HorizontalFlp]", "augmentation: unknown transform 'HorizontalFlp'; did you mean 'HorizontalFlip'?"),
        ("[{OneOf: [{Sequential: [Blrr]}]}]", "augmentation > OneOf > Sequential: unknown transform 'Blrr'"),
        ("[{ElasticTransform: {alfa: 1}}]", "unknown option of ElasticTransform 'alfa'; did you mean 'alpha'?"),
        ("[{MedianBlur: {blurlimit: 3}}]", "unknown option of MedianBlur 'blurlimit'; did you mean 'blur_limit'?"),
        ("[{ElasticTransform: {alpha: -3}}]", "ElasticTransform: alpha must be greater than or equal to 0, got -3"),
        ("[{GaussianBlur: {sigma_limit: wide}}]", "sigma_limit must be a valid tuple or must be a valid number"),
        ("[{HorizontalFlip: {p: 2}}]", "p must be less than or equal to 1, got 2"),
        ("[GridElasticDeform]", "GridElasticDeform: num_grid_xy is required"),
        ("[CropAndPad]", "px and percent"),
        ("[{Rotate: {border_mode: cv2.BORDER_REFLEKT}}]", "did you mean 'cv2.BORDER_REFLECT'"),
        ("[{OneOf: []}]", "augmentation > OneOf.transforms must be not empty, got []"),
        ("[{OneOf: {p: 0.5}}]", "augmentation > OneOf: required the option transforms"),
        ("[{OneOf: {transforms: [Blur], p: 3}}]", "augmentation > OneOf.p must be at most 1.0, got 3"),
        ("[{OneOf: [{Blur: {p: 0}}]}]", "a step with p above 0"),
        ("[{SomeOf: {transforms: [Blur], n: 0}}]", "augmentation > SomeOf.n must be at least 1, got 0"),
        ("[{SomeOf: {transforms: [Blur], m: 1}}]", "unknown option of augmentation > SomeOf 'm'"),
        ("[{flips: {p: 0.3}}]", "the preset flips takes no options"),
        ("[{ElasticTransform: , alpha: 3}]", "indent the options under the name"),
        ("[{Blur: [3]}]", "Blur: required options as name: value, got [3]"),
        ("[3]", "required a name, or one name with its options, got 3"),
        ("3", "required a preset's name or a list of steps, got 3"),
        ("[Normalize]", "Normalize cannot be used: steps and model take uint8 images"),
        ("[ToFloat, CLAHE]", "would be done twice"),
        ("[ToTensorV2]", "would be done twice"),
        ("[BBoxSafeRandomCrop]", "needs bounding boxes"),
        ("[FDA]", "needs other images"),
        ("[Lambda]", "needs Python functions"),
        ("[SelectiveChannelTransform]", "the image without the mask"),
    ],
)
def test_each_mistake_is_refused_in_words(text, words):
    assert words in refusal_of(text)


def test_presets_have_the_names_that_grids_may_use():
    assert list(PRESETS) == [
        "none", "flips", "blur", "elastic", "weather", "color", "brightness", "clahe", "dropout", "distort", "glass",
        "noise", "crop", "trivial", "autoaugment",
    ]  # fmt: skip

"""What only running an augmentation shows is refused: sizes, floats, invented ids, lost images, steps that cannot run."""

import subprocess
import sys

import pytest
import yaml

from seglib.data.augment import PRESETS
from seglib.data.augment_check import find_refusal

SOUND = [
    "[{RandomCrop: {height: 32, width: 32}}, Resize]",
    "[RandomScale, PadIfNeeded, RandomCrop]",
    "[{OneOf: [none, elastic]}]",
    "[{RandomCrop: {height: 32, width: 32, p: 0.5}}, Resize]",
    "[{OneOf: [{RandomCrop: {height: 32, width: 32}}, CLAHE]}, Resize]",
    "[{SomeOf: {transforms: [flips, weather, {OneOf: [elastic, crop]}], n: 2}}]",
    "[{RandomBrightnessContrast: {brightness_limit: 0.4}}, CLAHE]",
]


@pytest.mark.parametrize("size", [16, 64, 160])
@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_sound(name, size):
    assert find_refusal(name, size) == ""


@pytest.mark.parametrize("text", SOUND)
def test_sound_lists_are_not_refused(text):
    assert find_refusal(yaml.safe_load(text), 64) == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[Blurr]", "unknown transform 'Blurr'"),
        ("[{RandomCrop: {height: 32, width: 48}}]", "augmentation > RandomCrop: required images of 64 x 64 (image_size) in the end, got 32 x 48; add Resize"),
        ("[{RandomCrop: {height: 32, width: 32}}, {Resize: {p: 0.5}}]", "> Resize: required images of 64 x 64"),
        ("[{RandomCrop: {height: 32, width: 32, p: 0.01}}]", "> RandomCrop: required images of 64 x 64"),
        ("[{OneOf: [flips, {RandomCrop: {height: 32, width: 32}}]}]", "augmentation > OneOf: required images of 64 x 64"),
        ("[{SomeOf: {transforms: [RandomScale, flips]}}]", "augmentation > SomeOf: required images of 64 x 64"),
        ("[flips, {Rotate: {mask_interpolation: 1}}]", "augmentation > Rotate: mask gets ids that did not exist: "),
        ("[{OneOf: [{Sequential: [{Rotate: {mask_interpolation: 1, p: 0.01}}]}]}]", "OneOf > Sequential > Rotate: mask gets ids"),
        ("[{Rotate: {fill_mask: 0}}]", "mask gets ids that did not exist: 0; leave mask_interpolation out, set fill_mask"),
        ("[{RandomBrightnessContrast: {brightness_limit: [-1, -1]}}]", "image becomes black; weaken it"),
        ("[{ToGray: {num_output_channels: 1}}]", "required RGB images (H, W, 3), got (64, 64)"),
        ("[Crop]", "augmentation > Crop: it cannot run on an image and its mask: "),
    ],
)  # fmt: skip
def test_what_only_running_shows_is_refused(text, words):
    assert words in find_refusal(yaml.safe_load(text), 64)


def test_floats_are_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr("seglib.data.augment._UNUSABLE", {})
    refusal = find_refusal(["flips", "ToFloat", "CLAHE"], 64)
    assert "augmentation > ToFloat: required uint8 images" in refusal
    assert "normalised twice), got float32" in refusal


def test_the_check_imports_no_torch():
    code = (
        "import sys; from seglib.data.augment_check import find_refusal;"
        " assert 'Normalize cannot be used' in find_refusal(['Normalize'], 64); sys.exit('torch' in sys.modules)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr

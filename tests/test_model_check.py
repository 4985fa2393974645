"""Sizes that a model cannot take are found without computing, and sizes near them that work are named."""

import pytest

from seglib.model_check import find_refusal


@pytest.mark.parametrize(
    ("architecture", "encoder", "image_size"),
    [
        ("DPT", "tu-beit_base_patch16_224", 96),
        ("UPerNet", "tu-swin_tiny_patch4_window7_224", 256),
        ("HRNetOCR", "tu-hrnet_w18_small.ms_in1k", 96),
        ("Unet", "timm-mobilenetv3_small_075", 64),
    ],
)
def test_models_that_work_are_not_refused(architecture, encoder, image_size):
    assert find_refusal(architecture, encoder, image_size, 2) == ""


@pytest.mark.parametrize(
    ("architecture", "encoder", "image_size", "words"),
    [
        ("PAN", "tu-resnet10t", 64, "cannot take image_size=64 "),
        ("DPT", "tu-efficientformer_l1", 256, "cannot take image_size=256 "),
        ("DPT", "tu-vit_small_patch14_dinov2", 96, "takes an image_size that 14 divides"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_with_why(architecture, encoder, image_size, words):
    refusal = find_refusal(architecture, encoder, image_size, 2)
    assert refusal.startswith(f"{architecture} with encoder {encoder!r} {words}") and "\n" not in refusal


@pytest.mark.parametrize(
    ("architecture", "encoder", "image_size", "found"),
    [
        ("PAN", "tu-resnet10t", 64, "nearest image_size: 128"),
        ("DPT", "tu-efficientformer_l1", 256, "nearest image_size: 224"),
        ("DPT", "tu-vit_small_patch14_dinov2", 96, "no image_size from 32 to 192 works"),
    ],
)
def test_the_nearest_sizes_that_work_are_named(architecture, encoder, image_size, found):
    assert find_refusal(architecture, encoder, image_size, 2).endswith(f"; {found}")


def test_sizes_below_and_above_are_named(monkeypatch):
    monkeypatch.setattr("seglib.model_check._try", lambda *model: "" if model[2] in (32, 64, 192, 224) else "too odd")
    assert find_refusal("FPN", "tu-resnet10t", 128, 2) == "too odd; nearest image_size: 64 or 192"


@pytest.mark.parametrize(
    ("architecture", "encoder", "batch_size"),
    [("DeepLabV3Plus", "densenet121", 2), ("DeepLabV3", "tu-resnet10t", 1), ("FCN8s", "resnet18", 2), ("FPN", "", 2)],
)
def test_where_the_size_is_not_to_blame_no_other_is_named(architecture, encoder, batch_size):
    refusal = find_refusal(architecture, encoder, 64, batch_size)
    assert refusal and "image_size" not in refusal

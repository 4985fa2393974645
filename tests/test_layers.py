"""Layers in place of torch's give the same values and gradients, and every model gets them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seglib.layers import (
    DilatedDepthwiseConv2d,
    FixedSizeAveragePool,
    replace_average_pools,
    speed_up_dilated_depthwise,
)
from seglib.models import build_model


@pytest.mark.parametrize("size", [(12, 18), (7, 5), (4, 60)])  # even bins, overlapping ones, fewer px than bins
@pytest.mark.parametrize("output_size", [2, 6, (3, 1), (None, 5)])
def test_means_and_gradients_are_those_of_adaptive_pooling(size, output_size):
    features = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    expected = F.adaptive_avg_pool2d(features, output_size)
    weights = torch.randn_like(expected)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), features)
    pooled = FixedSizeAveragePool(output_size)(features)
    (gradient,) = torch.autograd.grad((pooled * weights).sum(), features)
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_half_precision_is_averaged_in_float32():
    features = torch.full((1, 1, 3, 30), 1.0).bfloat16()
    features[..., 1::3] += 2**-7  # the mean lies between two bfloat16 numbers, thirds are none of them
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = FixedSizeAveragePool(1)(features)
    assert torch.equal(pooled, features.float().mean((2, 3), keepdim=True).bfloat16())


def test_only_pools_to_more_than_one_pixel_are_replaced():
    network = nn.Sequential(
        nn.Sequential(nn.AdaptiveAvgPool2d((3, 2))), nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((1, 1))
    )
    replace_average_pools(network)
    assert isinstance(network[0][0], FixedSizeAveragePool)
    assert [type(network[1]), type(network[2])] == [nn.AdaptiveAvgPool2d] * 2
    assert network[0](torch.rand(1, 1, 6, 6)).shape == (1, 1, 3, 2)


@pytest.mark.parametrize("architecture", ["PSPNet", "UPerNet"])
def test_pyramid_pooling_predicts_as_before(architecture):
    torch.manual_seed(0)
    model = build_model(architecture, "resnet18", 3).eval()
    images = torch.rand(1, 3, 96, 64)
    logits = model(images)
    replaced = [name for name, module in model.named_modules() if isinstance(module, FixedSizeAveragePool)]
    assert len(replaced) == 3  # to 2, 3 and 6 px; that to 1 px is a mean
    for name in replaced:
        model.set_submodule(name, nn.AdaptiveAvgPool2d(model.get_submodule(name).output_size))
    torch.testing.assert_close(logits, model(images))


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_values_gradients_and_layout_are_those_of_the_plain_convolution(layout, dtype, tolerance):
    torch.manual_seed(1)
    plain = nn.Conv2d(8, 8, 3, padding=4, dilation=4, groups=8)
    fast = nn.Conv2d(8, 8, 3, padding=4, dilation=4, groups=8)
    fast.load_state_dict(plain.state_dict())
    speed_up_dilated_depthwise(fast)
    assert type(fast) is DilatedDepthwiseConv2d
    features = torch.randn(2, 8, 12, 12)
    results = []
    for layer in (plain, fast):
        layer.to(memory_format=layout)
        given = features.to(memory_format=layout).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = layer(given)
        assert out.is_contiguous(memory_format=layout)
        out.float().square().mean().backward()
        results.append([out.float(), given.grad, layer.weight.grad, layer.bias.grad])
        given.grad = None
        features = features.detach()
    for expected, value in zip(*results, strict=True):
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


def test_only_dilated_depthwise_convolutions_are_touched():
    network = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, dilation=2, groups=4)
    )
    speed_up_dilated_depthwise(network)
    assert [type(layer) for layer in network] == [nn.Conv2d, nn.Conv2d, DilatedDepthwiseConv2d]


def test_a_models_atrous_pyramid_uses_them():
    model = build_model("DeepLabV3Plus", "tu-test_resnet", 3)
    assert sum(isinstance(layer, DilatedDepthwiseConv2d) for layer in model.modules()) == 3

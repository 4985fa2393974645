"""Dilated depthwise convolutions give what torch's give, in any layout, and are found in DeepLabV3+."""

import pytest
import torch
from torch import nn

from seglib.models import build_model
from seglib.models.depthwise import DilatedDepthwiseConv2d, speed_up_dilated_depthwise

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

"""Layers in place of torch's give the same values and gradients, and every model gets them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from seglib.layers import (
    BilinearResize,
    DilatedDepthwiseConv2d,
    FixedSizeAveragePool,
    interpolate,
    replace_average_pools,
    replace_bilinear_resize,
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


RESIZES = [{"size": (7, 33)}, {"size": (16, 1)}, {"scale_factor": (4.0, 4.0)}, {"scale_factor": (1.7, 0.45)}]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("options", RESIZES)
def test_a_resize_has_torch_s_values_and_the_gradient_of_double_precision(options, align_corners, layout):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 11, 13, generator=generator).contiguous(memory_format=layout).requires_grad_()
    resized = BilinearResize.apply(features, options.get("size"), options.get("scale_factor"), align_corners)
    expected = F.interpolate(features, **options, mode="bilinear", align_corners=align_corners)
    assert torch.equal(resized, expected)
    weights = torch.randn(resized.shape, generator=generator).contiguous(memory_format=layout)
    (gradient,) = torch.autograd.grad(resized, features, weights)
    exact = features.detach().double().requires_grad_()
    again = F.interpolate(exact, **options, mode="bilinear", align_corners=align_corners)
    (wanted,) = torch.autograd.grad(again, exact, weights.double())
    assert (gradient - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    assert gradient.dtype == torch.float32 and gradient.is_contiguous(memory_format=layout)


def test_gradients_of_half_precision_are_added_up_in_float32():
    features = torch.randn(1, 4, 8, 8).bfloat16().requires_grad_()
    gradient = torch.randn(1, 4, 32, 32).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        resized = BilinearResize.apply(features, (32, 32), None, False)
        (found,) = torch.autograd.grad(resized, features, gradient)
    wide = features.detach().float().requires_grad_()
    (wanted,) = torch.autograd.grad(F.interpolate(wide, (32, 32), mode="bilinear"), wide, gradient.float())
    torch.testing.assert_close(found, wanted.bfloat16(), atol=0, rtol=2**-7)
    assert resized.dtype == found.dtype == torch.bfloat16


@pytest.mark.parametrize("module", [nn.Upsample(scale_factor=2, mode="bilinear"), nn.UpsamplingBilinear2d(size=9)])
def test_every_bilinear_resize_on_cuda_is_replaced_while_algorithms_are_deterministic(module, monkeypatch):
    seen = []
    monkeypatch.setattr(F, "interpolate", F.interpolate)  # puts it back afterwards
    replace_bilinear_resize()
    assert F.interpolate is interpolate
    monkeypatch.setattr(BilinearResize, "apply", lambda *arguments: seen.append(arguments[1:]))
    before = torch.are_deterministic_algorithms_enabled()
    with FakeTensorMode():
        images = torch.empty(1, 3, 4, 4, device="cuda")  # of a device that need not be there
        try:
            for deterministic in (True, False):
                torch.use_deterministic_algorithms(deterministic)
                module(images)
        finally:
            torch.use_deterministic_algorithms(before)
    assert len(seen) == 1


def test_other_resizes_stay_torch_s_own():
    images = torch.rand(1, 3, 8, 8)
    for options in (
        {"mode": "nearest"},
        {"mode": "bicubic"},
        {"mode": "bilinear"},
        {"mode": "bilinear", "antialias": True},
    ):
        assert torch.equal(interpolate(images, (4, 4), **options), F.interpolate(images, (4, 4), **options))
    with pytest.raises(ValueError, match="either size or scale_factor"):
        interpolate(images, mode="bilinear")


def test_a_resize_can_be_compiled():
    def resize(features):
        return BilinearResize.apply(features, None, (2.0, 2.0), True).square().sum()

    gradients = []
    for function in (resize, torch.compile(resize, backend="aot_eager", fullgraph=True)):
        features = torch.arange(32.0).view(1, 2, 4, 4).requires_grad_()
        function(features).backward()
        gradients.append(features.grad)
    torch.testing.assert_close(*gradients)  # compiled, the forward pass adds up in another order

"""HRNet's head and OCR have the papers' sizes and do what the formulas say."""

import pytest
import timm
import torch

from seglib.zoo import modern
from seglib.zoo.modern import HRNet, HRNetOCR, ObjectContext, describe_regions


@pytest.mark.parametrize(
    ("architecture", "encoder", "millions"),
    [(HRNet, "tu-hrnet_w48", 65.9), (HRNet, "tu-hrnet_w18_small_v2", 3.9), (HRNetOCR, "tu-hrnet_w48", 70.4)],
)
def test_parameters_are_those_of_the_authors_for_19_classes(architecture, encoder, millions):
    with torch.device("meta"):
        model = architecture(encoder, None, classes=19)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_encoder_gives_the_four_branches_as_they_are():
    with torch.device("meta"):
        branches = HRNet("tu-hrnet_w18").encoder(torch.empty(1, 3, 64, 96))
    assert [tuple(branch.shape[1:]) for branch in branches] == [(18, 16, 24), (36, 8, 12), (72, 4, 6), (144, 2, 3)]


def test_regions_are_described_by_the_weighted_mean_of_their_pixels():
    pixels, logits = torch.rand(2, 4, 3, 5, dtype=torch.float64), torch.randn(2, 3, 3, 5, dtype=torch.float64)
    regions = describe_regions(pixels, logits)
    assert regions.shape == (2, 4, 3, 1)
    weights = logits[1, 2].exp() / logits[1, 2].exp().sum()
    torch.testing.assert_close(regions[1, :, 2, 0], (pixels[1] * weights).sum(dim=(1, 2)))


def test_a_pixel_sees_the_regions_that_it_is_like():
    """With one region far more alike than the others, its context is that region's value."""
    context = ObjectContext(4, 4).double().eval()
    for layer in (context.query, context.key, context.value, context.out):
        for part in layer.modules():
            if isinstance(part, torch.nn.Conv2d):
                torch.nn.init.dirac_(part.weight)
    pixels = torch.eye(4, dtype=torch.float64).view(1, 4, 1, 4) * 100  # four pixels, each with a channel of its own
    regions = torch.eye(4, dtype=torch.float64)[:, [2, 0, 1]].view(1, 4, 3, 1)
    found = context(pixels, regions)[0, :, 0]
    torch.testing.assert_close(found[:, 2], regions[0, :, 0, 0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[:, 1], regions[0, :, 2, 0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[:, 3], regions.mean(dim=2)[0, :, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", [HRNet, HRNetOCR])
def test_all_parameters_learn(architecture):
    model = architecture("tu-hrnet_w18_small", None, classes=3).train()
    outputs = model(torch.rand(2, 3, 64, 64))
    sum(output.square().sum() for output in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_weights_of_imagenet_are_timms_without_the_classifier(monkeypatch):
    create = timm.create_model
    trained = create("hrnet_w18_small")
    for buffer in (module.running_mean for module in trained.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        buffer.normal_()
    monkeypatch.setattr(
        modern.timm,
        "create_model",
        lambda name, pretrained=False, **options: trained if pretrained else create(name, **options),
    )
    loaded = HRNet("tu-hrnet_w18_small", True).encoder.state_dict()
    expected = trained.state_dict()
    assert loaded.keys() < expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.items())

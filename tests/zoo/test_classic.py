"""FCN, SegNet, DeconvNet, DilatedNet and DeepLab: sizes, the papers' parameter counts and initial states, VGG16's weights."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from seglib.errors import InputError
from seglib.zoo import classic
from seglib.zoo.classic import (
    DeepLabV1,
    DilatedNet,
    FCN8s,
    SegNet,
    bilinear_doubling,
    make_context_module,
    unpool,
)

NAMES = ("FCN32s", "FCN16s", "FCN8s", "SegNet", "DeconvNet", "DilatedNet", "DeepLabV1", "DeepLabV2")
CLASSIC = {name: getattr(classic, name) for name in NAMES}


@pytest.fixture
def narrow(monkeypatch):
    """fc6 and fc7 have 256 channels instead of 4,096, which make 120 million weights."""
    monkeypatch.setattr(classic, "FC_CHANNELS", 256)


@pytest.mark.parametrize("name", CLASSIC)
@pytest.mark.parametrize("training", [False, True])
def test_logits_have_the_size_of_the_input(name, training):
    with torch.device("meta"):
        model = CLASSIC[name]("vgg16", encoder_weights=None, classes=5).train(training)
        for size in [(32, 32), (64, 64), (96, 64), (96, 96)]:
            assert model(torch.empty(2, 3, *size)).shape == (2, 5, *size)


@pytest.mark.parametrize("name", CLASSIC)
def test_autocast_and_channels_last_are_taken(narrow, name):
    model = CLASSIC[name]("vgg16", classes=3).eval()
    images = torch.rand(2, 3, 64, 64).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logits = model(images)
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


# VGG16's 13 convolutions and its fc6 and fc7, from the table of Simonyan and Zisserman (weights and biases).
WIDTHS = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
VGG_CONVOLUTIONS = sum(9 * a * b + b for a, b in pairwise(WIDTHS))
VGG_NORMS = 2 * sum(WIDTHS[1:])
FC6_FC7 = 512 * 49 * 4096 + 4096 + 4096 * 4096 + 4096
LARGE_FOV = 512 * 9 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 21 + 21
# The way back up: VGG16's table from right to left, each convolution with bias and batch norm.
MIRROR = [512, 512, 512, 512, 512, 512, 256, 256, 256, 128, 128, 64, 64]
MIRRORED = sum(9 * a * b + 3 * b for a, b in pairwise(MIRROR))
FCN32S = VGG_CONVOLUTIONS + FC6_FC7 + 4096 * 21 + 21
DOUBLING = 21 * 21 * 16
PARAMETERS = {  # name: (count at Pascal VOC's 21 classes, millions in the paper)
    "FCN32s": (FCN32S, 134),
    "FCN16s": (FCN32S + 512 * 21 + 21 + DOUBLING, 134),
    "FCN8s": (FCN32S + 512 * 21 + 21 + 256 * 21 + 21 + 2 * DOUBLING, 134),
    # The paper gives 117 MB of float32: 29.4 million. The last convolution is the classifier.
    "SegNet": (VGG_CONVOLUTIONS + VGG_NORMS + MIRRORED + 9 * 64 * 21 + 21, 29),
    "DeconvNet": (
        VGG_CONVOLUTIONS + VGG_NORMS + FC6_FC7 + 4 * 4096  # batch norms of fc6 and fc7
        + 4096 * 49 * 512 + 3 * 512  # deconv-fc6
        + MIRRORED + 9 * 64 * 64 + 3 * 64  # one convolution more than SegNet has before the classifier
        + 64 * 21 + 21,
        252,
    ),
    # The context module's weights are 64 C^2 in the paper (7 x 9 C^2 + C^2); biases are 8 C.
    "DilatedNet": (FCN32S + 64 * 21**2 + 8 * 21, 134),
    "DeepLabV1": (VGG_CONVOLUTIONS + LARGE_FOV, 20),  # 20.5 in the paper
    "DeepLabV2": (VGG_CONVOLUTIONS + 4 * LARGE_FOV, 38),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSIC)
def test_parameter_count_is_the_papers(name):
    with torch.device("meta"):
        count = sum(value.numel() for value in CLASSIC[name]("vgg16", classes=21).parameters())
    expected, millions = PARAMETERS[name]
    assert count == expected
    assert abs(count / 1e6 - millions) < 0.6


@pytest.mark.parametrize("name", CLASSIC)
def test_encoder_has_the_names_and_shapes_of_torchvisions_file(name):
    build = torchvision.models.vgg16_bn if name in ("SegNet", "DeconvNet") else torchvision.models.vgg16
    with torch.device("meta"):
        file = {key: value.shape for key, value in build(weights=None).state_dict().items()}
        own = {key: value.shape for key, value in CLASSIC[name]("vgg16", classes=3).encoder.state_dict().items()}
    without_classes = {key: shape for key, shape in file.items() if not key.startswith("classifier.6")}
    has_fc = name not in ("SegNet", "DeepLabV1", "DeepLabV2")
    assert own == {key: shape for key, shape in without_classes.items() if has_fc or key.startswith("features")}


def test_encoder_with_torchvisions_weights_computes_what_torchvision_does():
    reference = torchvision.models.vgg16_bn(weights=None, init_weights=False).features.eval()
    encoder = SegNet("vgg16", classes=3).encoder.eval()
    encoder.features.load_state_dict(reference.state_dict())
    images = torch.rand(1, 3, 64, 64)
    features, indices = encoder.forward_with_indices(images)
    assert torch.equal(features, reference(images))
    assert torch.equal(encoder(images)[-1], features)
    assert [where.shape[-1] for where in indices] == [32, 16, 8, 4, 2]


def test_fully_connected_weights_mean_the_same_as_a_convolution():
    layer = classic.LinearAsConv(4, 10, kernel_size=7)
    features = torch.rand(2, 4, 7, 7)  # what torchvision flattens in front of fc6
    linear = F.linear(features.flatten(1), layer.weight, layer.bias)
    assert torch.allclose(layer(features)[:, :, 3, 3], linear, atol=1e-5)


@pytest.mark.parametrize("name, weights_enum, build", [
    ("DeepLabV1", torchvision.models.VGG16_Weights, torchvision.models.vgg16),
    ("SegNet", torchvision.models.VGG16_BN_Weights, torchvision.models.vgg16_bn),
])  # fmt: skip
def test_imagenet_weights_are_torchvisions(monkeypatch, name, weights_enum, build):
    file = {
        f"features.{key}": value for key, value in build(weights=None, init_weights=False).features.state_dict().items()
    }
    file = {key: value for key, value in file.items() if "num_batches" not in key}  # the older file has none
    file["classifier.6.weight"] = torch.zeros(1000, 4096)
    monkeypatch.setattr(weights_enum, "get_state_dict", lambda self, **_: file)
    own = CLASSIC[name]("vgg16", encoder_weights="imagenet", classes=3).encoder.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in file.items() if key.startswith("features"))


@pytest.mark.parametrize("name", CLASSIC)
def test_other_encoders_and_weights_are_refused(name):
    with pytest.raises(InputError, match="unknown encoder 'resnet50'; choices: vgg16"):
        CLASSIC[name]("resnet50", classes=3)
    with torch.device("meta"), pytest.raises(InputError, match="unknown encoder_weights 'imagenet22k'; did you mean"):
        CLASSIC[name]("vgg16", encoder_weights="imagenet22k", classes=3)


@pytest.mark.parametrize("values", ["distinct", "tied"])
def test_unpooling_equals_torchs_and_so_does_its_gradient(values):
    images = torch.rand(2, 3, 8, 12) if values == "distinct" else torch.randint(0, 2, (2, 3, 8, 12)).float()
    pooled, indices = F.max_pool2d(images, 2, return_indices=True)
    weights = torch.rand(2, 3, 8, 12)
    gradients = []
    for function in (lambda x: unpool(x, indices), lambda x: F.max_unpool2d(x, indices, 2)):
        features = pooled.clone().requires_grad_()
        unpooled = function(features)
        (unpooled * weights).sum().backward()
        gradients.append(features.grad)
        assert torch.equal(unpooled, F.max_unpool2d(pooled, indices, 2))
    assert torch.equal(*gradients)


@pytest.mark.parametrize("model, channels", [(DilatedNet, 256), (DeepLabV1, 512)])
def test_dilated_encoders_have_output_stride_8(narrow, model, channels):
    features = model("vgg16", classes=3).eval().encoder(torch.rand(1, 3, 96, 64))
    assert features[-1].shape == (1, channels, 12, 8)


def test_context_module_starts_as_the_identity():
    scores = torch.rand(2, 5, 40, 40)
    assert torch.equal(make_context_module(5)(scores), scores)


def test_context_module_sees_67_pixels():
    context = make_context_module(1).requires_grad_(False)
    for conv in context[::2]:
        conv.weight.fill_(1 / conv.weight.numel())
    scores = torch.ones(1, 1, 101, 101, requires_grad=True)
    context(scores)[0, 0, 50, 50].backward()
    seen = scores.grad[0, 0, 50].nonzero()
    assert (seen.min().item(), seen.max().item()) == (50 - 33, 50 + 33)


def test_doubling_starts_bilinear():
    scores = torch.rand(2, 3, 6, 8)
    expected = F.interpolate(scores, scale_factor=2, mode="bilinear", align_corners=False)
    inside = (..., slice(1, -1), slice(1, -1))  # at the border one repeats pixels, the other sees zeros
    assert torch.allclose(bilinear_doubling(3)(scores)[inside], expected[inside], atol=1e-6)


def test_fcn_starts_with_even_scores(narrow):
    assert torch.equal(FCN8s("vgg16", classes=3)(torch.rand(1, 3, 64, 64)), torch.zeros(1, 3, 64, 64))


def train_on_two_images(model, image_size, steps):
    """The loss before each step, and the share of pixels that are right before the last one."""
    for dropout in [module for module in model.modules() if isinstance(module, nn.Dropout)]:
        dropout.p = 0.0  # its noise asks for many more steps
    masks = torch.zeros(2, image_size, image_size, dtype=torch.long)
    masks[0, :, image_size // 2 :], masks[1, image_size // 2 :] = 1, 2
    images = F.one_hot(masks, 3).movedim(-1, 1) + 0.1 * torch.randn(2, 3, image_size, image_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(steps):
        logits = model(images)
        loss = F.cross_entropy(logits, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, (logits.argmax(1) == masks).float().mean().item()


@pytest.mark.parametrize("name", ["FCN8s", "SegNet", "DilatedNet", "DeepLabV1"])  # one of a kind; the slow test has all
def test_loss_falls_in_a_few_steps(narrow, name):
    torch.manual_seed(0)
    losses, _ = train_on_two_images(CLASSIC[name]("vgg16", classes=3), image_size=32, steps=7)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIC)
def test_two_images_are_learned(narrow, name):
    torch.manual_seed(0)
    _, accuracy = train_on_two_images(CLASSIC[name]("vgg16", classes=3), image_size=64, steps=40)
    assert accuracy > 0.9

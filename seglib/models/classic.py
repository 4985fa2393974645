"""FCN, DilatedNet and DeepLab on VGG16 as their papers have them; CLASSIC names every model on VGG16."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seglib.models.unpooling import DeconvNet, SegNet
from seglib.models.vgg import CHANNELS, ENCODERS, VGG16, UnstridedPool, initialise

__all__ = ["CLASSIC", "ENCODERS"]


class FCN32s(nn.Module):
    """VGG16 as a fully convolutional network: class scores at stride 32, upsampled bilinearly.

    Source: Long, Shelhamer and Darrell 2015, arXiv:1411.4038. Adapted: fc6 is padded by 3 px instead of 100 px around the
    image, so that every map is exactly the input's size over its stride and nothing is cropped, for any size that 32
    divides; the last upsampling, which the paper fixes to bilinear, is an interpolation; FCN-16s and FCN-8s are
    trained in one go, not each from the coarser one.

    Parameters
    ----------
    encoder : "vgg16".
    encoder_weights : "imagenet" (fc6 and fc7 included) or None.
    classes : output channels.
    """

    skip_stages: tuple[int, ...] = ()  # positions of the stages whose scores are added, deepest first

    def __init__(self, encoder: str, encoder_weights: str | None = None, classes: int = 1):
        super().__init__()
        self.encoder = VGG16(encoder, encoder_weights, fc6_dilation=1)
        channels = self.encoder.out_channels
        self.score = _zero_scores(channels[-1], classes)
        self.skip_scores = nn.ModuleList(_zero_scores(channels[stage], classes) for stage in self.skip_stages)
        self.doublings = nn.ModuleList(bilinear_doubling(classes) for _ in self.skip_stages)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W), H and W multiples of 32, to logits (N, classes, H, W)."""
        features = self.encoder(images)
        scores = self.score(features[-1])
        for stage, skip_score, double in zip(self.skip_stages, self.skip_scores, self.doublings, strict=True):
            scores = double(scores) + skip_score(features[stage])
        return _upsample_to(images, scores)


class FCN16s(FCN32s):
    """FCN-32s with the scores of pool4 added at stride 16."""

    skip_stages = (3,)


class FCN8s(FCN32s):
    """FCN-32s with the scores of pool4 and pool3 added at strides 16 and 8."""

    skip_stages = (3, 2)


class DilatedNet(nn.Module):
    """A VGG16 front end at stride 8, then the basic context module on its class scores.

    Source: Yu and Koltun 2016, arXiv:1511.07122. Adapted: zero padding to the same size instead of reflected margins; trained
    in one stage instead of the front end first.

    Parameters
    ----------
    encoder : "vgg16".
    encoder_weights : "imagenet" (fc6 and fc7 included) or None.
    classes : output channels.
    """

    def __init__(self, encoder: str, encoder_weights: str | None = None, classes: int = 1):
        super().__init__()
        # Without pool4 and pool5, stage 5 sees pixels 2 apart and fc6 4 apart, as far as their strides had put them.
        self.encoder = VGG16(encoder, encoder_weights, last_pools=nn.Identity, last_dilation=2, fc6_dilation=4)
        self.score = _scores(self.encoder.out_channels[-1], classes)
        self.context = make_context_module(classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W), H and W multiples of 8, to logits (N, classes, H, W)."""
        scores = self.score(self.encoder(images)[-1])
        return _upsample_to(images, self.context(scores))


class DeepLabV1(nn.Module):
    """DeepLab-LargeFOV: VGG16 at stride 8, fc6 as a 3 x 3 convolution of dilation 12 with 1,024 channels.

    Source: Chen et al. 2015, arXiv:1412.7062. Adapted: fc6 and fc7 start at random (the paper subsamples VGG16's); the pools are
    VGG16's own of 2 px (the authors' code widens them to 3); the dense CRF is a step of its own after the prediction.

    Parameters
    ----------
    encoder : "vgg16".
    encoder_weights : "imagenet" or None.
    classes : output channels.
    """

    rates: tuple[int, ...] = (12,)

    def __init__(self, encoder: str, encoder_weights: str | None = None, classes: int = 1):
        super().__init__()
        self.encoder = VGG16(encoder, encoder_weights, last_pools=UnstridedPool, last_dilation=2)
        self.branches = nn.ModuleList(_deeplab_branch(rate, classes) for rate in self.rates)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W), H and W multiples of 8, to logits (N, classes, H, W)."""
        features = self.encoder(images)[-1]
        return _upsample_to(images, sum(branch(features) for branch in self.branches))


class DeepLabV2(DeepLabV1):
    """DeepLab with atrous spatial pyramid pooling (ASPP-L): four such branches whose scores are summed.

    Source: Chen et al. 2017, arXiv:1606.00915, on VGG16. Adapted as DeepLabV1; one scale of the image instead of three.
    """

    rates = (6, 12, 18, 24)


CLASSIC: dict[str, type[nn.Module]] = {
    model.__name__: model for model in (FCN32s, FCN16s, FCN8s, SegNet, DeconvNet, DilatedNet, DeepLabV1, DeepLabV2)
}


def bilinear_doubling(channels: int) -> nn.ConvTranspose2d:
    """A learned upsampling by two that starts as the bilinear one: (N, C, H, W) to (N, C, 2H, 2W)."""
    double = nn.ConvTranspose2d(channels, channels, kernel_size=4, stride=2, padding=1, bias=False)
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        double.weight.copy_(torch.eye(channels)[:, :, None, None] * torch.outer(line, line))
    return double


def make_context_module(classes: int) -> nn.Sequential:
    """Seven dilated 3 x 3 convolutions with ReLUs and a 1 x 1 one, (N, C, H, W) to the same; starts as the identity.

    The identity of values from 0 up: the ReLUs cut what is below, as in the paper.
    """
    layers = []
    for dilation in (1, 1, 2, 4, 8, 16, 1):
        layers += [nn.Conv2d(classes, classes, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
    layers.append(nn.Conv2d(classes, classes, 1))
    for conv in layers[::2]:
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    return nn.Sequential(*layers)


def _deeplab_branch(rate: int, classes: int) -> nn.Sequential:
    branch = nn.Sequential(
        nn.Conv2d(CHANNELS[-1], 1024, 3, padding=rate, dilation=rate),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Conv2d(1024, 1024, 1),
        nn.ReLU(inplace=True),
        nn.Dropout(),
    )
    branch.apply(initialise)
    return branch.append(_scores(1024, classes))


def _scores(in_channels: int, classes: int) -> nn.Conv2d:
    """Class scores that start near zero, so that the first softmax is nearly even."""
    score = nn.Conv2d(in_channels, classes, 1)
    nn.init.normal_(score.weight, std=0.01)
    nn.init.zeros_(score.bias)
    return score


def _zero_scores(in_channels: int, classes: int) -> nn.Conv2d:
    """FCN's scores: they start at zero, so that a skip changes nothing until it has learned something."""
    score = nn.Conv2d(in_channels, classes, 1)
    nn.init.zeros_(score.weight)
    nn.init.zeros_(score.bias)
    return score


def _upsample_to(images: Tensor, scores: Tensor) -> Tensor:
    return F.interpolate(scores, size=images.shape[-2:], mode="bilinear", align_corners=False)

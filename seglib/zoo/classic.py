"""The classics: on VGG-16 FCN, SegNet, DeconvNet, DilatedNet, DeepLabV1 and V2; torchvision's FCN and DeepLabV3.

Each takes an encoder ("vgg16"; torchvision's two ResNets), encoder_weights ("imagenet" or None) and classes (output
channels), and maps normalised images (N, 3, H, W), H and W multiples of 32, to logits (N, classes, H, W).
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, ResNet101_Weights, VGG16_BN_Weights, VGG16_Weights
from torchvision.models.segmentation import deeplabv3_resnet50, deeplabv3_resnet101, fcn_resnet50, fcn_resnet101
from torchvision.models.vgg import cfgs, make_layers
from torchvision.ops import Conv2dNormActivation

from seglib.errors import require_known

ENCODERS = ("vgg16",)
CHANNELS = (64, 128, 256, 512, 512)  # of the five stages
FC_CHANNELS = 4096  # of fc6 and fc7
halve = partial(nn.MaxPool2d, kernel_size=2)
keep_size = partial(nn.MaxPool2d, kernel_size=3, stride=1, padding=1)  # DeepLab's pooling that keeps the resolution


def unpool(features: Tensor, indices: Tensor) -> Tensor:
    """Put each value back where its 2 x 2 window's maximum was; zeros elsewhere.

    Equals `F.max_unpool2d(features, indices, 2)`, which CUDA refuses under deterministic algorithms: it scatters. Here
    each output pixel asks whether it was the maximum. (N, C, H, W) float and int64 positions in the map of 2H x 2W, as
    `F.max_pool2d(..., 2, return_indices=True)` gives them -> (N, C, 2H, 2W) float.
    """
    height, width = features.shape[-2:]
    positions = torch.arange(4 * height * width, device=indices.device).view(height, 2, width, 2)
    is_maximum = indices[:, :, :, None, :, None] == positions  # (N, C, H, 2, W, 2)
    unpooled = torch.where(is_maximum, features[:, :, :, None, :, None], features.new_zeros(()))
    return unpooled.flatten(4, 5).flatten(2, 3)


class SegNet(nn.Module):
    """VGG16 with batch norm, and its mirror image that unpools with the encoder's maxima.

    Source: Badrinarayanan, Kendall and Cipolla 2017, arXiv:1511.00561. Adapted: the weights are those of torchvision's
    vgg16_bn, because the paper adds batch norms to VGG16, whose plain weights were trained without.
    """

    def __init__(self, encoder: str, encoder_weights: str | None = None, classes: int = 1):
        super().__init__()
        self.encoder = VGG16(encoder, encoder_weights, batch_norm=True)
        self.decoders = _mirror_vgg(last_channels=(64,))
        self.classifier = nn.Conv2d(64, classes, 3, padding=1)  # the mirror of the encoder's first convolution

    def forward(self, images: Tensor) -> Tensor:
        features, indices = self.encoder.forward_with_indices(images)
        for decoder, where in zip(self.decoders, reversed(indices), strict=True):
            features = decoder(unpool(features, where))
        return self.classifier(features)


class DeconvNet(nn.Module):
    """VGG16 with batch norm down to fc6 and fc7, and a deconvolution network that mirrors it.

    Source: Noh, Hong and Han 2015, arXiv:1505.04366. Adapted: fc6 and deconv-fc6 are padded to keep their input's size (in
    the paper 7 x 7 shrinks to one pixel and back, which ties it to 224 px); a transposed convolution of stride 1 is a
    convolution with the kernel turned round, so it is written as one; trained on whole images, in one stage, without
    the paper's object proposals.
    """

    def __init__(self, encoder: str, encoder_weights: str | None = None, classes: int = 1):
        super().__init__()
        self.encoder = VGG16(encoder, encoder_weights, batch_norm=True, fc6_dilation=1)
        # Not in .encoder, whose names are torchvision's: there fc6 and fc7 have no batch norm.
        channels = self.encoder.out_channels[-1]
        self.fc6_norm, self.fc7_norm = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.deconv_fc6 = Conv2dNormActivation(channels, 512, kernel_size=7, bias=True)
        self.decoders = _mirror_vgg(last_channels=(64, 64))
        self.classifier = nn.Conv2d(64, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        features, indices = self.encoder.forward_with_indices(images)
        fc6, fc7 = self.encoder.classifier[0], self.encoder.classifier[3]
        features = self.fc6_norm(fc6(features)).relu()
        features = self.fc7_norm(fc7(features)).relu()
        features = self.deconv_fc6(features)
        for decoder, where in zip(self.decoders, reversed(indices), strict=True):
            features = decoder(unpool(features, where))
        return self.classifier(features)


def _mirror_vgg(last_channels: tuple[int, ...]) -> nn.ModuleList:
    """Five stages of convolutions, deepest first; each ends in the channels of the unpooling that follows."""
    stages = [(512, 512, 512, 512), (512, 512, 512, 256), (256, 256, 256, 128), (128, 128, 64), (64, *last_channels)]
    blocks = [[Conv2dNormActivation(*pair, bias=True) for pair in pairwise(stage)] for stage in stages]
    return nn.ModuleList(nn.Sequential(*block) for block in blocks)


class VGG16(nn.Module):
    """VGG16 (configuration D), fully convolutional.

    The state dict has torchvision's names and shapes (`features.N.*`, and `classifier.0.*`, `classifier.3.*` for fc6 and
    fc7), so that its ImageNet files load as they are. Source: Simonyan and Zisserman 2015, arXiv:1409.1556.

    Parameters
    ----------
    encoder, encoder_weights : see the module; InputError for other names.
    batch_norm : a batch norm behind every convolution (torchvision's vgg16_bn; its weights are of ImageNet too).
    last_pools : what follows stages 4 and 5; the first three are always halved.
    last_dilation : of the convolutions of stage 5.
    fc6_dilation : dilation of fc6, turned into a 7 x 7 convolution; 0 leaves out fc6 and fc7.
    """

    def __init__(
        self,
        encoder: str,
        encoder_weights: str | None,
        *,
        batch_norm: bool = False,
        last_pools: Callable[[], nn.Module] = halve,
        last_dilation: int = 1,
        fc6_dilation: int = 0,
    ):
        super().__init__()
        require_known("encoder", encoder, ENCODERS)
        self.features = make_layers(cfgs["D"], batch_norm)
        self.pool_positions = [at for at, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d)]
        for position in self.pool_positions[3:]:
            self.features[position] = last_pools()
        for layer in self.features[self.pool_positions[3] + 1 :]:
            if isinstance(layer, nn.Conv2d):
                layer.dilation = layer.padding = (last_dilation, last_dilation)
        self.classifier = _make_classifier(fc6_dilation) if fc6_dilation else None
        self.out_channels = (*CHANNELS, FC_CHANNELS) if fc6_dilation else CHANNELS  # of what forward returns
        self.apply(initialise)
        if encoder_weights is not None:
            self._load(encoder_weights, VGG16_BN_Weights if batch_norm else VGG16_Weights)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) to the outputs of the five stages, behind their pooling, then that of fc7 if there is one."""
        outputs, features = [], images
        for position, layer in enumerate(self.features):
            features = layer(features)
            if position in self.pool_positions:
                outputs.append(features)
        return outputs if self.classifier is None else [*outputs, self.classifier(features)]

    def forward_with_indices(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images to the last stage's output and, for each pooling, where its maxima were: what unpooling needs."""
        indices, features = [], images
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                features, where = F.max_pool2d(features, 2, return_indices=True)
                indices.append(where)
            else:
                features = layer(features)
        return features, indices

    def _load(self, name: str, weights: type[VGG16_Weights] | type[VGG16_BN_Weights]) -> None:
        require_known("encoder_weights", name, ["imagenet"])
        own = self.state_dict()
        loaded = weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        self.load_state_dict({name: value for name, value in loaded.items() if name in own})


class LinearAsConv(nn.Linear):
    """A fully connected layer slid over the map as a convolution; its weights keep the fully connected shape."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1):
        super().__init__(in_channels * kernel_size**2, out_channels)
        self.kernel_size, self.dilation = kernel_size, dilation

    def forward(self, features: Tensor) -> Tensor:
        size = self.kernel_size
        weight = self.weight.view(self.out_features, -1, size, size)  # (out, in * 7 * 7) -> (out, in, 7, 7)
        return F.conv2d(features, weight, self.bias, padding=self.dilation * (size // 2), dilation=self.dilation)


def initialise(layer: nn.Module) -> None:
    """He's initialisation: without batch norms, only that brings a signal through 16 layers; for `Module.apply`."""
    if isinstance(layer, nn.Conv2d | LinearAsConv):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)


def _make_classifier(fc6_dilation: int) -> nn.Sequential:
    """fc6 and fc7 at torchvision's positions 0 and 3."""
    fc6 = LinearAsConv(CHANNELS[-1], FC_CHANNELS, kernel_size=7, dilation=fc6_dilation)
    fc7 = LinearAsConv(FC_CHANNELS, FC_CHANNELS, kernel_size=1)
    return nn.Sequential(fc6, nn.ReLU(inplace=True), nn.Dropout(), fc7, nn.ReLU(inplace=True), nn.Dropout())


class FCN32s(nn.Module):
    """VGG16 as a fully convolutional network: class scores at stride 32, upsampled bilinearly.

    Source: Long, Shelhamer and Darrell 2015, arXiv:1411.4038. Adapted: fc6 is padded by 3 px instead of 100 px around the
    image, so that every map is exactly the input's size over its stride and nothing is cropped, for any size that 32
    divides; the last upsampling, which the paper fixes to bilinear, is an interpolation; FCN-16s and FCN-8s are
    trained in one go, not each from the coarser one.
    """

    skip_stages: tuple[int, ...] = ()  # positions of the stages whose scores are added, deepest first

    def __init__(self, encoder: str, encoder_weights: str | None = None, classes: int = 1):
        super().__init__()
        self.encoder = VGG16(encoder, encoder_weights, fc6_dilation=1)
        channels = self.encoder.out_channels
        self.score = _scores(channels[-1], classes, std=0)
        self.skip_scores = nn.ModuleList(_scores(channels[stage], classes, std=0) for stage in self.skip_stages)
        self.doublings = nn.ModuleList(bilinear_doubling(classes) for _ in self.skip_stages)

    def forward(self, images: Tensor) -> Tensor:
        features = self.encoder(images)
        scores = self.score(features[-1])
        for stage, skip_score, double in zip(self.skip_stages, self.skip_scores, self.doublings, strict=True):
            scores = double(scores) + skip_score(features[stage])
        return upsample_to(images, scores)


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
    """

    def __init__(self, encoder: str, encoder_weights: str | None = None, classes: int = 1):
        super().__init__()
        # Without pool4 and pool5, stage 5 sees pixels 2 apart and fc6 4 apart, as far as their strides had put them.
        self.encoder = VGG16(encoder, encoder_weights, last_pools=nn.Identity, last_dilation=2, fc6_dilation=4)
        self.score = _scores(self.encoder.out_channels[-1], classes)
        self.context = make_context_module(classes)

    def forward(self, images: Tensor) -> Tensor:
        return upsample_to(images, self.context(self.score(self.encoder(images)[-1])))


class DeepLabV1(nn.Module):
    """DeepLab-LargeFOV: VGG16 at stride 8, fc6 as a 3 x 3 convolution of dilation 12 with 1,024 channels.

    Source: Chen et al. 2015, arXiv:1412.7062. Adapted: fc6 and fc7 start at random (the paper subsamples VGG16's); the pools are
    VGG16's own of 2 px (the authors' code widens them to 3); the dense CRF is a step of its own after the prediction.
    """

    rates: tuple[int, ...] = (12,)

    def __init__(self, encoder: str, encoder_weights: str | None = None, classes: int = 1):
        super().__init__()
        self.encoder = VGG16(encoder, encoder_weights, last_pools=keep_size, last_dilation=2)
        self.branches = nn.ModuleList(_deeplab_branch(rate, classes) for rate in self.rates)

    def forward(self, images: Tensor) -> Tensor:
        features = self.encoder(images)[-1]
        return upsample_to(images, sum(branch(features) for branch in self.branches))


class DeepLabV2(DeepLabV1):
    """DeepLab with atrous spatial pyramid pooling (ASPP-L): four such branches whose scores are summed.

    Source: Chen et al. 2017, arXiv:1606.00915, on VGG16. Adapted as DeepLabV1; one scale of the image instead of three.
    """

    rates = (6, 12, 18, 24)


def upsample_to(images: Tensor, scores: Tensor) -> Tensor:
    """Scores (N, C, h, w), bilinearly at the size of images (N, ..., H, W)."""
    return F.interpolate(scores, images.shape[-2:], mode="bilinear")


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
    first, second = nn.Conv2d(CHANNELS[-1], 1024, 3, padding=rate, dilation=rate), nn.Conv2d(1024, 1024, 1)
    layers = [first, nn.ReLU(inplace=True), nn.Dropout(), second, nn.ReLU(inplace=True), nn.Dropout()]
    return nn.Sequential(*layers).apply(initialise).append(_scores(1024, classes))


def _scores(in_channels: int, classes: int, std: float = 0.01) -> nn.Conv2d:
    """Class scores that start near zero, so that the first softmax is nearly even; FCN's at zero: a skip changes nothing yet."""
    score = nn.Conv2d(in_channels, classes, 1)
    if std:
        nn.init.normal_(score.weight, std=std)
    else:
        nn.init.zeros_(score.weight)  # draws nothing
    nn.init.zeros_(score.bias)
    return score


# torchvision's FCN and DeepLabV3 on dilated ResNets, auxiliary head included.

_IMAGENET = {"resnet50": ResNet50_Weights.IMAGENET1K_V1, "resnet101": ResNet101_Weights.IMAGENET1K_V1}


class TorchvisionFCN(nn.Module):
    """FCN head on a ResNet at stride 8; in training mode the logits of layer3's auxiliary head come along.

    Source: `torchvision.models.segmentation.fcn_resnet50` and `fcn_resnet101`; 0.5 is the auxiliary weight of torchvision's
    references/segmentation.

    Parameters
    ----------
    encoder : "resnet50" or "resnet101".
    encoder_weights : "imagenet" (torchvision's, downloaded on first use) or None.
    classes : output channels.
    """

    builders: ClassVar = {"resnet50": fcn_resnet50, "resnet101": fcn_resnet101}
    auxiliary_weight = 0.5

    def __init__(self, encoder: str, encoder_weights: str | None = None, classes: int = 1):
        super().__init__()
        backbone_weights = _IMAGENET[encoder] if encoder_weights else None
        model = self.builders[encoder](
            weights=None, weights_backbone=backbone_weights, num_classes=classes, aux_loss=True, progress=False
        )
        self.encoder = model.backbone
        self.head = model.classifier
        self.auxiliary_head = model.aux_classifier

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Normalised images (N, 3, H, W) to logits (N, classes, H, W), and in training mode the auxiliary ones."""
        features = self.encoder(images)
        logits = upsample_to(images, self.head(features["out"]))
        return (logits, upsample_to(images, self.auxiliary_head(features["aux"]))) if self.training else logits


class TorchvisionDeepLabV3(TorchvisionFCN):
    """DeepLabV3 head (ASPP at rates 12, 24 and 36) on the same encoders, with the same auxiliary head.

    Source: `torchvision.models.segmentation.deeplabv3_resnet50` and `deeplabv3_resnet101`.
    """

    builders: ClassVar = {"resnet50": deeplabv3_resnet50, "resnet101": deeplabv3_resnet101}

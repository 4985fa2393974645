"""SegNet and DeconvNet: decoders that put each value back where its maximum was."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from seglib.models.vgg import VGG16


def unpool(features: Tensor, indices: Tensor) -> Tensor:
    """Put each value back where its 2 x 2 window's maximum was; zeros elsewhere.

    Equals `F.max_unpool2d(features, indices, 2)`, which CUDA refuses under deterministic algorithms: it scatters. Here
    each output pixel asks whether it was the maximum.

    Parameters
    ----------
    features : (N, C, H, W) float.
    indices : (N, C, H, W) int64, positions in the map of 2H x 2W, as `F.max_pool2d(..., 2, return_indices=True)` gives them.

    Returns
    -------
    (N, C, 2H, 2W) float.
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

    Parameters
    ----------
    encoder : "vgg16".
    encoder_weights : "imagenet" or None.
    classes : output channels.
    """

    def __init__(self, encoder: str, encoder_weights: str | None = None, classes: int = 1):
        super().__init__()
        self.encoder = VGG16(encoder, encoder_weights, batch_norm=True)
        self.decoders = _mirror_vgg(last_channels=(64,))
        self.classifier = nn.Conv2d(64, classes, 3, padding=1)  # the mirror of the encoder's first convolution

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W), H and W multiples of 32, to logits (N, classes, H, W)."""
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

    Parameters
    ----------
    encoder : "vgg16".
    encoder_weights : "imagenet" or None; torchvision's vgg16_bn, fc6 and fc7 included.
    classes : output channels.
    """

    def __init__(self, encoder: str, encoder_weights: str | None = None, classes: int = 1):
        super().__init__()
        self.encoder = VGG16(encoder, encoder_weights, batch_norm=True, fc6_dilation=1)
        # Not in .encoder, whose names are torchvision's: there fc6 and fc7 have no batch norm.
        channels = self.encoder.out_channels[-1]
        self.fc6_norm, self.fc7_norm = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.deconv_fc6 = _conv_norm_relu(channels, 512, kernel_size=7)
        self.decoders = _mirror_vgg(last_channels=(64, 64))
        self.classifier = nn.Conv2d(64, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W), H and W multiples of 32, to logits (N, classes, H, W)."""
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
    return nn.ModuleList(nn.Sequential(*(_conv_norm_relu(*pair) for pair in pairwise(stage))) for stage in stages)


def _conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))

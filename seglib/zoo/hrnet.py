"""HRNet for segmentation: the HRNetV2 head, and object-contextual representations (OCR), on timm's HRNets.

Both take an encoder ("tu-hrnet_w18" and the other widths), encoder_weights (None, or anything else for timm's ImageNet
weights) and classes, and map normalised images (N, 3, H, W), H and W multiples of 32, to logits (N, classes, H, W).
"""

import math

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

ENCODERS = tuple(f"tu-{name}" for name in timm.list_models("hrnet_*"))


class HRNet(nn.Module):
    """The four resolutions of an HRNet brought to stride 4, concatenated, and two 1 x 1 convolutions.

    Source: Sun et al. 2019, arXiv:1904.04514 (HRNetV2); the encoder is `timm.create_model("hrnet_w18", features_only=True,
    feature_location="")`.
    """

    def __init__(self, encoder: str, encoder_weights: str | bool | None = None, classes: int = 1):
        super().__init__()
        self.encoder = _make_encoder(encoder, encoder_weights)
        channels = sum(self.encoder.feature_info.channels())  # w + 2w + 4w + 8w
        self.head = _make_head(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        return _upsample_to(images, self.head(_concatenate(self.encoder(images))))


class HRNetOCR(nn.Module):
    """HRNet whose pixels are augmented with what the objects, one soft region per class, look like as a whole.

    In training mode the logits of the soft object regions come along as an auxiliary output.

    Source: Yuan, Chen and Wang 2020, arXiv:1909.11065, with its widths of 512 and 256. Adapted: similarities are divided by the
    square root of the width, as in scaled dot-product attention, so that the first softmax is not one-hot.
    """

    auxiliary_weight = 0.4

    def __init__(self, encoder: str, encoder_weights: str | bool | None = None, classes: int = 1):
        super().__init__()
        self.encoder = _make_encoder(encoder, encoder_weights)
        channels = sum(self.encoder.feature_info.channels())
        self.region_head = _make_head(channels, classes)
        self.pixels = _conv_norm_relu(channels, 512, kernel_size=3)
        self.context = ObjectContext(512, 256)
        self.augment = _conv_norm_relu(2 * 512, 512)
        self.classifier = nn.Conv2d(512, classes, 1)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = _concatenate(self.encoder(images))
        region_logits = self.region_head(features)  # (N, K, H/4, W/4)
        pixels = self.pixels(features)
        context = self.context(pixels, describe_regions(pixels, region_logits))
        logits = _upsample_to(images, self.classifier(self.augment(torch.cat([pixels, context], dim=1))))
        return (logits, _upsample_to(images, region_logits)) if self.training else logits


def describe_regions(pixels: Tensor, region_logits: Tensor) -> Tensor:
    """Mean of the pixels' features (N, C, H, W) over each soft region of (N, K, H, W) logits -> (N, C, K, 1).

    Weights are a softmax over the image; there is one region per class.
    """
    weights = region_logits.flatten(2).softmax(dim=2)  # (N, K, HW)
    return (pixels.flatten(2) @ weights.transpose(1, 2)).unsqueeze(3)


class ObjectContext(nn.Module):
    """What the regions that a pixel is similar to look like: attention from pixels (queries) to regions (keys, values)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.query = nn.Sequential(_conv_norm_relu(channels, width), _conv_norm_relu(width, width))
        self.key = nn.Sequential(_conv_norm_relu(channels, width), _conv_norm_relu(width, width))
        self.value = _conv_norm_relu(channels, width)
        self.out = _conv_norm_relu(width, channels)

    def forward(self, pixels: Tensor, regions: Tensor) -> Tensor:
        """Pixels (N, C, H, W) and regions (N, C, K, 1) to each pixel's context (N, C, H, W)."""
        query = self.query(pixels).flatten(2).transpose(1, 2)  # (N, HW, width)
        key, value = self.key(regions).flatten(2), self.value(regions).flatten(2)  # (N, width, K)
        similarity = (query @ key / math.sqrt(key.shape[1])).softmax(dim=2)  # (N, HW, K)
        context = value @ similarity.transpose(1, 2)  # (N, width, HW)
        return self.out(context.unflatten(2, pixels.shape[-2:]))


def _make_encoder(encoder: str, encoder_weights: str | bool | None) -> nn.Module:
    """The four branches at strides 4 to 32, without the layers that widen them for classification."""
    name = encoder.removeprefix("tu-")
    branches = timm.create_model(name, features_only=True, feature_location="", out_indices=(1, 2, 3, 4))
    if encoder_weights:
        # timm loads into the part by ignoring whatever does not fit; loading the whole network is strict.
        weights = timm.create_model(name, pretrained=True).state_dict()
        branches.load_state_dict({key: weights[key] for key in branches.state_dict()})
    return branches


def _concatenate(branches: list[Tensor]) -> Tensor:
    """All branches at the finest one's size, (N, 15w, H/4, W/4)."""
    return torch.cat([branches[0], *(_upsample_to(branches[0], branch) for branch in branches[1:])], dim=1)


def _make_head(channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(_conv_norm_relu(channels, channels), nn.Conv2d(channels, classes, 1))


def _conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int = 1) -> nn.Sequential:
    return Conv2dNormActivation(in_channels, out_channels, kernel_size)


def _upsample_to(images: Tensor, scores: Tensor) -> Tensor:
    return F.interpolate(scores, images.shape[-2:], mode="bilinear")

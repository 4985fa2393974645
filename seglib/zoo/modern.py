"""Networks after the classics: FC-DenseNet, HRNet with and without OCR, UNet 3+.

Each takes an encoder, encoder_weights and classes (output channels), and maps normalised images (N, 3, H, W), H and W
multiples of 32, to logits (N, classes, H, W).
"""

import math

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from seglib.errors import InputError
from seglib.zoo.classic import upsample_to

DROPOUT = 0.2
SOURCE_CHANNELS = 64  # what each source contributes to a node of UNet 3+


# FC-DenseNet, the one hundred layers tiramisu: dense blocks down and up, trained from scratch.


class FCDenseNet(nn.Module):
    """A U-shaped network of dense blocks; subclasses name the paper's three sizes.

    Source: Jegou et al. 2017, arXiv:1611.09326. Adapted: the transposed convolutions are padded to exactly twice the size
    instead of being cropped.

    It takes encoder "" (the model is all of one piece and has no `encoder`), encoder_weights None (nothing that is
    trained elsewhere fits) and classes (output channels); InputError for others.
    """

    growth_rate: int
    down_layers: tuple[int, ...]  # of each dense block; the way up has them in reverse
    bottleneck_layers: int

    def __init__(self, encoder: str = "", encoder_weights: str | None = None, classes: int = 1):
        super().__init__()
        name = type(self).__name__
        if encoder:
            raise InputError(f'encoder: {name} has no exchangeable encoder, got {encoder!r}; write encoder: ""')
        if encoder_weights is not None:
            raise InputError(f'encoder_weights: {name} has none, got {encoder_weights!r}; write encoder_weights: ""')
        growth, channels, skip_channels = self.growth_rate, 48, []
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.down_blocks, self.downs = nn.ModuleList(), nn.ModuleList()
        for layers in self.down_layers:
            self.down_blocks.append(DenseBlock(channels, layers, growth))
            channels += layers * growth
            skip_channels.append(channels)
            self.downs.append(_layer(channels, channels, kernel_size=1).append(nn.MaxPool2d(2)))  # transition down
        self.bottleneck = DenseBlock(channels, self.bottleneck_layers, growth)
        new_channels = self.bottleneck_layers * growth
        self.up_blocks, self.ups = nn.ModuleList(), nn.ModuleList()
        for layers, skip in zip(reversed(self.down_layers), reversed(skip_channels), strict=True):
            self.ups.append(nn.ConvTranspose2d(new_channels, new_channels, 3, stride=2, padding=1, output_padding=1))
            channels = new_channels + skip
            self.up_blocks.append(DenseBlock(channels, layers, growth))
            new_channels = layers * growth
        self.classifier = nn.Conv2d(channels + new_channels, classes, 1)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W), H and W multiples of 32, to logits (N, classes, H, W)."""
        features, skips = self.first(images), []
        for block, down in zip(self.down_blocks, self.downs, strict=True):
            features = torch.cat([features, block(features)], dim=1)
            skips.append(features)
            features = down(features)
        new = self.bottleneck(features)
        for up, block in zip(self.ups, self.up_blocks, strict=True):
            features = torch.cat([up(new), skips.pop()], dim=1)
            new = block(features)  # only what a block adds goes up: all of it would grow without bound
        return self.classifier(torch.cat([features, new], dim=1))


class FCDenseNet56(FCDenseNet):
    """FC-DenseNet56: 1.4 M parameters (the paper says 1.5, but its own tables 1 and 2 add up to 1.4)."""

    growth_rate, down_layers, bottleneck_layers = 12, (4, 4, 4, 4, 4), 4


class FCDenseNet67(FCDenseNet):
    """FC-DenseNet67: 3.5 M parameters."""

    growth_rate, down_layers, bottleneck_layers = 16, (5, 5, 5, 5, 5), 5


class FCDenseNet103(FCDenseNet):
    """FC-DenseNet103: 9.4 M parameters."""

    growth_rate, down_layers, bottleneck_layers = 16, (4, 5, 7, 10, 12), 15


class DenseBlock(nn.Module):
    """Layers that each see the block's input and all earlier layers; returns what they added, layers * growth channels."""

    def __init__(self, in_channels: int, layers: int, growth_rate: int):
        super().__init__()
        self.layers = nn.ModuleList(_layer(in_channels + k * growth_rate, growth_rate) for k in range(layers))

    def forward(self, features: Tensor) -> Tensor:
        added = []
        for layer in self.layers:
            added.append(layer(torch.cat([features, *added], dim=1)))
        return torch.cat(added, dim=1)


def _layer(in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    return nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), conv, nn.Dropout(DROPOUT))


def _initialise(layer: nn.Module) -> None:
    """HeUniform, as the paper has it."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)


# HRNet: the HRNetV2 head, and object-contextual representations (OCR), on timm's HRNets ("tu-hrnet_w18" and the other
# widths; encoder_weights: None, or anything else for timm's ImageNet weights).


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
        return upsample_to(images, self.head(_concatenate(self.encoder(images))))


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
        self.pixels = Conv2dNormActivation(channels, 512)
        self.context = ObjectContext(512, 256)
        self.augment = _pointwise(2 * 512, 512)
        self.classifier = nn.Conv2d(512, classes, 1)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = _concatenate(self.encoder(images))
        region_logits = self.region_head(features)  # (N, K, H/4, W/4)
        pixels = self.pixels(features)
        context = self.context(pixels, describe_regions(pixels, region_logits))
        logits = upsample_to(images, self.classifier(self.augment(torch.cat([pixels, context], dim=1))))
        return (logits, upsample_to(images, region_logits)) if self.training else logits


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
        self.query = nn.Sequential(_pointwise(channels, width), _pointwise(width, width))
        self.key = nn.Sequential(_pointwise(channels, width), _pointwise(width, width))
        self.value = _pointwise(channels, width)
        self.out = _pointwise(width, channels)

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
    return torch.cat([branches[0], *(upsample_to(branches[0], branch) for branch in branches[1:])], dim=1)


def _pointwise(in_channels: int, out_channels: int) -> nn.Sequential:
    return Conv2dNormActivation(in_channels, out_channels, kernel_size=1)


def _make_head(channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(_pointwise(channels, channels), nn.Conv2d(channels, classes, 1))


# UNet 3+: every decoder node sees every scale of the encoder and of the decoder below it.


class UNet3Plus(nn.Module):
    """UNet 3+ with full-scale skips and deep supervision, on any encoder of smp that gives several scales.

    In training mode the coarser nodes' logits come along as auxiliary outputs, the finest of them first.

    Source: Huang et al. 2020, arXiv:2004.08790. Adapted: the scales are the encoder's (strides 2 to 32, or 4 to 32 where it
    gives nothing at 2: transformers and ConvNeXt) instead of 1 to 16, as the encoders' weights ask for, and the finest logits
    are upsampled bilinearly to the input's size; the classification-guided module, which decides whether the one organ is
    in the image, has no meaning for many classes and is left out.

    Parameters
    ----------
    encoder : a name that `smp.encoders.get_encoder` takes; it refuses encoders of one scale (plain ViTs) itself.
    encoder_weights : what it takes as weights: None, "imagenet", or True for timm's.
    classes : output channels.
    options : what timm must be told beside the name, such as img_size.
    """

    auxiliary_weight = 1.0  # the paper supervises all scales alike

    def __init__(self, encoder: str, encoder_weights: str | bool | None = None, classes: int = 1, **options: int):
        super().__init__()
        self.encoder = smp.encoders.get_encoder(encoder, in_channels=3, depth=5, weights=encoder_weights, **options)
        channels = self.encoder.out_channels
        # Stride 2**k at position k. Position 0 is the image or a map of its size; no channels: a scale that is not there.
        self.scales = [k for k in range(1, len(channels)) if channels[k] > 0]
        self.nodes = nn.ModuleDict()
        node_channels = SOURCE_CHANNELS * len(self.scales)
        for scale in self.scales[:-1]:
            # A node sees the encoder down to its own scale, and what is below: decoder nodes, the encoder's deepest map.
            sources = [node_channels if scale < k < self.scales[-1] else channels[k] for k in self.scales]
            self.nodes[str(scale)] = FullScaleNode(sources, node_channels)
        heads = {str(k): nn.Conv2d(node_channels, classes, 3, padding=1) for k in self.scales[:-1]}
        heads[str(self.scales[-1])] = nn.Conv2d(channels[self.scales[-1]], classes, 3, padding=1)
        self.heads = nn.ModuleDict(heads)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Normalised images (N, 3, H, W), H and W multiples of 32, to logits (N, classes, H, W)."""
        features = self.encoder(images)
        maps = {k: features[k] for k in self.scales}  # the encoder's, replaced by the decoder's from the bottom up
        for scale in reversed(self.scales[:-1]):
            maps[scale] = self.nodes[str(scale)](maps, scale)
        supervised = self.scales if self.training else self.scales[:1]
        logits = [_resize(self.heads[str(k)](maps[k]), 2**k) for k in supervised]
        return tuple(logits) if self.training else logits[0]


class FullScaleNode(nn.Module):
    """One decoder node: all scales brought to its own, 64 channels each, and merged."""

    def __init__(self, source_channels: list[int], out_channels: int):
        super().__init__()
        self.sources = nn.ModuleList(
            Conv2dNormActivation(channels, SOURCE_CHANNELS, bias=True) for channels in source_channels
        )
        self.merge = Conv2dNormActivation(out_channels, out_channels, bias=True)

    def forward(self, maps: dict[int, Tensor], scale: int) -> Tensor:
        """Maps by scale, (N, C, H / 2**scale, W / 2**scale) each, to this node's map at `scale`."""
        resized = [
            source(_resize(features, 2.0 ** (k - scale)))
            for source, (k, features) in zip(self.sources, maps.items(), strict=True)
        ]
        return self.merge(torch.cat(resized, dim=1))


def _resize(features: Tensor, factor: float) -> Tensor:
    """Finer maps are pooled by their maximum, coarser ones upsampled bilinearly."""
    if factor < 1:
        return F.max_pool2d(features, round(1 / factor))
    if factor > 1:
        return F.interpolate(features, scale_factor=factor, mode="bilinear")
    return features

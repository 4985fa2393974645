"""FC-DenseNet, the one hundred layers tiramisu: dense blocks down and up, trained from scratch."""

import torch
from torch import Tensor, nn

from seglib.errors import InputError

ENCODERS = ("",)
DROPOUT = 0.2


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
        if encoder not in ENCODERS:
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
            self.downs.append(_transition_down(channels))
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


FC_DENSENETS: dict[str, type[FCDenseNet]] = {
    "FCDenseNet56": FCDenseNet56,
    "FCDenseNet67": FCDenseNet67,
    "FCDenseNet103": FCDenseNet103,
}


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


def _transition_down(channels: int) -> nn.Sequential:
    return _layer(channels, channels, kernel_size=1).append(nn.MaxPool2d(2))


def _initialise(layer: nn.Module) -> None:
    """HeUniform, as the paper has it."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)

"""VGG16 as the encoder of the classic models: torchvision's names and shapes, the papers' strides and dilations."""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VGG16_BN_Weights, VGG16_Weights

from seglib.errors import InputError, unknown_name

ENCODERS = ("vgg16",)
CHANNELS = (64, 128, 256, 512, 512)  # of the five stages
CONVOLUTIONS = (2, 2, 3, 3, 3)
FC_CHANNELS = 4096  # of fc6 and fc7


class HalvingPool(nn.MaxPool2d):
    """The maximum of each 2 x 2 window."""

    def __init__(self):
        super().__init__(kernel_size=2)


class UnstridedPool(nn.MaxPool2d):
    """The maximum of the 3 x 3 window around each pixel: DeepLab's pooling that keeps the resolution."""

    def __init__(self):
        super().__init__(kernel_size=3, stride=1, padding=1)


class VGG16(nn.Module):
    """VGG16 (configuration D), fully convolutional.

    The state dict has torchvision's names and shapes (`features.N.*`, and `classifier.0.*`, `classifier.3.*` for fc6 and
    fc7), so that its ImageNet files load as they are.

    Parameters
    ----------
    encoder : "vgg16", the only name there is.
    encoder_weights : "imagenet" (torchvision's, downloaded on first use) or None (random).
    batch_norm : a batch norm behind every convolution (torchvision's vgg16_bn; its weights are of ImageNet too).
    last_pools : what follows stages 4 and 5; the first three are always halved.
    last_dilation : of the convolutions of stage 5.
    fc6_dilation : dilation of fc6, turned into a 7 x 7 convolution; 0 leaves out fc6 and fc7.

    Raises
    ------
    InputError
        An encoder or weights of another name.

    Source: Simonyan and Zisserman 2015, arXiv:1409.1556.
    """

    def __init__(
        self,
        encoder: str,
        encoder_weights: str | None,
        *,
        batch_norm: bool = False,
        last_pools: type[nn.Module] = HalvingPool,
        last_dilation: int = 1,
        fc6_dilation: int = 0,
    ):
        super().__init__()
        if encoder not in ENCODERS:
            raise InputError(unknown_name("encoder", encoder, ENCODERS))
        pools = (HalvingPool, HalvingPool, HalvingPool, last_pools, last_pools)
        layers, self.pool_positions, in_channels = [], [], 3
        for stage, channels in enumerate(CHANNELS):
            for _ in range(CONVOLUTIONS[stage]):
                dilation = last_dilation if stage == 4 else 1
                layers.append(nn.Conv2d(in_channels, channels, 3, padding=dilation, dilation=dilation))
                layers += [nn.BatchNorm2d(channels)] if batch_norm else []
                layers.append(nn.ReLU(inplace=True))
                in_channels = channels
            self.pool_positions.append(len(layers))
            layers.append(pools[stage]())
        self.features = nn.Sequential(*layers)
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
            if isinstance(layer, HalvingPool):
                features, where = F.max_pool2d(features, 2, return_indices=True)
                indices.append(where)
            else:
                features = layer(features)
        return features, indices

    def _load(self, name: str, weights: type[VGG16_Weights] | type[VGG16_BN_Weights]) -> None:
        if name != "imagenet":
            raise InputError(unknown_name("encoder_weights", name, ["imagenet"]))
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

"""UNet 3+: every decoder node sees every scale of the encoder and of the decoder below it."""

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

SOURCE_CHANNELS = 64  # what each source contributes to a node


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

"""Layers in place of torch's, where those are slow or do not give the same bits twice."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


class FixedSizeAveragePool(nn.Module):
    """The mean of each of h x w bins: `nn.AdaptiveAvgPool2d`, whose gradient CUDA adds up in any order.

    Bins overlap where h does not divide H. Each axis is a matrix product, in float32 even under autocast.

    Parameters
    ----------
    output_size : h and w, or one number for both; None keeps the input's.
    """

    def __init__(self, output_size: int | tuple[int | None, int | None] | None):
        super().__init__()
        self.output_size = output_size if isinstance(output_size, tuple) else (output_size, output_size)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, h, w), of the same type."""
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        lengths = zip(features.shape[-2:], self.output_size, strict=True)
        rows, columns = (_averages(length, bins or length, wide) for length, bins in lengths)
        with _no_autocast(features.device.type):
            return (rows @ (wide @ columns.mT)).to(features.dtype)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


def replace_average_pools(network: nn.Module) -> None:
    """Put `FixedSizeAveragePool` in place of every `nn.AdaptiveAvgPool2d` that leaves more than one pixel.

    Those that leave one are means, which torch computes deterministically. State dicts have no entries of either.
    """
    for parent in network.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size not in (1, (1, 1)):
                setattr(parent, name, FixedSizeAveragePool(child.output_size))


def _averages(length: int, bins: int, like: Tensor) -> Tensor:
    """(bins, length): row i averages over [floor(i * length / bins), ceil((i + 1) * length / bins))."""
    i, position = torch.arange(bins, device=like.device)[:, None], torch.arange(length, device=like.device)
    starts, ends = i * length // bins, -(-(i + 1) * length // bins)
    return ((position >= starts) & (position < ends)).to(like.dtype) / (ends - starts)


def _no_autocast(device_type: str) -> AbstractContextManager:
    """The meta device, on which models are tried out, has no autocast to switch off."""
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else nullcontext()


class DilatedDepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution with dilation, computed on CPUs in contiguous memory, whatever the layout around it.

    In channels-last memory oneDNN's take 2 to 6 times as long in bfloat16 (8 x 2048 x 16 x 16, dilation 24 and 36, as in
    DeepLabV3+ over a ResNet-50): a fifth of that model's step.
    """

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H', W'), in the layout that came in."""
        if features.device.type != "cpu":
            return super().forward(features)
        layout = (
            torch.channels_last
            if features.is_contiguous(memory_format=torch.channels_last)
            else torch.contiguous_format
        )
        # (C, 1, h, w) is contiguous in both layouts, and its strides say which is meant.
        weight = self.weight.flatten().view(self.weight.shape)
        return self._conv_forward(features.contiguous(), weight, self.bias).contiguous(memory_format=layout)


def speed_up_dilated_depthwise(network: nn.Module) -> None:
    """Make every dilated depthwise convolution of a network a `DilatedDepthwiseConv2d`; its weights stay what they are."""
    for module in network.modules():
        if type(module) is nn.Conv2d and module.groups == module.in_channels > 1 and max(module.dilation) > 1:
            module.__class__ = DilatedDepthwiseConv2d

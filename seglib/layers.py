"""Layers in place of torch's, where those are slow or do not give the same bits twice."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps

import torch
import torch.nn.functional as F
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


class BilinearResize(torch.autograd.Function):
    """Bilinear resizing with torch's own values, and a gradient that is always added up in one order.

    A resize is a product with a matrix for rows and one for columns, and its gradient the product with their transposes,
    in float32 even under autocast.
    """

    @staticmethod
    def forward(
        ctx, features: Tensor, size: Sequence[int] | None, scales: Sequence[float] | None, align_corners: bool
    ) -> Tensor:
        """(N, C, h, w) to (N, C, H, W) of the same type; `size` or `scales`: of rows and of columns."""
        resized = torch._C._nn.upsample_bilinear2d(features, size, align_corners, scales)
        lengths = zip(features.shape[-2:], resized.shape[-2:], scales or (None, None), strict=True)
        ctx.axes = [(before, after, scale, align_corners) for before, after, scale in lengths]
        return resized

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        rows, columns = (_bilinear_weights(*axis, wide) for axis in ctx.axes)
        with _no_autocast(gradient.device.type):
            if wide.is_contiguous(memory_format=torch.channels_last):
                wide = wide.permute(0, 2, 3, 1)
                (count, _, width, channels), height = wide.shape, rows.shape[1]
                tall = rows.mT @ wide.reshape(count, -1, width * channels)
                wide = columns.mT @ tall.reshape(count * height, width, channels)
                found = wide.reshape(count, height, -1, channels).permute(0, 3, 1, 2)
            else:
                found = rows.mT @ (wide @ columns)
        return found.to(gradient.dtype), None, None, None


def _bilinear_weights(before: int, after: int, scale: float | None, align_corners: bool, like: Tensor) -> Tensor:
    """(after, before): what each pixel of the resized axis takes from those before, as torch's kernels have it."""
    places = torch.arange(after, device=like.device, dtype=like.dtype)
    if align_corners:
        places = places * ((before - 1) / (after - 1) if after > 1 else 0.0)
    else:
        places = ((places + 0.5) * (1 / scale if scale else before / after) - 0.5).clamp(min=0)
    lower = places.floor().clamp(max=before - 1)
    upper, share, position = (lower + 1).clamp(max=before - 1), places - lower, torch.arange(before, device=like.device)
    weights = [
        (position == each[:, None]).to(like.dtype) * part[:, None]
        for each, part in ((lower, 1 - share), (upper, share))
    ]
    return weights[0] + weights[1]


_interpolate = F.interpolate


@wraps(_interpolate)
def interpolate(
    input: Tensor, size=None, scale_factor=None, mode="nearest", align_corners=None, recompute_scale_factor=None,
    antialias=False,
) -> Tensor:  # fmt: skip
    asks = (
        mode == "bilinear" and not antialias and not recompute_scale_factor and (size is None) != (scale_factor is None)
    )
    if not (asks and input.ndim == 4 and input.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return _interpolate(input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    pairs = [each if each is None or isinstance(each, Sequence) else (each, each) for each in (size, scale_factor)]
    return BilinearResize.apply(input, *pairs, bool(align_corners))


def replace_bilinear_resize() -> None:
    """Make `F.interpolate` use `BilinearResize` on CUDA under deterministic algorithms, for all networks of the process.

    There torch takes a way by indexing, whose backward sorts: a third of the speed of DeepLabV3+. Where torch's own function
    no longer takes it, nothing is replaced.
    """
    if "_upsample_linear_vec" in F.interpolate.__code__.co_names:
        F.interpolate = interpolate

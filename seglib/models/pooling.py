"""Average pooling to a fixed size whose gradient is deterministic on every device."""

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
        rows, columns = (
            _averages(length, bins or length, wide)
            for length, bins in zip(features.shape[-2:], self.output_size, strict=True)
        )
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
    i = torch.arange(bins, device=like.device)[:, None]
    starts = (i * length).div(bins, rounding_mode="floor")
    ends = ((i + 1) * length + bins - 1).div(bins, rounding_mode="floor")
    position = torch.arange(length, device=like.device)
    inside = (position >= starts) & (position < ends)
    return inside.to(like.dtype) / (ends - starts)


def _no_autocast(device_type: str) -> AbstractContextManager:
    """The meta device, on which models are tried out, has no autocast to switch off."""
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else nullcontext()

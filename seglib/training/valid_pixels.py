"""Means over the pixels and classes that count: what every loss term shares."""

import torch
from torch import Tensor


def at_target(values: Tensor, target: Tensor) -> Tensor:
    """Pick each pixel's value of its target class, (N, C, H, W) -> (N, H, W); its backward can be deterministic."""
    return values.gather(1, target.long()[:, None])[:, 0]


def one_hot(target: Tensor, num_classes: int) -> Tensor:
    """Class ids (N, H, W) -> (N, C, H, W) bool, true where a pixel is of the class.

    It is as large as the logits. Adding up by class id without it is 20 % faster on a CPU, but the order of additions
    on a GPU changes from call to call.
    """
    classes = torch.arange(num_classes, device=target.device).to(target.dtype)
    return target[:, None] == classes[:, None, None]


def divide(total: Tensor, count: Tensor) -> Tensor:
    """total / count, and 0 with zero gradients where the count is 0."""
    some = count > 0
    return total / torch.where(some, count, 1) * some


def masked_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over all dimensions; 0 where all weights are 0."""
    return divide((values * weight).sum(), weight.sum())


def mean_over_present(losses: Tensor, present: Tensor) -> Tensor:
    """Mean over images of each image's mean over its present classes; (N, C) and (N, C) bool -> scalar.

    An image without a present class is left out; without any such image the mean is 0.
    """
    per_image = divide((losses * present).sum(1), present.sum(1))
    return masked_mean(per_image, present.any(1).to(losses.dtype))


def sort_nonnegative(values: Tensor) -> tuple[Tensor, Tensor]:
    """Sort (P,) floats >= 0 upwards, without gradient; sorted values and the indices that sort them.

    The bits of such floats, read as integers, have the same order, and torch sorts integers 10 times faster on a CPU.
    """
    bits = values.detach().view(torch.int64 if values.dtype == torch.float64 else torch.int32)
    ordered, order = bits.sort()
    return ordered.view(values.dtype), order

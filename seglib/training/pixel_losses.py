"""Loss terms that are means over pixels: cross entropy and what is made of it.

`class_weights` is "" for none or a (C,) tensor with a weight >= 0 a class; `build_loss` makes it of names or of
"balanced". As in torch, a mean is then divided by the sum of the pixels' weights, not by their number.
"""

from typing import Literal

import torch
from torch import Tensor

from seglib.training.valid_pixels import at_target, divide, masked_mean, sort_nonnegative

ClassWeights = Tensor | Literal[""]


def cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor, class_weights: ClassWeights = "", label_smoothing: float = 0.0
) -> Tensor:
    """Mean over valid pixels of -log p_y, in nats, as torch's `F.cross_entropy` defines its two options.

    With smoothing e, the target is 1 - e for the true class plus e / C for every class.
    """
    log_p = logits.log_softmax(1)
    pixels = _weigh(weight, target, class_weights)
    losses = -at_target(log_p, target)
    if label_smoothing == 0:
        return masked_mean(losses, pixels)
    if len(class_weights):
        log_p = log_p * class_weights.to(log_p, non_blocking=True)[:, None, None]
    spread = -log_p.mean(1)  # each class is weighted by its own weight here, not by the pixel's
    total = (1 - label_smoothing) * losses * pixels + label_smoothing * spread * weight
    return divide(total.sum(), pixels.sum())


def label_smoothing(
    logits: Tensor, target: Tensor, weight: Tensor, smoothing: float = 0.1, class_weights: ClassWeights = ""
) -> Tensor:
    """Smoothed cross entropy as a term of its own, so that a mixture can name it beside `cross_entropy`.

    Source: Szegedy et al. 2016, Rethinking the Inception Architecture, section 7.
    """
    return cross_entropy(logits, target, weight, class_weights=class_weights, label_smoothing=smoothing)


def focal(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: float = 2.0, class_weights: ClassWeights = ""
) -> Tensor:
    """Mean over valid pixels of (1 - p_y)^gamma * -log p_y, with p the softmax over classes; gamma >= 0.

    `class_weights` are the paper's alpha_y; the mean is divided by their sum, so that gamma = 0 is cross entropy.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, equation 5, for softmax.
    """
    log_p = at_target(logits.log_softmax(1), target)
    # The floor keeps (1 - p)^(gamma - 1), which the derivative needs, finite where p rounds to 1.
    wrongness = (1 - log_p.exp()).clamp_min(torch.finfo(log_p.dtype).tiny)
    return masked_mean(wrongness**gamma * -log_p, _weigh(weight, target, class_weights))


def ohem(logits: Tensor, target: Tensor, weight: Tensor, threshold: float = 0.7, min_kept: float = 0.0625) -> Tensor:
    """Cross entropy over the hard pixels alone: p_y below `threshold`, and at least the hardest share `min_kept`.

    Both are 0..1; the share is of the batch's valid pixels, rounded up, at least one. Pixels as hard as the last of
    the share are kept too.

    Source: Shrivastava et al. 2016, Training Region-based Object Detectors with Online Hard Example Mining; by pixel
    with a threshold as in Wu et al. 2016, Bridging Category-level and Instance-level Semantic Image Segmentation.
    """
    log_p = at_target(logits.log_softmax(1), target)
    p = log_p.detach().exp()
    ordered, _ = sort_nonnegative(torch.where(weight > 0, p, 2).flatten())  # ignored pixels are the easiest
    kept = (min_kept * weight.sum(dtype=torch.float64)).ceil().long()
    hardest = ordered.take((kept - 1).clamp_min(0))  # stays on the device: the count is never asked for
    hard = (p < threshold) | (p <= hardest)
    return masked_mean(-log_p, weight * hard)


def _weigh(weight: Tensor, target: Tensor, class_weights: ClassWeights) -> Tensor:
    if not len(class_weights):
        return weight
    return weight * class_weights.to(weight, non_blocking=True)[target.long()]

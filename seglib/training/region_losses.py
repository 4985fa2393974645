"""Loss terms that compare the region predicted for a class with its true region: relaxations of Dice and IoU.

Each is averaged over the classes present in the truth. `miou` and `lovasz(per_image=True)` do so image by image; the
others pool the batch.
"""

from itertools import product

import torch
from torch import Tensor

from seglib.training.valid_pixels import masked_mean, mean_over_present, one_hot, sort_nonnegative

# [pixels] keeps 0/0 of a class that is neither predicted nor present finite. Such classes are left out of the mean, and
# beside one true pixel it is below float32's precision: the overlaps of the classes that count are not smoothed.
SMOOTH = 1e-7
# Below it, (1 - TI)^gamma is constant: with gamma < 1 its slope would be infinite at a perfect prediction.
PERFECT = 1e-7


def dice(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - mean over present classes of 2 I / (P + T): see `_soft_overlap`.

    Source: Milletari et al. 2016, V-Net, with the denominator not squared, as in smp's DiceLoss("multiclass").
    """
    intersection, predicted, true = _soft_overlap(logits, target, weight)
    score = (2 * intersection + SMOOTH) / (predicted + true + SMOOTH)
    return masked_mean(1 - score, (true > 0).to(score.dtype))


def jaccard(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - mean over present classes of I / (P + T - I): see `_soft_overlap`.

    Source: Rahman and Wang 2016, Optimizing Intersection-Over-Union in Deep Neural Networks, equation 3, a class at a
    time.
    """
    intersection, predicted, true = _soft_overlap(logits, target, weight)
    score = (intersection + SMOOTH) / (predicted + true - intersection + SMOOTH)
    return masked_mean(1 - score, (true > 0).to(score.dtype))


def miou(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """`jaccard` of each image, averaged over the images with valid pixels: the relaxation of `miou_image`."""
    intersection, predicted, true = _soft_overlap(logits, target, weight, over=(2, 3))
    score = (intersection + SMOOTH) / (predicted + true - intersection + SMOOTH)
    return mean_over_present(1 - score, true > 0)


def tversky(logits: Tensor, target: Tensor, weight: Tensor, alpha: float = 0.3, beta: float = 0.7) -> Tensor:
    """1 - mean over present classes of I / (I + alpha FP + beta FN), with FP = P - I and FN = T - I.

    alpha = beta = 0.5 is `dice`, 1 is `jaccard`; beta > alpha punishes what is missed more than what is too much.

    Source: Salehi et al. 2017, Tversky loss function for image segmentation, a class at a time.
    """
    losses, present = _tversky(logits, target, weight, alpha, beta)
    return masked_mean(losses, present)


def focal_tversky(
    logits: Tensor, target: Tensor, weight: Tensor, alpha: float = 0.3, beta: float = 0.7, gamma: float = 0.75
) -> Tensor:
    """Mean over present classes of (1 - TI)^gamma, with TI the index of `tversky`; gamma > 0, the paper's 1 / gamma.

    Source: Abraham and Khan 2018, A Novel Focal Tversky loss function.
    """
    losses, present = _tversky(logits, target, weight, alpha, beta)
    return masked_mean(losses.clamp_min(PERFECT) ** gamma, present)


def lovasz(logits: Tensor, target: Tensor, weight: Tensor, per_image: bool = False) -> Tensor:
    """Lovász-softmax: the convex closure of 1 - IoU at the errors |1[y = c] - p_c|, mean over present classes.

    Source: Berman et al. 2018, The Lovász-Softmax loss.
    """
    true, valid = one_hot(target, logits.shape[1]) & (weight > 0)[:, None], weight[:, None]
    errors = (logits.softmax(1) - true.to(logits.dtype)).abs() * valid
    errors, true = _in_rows(errors, per_image), _in_rows(true, per_image)
    losses = (errors * _lovasz_slopes(errors.detach(), true)).sum(-1)
    return mean_over_present(losses, true.any(-1))


def _soft_overlap(
    logits: Tensor, target: Tensor, weight: Tensor, over: tuple[int, ...] = (0, 2, 3)
) -> tuple[Tensor, Tensor, Tensor]:
    """Per class over the valid pixels of the whole batch: sum of p where true (I), sum of p (P), true pixels (T); (C,).

    Over the dimensions (2, 3) they are those of each image, (N, C).
    """
    p, weight = logits.softmax(1), weight[:, None]
    true = one_hot(target, p.shape[1]) * weight  # (N, C, H, W), all zero where ignored
    return tuple(x.sum(over) for x in (p * true, p * weight, true))


def _tversky(logits: Tensor, target: Tensor, weight: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """1 - TI a class, and 1 where the class is present, (C,) each."""
    intersection, predicted, true = _soft_overlap(logits, target, weight)
    wrong = alpha * (predicted - intersection) + beta * (true - intersection)
    return wrong / (intersection + wrong + SMOOTH), (true > 0).to(wrong.dtype)


def _in_rows(x: Tensor, per_image: bool) -> Tensor:
    """(N, c, H, W) -> (images, c, pixels), with the whole batch as one image unless `per_image`."""
    return x.flatten(2) if per_image else x.transpose(0, 1).flatten(1)[None]


def _lovasz_slopes(errors: Tensor, true: Tensor) -> Tensor:
    """Slope of the Lovász extension by each error, (images, C, pixels); it depends on their order alone.

    Ignored pixels have no error: they come last, where they change no other slope. The slopes are constants, so that
    the sort is not differentiated; the cumulative sums are of integers, since CUDA's of floats are not deterministic.
    """
    slopes = torch.empty_like(errors, memory_format=torch.contiguous_format)
    for i, c in product(range(errors.shape[0]), range(errors.shape[1])):
        order = sort_nonnegative(errors[i, c])[1].flip(0)
        is_true = true[i, c][order]
        total = is_true.sum()
        # Once the pixels down to this one are wrong: I true ones are left of a union of U.
        intersection = total - is_true.cumsum(0, dtype=torch.int32)
        union = (total + (~is_true).cumsum(0, dtype=torch.int32)).to(errors.dtype)
        # What this pixel took from I / U; the difference of two neighbours would lose float32's digits.
        from_false = intersection / (union * (union - 1)).clamp_min(1)
        slopes[i, c].scatter_(0, order, torch.where(is_true, 1 / union.clamp_min(1), from_false))
    return slopes

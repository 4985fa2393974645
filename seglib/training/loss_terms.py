"""Loss terms: means over pixels, overlaps of regions, neighbourhoods.

Functions get their `class_weights` as "" for none or as a (C,) tensor of weights >= 0; `build_loss` makes it of names or
of "balanced". As in torch, a mean is then divided by the sum of the pixels' weights, not by their number.

Each is averaged over the classes present in the truth. `miou` and `lovasz(per_image=True)` do so image by image; the
others pool the batch.

Both are computed for each image and class and averaged over the classes present in the image, then over images.
Neighbourhoods hold valid pixels only.
"""

from itertools import product
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from seglib.parameters import ClassWeights, Factor, Share, Window
from seglib.parts import register

# Means over the pixels and classes that count: what every loss term shares.


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


# Loss terms that are means over pixels: cross entropy and what is made of it.


@register("loss")
def cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor, class_weights: ClassWeights = "", label_smoothing: Share = 0.0
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


@register("loss")
def label_smoothing(
    logits: Tensor, target: Tensor, weight: Tensor, smoothing: Share = 0.1, class_weights: ClassWeights = ""
) -> Tensor:
    """Smoothed cross entropy as a term of its own, so that a mixture can name it beside `cross_entropy`.

    Source: Szegedy et al. 2016, Rethinking the Inception Architecture, section 7.
    """
    return cross_entropy(logits, target, weight, class_weights=class_weights, label_smoothing=smoothing)


@register("loss")
def focal(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: Factor = 2.0, class_weights: ClassWeights = ""
) -> Tensor:
    """Mean over valid pixels of (1 - p_y)^gamma * -log p_y, with p the softmax over classes; gamma >= 0.

    `class_weights` are the paper's alpha_y; the mean is divided by their sum, so that gamma = 0 is cross entropy.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, equation 5, for softmax.
    """
    log_p = at_target(logits.log_softmax(1), target)
    # The floor keeps (1 - p)^(gamma - 1), which the derivative needs, finite where p rounds to 1.
    wrongness = (1 - log_p.exp()).clamp_min(torch.finfo(log_p.dtype).tiny)
    return masked_mean(wrongness**gamma * -log_p, _weigh(weight, target, class_weights))


@register("loss")
def ohem(logits: Tensor, target: Tensor, weight: Tensor, threshold: Share = 0.7, min_kept: Share = 0.0625) -> Tensor:
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


# Loss terms that compare the region predicted for a class with its true region: relaxations of Dice and IoU.


# [pixels] keeps 0/0 of a class that is neither predicted nor present finite. Such classes are left out of the mean, and
# beside one true pixel it is below float32's precision: the overlaps of the classes that count are not smoothed.
SMOOTH = 1e-7
# Below it, (1 - TI)^gamma is constant: with gamma < 1 its slope would be infinite at a perfect prediction.
PERFECT = 1e-7


@register("loss")
def dice(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - mean over present classes of 2 I / (P + T): see `_soft_overlap`.

    Source: Milletari et al. 2016, V-Net, with the denominator not squared, as in smp's DiceLoss("multiclass").
    """
    intersection, predicted, true = _soft_overlap(logits, target, weight)
    score = (2 * intersection + SMOOTH) / (predicted + true + SMOOTH)
    return masked_mean(1 - score, (true > 0).to(score.dtype))


@register("loss")
def jaccard(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - mean over present classes of I / (P + T - I): see `_soft_overlap`.

    Source: Rahman and Wang 2016, Optimizing Intersection-Over-Union in Deep Neural Networks, equation 3, a class at a
    time.
    """
    intersection, predicted, true = _soft_overlap(logits, target, weight)
    score = (intersection + SMOOTH) / (predicted + true - intersection + SMOOTH)
    return masked_mean(1 - score, (true > 0).to(score.dtype))


@register("loss")
def miou(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """`jaccard` of each image, averaged over the images with valid pixels: the relaxation of `miou_image`."""
    intersection, predicted, true = _soft_overlap(logits, target, weight, over=(2, 3))
    score = (intersection + SMOOTH) / (predicted + true - intersection + SMOOTH)
    return mean_over_present(1 - score, true > 0)


@register("loss")
def tversky(logits: Tensor, target: Tensor, weight: Tensor, alpha: Factor = 0.3, beta: Factor = 0.7) -> Tensor:
    """1 - mean over present classes of I / (I + alpha FP + beta FN), with FP = P - I and FN = T - I.

    alpha = beta = 0.5 is `dice`, 1 is `jaccard`; beta > alpha punishes what is missed more than what is too much.

    Source: Salehi et al. 2017, Tversky loss function for image segmentation, a class at a time.
    """
    losses, present = _tversky(logits, target, weight, alpha, beta)
    return masked_mean(losses, present)


@register("loss")
def focal_tversky(
    logits: Tensor,
    target: Tensor,
    weight: Tensor,
    alpha: Factor = 0.3,
    beta: Factor = 0.7,
    gamma: Annotated[float, Field(ge=0.01, le=100)] = 0.75,
) -> Tensor:
    """Mean over present classes of (1 - TI)^gamma, with TI the index of `tversky`; gamma > 0, the paper's 1 / gamma.

    Source: Abraham and Khan 2018, A Novel Focal Tversky loss function.
    """
    losses, present = _tversky(logits, target, weight, alpha, beta)
    return masked_mean(losses.clamp_min(PERFECT) ** gamma, present)


@register("loss")
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


# Loss terms that compare neighbourhoods: multi-scale structural similarity and boundaries.


EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first: Wang et al. 2003
WINDOW, SIGMA = 11, 1.5  # [px] of the Gaussian
C1, C2 = 0.01**2, 0.03**2  # for a data range of 1
FLOOR = 0.01  # of a mean whose power is taken


@register("loss")
def ms_ssim(logits: Tensor, target: Tensor, weight: Tensor, scales: Annotated[int, Field(ge=1, le=5)] = 5) -> Tensor:
    """1 - MS-SSIM of the softmax and the one-hot truth.

    An image too small for `scales` is compared at those where the window fits (64 px: three), their exponents
    renormalised to sum to 1; below 11 px the window shrinks. Means are over windows, weighted by how much of the window
    is valid; pixels are halved by averaging the valid ones. A scale's mean can be negative, where a power is not
    defined: a mean m below 0.01 is taken as 0.01 / (2 - m / 0.01), which is positive and still rises with m.

    Source: Wang et al. 2003, Multiscale structural similarity for image quality assessment.
    """
    p = logits.contiguous().softmax(1)
    true, weight = one_hot(target, p.shape[1]).to(p.dtype), weight[:, None]
    present = (true * weight).sum((2, 3)) > 0
    window = _gaussian(min(WINDOW, *p.shape[2:])).to(p, non_blocking=True)
    exponents = _fitting_exponents(min(p.shape[2:]), scales)
    log_similarity = 0
    for scale, exponent in enumerate(exponents):
        if scale > 0:
            p, true, weight = _halve(p, weight), _halve(true, weight), F.avg_pool2d(weight, 2)
        luminance, structure, share = _compare_windows(p, true, weight, window)
        if scale == len(exponents) - 1:
            structure = structure * luminance
        mean = divide((structure * share).sum((2, 3)), share.sum((2, 3)))
        log_similarity = log_similarity + exponent * _continued_log(mean)
    return mean_over_present(1 - log_similarity.exp(), present)


@register("loss")
def boundary(
    logits: Tensor, target: Tensor, weight: Tensor, theta0: Annotated[Window, Field(ge=3)] = 3, theta: Window = 5
) -> Tensor:
    """1 - F1 of predicted and true boundaries; they are `theta0` // 2 wide and match within `theta` // 2 [px].

    A class without a true boundary in an image is left out there. It says nothing about which side of a boundary is the
    class, and nothing at all where all classes are equally probable: mix it with a region or pixel term.

    Source: Bokhovkin and Burnaev 2019, Boundary Loss for Remote Sensing Imagery Semantic Segmentation.
    """
    valid, p = weight[:, None], logits.softmax(1)
    predicted = _boundary(p, valid, theta0)
    true = _boundary(one_hot(target, p.shape[1]).to(p.dtype), valid, theta0)
    near_true = (predicted * _dilate(true, theta)).sum((2, 3))
    near_predicted = (true * _dilate(predicted, theta)).sum((2, 3))
    predicted, true = predicted.sum((2, 3)), true.sum((2, 3))
    # 2 P R / (P + R) with P = near_true / predicted and R = near_predicted / true, without their 0/0.
    f1 = 2 * divide(near_true * near_predicted, near_true * true + near_predicted * predicted)
    return mean_over_present(1 - f1, true > 0)


def _gaussian(size: int) -> Tensor:
    """Odd window of at most `size`, (1, 1, 1, k), summing to 1."""
    offsets = torch.arange((size - 1) // 2 * 2 + 1, dtype=torch.float64) - (size - 1) // 2
    window = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    return (window / window.sum())[None, None, None]


def _fitting_exponents(side: int, scales: int) -> list[float]:
    fitting = [e for i, e in enumerate(EXPONENTS[:scales]) if i == 0 or side >> i >= WINDOW]
    return [e / sum(fitting) for e in fitting]


def _compare_windows(x: Tensor, y: Tensor, weight: Tensor, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SSIM's luminance, and its contrast and structure, (N, C, h, w); the valid share of the windows, (N, 1, h, w)."""
    share = _blur(weight.expand(-1, 2, -1, -1), window)[:, :1]  # 2: see _blur
    scale = divide(torch.ones_like(share), share)
    wx, wy = weight * x, weight * y
    mean_x, mean_y, squares, product = (_blur(z, window) * scale for z in (wx, wy, wx * x + wy * y, wx * y))
    means, mean_product = mean_x**2 + mean_y**2, mean_x * mean_y
    luminance = (2 * mean_product + C1) / (means + C1)
    structure = (2 * (product - mean_product) + C2) / (squares - means + C2)
    return luminance, structure, share


def _blur(x: Tensor, window: Tensor) -> Tensor:
    """Weighted sum in every window that fits, (N, C, H, W) -> (N, C, H - k + 1, W - k + 1).

    One convolution a channel, of two channels or more in NCHW, is torch's own on CUDA, in the precision of x. Others
    are cuDNN's, which may use TF32 and lose the variances.
    """
    rows = window.expand(x.shape[1], -1, -1, -1)
    return F.conv2d(F.conv2d(x, rows, groups=x.shape[1]), rows.mT, groups=x.shape[1])


def _halve(x: Tensor, weight: Tensor) -> Tensor:
    return divide(F.avg_pool2d(weight * x, 2), F.avg_pool2d(weight, 2))


def _continued_log(x: Tensor) -> Tensor:
    """log(x), below FLOOR log(FLOOR / (2 - x / FLOOR)), which meets it there with the same slope."""
    return x.clamp_min(FLOOR).log() - (2 - x.clamp_max(FLOOR) / FLOOR).log()


def _boundary(y: Tensor, valid: Tensor, theta0: int) -> Tensor:
    """How far each pixel is on its side of an edge, (N, C, H, W): 1 for one-hot pixels next to another class."""
    outside = (1 - y) * valid
    return (_dilate(outside, theta0) - outside) * valid


def _dilate(x: Tensor, size: int) -> Tensor:
    # channels_last: 5 times faster on a CPU. The backward is deterministic on CUDA, as those of other pools are not.
    x = x.contiguous(memory_format=torch.channels_last)
    return F.max_pool2d(x, size, stride=1, padding=size // 2)

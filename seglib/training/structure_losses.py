"""Loss terms that compare neighbourhoods: multi-scale structural similarity and boundaries.

Both are computed for each image and class and averaged over the classes present in the image, then over images.
Neighbourhoods hold valid pixels only.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from seglib.training.valid_pixels import divide, mean_over_present, one_hot

EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first: Wang et al. 2003
WINDOW, SIGMA = 11, 1.5  # [px] of the Gaussian
C1, C2 = 0.01**2, 0.03**2  # for a data range of 1
FLOOR = 0.01  # of a mean whose power is taken


def ms_ssim(logits: Tensor, target: Tensor, weight: Tensor, scales: int = 5) -> Tensor:
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


def boundary(logits: Tensor, target: Tensor, weight: Tensor, theta0: int = 3, theta: int = 5) -> Tensor:
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

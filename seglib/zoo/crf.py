"""Dense CRF: predictions follow the photograph's edges (mean field, Gaussian and bilateral kernels, in torch)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seglib.errors import InputError, require_known

NORMALIZATIONS = ("symmetric", "none")
FLOOR = 0.5 / 255  # smaller probabilities count as this: what 256 steps round to 0 must not outvote every neighbour
CUTOFF = 5.5  # kernels end at so many sigmas, where they are below 3e-7
TARGETS = 256  # pixels whose messages are computed together
WIDE = 32.0  # squared radius [sigmas] from which a block's distances need float64
CPU_BLOCK, CUDA_BLOCK = 2**19, 2**27  # kernel values in memory at a time: what fits a cache; what fills a GPU

KernelSum = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CrfParams:
    """Parameters of `dense_crf`.

    Attributes
    ----------
    smoothness_weight, smoothness_sigma : weight and reach [px] of the kernel that knows positions only
    appearance_weight, appearance_sigma, colour_sigma : weight and reach [px], [levels of 255] of the kernel that links
        near pixels of like colour
    iterations : mean field updates, all pixels at once
    normalization : "symmetric" divides a kernel by the roots of its sums at both pixels, so that weights mean the same for
        all sizes and sigmas; "none" leaves it as it is
    pixels_per_cluster : 1 is exact. From n to 2n neighbouring pixels of like colour act as one on others, in about 1 / n of
        the time: 31 s of one core at 256 px (12 classes, 5 iterations) with 1, 9 s with 4, 2.7 s with 16. On CamVid at
        128 px 4 decides 0.2 to 0.4 % of the pixels otherwise than 1 does, 16 does 0.4 to 1.4 %, where the CRF itself
        changes 5 to 7 %.
    """

    smoothness_weight: float = 3.0
    smoothness_sigma: float = 3.0
    appearance_weight: float = 5.0
    appearance_sigma: float = 30.0
    colour_sigma: float = 13.0
    iterations: int = 5
    normalization: str = "symmetric"
    pixels_per_cluster: int = 1

    def __post_init__(self):
        require_known("normalization", self.normalization, NORMALIZATIONS, "CrfParams")
        rules = {"weight": ("at least 0", 0), "sigma": ("above 0", 1e-300), "iterations": ("at least 0", 0)}
        rules["cluster"] = ("at least 1 (exact)", 1)
        for name, value in vars(self).items():
            what, least = rules.get(name.rpartition("_")[2], ("", None))
            if what and not (math.isfinite(value) and value >= least):
                raise InputError(f"CrfParams: {name} must be {what}, got {value}; see help(CrfParams)")


@torch.inference_mode()
def dense_crf(
    image: np.ndarray, probabilities: np.ndarray, params: CrfParams, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Refine one image's probabilities by a fully connected CRF with Potts compatibility.

    Every pixel sends every other its beliefs: `Q_i(l) ~ p_i(l) exp(sum over kernels m, pixels j != i of
    w_m k_m(i, j) Q_j(l))`, repeated `iterations` times from Q = p, where p is at least 1/510. With `pixels_per_cluster=1` it
    equals the sum over all pairs of pixels but for kernel values below 3e-7 and float32 rounding (measured: 1e-5 in a
    probability; TF32 must be off). Time grows with (H W)^2 / pixels_per_cluster.

    Parameters
    ----------
    image : (H, W, 3) uint8 RGB, the original photograph at the size of the probabilities, not normalised.
    probabilities : (C, H, W) floating, 0 to 1, after softmax. Below 1/510, which 256 steps round to 0, they count as
        1/510, of every dtype, so that a uint8 store and a float16 one of the same model are refined alike.

    Returns
    -------
    (C, H, W) float32, sums to 1 over the classes.

    Raises
    ------
    InputError
        Image or probabilities of another type, shape or range.

    Source: Krähenbühl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials, NIPS 2011.
    """
    _check_arrays(image, probabilities)
    p = torch.as_tensor(np.ascontiguousarray(probabilities), device=device).float().clamp_min(FLOOR)
    messages = _build_messages(torch.as_tensor(np.ascontiguousarray(image), device=device), params)
    log_p = p.log()
    q = log_p.softmax(0)
    for _ in range(params.iterations):
        q = sum((weight * message(q) for weight, message in messages), start=log_p).softmax(0)
    return q.cpu().numpy()


def _build_messages(image: Tensor, params: CrfParams) -> list[tuple[float, KernelSum]]:
    """(weight, function from Q (C, H, W) to its message) of each kernel that has a weight."""
    height, width = image.shape[:2]
    messages = []
    if params.smoothness_weight:
        kernel_sum = _gaussian_sum(height, width, params.smoothness_sigma, image.device)
        messages.append((params.smoothness_weight, kernel_sum))
    if params.appearance_weight:
        features = _bilateral_features(image, params.appearance_sigma, params.colour_sigma)
        messages.append((params.appearance_weight, _bilateral_sum(features, params.pixels_per_cluster)))
    if params.normalization == "symmetric":
        ones = torch.ones(1, height, width, device=image.device)
        messages = [(weight, _normalise(kernel_sum, ones)) for weight, kernel_sum in messages]
    return messages


def _normalise(kernel_sum: KernelSum, ones: Tensor) -> KernelSum:
    """D^-1/2 K D^-1/2, where D, unlike the message, counts the pixel itself: a pixel like no other hears nothing."""
    scale = (1 + kernel_sum(ones)).clamp_min(1).rsqrt()
    return lambda q: scale * kernel_sum(scale * q)


def _gaussian_sum(height: int, width: int, sigma: float, device: torch.device) -> KernelSum:
    """Sum over all other pixels, weighted by distance: along columns, then along rows, exact."""

    places = (torch.arange(length, device=device, dtype=torch.float64) / sigma for length in (height, width))
    down, across = ((-0.5 * (place[:, None] - place).square()).exp().float() for place in places)
    return lambda values: down @ values @ across - values


def _bilateral_features(image: Tensor, sigma: float, colour_sigma: float) -> Tensor:
    """(H W, 5) float64 in sigmas; colours along their principal axes, where boxes around pixels are smallest."""
    height, width = image.shape[:2]
    rows, columns = (torch.arange(length, device=image.device) for length in (height, width))
    colours = image.reshape(-1, 3).double()
    colours = colours - colours.mean(0)
    axes = torch.linalg.eigh(colours.T @ colours).eigenvectors
    places = torch.cartesian_prod(rows, columns).double() / sigma
    return torch.cat([places, colours @ axes / colour_sigma], dim=1)


def _bilateral_sum(features: Tensor, pixels_per_cluster: int) -> KernelSum:
    """Sum over all other pixels, weighted by distance in place and colour.

    A cluster acts as a Gaussian with the mean and the variances of its pixels, which is exact for one pixel. Pixels are
    handled in blocks that are small in the feature space: distances in float32 lose digits far from the origin, so each
    block has its own (and float64 where it is wide), and sources beyond the cutoff of its box are left out.
    """
    count = len(features)
    blocks = _group_pixels(features, TARGETS)
    place = blocks.flatten().argsort()[:count]  # of each pixel in the blocks' order
    clusters = _Clusters(features, pixels_per_cluster)

    def kernel_sum(values: Tensor) -> Tensor:
        flat = values.reshape(len(values), count)
        sources = clusters.gather(flat)
        parts = [_sum_block(features[block.clamp_max(count - 1)], clusters, sources) for block in blocks]
        total = torch.cat(parts, dim=1)[:, place]
        return (total - flat * clusters.self_weight).view(values.shape)

    return kernel_sum


class _Clusters:
    """Means (M, 5), 1 + variances (M, 5) in sigmas, and each pixel's weight (N,) in its own cluster's message to it."""

    def __init__(self, features: Tensor, pixels_per_cluster: int):
        self.groups, self.count = None, len(features)
        self.means, self.spread = features, torch.ones_like(features)
        self.self_weight = torch.ones(self.count, device=features.device)
        if pixels_per_cluster == 1:
            return
        self.groups = groups = _group_pixels(features, pixels_per_cluster)
        real = (groups < self.count).double()[..., None]
        members, sizes = features[groups.clamp_max(self.count - 1)], real.sum(1).clamp_min(1)
        self.means = (members * real).sum(1) / sizes
        self.spread = 1 + ((members - self.means[:, None]).square() * real).sum(1) / sizes
        own = groups.flatten().argsort()[: self.count] // groups.shape[1]
        exponent = (features - self.means[own]).square() / self.spread[own] + self.spread[own].log()
        self.self_weight = (-0.5 * exponent.sum(1)).exp().float()

    def gather(self, values: Tensor) -> Tensor:
        """Sum (C, N) over the pixels of each cluster -> (C, M)."""
        if self.groups is None:
            return values
        return (values[:, self.groups.clamp_max(self.count - 1)] * (self.groups < self.count)).sum(2)


def _group_pixels(features: Tensor, size: int) -> Tensor:
    """Split pixels in two across their widest feature, again and again -> (groups, n) indices, size <= n < 2 size.

    Indices of len(features) and above fill up groups: they are no pixels.
    """
    count = len(features)
    levels = max(0, int(math.log2(count / size)))
    length = -(-count // 2**levels)
    groups = torch.arange(length * 2**levels, device=features.device)[None]
    for _ in range(levels):
        members = features[groups.clamp_max(count - 1)]
        widest = (members.amax(1) - members.amin(1)).argmax(1)
        key = members.gather(2, widest[:, None, None].expand(-1, members.shape[1], 1))[..., 0]
        order = key.argsort(dim=1, stable=True)
        groups = groups.gather(1, order).reshape(2 * len(groups), -1)
    return groups


def _sum_block(targets: Tensor, clusters: _Clusters, sources: Tensor) -> Tensor:
    """Messages to a block of pixels (n, 5) from all clusters' values (C, M) -> (C, n)."""
    outside = torch.maximum(targets.amin(0) - clusters.means, clusters.means - targets.amax(0)).clamp_min_(0)
    near = ((outside.square() / clusters.spread).sum(1) < CUTOFF**2).nonzero()[:, 0]
    origin = targets.mean(0)
    x = targets - origin
    precision = torch.float64 if x.square().sum(1).max() > WIDE else torch.float32
    right = torch.cat([x, x.square(), torch.ones_like(x[:, :1])], dim=1).to(precision).T
    total = torch.zeros(len(sources), len(x), device=x.device)
    block = CPU_BLOCK if x.device.type == "cpu" else CUDA_BLOCK
    for part in near.split(max(1, block // len(x))):
        means, spread = clusters.means[part] - origin, clusters.spread[part]
        constant = -0.5 * (means.square() / spread + spread.log()).sum(1, keepdim=True)
        left = torch.cat([means / spread, -0.5 / spread, constant], dim=1).to(precision)
        kernel = (left @ right).float().clamp_(min=-40).exp_()  # below e^-87 floats are denormal, and 20 times slower
        total.addmm_(sources[:, part], kernel)
    return total


def _check_arrays(image: np.ndarray, probabilities: np.ndarray) -> None:
    image, probabilities = np.asarray(image), np.asarray(probabilities)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.shape} {image.dtype}; pass it as it was read, neither scaled nor normalised"
        raise InputError(f"dense_crf: image must be the original photograph, (H, W, 3) uint8, got {got}")
    if probabilities.shape[1:] != image.shape[:2] or probabilities.dtype.kind != "f":
        required = f"floating (C, {image.shape[0]}, {image.shape[1]}), the image's size"
        got = f"{probabilities.shape} {probabilities.dtype}; resize the image to the predictions"
        raise InputError(f"dense_crf: probabilities must be {required}, got {got}")
    low, sums = probabilities.min(), probabilities.sum(0, dtype=np.float32)
    rounding = 0.01 + len(probabilities) / 510  # what float16, or 256 steps per class, leave of a sum of 1
    if not (low >= 0 and np.abs(sums - 1).max() < rounding):  # NaN fails too
        got = f"a lowest value of {low:.3g} and sums from {sums.min():.3g} to {sums.max():.3g}"
        raise InputError(
            f"dense_crf: probabilities must be from 0 to 1 and sum to 1 over the classes, got {got}; "
            "pass the softmax, not logits"
        )

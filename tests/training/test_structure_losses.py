"""MS-SSIM and boundaries against their definitions, window by window in float64 NumPy."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view

from seglib.training.losses import build_loss


def example(height, width, block):
    """Two images of blocks of one class, with probabilities that follow them loosely.

    Of the first, most is ignored, of the second a hole; class 3 is absent from the truth.
    """
    g = torch.Generator().manual_seed(1)
    size = -(-height // block), -(-width // block)
    coarse = 2 * torch.randn(2, 5, *size, generator=g, dtype=torch.float64)
    mask = torch.randint(0, 5, (2, *size), generator=g, dtype=torch.uint8)
    mask[mask == 3] = 1
    mask[0, : 2 * size[0] // 3] = 255
    mask = mask.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :height, :width].clone()
    mask[1, 3:7, 4:9] = 255
    logits = F.interpolate(coarse, size=(height, width), mode="bilinear")
    return logits + 2 * F.one_hot((mask % 255).long(), 5).movedim(-1, 1), mask


def value(name, logits, mask, **options):
    return build_loss({name: options}, logits.shape[1])(logits, mask).item()


def softmax(logits):
    e = np.exp(logits.numpy() - logits.numpy().max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def ssim_maps(x, y, valid, size):
    """Windows with normalised weights, one by one: luminance, contrast and structure, and the share that is valid."""
    line = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * 1.5**2))
    weights = sliding_window_view(valid, (size, size)) * np.outer(line, line) / line.sum() ** 2
    maps = []
    for i, j in product(*map(range, weights.shape[:2])):
        share = weights[i, j].sum()
        if share > 0:
            w, a, b = weights[i, j] / share, x[i : i + size, j : j + size], y[i : i + size, j : j + size]
            ma, mb = (w * a).sum(), (w * b).sum()
            va, vb, cov = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
            luminance = (2 * ma * mb + 1e-4) / (ma**2 + mb**2 + 1e-4)
            maps.append((luminance, (2 * cov + 9e-4) / (va + vb + 9e-4), share))
    return np.array(maps).T


def halve(x, valid):
    """Mean of the valid pixels of each 2x2 block, and how much of it is valid."""

    def blocks(z):
        return z[: z.shape[0] // 2 * 2, : z.shape[1] // 2 * 2].reshape(z.shape[0] // 2, 2, z.shape[1] // 2, 2)

    share = blocks(valid).mean((1, 3))
    return np.divide(blocks(x * valid).mean((1, 3)), share, out=np.zeros_like(share), where=share > 0), share


def ms_ssim_loss(logits, mask, scales):
    size = min(11, (min(mask.shape[1:]) - 1) // 2 * 2 + 1)
    exponents = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    images = []
    for p, ids in zip(softmax(logits), mask.numpy(), strict=True):
        scores = []
        for c in np.unique(ids[ids != 255]):
            x, y, valid, score = p[c], (ids == c).astype(float), (ids != 255).astype(float), 1
            for scale, exponent in enumerate(exponents):
                luminance, structure, share = ssim_maps(x, y, valid, size)
                last = scale == scales - 1
                mean = np.average(structure * luminance if last else structure, weights=share)
                positive = mean if mean > 0.01 else 0.01 / (2 - mean / 0.01)
                score *= positive ** (exponent / exponents.sum())
                (x, _), (y, valid) = halve(x, valid), halve(y, valid)
            scores.append(score)
        images.append(1 - np.mean(scores))
    return np.mean(images)


def find_boundary(y, valid, theta0):
    """Largest difference to a valid neighbour that is less of the class, for each valid pixel."""
    r, found = theta0 // 2, np.zeros_like(y)
    for i, j in np.argwhere(valid):
        near = slice(max(i - r, 0), i + r + 1), slice(max(j - r, 0), j + r + 1)
        found[i, j] = y[i, j] - y[near][valid[near]].min()
    return found


def largest_near(b, theta):
    r = theta // 2
    return np.array(
        [
            [b[max(i - r, 0) : i + r + 1, max(j - r, 0) : j + r + 1].max() for j in range(b.shape[1])]
            for i in range(b.shape[0])
        ]
    )


def boundary_loss(logits, mask, theta0=3, theta=5):
    images = []
    for p, ids in zip(softmax(logits), mask.numpy(), strict=True):
        losses = []
        for c in np.unique(ids[ids != 255]):
            predicted = find_boundary(p[c], ids != 255, theta0)
            true = find_boundary((ids == c).astype(float), ids != 255, theta0)
            precision = (predicted * largest_near(true, theta)).sum() / predicted.sum()
            recall = (true * largest_near(predicted, theta)).sum() / true.sum()
            losses.append(1 - 2 * precision * recall / (precision + recall))
        images.append(np.mean(losses))
    return np.mean(images)


@pytest.mark.parametrize(
    ("height", "width", "scales", "used"),
    [(6, 9, 5, 1), (21, 30, 5, 1), (22, 30, 5, 2), (45, 47, 5, 3), (45, 47, 2, 2)],
)
def test_ms_ssim_equals_its_formula_at_the_scales_that_fit(height, width, scales, used):
    logits, mask = example(height, width, block=4 if height > 8 else 1)
    found = value("ms_ssim", logits, mask, scales=scales)
    assert found == pytest.approx(ms_ssim_loss(logits, mask, used), rel=1e-9)
    assert value("ms_ssim", logits.float(), mask, scales=scales) == pytest.approx(found, rel=1e-5)


def test_ms_ssim_of_opposite_structure_has_a_gradient_towards_the_truth():
    mask = (torch.arange(64)[None, :, None] // 4 % 2).expand(1, 64, 64)
    logits = -2 * F.one_hot(mask, 2).movedim(-1, 1).double()
    assert value("ms_ssim", logits, mask, scales=2) == pytest.approx(ms_ssim_loss(logits, mask, 2), rel=1e-9)
    logits = logits.float().requires_grad_()
    (gradient,) = torch.autograd.grad(build_loss({"ms_ssim": {"scales": 2}}, 2)(logits, mask), logits)
    assert (gradient * (2 * F.one_hot(mask, 2).movedim(-1, 1) - 1)).sum() < -1e-6


@pytest.mark.parametrize("options", [{}, {"theta0": 5, "theta": 3}, {"theta": 1}])
def test_boundary_equals_its_formula(options):
    for logits, mask in (example(6, 9, block=1), example(20, 23, block=4)):
        assert value("boundary", logits, mask, **options) == pytest.approx(
            boundary_loss(logits, mask, **options), rel=1e-12
        )


def test_boundary_forgives_a_shift_of_two_pixels_and_not_of_three():
    mask = torch.zeros(1, 32, 32, dtype=torch.uint8)
    mask[:, :, 12:] = 1
    for shift, expected in ((0, 0), (2, 0), (3, 1)):
        pred = mask.roll(shift, -1)[..., 3:]
        logits = 1000 * F.one_hot(pred.long(), 2).movedim(-1, 1).double()
        assert value("boundary", logits, mask[..., 3:]) == pytest.approx(expected, abs=1e-9)

"""Mixes of a batch with itself, on its device: mixup, cutmix, and snapmix, which the model's activations guide.

Every draw is made on the host, from (seed, epoch, step) alone; where the activations decide, they do so on the device by
integer arithmetic. So the device is never waited for, and the same batch gives the same mix on each machine.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from pydantic import Field
from torch import Tensor, nn

from seglib.parts import find_parts, read_choices, register
from seglib.training.device import autocast, choose_precision
from seglib.training.step import prepare_images

STREAM = 0x4D49  # beside (seed, epoch, step)
QUANTA = 2**20  # of an activation of 1: summed as integers, which CUDA does in the same way each time, unlike floats
AT_ONCE = 8  # images whose activations are computed together: with `accumulate` the whole batch may not fit

Targets = list[tuple[Tensor, float]]  # masks (N, H, W) and their shares, which sum to 1
Mixed = tuple[Tensor, Targets]
Mix = Callable[[Tensor, Tensor, int, int], Mixed]  # (images, masks, epoch, step)
Activation = Callable[[Tensor], Tensor]  # images (N, 3, H, W) uint8 -> (N, H, W) in 0..1


@register("mixing")
def mixup(
    images: Tensor,
    masks: Tensor,
    partner: np.ndarray,
    rng: Generator,
    *,
    alpha: Annotated[float, Field(gt=0, le=100)] = 0.4,
) -> Mixed:
    """Blend each image with its partner by one lambda of Beta(alpha, alpha), rounded to uint8; both masks are targets.

    The caller adds up share * loss: for cross entropy these are the soft targets, with each source's own ignored pixels.

    Source: Zhang et al. 2018, mixup: Beyond Empirical Risk Minimization, equation 1 and section 2.
    """
    share = float(rng.beta(alpha, alpha))
    blended = images * share + _take(images, partner) * (1 - share)
    return blended.round().to(torch.uint8), [(masks, share), (_take(masks, partner), 1 - share)]


@register("mixing")
def cutmix(
    images: Tensor,
    masks: Tensor,
    partner: np.ndarray,
    rng: Generator,
    *,
    alpha: Annotated[float, Field(gt=0, le=100)] = 1.0,
) -> Mixed:
    """Cover a box of each image, pixels and labels, by the same box of its partner.

    The box has the image's shape and 1 - lambda of its area, lambda of Beta(alpha, alpha); each image draws its own, and
    a place where it fits.

    Source: Yun et al. 2019, CutMix, equations 1 and 2. Labels are the pixels' own, so none are mixed.
    """
    images, masks, sources = images.clone(), masks.clone(), (images, masks)
    sides = _draw_sides(rng, alpha, masks.shape)
    corners = rng.integers(np.array(masks.shape[1:]) - sides + 1)
    for i, ((top, left), (height, width)) in enumerate(zip(corners.tolist(), sides.tolist(), strict=True)):
        box = ..., slice(top, top + height), slice(left, left + width)
        for canvas, source in zip((images, masks), sources, strict=True):
            canvas[i][box] = source[partner[i]][box]
    return images, [(masks, 1.0)]


@register("mixing")
def snapmix(
    images: Tensor,
    masks: Tensor,
    partner: np.ndarray,
    rng: Generator,
    activation: Activation,
    *,
    alpha: Annotated[float, Field(gt=0, le=100)] = 5.0,
) -> Mixed:
    """Cover a box of each image by a box of its partner of another size, resized: bilinear pixels, nearest labels.

    Both boxes have the image's shape and 1 - lambda of its area, each by a lambda of Beta(alpha, alpha). The partner's is
    centred on a pixel drawn in proportion to its activation a, the covered one on a pixel drawn in proportion to 1 - a,
    and both are moved into the image where they stick out.

    Source: Huang et al. 2021, SnapMix, section 3.2, for segmentation: there an image has one label, and the activations
    of its class say how much of it a box holds. Here every pixel brings its own label, so no shares are worked out, and
    they guide the boxes instead, which the paper draws uniformly.
    """
    height, width = masks.shape[1:]
    sides = np.stack([_draw_sides(rng, alpha, masks.shape) for _ in range(2)])
    sides, draws = _send(sides, masks.device), _send(rng.random((2, len(masks), 1)), masks.device)
    weights = activation(images).nan_to_num(0).clamp(0, 1)
    from_corner = _draw_corners(_take(weights, partner), sides[0], draws[0])
    to_corner = _draw_corners(1 - weights, sides[1], draws[1])
    ys, xs = (
        _trace(from_corner[:, axis], sides[0, :, axis], to_corner[:, axis], sides[1, :, axis], length)
        for axis, length in enumerate((height, width))
    )
    inside = ys.inside[:, :, None] & xs.inside[:, None, :]
    return _resample(images, masks, partner, inside, ys, xs)


BATCH_MIXES: dict[str, Callable[..., Mixed]] = {mix.__name__: mix for mix in (mixup, cutmix, snapmix)}


def mix_batch(
    images: Tensor,
    masks: Tensor,
    steps: Mapping[str, Mapping[str, Any]],
    *,
    seed: int,
    epoch: int,
    step: int,
    activation: Activation,
) -> Mixed:
    """Apply the first of the steps whose draw hits, one at most; each image's partner is drawn by permuting the batch.

    Parameters
    ----------
    images : (N, 3, H, W) uint8, not written to.
    masks : (N, H, W) uint8, not written to.
    steps : name in `BATCH_MIXES`, or of an own mix -> `p` (0.5 by default) and the function's keywords.
    activation : what guides snapmix, of the images: (N, H, W) in 0..1; called only for it.

    Returns
    -------
    Images uint8 in the memory format that came in, and [(masks, share), ...] with shares that sum to 1.
    """
    rng = np.random.default_rng([seed, epoch, step, STREAM])
    for name, options in steps.items():
        options = {"p": 0.5, **options}
        if rng.random() < options.pop("p"):
            if name == "snapmix":
                options["activation"] = activation
            if name not in BATCH_MIXES:
                images, masks = find_parts("mixing")[name].build(images, masks, rng, **options)
                return images, [(masks, 1.0)]
            return BATCH_MIXES[name](images, masks, rng.permutation(len(images)), rng, **options)
    return images, [(masks, 1.0)]


def build_batch_mixing(mixing: Mapping[str, Any], model: nn.Module, *, seed: int, precision: str) -> Mix | None:
    """Build the mixes of a batch with itself; None where none is named.

    Parameters
    ----------
    mixing : name -> probability or options, as in `mix_batch`; mixes of single samples are passed over.
    model : whose activations guide snapmix, computed in `precision`, see `choose_precision`.

    Returns
    -------
    A function of (images, masks, epoch, step), see `Mix`; its `draw_example(images, masks)` mixes a few to look at.

    Raises
    ------
    InputError
        A name or an option that is unknown.
    """
    parts, chosen = find_parts("mixing"), read_choices("mixing", mixing)
    steps = {name: options for name, options in chosen.items() if name in BATCH_MIXES or parts[name].own}
    if not steps:
        return None
    device = next(model.parameters()).device
    mix = partial(_mix_guided, steps, model, seed, choose_precision(precision, device))
    mix.built_from, mix.model = {"mixing": mixing, "seed": seed}, model
    mix.draw_example = partial(draw_example, mix, device)
    return mix


def draw_example(
    mix: Mix, device: torch.device, images: np.ndarray, masks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mix a few images as training will, with the first draw that changes them; of two masks that of the larger share.

    Parameters
    ----------
    images : (N, H, W, 3) uint8, and so is what is returned.
    masks : (N, H, W) uint8, and so is what is returned.
    """
    before = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
    for step in range(1, 33):
        after, targets = mix(before, torch.from_numpy(masks).to(device), 1, step)
        if not torch.equal(before, after):
            break
    shown, _ = max(targets, key=lambda target: target[1])
    return after.permute(0, 2, 3, 1).cpu().numpy(), shown.cpu().numpy()


def foreground_activation(model: nn.Module, images: Tensor) -> Tensor:
    """1 - p(background) of each pixel, (N, H, W) float32, with the model as it predicts: its statistics stay untouched.

    Autocast is the caller's. `images`: (N, 3, H, W) uint8.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with torch.inference_mode():
        background = torch.cat(
            [model(prepare_images(model, part)).float().softmax(1)[:, 0] for part in images.split(AT_ONCE)]
        )
    for module, training in modes.items():  # one by one: a part that was frozen in eval mode stays so
        module.training = training
    # Older torch keeps weights that autocast lowered here, without a gradient, for the training that follows in it.
    torch.clear_autocast_cache()
    return 1 - background


def _mix_guided(
    steps: Mapping, model: nn.Module, seed: int, precision: str, images: Tensor, masks: Tensor, epoch: int, step: int
) -> Mixed:
    def activation(images: Tensor) -> Tensor:
        with autocast(images.device, precision):
            return foreground_activation(model, images)

    return mix_batch(images, masks, steps, seed=seed, epoch=epoch, step=step, activation=activation)


def _take(batch: Tensor, partner: np.ndarray) -> Tensor:
    """batch[partner] from views: an index on the host would make the device wait for its transfer."""
    return torch.cat([batch[i : i + 1] for i in partner.tolist()])


def _send(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _draw_sides(rng: Generator, alpha: float, shape: torch.Size) -> np.ndarray:
    """(N, 2) heights and widths [px] of boxes with 1 - lambda of the area, at least one pixel."""
    shares = 1 - rng.beta(alpha, alpha, shape[0])
    return np.maximum(1, np.round(np.sqrt(shares)[:, None] * shape[1:]).astype(np.int64))


def _draw_corners(weights: Tensor, sides: Tensor, draws: Tensor) -> Tensor:
    """Top left corners (N, 2) of boxes centred on a pixel drawn in proportion to the weights (N, H, W) in 0..1.

    sides : (N, 2) int64. draws : (N, 1) float64 in [0, 1). Where all weights are 0 every pixel is as likely.
    """
    height, width = weights.shape[1:]
    sums = ((weights * QUANTA).long() + 1).flatten(1).cumsum(1)  # (N, H * W)
    drawn = torch.searchsorted(sums, (draws * sums[:, -1:]).long(), right=True).clamp(max=height * width - 1)
    centres = torch.cat([drawn.div(width, rounding_mode="floor"), drawn % width], 1)
    corners = (centres - sides // 2).clamp(min=0)
    limits = [length - sides[:, axis] for axis, length in enumerate((height, width))]
    return torch.minimum(corners, torch.stack(limits, 1))


class _Trace(NamedTuple):
    """Where the pixels of one axis come from, each (N, length): `inside` the covered box, `nearest` int64, `exact`."""

    inside: Tensor
    nearest: Tensor
    exact: Tensor


def _trace(source: Tensor, source_side: Tensor, target: Tensor, target_side: Tensor, length: int) -> _Trace:
    """Trace the pixels of boxes [target, target + target_side) back into [source, source + source_side); (N,) int64 all.

    Middles of pixels at the box's ends map half a pixel inside the source's ends, as in `F.interpolate`.
    """
    source, source_side, target, target_side = (x[:, None] for x in (source, source_side, target, target_side))
    offset = torch.arange(length, device=source.device) - target  # (N, length)
    inside = (offset >= 0) & (offset < target_side)
    doubled = (2 * offset + 1) * source_side
    nearest = torch.minimum(doubled.div(2 * target_side, rounding_mode="floor").clamp(min=0), source_side - 1)
    exact = torch.minimum((doubled / (2 * target_side) - 0.5).clamp(min=0), source_side - 1.0)
    return _Trace(inside, source + nearest, source + exact)


def _resample(images: Tensor, masks: Tensor, partner: np.ndarray, inside: Tensor, ys: _Trace, xs: _Trace) -> Mixed:
    """Put the partner's pixels at the traced places where `inside` (N, H, W)."""
    height, width = masks.shape[1:]
    rows = torch.arange(len(masks), device=masks.device)[:, None, None]
    labels = _take(masks, partner)[rows, ys.nearest[:, :, None], xs.nearest[:, None, :]]
    # grid_sample counts from -1 to 1 between the outer edges; going forward it is deterministic on CUDA.
    x, y = (2 * xs.exact + 1) / width - 1, (2 * ys.exact + 1) / height - 1
    grid = torch.stack([x[:, None, :].expand_as(inside), y[:, :, None].expand_as(inside)], -1).float()
    pixels = F.grid_sample(_take(images, partner).float(), grid, padding_mode="border", align_corners=False)
    pixels = pixels.round().clamp(0, 255).to(torch.uint8)
    mixed = torch.where(inside[:, None], pixels, images)
    return torch.empty_like(images).copy_(mixed), [(torch.where(inside, labels, masks), 1.0)]  # in the images' format

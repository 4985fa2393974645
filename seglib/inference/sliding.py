"""A large image predicted in overlapping windows of the model's own size, blended where they overlap."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seglib.errors import InputError, unknown_name
from seglib.inference.tta import STRIDE, Forward

BLENDS = ("gaussian", "linear")
DEFAULTS = {"overlap": 0.5, "blend": "gaussian"}
SPREAD = 1 / 8  # standard deviation of the Gaussian as a share of the window's side


def check_sliding(sliding: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """The options of sliding windows with their defaults; {} where there are none.

    Parameters
    ----------
    sliding : `size`, the side that images are opened at [px]; `overlap` of neighbouring windows as a share of their
        side (0.5); `blend`, how a window's logits count less towards its edges: gaussian (the default) or linear.
    image_size : side of a window, the model's own [px].

    Raises
    ------
    InputError
        An unknown name, or a value out of range.
    """
    if not sliding:
        return {}
    for name in sliding:
        if name not in ("size", *DEFAULTS):
            raise InputError(f"sliding: {unknown_name('entry', name, ('size', *DEFAULTS))}")
    options = DEFAULTS | dict(sliding)
    size, overlap = options.get("size"), options["overlap"]
    if isinstance(size, bool) or not isinstance(size, int) or size < image_size or size % STRIDE:
        raise InputError(
            f"sliding: size must be a multiple of {STRIDE} of at least {image_size} px (a window), got {size!r}"
        )
    if isinstance(overlap, bool) or not isinstance(overlap, int | float) or not 0 <= overlap < 0.95:
        raise InputError(f"sliding: overlap must be a number from 0 to 0.95, got {overlap!r}")
    if options["blend"] not in BLENDS:
        raise InputError(f"sliding: {unknown_name('blend', options['blend'], BLENDS)}")
    return options


def slide(forward: Forward, window: int, overlap: float, blend: str, images: Tensor) -> Tensor:
    """Logits (N, C, S, S) float32 of images (N, 3, S, S): the weighted mean of the windows that see a pixel."""
    side = images.shape[-1]
    window = min(window, side)
    weight = window_weights(window, blend).to(images.device)
    total, weights = None, torch.zeros(side, side, device=images.device)
    starts = find_starts(side, window, overlap)
    for top in starts:
        for left in starts:
            place = (..., slice(top, top + window), slice(left, left + window))
            logits = forward(images[place].contiguous(memory_format=torch.channels_last)).float()
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], side, side)
            total[place] += logits * weight
            weights[place] += weight
    return total / weights


def find_starts(side: int, window: int, overlap: float) -> list[int]:
    """First pixels of windows along a side, evenly spread from edge to edge, overlapping by at least `overlap`."""
    step = max(1, int(window * (1 - overlap)))
    steps = -(-(side - window) // step)
    return [round(number * (side - window) / steps) for number in range(steps + 1)] if steps else [0]


def window_weights(window: int, blend: str) -> Tensor:
    """(W, W) float32 above 0, symmetrical, highest in the middle."""
    distance = (torch.arange(window, dtype=torch.float32) + 0.5 - window / 2).abs()
    if blend == "gaussian":
        line = torch.exp(-0.5 * (distance / (window * SPREAD)) ** 2)
    else:
        line = 1 - distance / (window / 2 + 0.5)
    return line[:, None] * line[None, :]

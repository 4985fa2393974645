"""Test-time augmentation: an image predicted flipped, turned and scaled; the predictions turned back and merged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch.nn.functional as F
from torch import Tensor, channels_last

from seglib.errors import InputError, unknown_name

Forward = Callable[[Tensor], Tensor]
# A flip as (mirrored left to right, then quarter turns): with the rotations, eight ways to lay a square.
FLIPS = {"none": (False, 0), "horizontal": (True, 0), "vertical": (True, 2), "both": (False, 2)}
ROTATIONS = (0, 90, 180, 270)
MERGES = ("mean", "logits")
PLAIN = {"flips": ["none"], "rotations": [0], "scales": [1.0]}
STRIDE = 32  # [px], what sides of images are multiples of


@dataclass(frozen=True)
class View:
    """One way to look at an image: scaled to `side` [px], mirrored left to right, turned counter-clockwise."""

    mirrored: bool
    quarter_turns: int
    side: int

    def __str__(self) -> str:
        turned = ["mirrored"] * self.mirrored + [f"rot{90 * self.quarter_turns}"] * bool(self.quarter_turns)
        return f"{'+'.join(turned) or 'plain'}@{self.side}"


def build_views(tta: Mapping[str, Any] | Sequence[Mapping[str, Any]], image_size: int) -> list[View]:
    """The views that `tta` names, each once.

    Parameters
    ----------
    tta : lists of `flips` (none, horizontal, vertical, both), `rotations` (0, 90, 180, 270) and `scales` (such as 0.75),
        of which every combination is a view; what is left out is [none], [0], [1.0]. Or a list of such mappings, whose
        views are put together. Empty: the plain view alone.
    image_size : side of the image at scale 1 [px]; scaled sides are rounded to multiples of 32.

    Raises
    ------
    InputError
        An unknown name, or a scale that is no number in 0.1 to 4.
    """
    specs = [tta] if isinstance(tta, Mapping) else list(tta) or [{}]
    views = [view for spec in specs for view in _build_product(spec, image_size)]
    return list(dict.fromkeys(views))


def merge_views(forward: Forward, images: Tensor, views: Sequence[View], merge: str) -> Tensor:
    """Probabilities (N, C, S, S) float32 of images (N, 3, S, S) uint8.

    Parameters
    ----------
    forward : images -> logits (N, C, H, W) of the same sides.
    merge : "mean" of the views' probabilities, or of their "logits", which is their normalised geometric mean.
    """
    total = None
    for view in views:
        logits = predict_view(forward, images, view)
        scores = logits.softmax(dim=1) if merge == "mean" else logits
        total = scores if total is None else total.add_(scores)
    if len(views) > 1:
        total = total / len(views)
    return total if merge == "mean" else total.softmax(dim=1)


def predict_view(forward: Forward, images: Tensor, view: View) -> Tensor:
    """Logits (N, C, S, S) float32 of one view, turned and scaled back."""
    side = images.shape[-1]
    logits = undo_turns(forward(apply_turns(scale_images(images, view.side), view)).float(), view)
    if view.side == side:
        return logits
    return F.interpolate(logits, (side, side), mode="bilinear", antialias=view.side > side)


def apply_turns(images: Tensor, view: View) -> Tensor:
    """Mirror and turn (..., S, S); `images` itself where there is nothing to do."""
    if view.mirrored:
        images = images.flip(-1)
    if view.quarter_turns:
        images = images.rot90(view.quarter_turns, (-2, -1))
    return images.contiguous(memory_format=channels_last) if view.mirrored or view.quarter_turns else images


def undo_turns(logits: Tensor, view: View) -> Tensor:
    """What `apply_turns` did, backwards: exact."""
    if view.quarter_turns:
        logits = logits.rot90(-view.quarter_turns, (-2, -1))
    return logits.flip(-1) if view.mirrored else logits


def scale_images(images: Tensor, side: int) -> Tensor:
    """(N, 3, S, S) uint8 -> (N, 3, side, side) uint8, linear, with a filter as wide as the step where it shrinks."""
    if images.shape[-1] == side:
        return images
    scaled = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).to(images.dtype).contiguous(memory_format=channels_last)


def _build_product(spec: Mapping[str, Any], image_size: int) -> list[View]:
    if not isinstance(spec, Mapping):
        raise InputError(f"tta: required lists by name (flips, rotations, scales), or a list of such, got {spec!r}")
    for name in spec:
        if name not in PLAIN:
            raise InputError(f"tta: {unknown_name('entry', name, PLAIN)}")
    flips, rotations, scales = (_as_list(name, spec.get(name, plain)) for name, plain in PLAIN.items())
    return [
        View(*_turn(flip, rotation), _scaled_side(scale, image_size))
        for scale, flip, rotation in product(scales, flips, rotations)
    ]


def _as_list(name: str, values: Any) -> list:
    if not isinstance(values, list | tuple) or not values:
        raise InputError(f"tta: {name} must be a list with an entry at least, got {values!r}; such as {PLAIN[name]}")
    return list(values)


def _turn(flip: str, rotation: int) -> tuple[bool, int]:
    if not isinstance(flip, str) or flip not in FLIPS:
        raise InputError(f"tta: {unknown_name('flip', flip, FLIPS)}")
    if isinstance(rotation, bool) or rotation not in ROTATIONS:
        raise InputError(f"tta: {unknown_name('rotation', rotation, map(str, ROTATIONS))}")
    mirrored, turns = FLIPS[flip]
    return mirrored, (turns + int(rotation) // 90) % 4


def _scaled_side(scale: float, image_size: int) -> int:
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0.1 <= scale <= 4:
        raise InputError(f"tta: a scale must be a number from 0.1 to 4, got {scale!r}")
    return image_size if scale == 1 else max(STRIDE, round(image_size * scale / STRIDE) * STRIDE)

"""How an image is looked at: flipped, turned, scaled, in windows; the predictions put back and merged."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, channels_last

from seglib.errors import InputError, require_known
from seglib.inference.stores import DTYPES
from seglib.parameters import Number, Whole
from seglib.parts import check_options

# A flip as (mirrored left to right, then quarter turns): with the rotations, eight ways to lay a square.
FLIPS = {"none": (False, 0), "horizontal": (True, 0), "vertical": (True, 2), "both": (False, 2)}
PLAIN = {"flips": ["none"], "rotations": [0], "scales": [1.0]}
TTA = {  # what may stand for each of these
    "flips": Annotated[list[Literal["none", "horizontal", "vertical", "both"]], Field(min_length=1)],
    "rotations": Annotated[list[Annotated[Whole, Field(ge=0, le=270, multiple_of=90)]], Field(min_length=1)],
    "scales": Annotated[list[Annotated[Number, Field(ge=0.1, le=4)]], Field(min_length=1)],
}
CHOICES = {"merge": ("mean", "logits"), "dtype": DTYPES}
STRIDE = 32  # [px], what sides of images are multiples of
LARGEST = 4096  # [px]
WINDOWS = {"overlap": 0.5, "blend": "gaussian"}
SLIDING = {
    "size": Any, "overlap": Annotated[Number, Field(ge=0, lt=0.95)], "blend": Literal["gaussian", "linear"]
}  # fmt: skip
SPREAD = 1 / 8  # standard deviation of the Gaussian as a share of the window's side
Forward = Callable[[Tensor], Tensor]


class View(NamedTuple):
    """One way to look at an image: scaled to `side` [px], mirrored left to right, turned counter-clockwise."""

    mirrored: bool
    quarter_turns: int
    side: int

    def __str__(self) -> str:
        turned = ["mirrored"] * self.mirrored + [f"rot{90 * self.quarter_turns}"] * bool(self.quarter_turns)
        return f"{'+'.join(turned) or 'plain'}@{self.side}"


def check_request(
    image_size: int, *, merge: str, size: int, dtype: str, tta: Any, sliding: Mapping[str, Any]
) -> tuple[list[View], dict[str, Any]]:
    """Views, and all that is asked for in texts and numbers: two requests that give the same bytes are equal."""
    for (name, choices), value in zip(CHOICES.items(), (merge, dtype), strict=True):
        require_known(name, value, choices, "predict_run")
    size = size or image_size
    if not 1 <= size <= LARGEST:
        raise InputError(f"predict_run: size must be 1 to {LARGEST} px, or 0 for the model's {image_size}, got {size}")
    sliding = check_sliding(sliding, image_size)
    side = sliding.get("size", image_size)
    views = build_views(tta, side)
    return views, {
        "merge": merge if len(views) > 1 else "mean",
        "size": size,
        "resize": "smooth" if size > side else "nearest",
        "dtype": dtype,
        "tta": [str(view) for view in views],
        "sliding": sliding,
    }


def compute_probabilities(
    forward: Forward, images: Tensor, views: Sequence[View], request: Mapping[str, Any], window: int
) -> Tensor:
    """(N, C, size, size) float32 of images (N, 3, side, side) uint8; `window` is the model's own side [px]."""
    if sliding := request["sliding"]:
        forward = partial(slide, forward, window, sliding["overlap"], sliding["blend"])
    return resize_probabilities(merge_views(forward, images, views, request["merge"]), request["size"])


def resize_probabilities(probabilities: Tensor, size: int) -> Tensor:
    """(N, C, S, S) -> (N, C, size, size), see `predict_run`; to a whole fraction of S, [..., ::k, ::k]."""
    side = probabilities.shape[-1]
    if size > side:
        return F.interpolate(probabilities, (size, size), mode="bilinear", antialias=True)
    index = torch.arange(size, device=probabilities.device) * side // size
    return probabilities if size == side else probabilities[:, :, index][..., index]


def quantise(probabilities: Tensor, dtype: str) -> Tensor:
    """(N, C, S, S) float32 in 0..1 -> float16, or uint8 255 p rounded with its argmax kept, see `predict_run`."""
    if dtype == "float16":
        return probabilities.half()
    top = probabilities.argmax(dim=1, keepdim=True)
    stored = (probabilities * 255).round().to(torch.uint8)
    lost = stored.argmax(dim=1, keepdim=True) != top
    classes = torch.arange(stored.shape[1], device=top.device).view(1, -1, 1, 1)
    return stored + (lost & (classes == top)).to(torch.uint8)


# Test-time augmentation: an image predicted flipped, turned and scaled; the predictions turned back and merged.


def build_views(tta: Mapping[str, Any] | Sequence[Mapping[str, Any]], image_size: int) -> list[View]:
    """The views that `tta` names, each once.

    Parameters
    ----------
    tta : lists of `flips` (none, horizontal, vertical, both), `rotations` (0, 90, 180, 270) and `scales` (such as 0.75),
        of which every combination is a view; what is left out is [none], [0], [1.0]. Or a list of such mappings, whose
        views are put together. Empty: the plain view alone.
    image_size : side of the image at scale 1 [px]; scaled sides are rounded to multiples of 32.
    """
    specs = [tta] if isinstance(tta, Mapping) else list(tta) or [{}]
    views: dict[View, None] = {}
    for spec in specs:
        if not isinstance(spec, Mapping):
            raise InputError(f"tta: required lists by name (flips, rotations, scales), or a list of such, got {spec!r}")
        given = PLAIN | check_options("tta", spec, TTA)
        for scale, flip, rotation in product(given["scales"], given["flips"], given["rotations"]):
            mirrored, turns = FLIPS[flip]
            side = image_size if scale == 1 else max(STRIDE, round(image_size * scale / STRIDE) * STRIDE)
            views[View(mirrored, (turns + rotation // 90) % 4, side)] = None
    return list(views)


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


# A large image predicted in overlapping windows of the model's own size, blended where they overlap.


def check_sliding(sliding: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """The options of sliding windows with their defaults; {} where there are none.

    Parameters
    ----------
    sliding : `size`, the side that images are opened at [px]; `overlap` of neighbouring windows as a share of their
        side (0.5); `blend`, how a window's logits count less towards its edges: gaussian (the default) or linear.
    image_size : side of a window, the model's own [px].
    """
    if not sliding:
        return {}
    check_options("sliding", sliding, SLIDING)
    size = sliding.get("size")
    if isinstance(size, bool) or not isinstance(size, int) or size < image_size or size % STRIDE:
        raise InputError(
            f"sliding: size must be a multiple of {STRIDE} of at least {image_size} px (a window), got {size!r}"
        )
    return WINDOWS | dict(sliding)


def slide(forward: Forward, window: int, overlap: float, blend: str, images: Tensor) -> Tensor:
    """Logits (N, C, S, S) float32 of images (N, 3, S, S): the weighted mean of the windows that see a pixel."""
    side = images.shape[-1]
    window = min(window, side)
    weight = window_weights(window, blend).to(images.device)
    total, weights = None, torch.zeros(side, side, device=images.device)
    for top, left in product(find_starts(side, window, overlap), repeat=2):
        place = (..., slice(top, top + window), slice(left, left + window))
        logits = forward(images[place].contiguous(memory_format=channels_last)).float()
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

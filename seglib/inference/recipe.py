"""From images to stored probabilities: which views of an image are predicted, how they are merged, resized and rounded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seglib.errors import InputError, unknown_name
from seglib.inference.predict import MERGES, View, build_views, check_sliding, merge_views, slide
from seglib.inference.probability_store import DTYPES

RESIZES = ("nearest", "smooth")
LARGEST = 4096  # [px]


@dataclass(frozen=True)
class Recipe:
    """What is asked for, checked; two that give the same bytes are equal. See `predict_run` for the meaning.

    Attributes
    ----------
    window : the model's own side [px]
    views : at least one
    sliding : {}, or with every option
    size : side of what is stored [px]
    """

    window: int
    views: tuple[View, ...]
    merge: str
    sliding: Mapping[str, Any]
    size: int
    resize: str
    dtype: str

    @property
    def side(self) -> int:
        """Side that images are opened at [px]."""
        return self.sliding.get("size", self.window)

    def describe(self) -> dict[str, Any]:
        """In texts and numbers, for a store's facts."""
        names = ("merge", "size", "resize", "dtype")
        return {name: getattr(self, name) for name in names} | {
            "tta": [str(view) for view in self.views],
            "sliding": dict(self.sliding),
        }


def check_recipe(
    image_size: int,
    tta: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    merge: str,
    sliding: Mapping[str, Any],
    size: int,
    resize: str,
    dtype: str,
) -> Recipe:
    """Build a recipe for a model of `image_size` [px]; the parameters are those of `predict_run`.

    Raises
    ------
    InputError
        Unknown names or values out of range.
    """
    for name, value, choices in (("merge", merge, MERGES), ("resize", resize, RESIZES), ("dtype", dtype, DTYPES)):
        if value not in choices:
            raise InputError(f"predict_run: {unknown_name(name, value, choices)}")
    size = size or image_size
    if not 1 <= size <= LARGEST:
        raise InputError(f"predict_run: size must be 1 to {LARGEST} px, or 0 for the model's {image_size}, got {size}")
    sliding = check_sliding(sliding, image_size)
    side = sliding.get("size", image_size)
    views = tuple(build_views(tta, side))
    return Recipe(
        window=image_size,
        views=views,
        merge=merge if len(views) > 1 else "mean",
        sliding=sliding,
        size=size,
        resize="smooth" if size > side else "nearest" if size == side else resize,
        dtype=dtype,
    )


def compute_probabilities(recipe: Recipe, model: nn.Module, images: Tensor) -> Tensor:
    """(N, C, size, size) float32 of images (N, 3, side, side) uint8."""
    forward = model
    if recipe.sliding:
        forward = partial(slide, model, recipe.window, recipe.sliding["overlap"], recipe.sliding["blend"])
    probabilities = merge_views(forward, images, recipe.views, recipe.merge)
    return resize_probabilities(probabilities, recipe.size, recipe.resize)


def resize_probabilities(probabilities: Tensor, size: int, resize: str) -> Tensor:
    """(N, C, S, S) -> (N, C, size, size), see `predict_run`; a whole factor k and "nearest" give [..., ::k, ::k]."""
    side = probabilities.shape[-1]
    if side == size:
        return probabilities
    if resize == "smooth":
        return F.interpolate(probabilities, (size, size), mode="bilinear", antialias=True)
    index = torch.arange(size, device=probabilities.device) * side // size
    return probabilities[:, :, index][..., index]


def quantise(probabilities: Tensor, dtype: str) -> Tensor:
    """(N, C, S, S) float32 in 0..1 -> float16, or uint8 255 p rounded with its argmax kept, see `predict_run`."""
    if dtype == "float16":
        return probabilities.half()
    top = probabilities.argmax(dim=1, keepdim=True)
    stored = (probabilities * 255).round().to(torch.uint8)
    lost = stored.argmax(dim=1, keepdim=True) != top
    classes = torch.arange(stored.shape[1], device=top.device).view(1, -1, 1, 1)
    return stored + (lost & (classes == top)).to(torch.uint8)

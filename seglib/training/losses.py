"""Training losses: weighted mixtures of terms.

Every term is a function `(logits (N, C, H, W), target (N, H, W), weight (N, H, W)) -> scalar`, where `target` holds a
class id in 0..C-1 everywhere and `weight` is 0 where the pixel is ignored, 1 elsewhere. Options of a term are keywords
after these three.

Targets are class ids even where images are mixed: the caller adds up share * loss(logits, mask) over the (mask, share)
pairs of the mixture, which for cross entropy is the loss of the soft targets.

Only softmax, log-softmax, pooling and convolution are delegated to torch: its cross entropy is not deterministic on
CUDA for (N, C, H, W) and 8 times slower on a CPU for (N*H*W, C). smp 0.6's losses let ignored pixels dilute the mean
or raise by default (soft cross entropy), give NaN where all are ignored (focal), or cannot ignore any (Jaccard).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from seglib.errors import InputError, unknown_name
from seglib.parts import find_parts, read_choices
from seglib.training import loss_terms  # noqa: F401  registers the shipped terms

# Class weights of a loss, by name or from the data.


def resolve_class_weights(
    name: str, value: str | Mapping[str, float], class_names: Sequence[str], class_pixels: ArrayLike | None
) -> Tensor | str:
    """Turn a term's `class_weights`, checked, into a (C,) float64 tensor, or "" for none.

    "balanced": n / (k n_c) over the k classes present in the data, as in scikit-learn; an absent class gets 0. By name:
    the classes that are not named get 1.
    """
    where = f"loss [{name}.class_weights]"
    if isinstance(value, Mapping):
        return torch.tensor(_weights_by_name(where, value, class_names), dtype=torch.float64)
    if value == "balanced":
        return torch.from_numpy(_balanced_weights(where, class_pixels))
    return ""


def check_class_data(num_classes: int, class_names: Sequence[str], class_pixels: ArrayLike | None) -> None:
    """Refuse names and counts that do not belong to `num_classes` classes."""
    if len(class_names) not in (0, num_classes):
        raise InputError(f"loss: class_names must be {num_classes} names, got {len(class_names)}; pass the data's.")
    if class_pixels is None:
        return
    counts = np.asarray(class_pixels)
    if counts.shape != (num_classes,) or not np.isfinite(counts).all() or (counts < 0).any():
        raise InputError(
            f"loss: class_pixels must be {num_classes} finite counts >= 0, got {counts.tolist()}; "
            "count the pixels of each class in the training masks."
        )


def _weights_by_name(where: str, weights: Mapping[str, float], class_names: Sequence[str]) -> list[float]:
    for name in weights:
        if name not in class_names:
            raise InputError(f"{where}: {unknown_name('class', name, class_names)}")
    resolved = [float(weights.get(name, 1)) for name in class_names]
    if not any(resolved):
        raise InputError(f"{where}: at least one class must have a weight > 0, got {dict(weights)}; leave one out.")
    return resolved


def _balanced_weights(where: str, class_pixels: ArrayLike | None) -> np.ndarray:
    counts = np.zeros(0) if class_pixels is None else np.asarray(class_pixels, np.float64)
    if not counts.any():
        raise InputError(f'{where}: balanced needs the pixels of each class, got none; pass class_pixels, or "".')
    scale = counts.sum() / np.count_nonzero(counts)
    return np.divide(scale, counts, out=np.zeros_like(counts), where=counts > 0)


def build_loss(
    terms: Mapping[str, float | Mapping[str, Any]],
    num_classes: int,
    ignore_index: int = 255,
    *,
    class_names: Sequence[str] = (),
    class_pixels: ArrayLike | None = None,
) -> nn.Module:
    """Build the weighted sum of loss terms, for example `{"cross_entropy": 0.9, "focal": {"weight": 0.1, "gamma": 3}}`.

    Parameters
    ----------
    terms
        By name, shipped (`python -m seglib list loss`) or registered by you: a finite weight >= 0, or a mapping of `weight` (1 by default) and the term's options, its
        keywords. At least one weight is > 0; they need not sum to 1. The option `class_weights` is "" (none),
        "balanced" (n / (k n_c) over the k classes in the data) or a mapping of class names to weights >= 0 (others 1).
    num_classes
        Channels of the logits, background included, 2 to 256.
    ignore_index
        Mask id that takes no part in any term.
    class_names
        (C,) names, for class weights by name.
    class_pixels
        (C,) pixels of each class in the training masks, for balanced class weights.

    Returns
    -------
    nn.Module
        `loss(logits, mask) -> scalar`. `logits` (N, C, H, W) floating point, float16 and bfloat16 are computed in
        float32; `mask` (N, H, W) integer ids. With every pixel ignored the loss is 0, and so are its gradients.

    Raises
    ------
    InputError
        Here: an unknown name, or weights, options or class data that cannot be used. When called: shapes or ids that do
        not fit. On a GPU only the first batch's ids are checked, since each check waits for the GPU.
    """
    if not 2 <= num_classes <= 256:
        raise InputError(f"loss: num_classes must be 2 to 256 (masks are uint8), got {num_classes}.")
    check_class_data(num_classes, class_names, class_pixels)
    weighted, parts = [], find_parts("loss")
    for name, options in read_choices("loss", terms).items():
        weight = options.pop("weight", 1.0)
        if "class_weights" in options:
            options["class_weights"] = resolve_class_weights(name, options["class_weights"], class_names, class_pixels)
        if weight > 0:
            term = (_build_own if parts[name].own else partial)(parts[name].build, **options)
            weighted.append((float(weight), term))
    if not weighted:
        raise InputError(f"loss: at least one weight must be > 0, got {dict(terms)}; try cross_entropy: 1.0.")
    mixture = Mixture(weighted, num_classes, ignore_index)
    mixture.built_from = {"loss": terms}
    return mixture


def _build_own(loss: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    """A registered loss as a term; its targets are int64, as torch's own losses want them."""

    def term(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        value = loss(logits, target.long(), weight, **options)
        if not isinstance(value, Tensor) or value.ndim:
            got = f"one of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"loss.{loss.__name__} must return a scalar tensor, got {got}; average it over valid pixels"
            )
        return value

    return term


class Mixture(nn.Module):
    """The weighted sum that `build_loss` returns; see there."""

    def __init__(self, terms: list[tuple[float, Callable[..., Tensor]]], num_classes: int, ignore_index: int):
        super().__init__()
        self.terms, self.num_classes, self.ignore_index = terms, num_classes, ignore_index
        self.ids_checked = False

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        _check_shapes(logits, mask, self.num_classes)
        # Half precision cannot add up a million pixels, and autocast would lower the convolutions of ms_ssim to it.
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            valid = mask != self.ignore_index
            target = mask * valid  # ignored pixels point at class 0 with weight 0
            if not self.ids_checked or not mask.is_cuda:
                _check_ids(target, self.num_classes, self.ignore_index)
                self.ids_checked = True
            return sum(factor * term(logits, target, valid.to(logits.dtype)) for factor, term in self.terms)


def _check_shapes(logits: Tensor, mask: Tensor, num_classes: int) -> None:
    n, _, *size = logits.shape if logits.ndim == 4 else (0, 0)
    expected = (n, num_classes, *size), (n, *size)
    if logits.ndim != 4 or (tuple(logits.shape), tuple(mask.shape)) != expected:
        raise InputError(
            f"loss: logits must be (N, {num_classes}, H, W) and the mask (N, H, W), got {tuple(logits.shape)} and "
            f"{tuple(mask.shape)}; check num_classes of the model, and that image and mask are resized alike."
        )
    if not logits.is_floating_point() or mask.is_floating_point() or mask.dtype == torch.bool:
        raise InputError(
            f"loss: logits must be floating point and the mask integer ids, got {logits.dtype} and {mask.dtype}; "
            "give logits, not argmax (it has no gradient), and the mask as loaded."
        )


def _check_ids(target: Tensor, num_classes: int, ignore_index: int) -> None:
    """Refuse ids that are no class: on a GPU gather aborts the process, and a one-hot drops them silently."""
    if target.numel() == 0:
        return
    low, high = torch.stack(target.aminmax()).tolist()
    if low < 0 or high >= num_classes:
        raise InputError(
            f"loss: mask ids must be 0 to {num_classes - 1} or ignore_index={ignore_index}, "
            f"got {low if low < 0 else high}; check num_classes, or the categories of the annotation file."
        )

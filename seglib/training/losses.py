"""Training losses: four terms over valid pixels, and weighted mixtures of them.

Every term is a function `(logits (N, C, H, W), target (N, H, W), weight (N, H, W)) -> scalar`, where `target` holds a
class id in 0..C-1 everywhere and `weight` is 0 where the pixel is ignored, 1 elsewhere. Options of a term are keywords
after these three.

Only softmax and log-softmax are delegated to torch: its cross entropy is not deterministic on CUDA for (N, C, H, W) and
8 times slower on a CPU for (N*H*W, C). smp 0.6's losses let ignored pixels dilute the mean or raise by default (soft
cross entropy), give NaN where all are ignored (focal), or cannot ignore any (Jaccard).
"""

import math
from collections.abc import Mapping
from numbers import Real

import torch
from torch import Tensor, nn

from seglib.errors import InputError, unknown_name

# [pixels] keeps 0/0 of a class that is neither predicted nor present finite. Such classes are left out of the mean, and
# beside one true pixel it is below float32's precision: the overlaps of the classes that count are not smoothed.
SMOOTH = 1e-7


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean over valid pixels of -log p_y, in nats."""
    return _mean(-_at_target(logits.log_softmax(1), target), weight)


def focal(logits: Tensor, target: Tensor, weight: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean over valid pixels of (1 - p_y)^gamma * -log p_y, with p the softmax over classes; gamma >= 0.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, equation 4, for softmax; gamma = 0 is cross entropy.
    """
    log_p = _at_target(logits.log_softmax(1), target)
    # The floor keeps (1 - p)^(gamma - 1), which the derivative needs, finite where p rounds to 1.
    wrongness = (1 - log_p.exp()).clamp_min(torch.finfo(log_p.dtype).tiny)
    return _mean(wrongness**gamma * -log_p, weight)


def dice(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - mean over present classes of 2 I / (P + T): see `_soft_overlap`.

    Source: Milletari et al. 2016, V-Net, with the denominator not squared, as in smp's DiceLoss("multiclass").
    """
    intersection, predicted, true = _soft_overlap(logits, target, weight)
    score = (2 * intersection + SMOOTH) / (predicted + true + SMOOTH)
    return _mean(1 - score, (true > 0).to(score.dtype))


def jaccard(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - mean over present classes of I / (P + T - I): see `_soft_overlap`.

    Source: Rahman and Wang 2016, Optimizing Intersection-Over-Union in Deep Neural Networks, equation 3, a class at a
    time.
    """
    intersection, predicted, true = _soft_overlap(logits, target, weight)
    score = (intersection + SMOOTH) / (predicted + true - intersection + SMOOTH)
    return _mean(1 - score, (true > 0).to(score.dtype))


LOSSES = {"cross_entropy": cross_entropy, "focal": focal, "dice": dice, "jaccard": jaccard}


def build_loss(weights: Mapping[str, float], num_classes: int, ignore_index: int = 255) -> nn.Module:
    """Build the weighted sum of loss terms, for example `{"cross_entropy": 0.9, "focal": 0.1}`.

    Parameters
    ----------
    weights
        Finite weights >= 0 by name in `LOSSES`; at least one is > 0. They need not sum to 1.
    num_classes
        Channels of the logits, background included, 2 to 256.
    ignore_index
        Mask id that takes no part in any term.

    Returns
    -------
    nn.Module
        `loss(logits, mask) -> scalar`. `logits` (N, C, H, W) floating point, float16 and bfloat16 are computed in
        float32; `mask` (N, H, W) integer ids. With every pixel ignored the loss is 0, and so are its gradients.

    Raises
    ------
    InputError
        Here: an unknown name, or weights that cannot be used. When called: shapes or ids that do not fit.
    """
    if not 2 <= num_classes <= 256:
        raise InputError(f"loss: num_classes must be 2 to 256 (masks are uint8), got {num_classes}.")
    _check_weights(weights)
    terms = [(float(weight), LOSSES[name]) for name, weight in weights.items() if weight > 0]
    return _Mixture(terms, num_classes, ignore_index)


class _Mixture(nn.Module):
    def __init__(self, terms: list, num_classes: int, ignore_index: int):
        super().__init__()
        self.terms, self.num_classes, self.ignore_index = terms, num_classes, ignore_index

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        _check_shapes(logits, mask, self.num_classes)
        # Half precision cannot add up a million pixels. Autocast lifts some of the terms' operations, not all.
        logits = logits if logits.dtype == torch.float64 else logits.float()
        valid = mask != self.ignore_index
        target = mask * valid  # ignored pixels point at class 0 with weight 0
        _check_ids(target, self.num_classes, self.ignore_index)
        return sum(factor * term(logits, target, valid.to(logits.dtype)) for factor, term in self.terms)


def _at_target(values: Tensor, target: Tensor) -> Tensor:
    """Pick each pixel's value of its target class, (N, C, H, W) -> (N, H, W); its backward can be deterministic."""
    return values.gather(1, target.long()[:, None])[:, 0]


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean; 0 where all weights are 0."""
    return (values * weight).sum() / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)


def _soft_overlap(logits: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per class over the valid pixels of the whole batch: sum of p where true (I), sum of p (P), true pixels (T); (C,).

    The one-hot target is as large as the logits. Adding up p_y by class id without it is 20 % faster on a CPU, but its
    order of additions on a GPU changes from call to call.
    """
    p, weight = logits.softmax(1), weight[:, None]
    classes = torch.arange(p.shape[1], device=target.device).to(target.dtype)[:, None, None]
    one_hot = (target[:, None] == classes) * weight  # (N, C, H, W), all zero where ignored
    return tuple(x.sum((0, 2, 3)) for x in (p * one_hot, p * weight, one_hot))


def _check_weights(weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if name not in LOSSES:
            raise InputError(f"loss: {unknown_name('loss', name, LOSSES)}")
        if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 <= weight < math.inf:
            raise InputError(f"loss [{name}]: its weight must be finite and >= 0, got {weight!r}; try {name}: 1.0.")
    if not any(weight > 0 for weight in weights.values()):
        raise InputError(f"loss: at least one weight must be > 0, got {dict(weights)}; try cross_entropy: 1.0.")


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
    """Refuse ids that are no class: on a GPU gather aborts the process, and a one-hot drops them silently.

    This waits for the GPU once a step, as the gradient scaler does.
    """
    if target.numel() == 0:
        return
    low, high = torch.stack(target.aminmax()).tolist()
    if low < 0 or high >= num_classes:
        raise InputError(
            f"loss: mask ids must be 0 to {num_classes - 1} or ignore_index={ignore_index}, "
            f"got {low if low < 0 else high}; check num_classes, or the categories of the annotation file."
        )

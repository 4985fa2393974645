"""What a user writes for a loss term, checked: its weight, its options, and class weights by name or from the data."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from seglib.errors import InputError, unknown_name

# Lowest and highest value of the numeric options, by term.
LIMITS: dict[str, dict[str, tuple[float, float]]] = {
    "cross_entropy": {"label_smoothing": (0, 1)},
    "label_smoothing": {"smoothing": (0, 1)},
    "focal": {"gamma": (0, 100)},
    "tversky": {"alpha": (0, 100), "beta": (0, 100)},
    "focal_tversky": {"alpha": (0, 100), "beta": (0, 100), "gamma": (0.01, 100)},  # at 0 it would be constant
    "ms_ssim": {"scales": (1, 5)},
    "boundary": {"theta0": (3, 99), "theta": (1, 99)},
    "ohem": {"threshold": (0, 1), "min_kept": (0, 1)},
}
ODD = ("theta0", "theta")  # windows with a pixel in the middle


def read_term(name: str, term: float | Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """Split a term, a weight or a mapping of `weight` and options, into its weight and the options that it names.

    `defaults` are the options that the term has. The value of `class_weights` is left to `resolve_class_weights`.
    """
    options = dict(term) if isinstance(term, Mapping) else {"weight": term}
    weight = options.pop("weight", 1.0)
    if not _is_number(weight) or not 0 <= weight < math.inf:
        raise InputError(f"loss [{name}]: its weight must be finite and >= 0, got {weight!r}; try {name}: 1.0.")
    for option, value in options.items():
        if option not in defaults:
            raise InputError(f"loss [{name}]: {unknown_name('option', option, ['weight', *defaults])}")
        if option != "class_weights":
            _check_option(name, option, value, defaults[option])
    return float(weight), options


def resolve_class_weights(
    name: str, value: str | Mapping[str, float], class_names: Sequence[str], class_pixels: ArrayLike | None
) -> Tensor | str:
    """Turn a term's `class_weights` into a (C,) float64 tensor, or "" for none.

    "balanced": n / (k n_c) over the k classes present in the data, as in scikit-learn; an absent class gets 0. By name:
    the classes that are not named get 1.
    """
    where = f"loss [{name}.class_weights]"
    if isinstance(value, Mapping):
        return torch.tensor(_weights_by_name(where, value, class_names), dtype=torch.float64)
    if value == "balanced":
        return torch.from_numpy(_balanced_weights(where, class_pixels))
    if value != "":
        known = unknown_name("value", value, ["balanced"])
        raise InputError(f'{where}: {known}, class name: weight, or "" for none.')
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


def _check_option(name: str, option: str, value: Any, default: Any) -> None:
    where = f"loss [{name}.{option}]"
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise InputError(f"{where}: must be true or false, got {value!r}; try {option}: {str(default).lower()}.")
        return
    low, high = LIMITS[name][option]
    whole = isinstance(default, int)
    kind = ("an odd whole number" if option in ODD else "a whole number") if whole else "a number"
    fits = _is_number(value) and low <= value <= high
    if whole:
        fits = fits and isinstance(value, int) and (option not in ODD or value % 2 == 1)
    if not fits:
        raise InputError(f"{where}: must be {kind} from {low} to {high}, got {value!r}; try {option}: {default}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _weights_by_name(where: str, weights: Mapping[str, float], class_names: Sequence[str]) -> list[float]:
    for name, weight in weights.items():
        if name not in class_names:
            raise InputError(f"{where}: {unknown_name('class', name, class_names)}")
        if not _is_number(weight) or not 0 <= weight < math.inf:
            raise InputError(f"{where}: {name} must have a finite weight >= 0, got {weight!r}; try {name}: 1.0.")
    resolved = [float(weights.get(name, 1)) for name in class_names]
    if not any(resolved):
        raise InputError(f"{where}: at least one class must have a weight > 0, got {dict(weights)}; leave one out.")
    return resolved


def _balanced_weights(where: str, class_pixels: ArrayLike | None) -> np.ndarray:
    counts = np.zeros(0) if class_pixels is None else np.asarray(class_pixels, np.float64)
    if not counts.any():
        raise InputError(f"{where}: balanced needs the pixels of each class, got none; pass class_pixels, or \"\".")
    scale = counts.sum() / np.count_nonzero(counts)
    return np.divide(scale, counts, out=np.zeros_like(counts), where=counts > 0)

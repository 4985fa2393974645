"""Class weights of a loss, by name or from the data."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from seglib.errors import InputError, unknown_name


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

"""Small connected components of a predicted mask are given to what surrounds them."""

from collections.abc import Sequence

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt

from seglib.errors import InputError


def remove_small_components(mask: np.ndarray, min_pixels: Sequence[int]) -> np.ndarray:
    """Remove components (8 neighbours) of fewer than `min_pixels[class]` pixels.

    All small components go at once, and each of their pixels takes the class of the nearest pixel that stays: the class
    around a speck, or the nearer one where it lies between two. No probabilities are needed, so that votes and submission
    files can be cleaned too. Where nothing would stay the mask is left as it is.

    Parameters
    ----------
    mask
        (H, W) uint8 class ids.
    min_pixels
        One number a class [px], 0 keeps all of its components; that of the background fills small holes.

    Returns
    -------
    (H, W) uint8, a new array.

    Raises
    ------
    InputError
        A mask of another type or shape, or with an id that has no number.
    """
    _check_mask(mask, min_pixels)
    removed = np.zeros(mask.shape, bool)
    for class_id in np.unique(mask):
        if min_pixels[class_id] > 1:
            removed |= _find_small(mask == class_id, min_pixels[class_id])
    if removed.all() or not removed.any():
        return mask.copy()
    rows, columns = distance_transform_edt(removed, return_distances=False, return_indices=True)
    return mask[rows, columns]


def _find_small(is_class: np.ndarray, min_pixels: int) -> np.ndarray:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(is_class.view(np.uint8), connectivity=8)
    small = stats[:, cv2.CC_STAT_AREA] < min_pixels
    small[0] = False  # all that is not of the class
    return small[labels]


def _check_mask(mask: np.ndarray, min_pixels: Sequence[int]) -> None:
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise InputError(
            f"remove_small_components: mask must be (H, W) uint8 class ids, got {mask.shape} {mask.dtype};"
            " pass probabilities.argmax(0).astype(np.uint8)"
        )
    if mask.size and mask.max() >= len(min_pixels):
        raise InputError(
            f"remove_small_components: min_pixels must have a number for every class, got {len(min_pixels)} and a mask with"
            f" class id {mask.max()}; give one number a class, background included"
        )

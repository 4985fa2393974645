"""Pictures that are nearly the same: a perceptual hash, and the pairs of images whose hashes hardly differ."""

from collections.abc import Sequence

import cv2
import numpy as np
import pandas as pd

# Bits of 64 in which two hashes may differ. Street photographs that were encoded again, resized, darkened or brightened
# by 20 % differed in 0 to 6 bits from themselves, and in 32 on average from others. Frames of different moments of one
# street came down to 10, drawn scenes to 14: 8 takes copies and neighbouring frames, and nothing else.
MAX_DISTANCE = 8
_BLOCK = 512


def hash_picture(image: np.ndarray) -> np.uint64:
    """Perceptual hash (pHash) of an image (H, W, 3) uint8 RGB: which low frequencies are above their median.

    Source: Zauner, Implementation and benchmarking of perceptual image hash functions, 2010, section 3.2.1.
    """
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    frequencies = cv2.dct(grey.astype(np.float32))[:8, :8].ravel()
    bits = frequencies > np.median(frequencies[1:])  # without the mean brightness
    return np.packbits(bits).view(">u8")[0].astype(np.uint64)


def find_near_duplicates(
    picture_hashes: np.ndarray,
    content_hashes: Sequence[str],
    comparable: np.ndarray,
    subset: np.ndarray,
    max_distance: int = MAX_DISTANCE,
) -> pd.DataFrame:
    """Pairs of images that are the same file, or whose perceptual hashes differ in few bits.

    Parameters
    ----------
    picture_hashes : (N,) uint64, of `hash_picture`
    content_hashes : N texts, of `hash_files`; "" equals none
    comparable : (N,) bool; the hash of an image of one colour, or that cannot be read, says nothing
    subset : (N,) names such as "train" and "val"
    max_distance : bits

    Returns
    -------
    DataFrame
        `first`, `second`: positions; `distance` [bits]; `exact`: same content; `across`: in different subsets. Pairs
        across come first, then the same files, then the nearest.
    """
    hashes, content = np.asarray(picture_hashes, np.uint64), pd.factorize(np.asarray(content_hashes, object))[0]
    content = np.where(np.asarray(content_hashes, object) == "", -1 - np.arange(len(hashes)), content)
    found = [np.zeros((0, 4), np.int64)]
    for start in range(0, len(hashes), _BLOCK):  # N^2 comparisons in numpy, 512 N at a time
        block = slice(start, start + _BLOCK)
        distance = np.bitwise_count(hashes[block, None] ^ hashes)
        exact = content[block, None] == content
        near = (distance <= max_distance) & comparable[block, None] & comparable
        first, second = np.nonzero(np.triu(near | exact, start + 1))
        found.append(np.column_stack([first + start, second, distance[first, second], exact[first, second]]))
    pairs = pd.DataFrame(np.concatenate(found), columns=["first", "second", "distance", "exact"])
    pairs["exact"] = pairs["exact"].astype(bool)
    pairs["across"] = subset[pairs["first"]] != subset[pairs["second"]]
    order = ["across", "exact", "distance"]
    return pairs.sort_values(order, ascending=[False, False, True], kind="stable", ignore_index=True)


def tabulate_copies(pairs: pd.DataFrame, file_names: pd.Series, subset: np.ndarray) -> pd.DataFrame:
    """The pairs with their files' names and subsets, for people and for CSV."""
    sides = {}
    for side in ("first", "second"):
        sides[side] = file_names.iloc[pairs[side]].to_numpy()
        sides[f"{side}_subset"] = subset[pairs[side]]
    return pairs.assign(**sides)

"""Which images train and which validate: folds that do not leak; copies and near copies of an image."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from seglib.errors import InputError, require_known
from seglib.parts import Part, find_parts, read_choice

SPLITS = ("given", "holdout", "kfold", "stratified", "group", "stratified_group")
# Bits of 64 in which two hashes may differ. Street photographs that were encoded again, resized, darkened or brightened
# by 20 % differed in 0 to 6 bits from themselves, and in 32 on average from others. Frames of different moments of one
# street came down to 10, drawn scenes to 14: 8 takes copies and neighbouring frames, and nothing else.
MAX_DISTANCE = 8
_BLOCK = 512


def make_split(
    kind: str | Mapping,
    image_hashes: Sequence[str],
    groups: Sequence[object],
    classes_present: np.ndarray,
    folds: int,
    fold: int,
    seed: int,
    table: pd.DataFrame | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Divide images into train and val; over all values of `fold`, every image validates exactly once.

    Images of the same content are never on both sides, whatever the kind. The result depends on the arguments alone,
    on every platform.

    Parameters
    ----------
    kind : "kfold" (folds of equal size), "holdout" (fold 0 of kfold, for one run), "stratified" (folds in which every
        class is as frequent as in the whole), "group" (no group on both sides) or "stratified_group" (both); a split
        that you registered: `name`, or `{name: options}`. "given" needs no division: see `drop_leaked`.
    image_hashes : N content hashes; "" for an image whose content is not known, which then is nobody's duplicate.
    groups : N group ids; None, NaN or "" for an image that belongs to no group. Read by the group kinds.
    classes_present : (N, C) bool, the classes that each image shows. Read by the stratified kinds.
    folds : at least 2; a fold validates on about N / folds images.
    fold : 0 to folds - 1, which one validates.
    seed : shuffles the images before they are dealt out.
    table : of the images, one row each. Read by registered splits.

    Returns
    -------
    train_indices, val_indices : sorted int64 arrays.

    Raises
    ------
    InputError : kind, folds or fold is not among the choices, there are fewer separable images than folds, or a group
        kind was asked for and no image has a group.
    """
    own, (name, options) = find_parts("split"), read_choice("split", kind)
    require_known("split", name, [*own, *SPLITS[1:]], "split")
    if folds < 2:
        raise InputError(f"folds: at least 2, of which one validates, got {folds}; set folds to 5")
    if name == "holdout" and fold != 0:
        raise InputError(f"fold: split 'holdout' has fold 0 only, got {fold}; for other folds set split to 'kfold'")
    if not 0 <= fold < folds:
        raise InputError(f"fold: 0 to {folds - 1} where folds is {folds}, got {fold}; folds are counted from 0")
    if name in own:
        is_val = _ask_own(own[name], table, image_hashes, folds, seed, options) == fold
    else:
        units = _find_units(image_hashes, groups if "group" in name else None, folds)
        present = np.asarray(classes_present, bool) if "stratified" in name else np.zeros((len(units), 0), bool)
        is_val = _deal(units, present, folds, np.random.default_rng(seed)) == fold
    return np.flatnonzero(~is_val), np.flatnonzero(is_val)


def drop_leaked(train_hashes: Sequence[str], val_hashes: Sequence[str]) -> np.ndarray:
    """Positions (sorted int64) of the train images whose content is not in val too; "" (not known) equals none."""
    leaked = set(val_hashes) - {""}
    return np.flatnonzero([digest not in leaked for digest in train_hashes])


def _ask_own(
    part: Part, table: pd.DataFrame, image_hashes: Sequence[str], folds: int, seed: int, options: Mapping
) -> np.ndarray:
    """The folds (N,) that a registered split gives; copies of an image go with the first of them."""
    given = np.asarray(part.build(table.reset_index(drop=True), folds, seed, **options))
    if given.shape != (len(table),) or given.dtype.kind not in "iu" or not ((given >= 0) & (given < folds)).all():
        extent = f" from {given.min()} to {given.max()}" if given.size and given.dtype.kind in "iuf" else ""
        raise InputError(
            f"split.{part.name}: required a fold from 0 to {folds - 1} for each of the {len(table)} images, got an array"
            f" {given.shape} of {given.dtype}{extent}"
        )
    first: dict[str, int] = {}
    return np.array([first.setdefault(each or f"#{row}", int(given[row])) for row, each in enumerate(image_hashes)])


def _find_units(image_hashes: Sequence[str], groups: Sequence[object] | None, folds: int) -> np.ndarray:
    """(N,) unit ids, 0 to U - 1: images that share a hash or a group, directly or through others, stay together."""
    starts, ends, nodes = [], [], len(image_hashes)  # a graph of the images first, then of what they share
    for values in (image_hashes, groups):
        known = pd.Series(() if values is None else values, dtype=object).replace("", np.nan).dropna()
        codes, shared = pd.factorize(known)
        starts, ends, nodes = [*starts, *known.index], [*ends, *(nodes + codes)], nodes + len(shared)
    if groups is not None and known.empty:
        raise InputError("split: the group kinds need images with a group, got none; set split to 'kfold'")
    graph = coo_array((np.ones(len(starts), np.int8), (starts, ends)), shape=(nodes, nodes))
    units = connected_components(graph, directed=False)[1][: len(image_hashes)]  # ids count up over the images
    if (count := len(np.unique(units))) < folds:
        raise InputError(
            f"folds: at most the {count} sets of images that may be separated (duplicates"
            f"{'' if groups is None else ' and groups'} stay together), got {folds}; lower folds"
        )
    return units


def _deal(unit_of_image: np.ndarray, present: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """(N,) folds by iterative stratification: the rarest class is dealt first, to whoever lacks it most.

    Units without a class left go to the fold with the fewest images, the largest first (as GroupKFold does). Wants are
    counted in images times folds, so that they stay integers and every platform breaks ties alike.

    Source: Sechidis, Tsoumakas, Vlahavas: On the stratification of multi-label data, ECML PKDD 2011.
    """
    sizes = np.bincount(unit_of_image)
    counts = np.zeros((len(sizes), present.shape[1]), np.int64)
    np.add.at(counts, unit_of_image, present)
    shuffled = rng.permutation(len(sizes))
    wanted_of_class = np.tile(counts.sum(axis=0), (folds, 1))  # (folds, C)
    wanted, fold_of_unit = np.full(folds, sizes.sum()), np.full(len(sizes), -1)

    def deal(unit: int, candidates: np.ndarray) -> None:
        fold = fold_of_unit[unit] = candidates[np.argmax(wanted[candidates])]
        wanted_of_class[fold] -= folds * counts[unit]
        wanted[fold] -= folds * sizes[unit]

    while (left := counts[undealt := shuffled[fold_of_unit[shuffled] < 0]].sum(axis=0)).any():
        rarest = np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max))
        holders = undealt[counts[undealt, rarest] > 0]
        for unit in holders[np.argsort(-counts[holders, rarest], kind="stable")]:
            lack = wanted_of_class[:, rarest]
            deal(unit, np.flatnonzero(lack == lack.max()))
    for unit in undealt[np.argsort(-sizes[undealt], kind="stable")]:
        deal(unit, np.arange(folds))
    return rng.permutation(folds)[fold_of_unit][unit_of_image]  # else fold 0 always has the largest group


# Pictures that are nearly the same.


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
    hashes, names = np.asarray(picture_hashes, np.uint64), np.asarray(content_hashes, object)
    content = np.where(names == "", -1 - np.arange(len(hashes)), pd.factorize(names)[0])
    found = [np.zeros((0, 4), np.int64)]
    for start in range(0, len(hashes), _BLOCK):  # N^2 comparisons in numpy, 512 N at a time
        block = slice(start, start + _BLOCK)
        distance = np.bitwise_count(hashes[block, None] ^ hashes)
        exact = content[block, None] == content
        near = (distance <= max_distance) & comparable[block, None] & comparable
        first, second = np.nonzero(np.triu(near | exact, start + 1))
        found.append(np.column_stack([first + start, second, distance[first, second], exact[first, second]]))
    pairs = pd.DataFrame(np.concatenate(found), columns=["first", "second", "distance", "exact"])
    pairs = pairs.astype({"exact": bool}).assign(across=subset[pairs["first"]] != subset[pairs["second"]])
    order = ["across", "exact", "distance"]
    return pairs.sort_values(order, ascending=[False, False, True], kind="stable", ignore_index=True)

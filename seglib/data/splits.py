"""Which images train and which validate; copies and near copies of an image."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from seglib.errors import InputError, unknown_name
from seglib.parts import Part, find_parts, read_choice

# Pictures that are nearly the same: a perceptual hash, and the pairs of images whose hashes hardly differ.


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


# Which images train and which validate: folds that do not leak and, where asked, hold every class alike.


SPLITS = ("given", "holdout", "kfold", "stratified", "group", "stratified_group")


def make_split(
    kind: str,
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
        class is as frequent as in the whole), "group" (no group on both sides) or "stratified_group" (both).
        "given" needs no division: see `drop_leaked`.
    image_hashes : N content hashes; "" for an image whose content is not known, which then is nobody's duplicate.
    groups : N group ids; None, NaN or "" for an image that belongs to no group. Read by the group kinds.
    classes_present : (N, C) bool, the classes that each image shows. Read by the stratified kinds.
    folds : at least 2; a fold validates on about N / folds images.
    fold : 0 to folds - 1, which one validates.
    seed : shuffles the images before they are dealt out.
    table : of the images, one row each, for a split that you registered: `name`, or `{name: options}`.

    Returns
    -------
    train_indices, val_indices : sorted int64 arrays.

    Raises
    ------
    InputError : kind, folds or fold is not among the choices, there are fewer separable images than folds, or a group
        kind was asked for and no image has a group.
    """
    own, (name, options) = find_parts("split"), read_choice("split", kind)
    if name not in SPLITS[1:] and name not in own:
        raise InputError(f"split: {unknown_name('split', kind, [*own, *SPLITS[1:]])}")
    _check_fold(kind, folds, fold)
    if name in own:
        is_val = _ask_own(own[name], table, image_hashes, folds, seed, options) == fold
        return np.flatnonzero(~is_val).astype(np.int64), np.flatnonzero(is_val).astype(np.int64)
    unit_of_image = _find_units(image_hashes, groups if kind in ("group", "stratified_group") else None)
    sizes = np.bincount(unit_of_image)
    if len(sizes) < folds:
        raise InputError(
            f"folds: at most the {len(sizes)} sets of images that may be separated (duplicates"
            f"{' and groups' if 'group' in kind else ''} stay together), got {folds}; lower folds"
        )
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(sizes))
    if kind in ("stratified", "stratified_group"):
        counts = np.zeros((len(sizes), np.shape(classes_present)[1]), np.int64)
        np.add.at(counts, unit_of_image, np.asarray(classes_present, bool))
        fold_of_unit = _deal_by_class(counts, sizes, shuffled, folds)
    else:
        fold_of_unit = _deal_by_size(sizes, shuffled, folds)
    fold_of_unit = rng.permutation(folds)[fold_of_unit]  # else fold 0 always has the largest group
    is_val = fold_of_unit[unit_of_image] == fold
    return np.flatnonzero(~is_val).astype(np.int64), np.flatnonzero(is_val).astype(np.int64)


def _ask_own(
    part: Part, table: pd.DataFrame, image_hashes: Sequence[str], folds: int, seed: int, options: Mapping
) -> np.ndarray:
    """The folds (N,) that an own split gives; copies of an image go with the first of them."""
    answer = part.build(table.reset_index(drop=True), folds, seed, **options)
    given = np.asarray(answer)
    if given.shape != (len(table),) or given.dtype.kind not in "iu" or not ((given >= 0) & (given < folds)).all():
        raise InputError(
            f"split.{part.name}: required a fold from 0 to {folds - 1} for each of the {len(table)} images, got an array"
            f" {given.shape} of {given.dtype}"
            + (f" from {given.min()} to {given.max()}" if given.size and given.dtype.kind in "iuf" else "")
        )
    first: dict[str, int] = {}
    return np.array([first.setdefault(each or f"#{row}", int(given[row])) for row, each in enumerate(image_hashes)])


def drop_leaked(train_hashes: Sequence[str], val_hashes: Sequence[str]) -> np.ndarray:
    """Indices of the train images whose content is not in val too: what remains of two given files.

    Parameters
    ----------
    train_hashes, val_hashes : content hashes; "" (not known) equals none.

    Returns
    -------
    Sorted int64 array of positions in `train_hashes`.
    """
    leaked = set(val_hashes) - {""}
    return np.array([index for index, digest in enumerate(train_hashes) if digest not in leaked], np.int64)


def _check_fold(kind: str, folds: int, fold: int) -> None:
    if folds < 2:
        raise InputError(f"folds: at least 2, of which one validates, got {folds}; set folds to 5")
    if kind == "holdout" and fold != 0:
        raise InputError(f"fold: split 'holdout' has fold 0 only, got {fold}; for other folds set split to 'kfold'")
    if not 0 <= fold < folds:
        raise InputError(f"fold: 0 to {folds - 1} where folds is {folds}, got {fold}; folds are counted from 0")


def _find_units(image_hashes: Sequence[str], groups: Sequence[object] | None) -> np.ndarray:
    """(N,) unit ids, 0 to U - 1: images that share a hash or a group, directly or through others."""
    edges = [(index, ("hash", digest)) for index, digest in enumerate(image_hashes) if digest]
    if groups is not None:
        grouped = [(index, ("group", group)) for index, group in enumerate(groups) if _is_named(group)]
        if not grouped:
            raise InputError("split: the group kinds need images with a group, got none; set split to 'kfold'")
        edges += grouped
    images = len(image_hashes)
    nodes: dict[object, int] = {}  # a graph of images first, then of what they share
    ends = [images + nodes.setdefault(shared, len(nodes)) for _, shared in edges]
    starts = [index for index, _ in edges]
    size = images + len(nodes)
    graph = coo_array((np.ones(len(edges), np.int8), (starts, ends)), shape=(size, size))
    return connected_components(graph, directed=False)[1][:images]  # ids count up over images, which come first


def _is_named(group: object) -> bool:
    return group is not None and group == group and group != ""  # NaN, which pandas writes for none, is not itself


def _deal_by_size(sizes: np.ndarray, shuffled: np.ndarray, folds: int) -> np.ndarray:
    """(U,) fold of each unit: largest unit first, each to the fold with the fewest images (as GroupKFold does)."""
    images_in_fold = np.zeros(folds, np.int64)
    fold_of_unit = np.empty(len(sizes), np.int64)
    for unit in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of_unit[unit] = np.argmin(images_in_fold)
        images_in_fold[fold_of_unit[unit]] += sizes[unit]
    return fold_of_unit


def _deal_by_class(counts: np.ndarray, sizes: np.ndarray, shuffled: np.ndarray, folds: int) -> np.ndarray:
    """(U,) fold of each unit by iterative stratification: the rarest class is dealt first, to whoever lacks it most.

    Wants are counted in images times folds, so that they stay integers and every platform breaks ties alike.

    Source: Sechidis, Tsoumakas, Vlahavas: On the stratification of multi-label data, ECML PKDD 2011.
    """
    wanted_of_class = np.tile(counts.sum(axis=0), (folds, 1))  # (folds, C)
    wanted = np.full(folds, sizes.sum())
    fold_of_unit = np.full(len(sizes), -1)

    def deal(unit: int, candidates: np.ndarray) -> None:
        fold = candidates[np.argmax(wanted[candidates])]
        fold_of_unit[unit] = fold
        wanted_of_class[fold] -= folds * counts[unit]
        wanted[fold] -= folds * sizes[unit]

    while True:
        undealt = shuffled[fold_of_unit[shuffled] < 0]
        left = counts[undealt].sum(axis=0)
        if not left.any():
            break
        rarest = np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max))
        holders = undealt[counts[undealt, rarest] > 0]
        for unit in holders[np.argsort(-counts[holders, rarest], kind="stable")]:
            lack = wanted_of_class[:, rarest]
            deal(unit, np.flatnonzero(lack == lack.max()))
    for unit in undealt[np.argsort(-sizes[undealt], kind="stable")]:  # images that show no class
        deal(unit, np.arange(folds))
    return fold_of_unit

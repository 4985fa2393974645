"""Which images train and which validate: folds that do not leak and, where asked, hold every class alike."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from seglib.errors import InputError, unknown_name

SPLITS = ("given", "holdout", "kfold", "stratified", "group", "stratified_group")


def make_split(
    kind: str,
    image_hashes: Sequence[str],
    groups: Sequence[object],
    classes_present: np.ndarray,
    folds: int,
    fold: int,
    seed: int,
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

    Returns
    -------
    train_indices, val_indices : sorted int64 arrays.

    Raises
    ------
    InputError : kind, folds or fold is not among the choices, there are fewer separable images than folds, or a group
        kind was asked for and no image has a group.
    """
    if kind not in SPLITS[1:]:
        raise InputError(f"split: {unknown_name('split', kind, SPLITS[1:])}")
    _check_fold(kind, folds, fold)
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

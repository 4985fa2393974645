"""Probabilities on disk: written once per run and list of images, resumable, checked whenever they are read."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from seglib.errors import InputError, require_same
from seglib.files import array_header, checksums, read_json, replacing, require_space, sweep, write_json

DTYPES = ("uint8", "float16")
DATA, SUMS, ABOUT = "probabilities.npy", "checksums.npy", "store.json"
ALIKE = ("class_names", "size", "image_ids")  # what stores that vote together have in common
PART = ".part"  # ends the name of a folder that is being filled; renaming it is what makes a store
Predict = Callable[[int], Iterator[np.ndarray]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Store:
    """Probabilities of N images, C classes and S x S pixels; `take`, `join_stores` and the like make views of stores.

    Attributes
    ----------
    folder : where they are on disk; of a view, its first store's
    image_ids : (N,) int64
    file_names, class_names : N and C texts
    size : S [px]
    dtype : of what is kept: uint8 round(255 p), or float16 p
    origin : what was predicted, and how: weights_sha256, weights_file, run, tta, merge, sliding, size, dtype ...
    read : position of an image -> (C, S, S) as it is kept, checked; raises InputError where bytes changed on disk
    """

    folder: Path
    image_ids: np.ndarray
    file_names: list[str]
    class_names: list[str]
    size: int
    dtype: np.dtype
    origin: Mapping[str, Any]
    read: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return len(self.image_ids)

    def read_probabilities(self, position: int) -> np.ndarray:
        """(C, S, S) float32 in 0..1; of uint8 they need not add up to 1. Errors as of `read`."""
        raw = self.read(position)
        return raw.astype(np.float32) / (255 if raw.dtype == np.uint8 else 1)

    def take(self, positions: Sequence[int] | np.ndarray) -> "Store":
        """The images at these positions, in this order."""
        places = [int(place) for place in positions]
        names = [self.file_names[place] for place in places]
        return replace(
            self, image_ids=self.image_ids[places], file_names=names, read=lambda position: self.read(places[position])
        )

    def name_classes(self, class_names: Sequence[str]) -> "Store":
        """As one of these classes; those that it does not know have probability 0."""
        foreign = [name for name in self.class_names if name not in class_names]
        if foreign:
            raise InputError(
                f"{self.folder}: required classes of the ensemble ({', '.join(class_names)}), got {', '.join(foreign)}"
            )
        own = [list(class_names).index(name) for name in self.class_names]

        def read(position: int) -> np.ndarray:
            wide = np.zeros((len(class_names), self.size, self.size), self.dtype)
            wide[own] = self.read(position)
            return wide

        return replace(self, class_names=list(class_names), read=read)


def join_stores(stores: Sequence[Store], image_ids: np.ndarray) -> Store:
    """The images `image_ids` (N,), in this order, each from the one store that has it: out-of-fold predictions."""
    first = stores[0]
    require_alike(stores, ("class_names", "size", "dtype"))
    places = [(int(number), store, place) for store in stores for place, number in enumerate(store.image_ids)]
    by_id = {number: (store, place) for number, store, place in places}
    wanted = [int(number) for number in image_ids]
    if len(by_id) < len(places) or not set(wanted) <= by_id.keys():
        raise InputError(
            f"{first.folder}: required each of {len(wanted)} images in one fold's predictions, got {len(by_id)} images in"
            f" {len(places)} predictions; are all folds of one split there?"
        )
    parts = [by_id[number] for number in wanted]
    names = [store.file_names[place] for store, place in parts]

    def read(position: int) -> np.ndarray:
        store, place = parts[position]
        return store.read(place)

    return replace(first, image_ids=np.array(wanted, np.int64), file_names=names, read=read)


def average_stores(stores: Sequence[Store]) -> Store:
    """The plain mean of stores as one, rounded to their dtype: folds of a member, each of which predicted all images.

    Its origin is the first's, with the names of all runs and weights.
    """
    require_alike(stores, (*ALIKE, "dtype"))
    first = stores[0]
    names = [name for name in ("run", "weights_sha256") if all(name in store.origin for store in stores)]
    joined = {name: "; ".join(str(store.origin[name]) for store in stores) for name in names}

    def read(position: int) -> np.ndarray:
        mean = np.sum([store.read(position) for store in stores], axis=0, dtype=np.float32) / len(stores)
        return (np.rint(mean) if first.dtype == np.uint8 else mean).astype(first.dtype)

    return first if len(stores) == 1 else replace(first, origin={**first.origin, **joined}, read=read)


def require_alike(stores: Sequence[Store], names: Sequence[str] = ALIKE) -> None:
    """Refuse stores whose pixels cannot be added: those that differ in what `names` says."""
    if not stores:
        raise InputError("ensemble: required at least one store of probabilities, got none; name a member")
    for store, name in product(stores[1:], names):
        wanted, got = (np.ravel(getattr(each, name)).tolist() for each in (stores[0], store))
        fix = "predict both alike, or leave this member out"
        require_same(store.folder, f"the {name} of {stores[0].folder}", wanted, got, fix)


def open_store(folder: str | Path) -> Store:
    """Open a finished store; what is read of it is checked when it is read.

    Raises
    ------
    InputError
        No store, one that is not finished, or files that are cut or do not belong together.
    """
    folder = Path(folder)
    if not folder.is_dir() or folder.name.endswith(PART):
        got = (
            "one that is not finished"
            if folder.is_dir() or folder.with_name(folder.name + PART).is_dir()
            else "no such folder"
        )
        raise InputError(f"{folder}: required a finished store of probabilities, got {got}; predict again to finish it")
    try:
        about = read_json(folder / ABOUT)
        shape = tuple(about["shape"])
        data = _open_array(folder / DATA, shape, about["dtype"])
        sums = np.array(_open_array(folder / SUMS, shape[:2], "uint64"))
        names, class_names = list(about["file_names"]), list(about["class_names"])
        image_ids, origin = np.array(about["image_ids"], np.int64), about["facts"]
    except Exception as error:  # a damaged header raises nearly anything
        raise InputError(
            f"{folder}: required a whole store of probabilities, got a damaged one ({type(error).__name__}: {error});"
            " delete the folder and predict again"
        ) from None

    def read(position: int) -> np.ndarray:
        planes = np.array(data[position])
        changed = np.flatnonzero(checksums(planes) != sums[position])
        if len(changed):
            raise InputError(
                f"{folder}: required the probabilities that were written, got others for {names[position]}"
                f" ({class_names[changed[0]]}); the file is damaged: delete the folder and predict again"
            )
        return planes

    return Store(folder, image_ids, names, class_names, shape[-1], data.dtype, origin, read)


def argmax_planes(planes: np.ndarray) -> np.ndarray:
    """(C, ...) -> (...) uint8, the lower class where equal; a plane at a time is faster than numpy's argmax over axis 0."""
    best, pred = planes[0].copy(), np.zeros(planes.shape[1:], np.uint8)
    for class_id, plane in enumerate(planes[1:], 1):
        np.copyto(pred, np.uint8(class_id), where=plane > best)
        np.maximum(best, plane, out=best)
    return pred


def describe_store(
    image_ids: np.ndarray, file_names: list[str], class_names: list[str], size: int, dtype: str, origin: Mapping
) -> dict[str, Any]:
    """What `write_store` needs to know of N images and C classes of `size` x `size` pixels."""
    return {
        "shape": [len(image_ids), len(class_names), size, size],
        "dtype": dtype,
        "image_ids": [int(image_id) for image_id in image_ids],
        "file_names": list(file_names),
        "class_names": list(class_names),
        "facts": dict(origin),  # the name in files of all versions
    }


def write_store(
    folder: Path, about: Mapping[str, Any], predict: Predict, batch_size: int, progress: Progress | None = None
) -> None:
    """Fill a store, or what a killed process left unwritten of it; `folder` is there only when it is whole.

    Parameters
    ----------
    about : see `describe_store`; what was left of another description is begun again.
    predict : called with the first image's position, a multiple of `batch_size`: an uninterrupted writing and one that
        goes on see the same batches. Yields arrays (n, C, S, S) of the store's dtype.
    progress : called with (images done, images in all).
    """
    part = folder.with_name(folder.name + PART)
    done = _prepare(part, about, batch_size)
    left = (about["shape"][0] - done) * sum(row for _, row in _layout(about).values())
    what = f"probabilities of {about['shape'][0] - done} images need"
    fix = "make room, or store them as uint8 or at a smaller size"
    with require_space(part.parent, left, what, fix):
        _append(part, about, predict(done) if done < about["shape"][0] else iter(()), done, progress)
    shutil.rmtree(folder, ignore_errors=True)  # a damaged one
    part.rename(folder)


def keep_masks(path: Path, masks: Iterator[np.ndarray], count: int, size: int) -> np.ndarray:
    """Write masks (size, size) uint8 as they come; return them as a memory map (count, size, size)."""
    sweep(path.parent)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(array_header((count, size, size), "|u1"))
        for mask in masks:
            file.write(np.ascontiguousarray(mask, np.uint8).data)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _prepare(part: Path, about: Mapping[str, Any], batch_size: int) -> int:
    """Images that an earlier process wrote, in whole batches; the files end behind them."""
    try:
        known = read_json(part / ABOUT)
    except (OSError, ValueError):
        known = None
    if known != json.loads(json.dumps(about)):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name, (header, _) in _layout(about).items():
            (part / name).write_bytes(header)
        write_json(part / ABOUT, about)
        return 0
    done = _count_whole(part, about)
    done = done if done == about["shape"][0] else done // batch_size * batch_size
    for name, (header, row) in _layout(about).items():
        os.truncate(part / name, len(header) + done * row)
    return done


def _layout(about: Mapping[str, Any]) -> dict[str, tuple[bytes, int]]:
    """File name -> its header, and the bytes of an image in it."""
    (count, classes, size, _), dtype = about["shape"], np.dtype(about["dtype"])
    return {
        DATA: (array_header(about["shape"], dtype.str), classes * size * size * dtype.itemsize),
        SUMS: (array_header((count, classes), np.dtype("uint64").str), classes * 8),
    }


def _count_whole(part: Path, about: Mapping[str, Any]) -> int:
    """Images from the first on whose planes are what their checksums say: a machine that lost power leaves holes."""
    layout = _layout(about)
    written = min(((part / name).stat().st_size - len(header)) // row for name, (header, row) in layout.items())
    with ExitStack() as files:
        data, sums = (files.enter_context(open(part / name, "rb")) for name in layout)
        for file, (header, _) in zip((data, sums), layout.values(), strict=True):
            file.seek(len(header))
        for image in range(written):
            planes = np.frombuffer(data.read(layout[DATA][1]), np.uint8).reshape(about["shape"][1], -1)
            if sums.read(layout[SUMS][1]) != checksums(planes).tobytes():
                return image
    return max(0, written)


def _append(part: Path, about: Mapping[str, Any], batches: Iterator[np.ndarray], done: int, progress) -> None:
    count = about["shape"][0]
    with open(part / DATA, "ab") as data, open(part / SUMS, "ab") as sums:
        for batch in batches:
            for image in np.ascontiguousarray(batch):
                data.write(image.data)
                sums.write(checksums(image).tobytes())
            done += len(batch)
            if progress:
                progress(done, count)
        for file in (data, sums):
            file.flush()
            os.fsync(file.fileno())
    if done != count:
        raise AssertionError(f"{part}: {done} of {count} images were predicted")


def _open_array(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if (array.shape, array.dtype) != (tuple(shape), np.dtype(dtype)):
        raise ValueError(f"{path.name} holds {array.shape} {array.dtype} instead of {tuple(shape)} {dtype}")
    return array

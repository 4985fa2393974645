"""Probabilities on disk: written once per run and image, read as memory maps, in several views."""

import errno
import io
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.lib.format import write_array_header_1_0
from numpy.typing import ArrayLike

from seglib.data.dataset import Subset
from seglib.data.pixels import resize_mask
from seglib.errors import InputError
from seglib.evaluation.metrics import confusion_per_image
from seglib.files import write_json

# Probabilities of many images on disk: written once in batches, resumable, checked whenever they are read.


DTYPES = ("uint8", "float16")
DATA, SUMS, ABOUT = "probabilities.npy", "checksums.npy", "store.json"
PART = ".part"  # ends the name of a folder that is being filled; renaming it is what makes a store
Predict = Callable[[int], Iterator[np.ndarray]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class ProbabilityStore:
    """Probabilities of N images, C classes and S x S pixels in `folder`.

    Attributes
    ----------
    image_ids : (N,) int64
    file_names, class_names : N and C texts
    size : S [px]
    data : (N, C, S, S) memory map: uint8 round(255 p), or float16 p. Pages of it that were read count as the process's
        memory while the system has some to spare; `read` and `read_plane` copy what is asked for, and check it.
    sums : (N, C) uint64, checksum of each class plane
    facts : what was predicted, and how: weights_sha256, weights_file, run, tta, merge, sliding, size, dtype, precision ...
    """

    folder: Path
    image_ids: np.ndarray
    file_names: list[str]
    class_names: list[str]
    size: int
    data: np.ndarray
    sums: np.ndarray
    facts: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.image_ids)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Probabilities of images start to stop - 1, (n, C, S, S) float32 in 0..1; of uint8 they need not add up to 1.

        Raises
        ------
        InputError
            Damage: the bytes are not those that were written.
        """
        start, stop, _ = slice(start, stop).indices(len(self))
        raw = np.empty((max(0, stop - start), *self.data.shape[1:]), self.data.dtype)
        with self.open() as file:
            for position, planes in zip(range(start, stop), raw, strict=True):
                for class_id, plane in enumerate(planes):
                    self.read_plane(file, position, class_id, plane.reshape(-1))
        return raw.astype(np.float32) / (255 if raw.dtype == np.uint8 else 1)

    def open(self) -> BinaryIO:
        """The file for `read_plane`; threads may share it."""
        return open(self.folder / DATA, "rb", buffering=0)

    def read_plane(self, file: BinaryIO, position: int, class_id: int, out: np.ndarray) -> None:
        """Fill `out` (S * S,), of the store's dtype, with one class of one image as it is stored; errors as in `read`."""
        offset = self.data.offset + (position * len(self.class_names) + class_id) * out.nbytes
        count = os.preadv(file.fileno(), [out], offset)
        if count != out.nbytes or checksum(out.view(np.uint8)) != self.sums[position, class_id]:
            raise InputError(
                f"{self.folder}: required the probabilities that were written, got others for {self.file_names[position]}"
                f" ({self.class_names[class_id]}); the file is damaged: delete the folder and predict again"
            )


def open_store(folder: str | Path) -> ProbabilityStore:
    """Open a finished store; what is read of it is checked when it is read.

    Raises
    ------
    InputError
        No store, one that is not finished, or files that are cut or do not belong together.
    """
    folder = Path(folder)
    if not folder.is_dir() or folder.name.endswith(PART):
        got = "one that is not finished" if folder.is_dir() or _part_of(folder).is_dir() else "no such folder"
        raise InputError(f"{folder}: required a finished store of probabilities, got {got}; predict again to finish it")
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        shape = tuple(about["shape"])
        data = _open_array(folder / DATA, shape, about["dtype"])
        sums = np.array(_open_array(folder / SUMS, shape[:2], "uint64"))
        names = list(about["file_names"]), list(about["class_names"])
        return ProbabilityStore(
            folder, np.array(about["image_ids"], np.int64), *names, shape[-1], data, sums, about["facts"]
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise InputError(
            f"{folder}: required a whole store of probabilities, got a damaged one ({type(error).__name__}: {error});"
            " delete the folder and predict again"
        ) from None


def describe_store(
    image_ids: np.ndarray, file_names: list[str], class_names: list[str], size: int, dtype: str, facts: Mapping
) -> dict[str, Any]:
    """What `write_store` needs to know of N images and C classes of `size` x `size` pixels."""
    return {
        "shape": [len(image_ids), len(class_names), size, size],
        "dtype": dtype,
        "image_ids": [int(image_id) for image_id in image_ids],
        "file_names": list(file_names),
        "class_names": list(class_names),
        "facts": dict(facts),
    }


def write_store(
    folder: Path, about: Mapping[str, Any], predict: Predict, batch_size: int, progress: Progress | None = None
) -> None:
    """Fill a store, or what a killed process left unwritten of it; `folder` is there only when it is whole.

    Parameters
    ----------
    about : see `describe_store`; what was left of another description is begun anew.
    predict : called with the first image's position, a multiple of `batch_size`: an uninterrupted writing and one that
        goes on see the same batches. Yields arrays (n, C, S, S) of the store's dtype.
    progress : called with (images done, images in all).

    Raises
    ------
    InputError
        The disk is too full. What was written stays, to go on from.
    """
    part = _part_of(folder)
    done = _prepare(part, about, batch_size)
    try:
        _require_space(part, about, done)
        _append(part, about, predict(done) if done < about["shape"][0] else iter(()), done, progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(part, about, done) from error
        raise
    shutil.rmtree(folder, ignore_errors=True)  # a damaged one
    part.rename(folder)


def checksum(plane: np.ndarray) -> int:
    """Sum of (B,) bytes as 64-bit words: finds what is cut, missing or changed, at the speed of memory."""
    words = plane[: len(plane) // 8 * 8].view(np.uint64).sum(dtype=np.uint64)
    return (int(words) + int(plane[len(plane) // 8 * 8 :].sum(dtype=np.uint64))) % 2**64


def _part_of(folder: Path) -> Path:
    return folder.with_name(folder.name + PART)


def _prepare(part: Path, about: Mapping[str, Any], batch_size: int) -> int:
    """Images that an earlier process wrote, in whole batches; the files end behind them."""
    if _read_about(part) != json.loads(json.dumps(about)):
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


def _read_about(part: Path) -> dict | None:
    try:
        return json.loads((part / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _layout(about: Mapping[str, Any]) -> dict[str, tuple[bytes, int]]:
    """File name -> its header, and the bytes of an image in it."""
    count, classes, size, _ = about["shape"]
    dtype = np.dtype(about["dtype"])
    return {
        DATA: (_header(about["shape"], dtype), classes * size * size * dtype.itemsize),
        SUMS: (_header((count, classes), np.dtype("uint64")), classes * 8),
    }


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    text = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    write_array_header_1_0(text, {"descr": descr, "fortran_order": False, "shape": tuple(shape)})
    return text.getvalue()


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
            if sums.read(layout[SUMS][1]) != _checksums(planes):
                return image
    return max(0, written)


def _checksums(planes: np.ndarray) -> bytes:
    """(C, bytes) uint8 -> the bytes of (C,) uint64."""
    return np.array([checksum(plane) for plane in planes], np.uint64).tobytes()


def _append(part: Path, about: Mapping[str, Any], batches: Iterator[np.ndarray], done: int, progress) -> None:
    count, classes = about["shape"][:2]
    with open(part / DATA, "ab") as data, open(part / SUMS, "ab") as sums:
        for batch in batches:
            for image in np.ascontiguousarray(batch):
                data.write(image.data)
                sums.write(_checksums(image.view(np.uint8).reshape(classes, -1)))
            done += len(batch)
            if progress:
                progress(done, count)
        for file in (data, sums):
            file.flush()
            os.fsync(file.fileno())
    if done != count:
        raise AssertionError(f"{part}: {done} of {count} images were predicted")


def _require_space(part: Path, about: Mapping[str, Any], done: int) -> None:
    if _bytes_left(about, done) > shutil.disk_usage(part).free:
        raise _no_space(part, about, done)


def _bytes_left(about: Mapping[str, Any], done: int) -> int:
    return (about["shape"][0] - done) * sum(row for _, row in _layout(about).values())


def _no_space(part: Path, about: Mapping[str, Any], done: int) -> InputError:
    needed, free = _bytes_left(about, done) / 1e9, shutil.disk_usage(part).free / 1e9
    return InputError(
        f"{part.parent}: probabilities of {about['shape'][0] - done} images need {needed:.2f} GB, got {free:.2f} GB free;"
        " make room, or store them as uint8 or at a smaller size"
    )


def _open_array(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if (array.shape, array.dtype) != (tuple(shape), np.dtype(dtype)):
        raise ValueError(f"{path.name} holds {array.shape} {array.dtype} instead of {tuple(shape)} {dtype}")
    return array


# The weighted vote of many stores: a sum of probabilities and its argmax, streamed, in whole numbers.


BLOCK = 32  # images given out at a time
CHUNK = 65_536  # pixels whose sums are in the processor's second cache together
THREADS = 8
INT32 = 2**31 - 1
_buffers = threading.local()


def weighted_argmax(
    stores: Sequence[ProbabilityStore], weights: ArrayLike | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Class with the greatest weighted sum of probabilities at each pixel; the lower class where two are equal.

    Sums are of whole numbers, so that the result is the same on every machine and in any order of members. Weights are
    rounded to 19 bits with up to 16 classes, to 15 with 255; where a whole number up to 1000 makes all of them whole,
    as with 1, 2, 1 or 0.25, 0.3, 0.45, their ratios are exact, and so are ties.
    Ten members of 1,500 images, 12 classes, 256 px take 7 s of one processor (tests/benchmarks/weighted_sum.py); in
    memory are a few planes S x S a thread, however many stores and images there are.

    Parameters
    ----------
    stores : M stores of the same images, classes and size; uint8 and float16 can be mixed.
    weights : (M,), or (M, C) for weights of their own a class; at least 0, any scale. None: all the same.

    Yields
    ------
    start, preds : position of the first image, and (n, S, S) uint8 class ids of up to 32 images.

    Raises
    ------
    InputError
        Stores that do not belong together, weights that do not fit them, or damage.
    """
    require_alike(stores)
    shift = max(1, (len(stores[0].class_names) - 1).bit_length())
    whole = _whole_weights(stores, weights, shift)
    return _vote(stores, whole, shift)


def score_weighted(stores: Sequence[ProbabilityStore], subset: Subset, weights: ArrayLike | None = None) -> np.ndarray:
    """Confusion of the weighted vote with a subset's masks, (N, C, C) int64, truth in rows; see `weighted_argmax`.

    Masks of another size than the stores' are resized by nearest neighbour, as leaderboards do.

    Raises
    ------
    InputError
        Other images or classes, too.
    """
    _require_truth(stores[0], subset)
    size, classes, counts = stores[0].size, len(stores[0].class_names), []
    for start, preds in weighted_argmax(stores, weights):
        truths = [subset.read(start + image)[1] for image in range(len(preds))]
        truth = np.stack([mask if len(mask) == size else resize_mask(mask, size) for mask in truths])
        counts.append(confusion_per_image(torch.from_numpy(truth), torch.from_numpy(preds), classes).numpy())
    return np.concatenate(counts)


def score_store(store: ProbabilityStore, subset: Subset) -> np.ndarray:
    """Confusion of one store's most probable classes, (N, C, C) int64, truth in rows; see `score_weighted`."""
    return score_weighted([store], subset)


def require_alike(stores: Sequence[ProbabilityStore]) -> None:
    """Refuse stores whose pixels cannot be added.

    Raises
    ------
    InputError
        There is none, or one has other images, classes or another size than the first.
    """
    if not stores:
        raise InputError("ensemble: required at least one store of probabilities, got none; name a member")
    first = stores[0]
    for store in stores[1:]:
        if store.class_names != first.class_names:
            got = f"{', '.join(store.class_names)} instead of {', '.join(first.class_names)}"
            raise InputError(
                f"{store.folder}: required the classes of {first.folder}, got {got}; leave this member out"
            )
        if store.size != first.size:
            raise InputError(
                f"{store.folder}: required {first.size} px as in {first.folder}, got {store.size} px; predict both at one size"
            )
        if not np.array_equal(store.image_ids, first.image_ids):
            raise InputError(
                f"{store.folder}: required the {len(first)} images of {first.folder}, got {len(store)} or others;"
                " predict both for the same images"
            )


def _require_truth(store: ProbabilityStore, subset: Subset) -> None:
    if not np.array_equal(store.image_ids, subset.image_ids):
        raise InputError(
            f"{store.folder}: required predictions of the {len(subset)} images of {subset.data.json_path.name}, got"
            f" {len(store)} or others; score a store with the images that it was made of"
        )
    if list(subset.data.class_names) != store.class_names:
        raise InputError(
            f"{store.folder}: required the classes of {subset.data.json_path.name}"
            f" ({', '.join(subset.data.class_names)}), got {', '.join(store.class_names)}"
        )


def _whole_weights(stores: Sequence[ProbabilityStore], weights: ArrayLike | None, shift: int) -> np.ndarray:
    """(M, C) int64 whose sums of 255 times the weight, shifted by `shift`, fit int32."""
    members, classes = len(stores), len(stores[0].class_names)
    given = np.ones(members) if weights is None else np.asarray(weights, np.float64)
    if given.shape not in ((members,), (members, classes)):
        raise InputError(
            f"weights: required {members}, one a member, or {members} x {classes} for classes of their own, got {given.shape}"
        )
    given = np.broadcast_to(given.reshape(members, -1), (members, classes))
    heaviest = given.sum(0).max()
    if not np.isfinite(heaviest) or given.min() < 0 or heaviest == 0:
        raise InputError(f"weights: required numbers of at least 0, one above, got {given.tolist()}")
    limit = (INT32 >> shift) // 255 - members - 1  # each weight may be rounded up
    unit = heaviest * _find_denominator(given)
    return np.round(given * (limit // unit * unit / heaviest if unit <= limit else limit / heaviest)).astype(np.int64)


def _find_denominator(weights: np.ndarray) -> float:
    """Smallest whole number up to 1000 that makes all weights whole: 20 for 0.25 and 0.3; infinity if there is none."""
    for number in range(1, 1001):
        if np.allclose(weights * number, np.round(weights * number), rtol=0, atol=1e-9):
            return number
    return np.inf


def _vote(stores: Sequence[ProbabilityStore], whole: np.ndarray, shift: int) -> Iterator[tuple[int, np.ndarray]]:
    with ExitStack() as opened, ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        files = [opened.enter_context(store.open()) for store in stores]
        for start in range(0, len(stores[0]), BLOCK):
            stop = min(start + BLOCK, len(stores[0]))
            preds = pool.map(lambda position: _vote_image(stores, files, whole, shift, position), range(start, stop))
            yield start, np.stack(list(preds))


def _vote_image(
    stores: Sequence[ProbabilityStore], files: Sequence[BinaryIO], whole: np.ndarray, shift: int, position: int
) -> np.ndarray:
    """(S, S) uint8. The class is in the low bits of its sum, turned round: one maximum finds both, the lower class first."""
    size, last = stores[0].size, (1 << shift) - 1
    total, best = _buffer("total", np.int32, size * size), _buffer("best", np.int32, size * size)
    best.fill(-1)
    for class_id in range(len(stores[0].class_names)):
        total.fill(last - class_id)
        for store, file, weight in zip(stores, files, whole[:, class_id].tolist(), strict=True):
            if weight:
                plane = _buffer("plane", store.data.dtype, size * size)
                store.read_plane(file, position, class_id, plane)
                _add(total, plane, weight, shift)
        np.maximum(best, total, out=best)
    return (last - (best & last)).astype(np.uint8).reshape(size, size)


def _add(total: np.ndarray, plane: np.ndarray, weight: int, shift: int) -> None:
    """total += (255 * weight * probability) << shift, all (S * S,)."""
    for start in range(0, len(total), CHUNK):
        part, values = total[start : start + CHUNK], plane[start : start + CHUNK]
        term = _buffer("term", np.int32, len(part))
        if values.dtype == np.uint8:
            np.multiply(values, np.int32(weight << shift), out=term, dtype=np.int32, casting="unsafe")
        else:
            np.copyto(term, np.rint(values.astype(np.float32) * np.float32(255 * weight)), casting="unsafe")
            np.left_shift(term, shift, out=term)
        np.add(part, term, out=part)


def _buffer(name: str, dtype: np.dtype, count: int) -> np.ndarray:
    """This thread's array of that name: memory that is used again stays in the processor's cache."""
    key = f"{name} {np.dtype(dtype)} {count}"
    if not hasattr(_buffers, key):
        setattr(_buffers, key, np.empty(count, dtype))
    return getattr(_buffers, key)


# Stores seen otherwise, without a copy: folds joined to all images or averaged, some of the images, other classes.


@dataclass(frozen=True, eq=False)
class _Parts(ProbabilityStore):
    """A store whose pixels are in others, its `parts`; `data` has shape and dtype alone."""

    parts: tuple[ProbabilityStore, ...]

    @contextmanager
    def open(self) -> Iterator[list]:
        """The files for `read_plane`."""
        with ExitStack() as opened:
            yield [opened.enter_context(part.open()) for part in self.parts]


@dataclass(frozen=True, eq=False)
class StoreView(_Parts):
    """Reads as a store does; its pixels are in `parts`.

    Attributes
    ----------
    parts : stores of one dtype and size
    places : (N, 2), of each image its part and its position there
    planes : of each class its id in the parts; -1 for a class that they do not know, whose probability is 0
    """

    places: np.ndarray
    planes: tuple[int, ...]

    def read_plane(self, file: list, position: int, class_id: int, out: np.ndarray) -> None:
        """As a store's."""
        part, place = self.places[position]
        if self.planes[class_id] < 0:
            out.fill(0)
        else:
            self.parts[part].read_plane(file[part], int(place), self.planes[class_id], out)


@dataclass(frozen=True, eq=False)
class AveragedStore(_Parts):
    """Reads as a store does: the mean of `parts`, rounded to their dtype."""

    def read_plane(self, file: list, position: int, class_id: int, out: np.ndarray) -> None:
        """As a store's."""
        total = np.zeros(out.shape, np.float32)  # holds a sum of 256 steps exactly
        for part, each in zip(self.parts, file, strict=True):
            part.read_plane(each, position, class_id, out)
            total += out
        total /= len(self.parts)
        out[:] = np.rint(total) if out.dtype == np.uint8 else total


def average_stores(stores: Sequence[ProbabilityStore]) -> ProbabilityStore:
    """The plain mean of stores as one: the folds of a member, which on validation images is one prediction an image too.

    Its facts are the first's, with the names of all runs and weights.

    Raises
    ------
    InputError
        There is none, or they are of other images, classes, sizes or dtypes.
    """
    require_alike(stores)
    first = stores[0]
    if len(stores) == 1:
        return first
    for store in stores[1:]:
        if store.data.dtype != first.data.dtype:
            raise InputError(
                f"{store.folder}: required {first.data.dtype} as in {first.folder}, got {store.data.dtype}"
            )
    names = {
        name: "; ".join(str(store.facts[name]) for store in stores)
        for name in ("run", "weights_sha256")
        if all(name in store.facts for store in stores)
    }
    return AveragedStore(
        folder=first.folder,
        image_ids=first.image_ids,
        file_names=first.file_names,
        class_names=first.class_names,
        size=first.size,
        data=SimpleNamespace(shape=first.data.shape, dtype=first.data.dtype),
        sums=None,
        facts={**first.facts, **names},
        parts=tuple(stores),
    )


def join_stores(parts: Sequence[ProbabilityStore], image_ids: np.ndarray) -> StoreView:
    """The images `image_ids` (N,), in this order, each from the one store that has it: out-of-fold predictions.

    Raises
    ------
    InputError
        An image is in none of the stores or in two, or they are of other classes, sizes or dtypes.
    """
    first = parts[0]
    for part in parts[1:]:
        kinds = [(each.class_names, each.size, each.data.dtype) for each in (first, part)]
        if kinds[0] != kinds[1]:
            raise InputError(f"{part.folder}: required the classes, size and dtype of {first.folder}, got others")
    places = [
        (part, place, int(number)) for part, store in enumerate(parts) for place, number in enumerate(store.image_ids)
    ]
    by_id = {number: (part, place) for part, place, number in places}
    wanted = [int(number) for number in image_ids]
    if len(by_id) < len(places) or not set(wanted) <= by_id.keys():
        raise InputError(
            f"{first.folder}: required each of {len(wanted)} images in one fold's predictions, got {len(by_id)} images in"
            f" {len(places)} predictions; are all folds of one split there?"
        )
    return _view(
        parts, np.array([by_id[number] for number in wanted]), range(len(first.class_names)), first.class_names
    )


def take_images(store: ProbabilityStore, positions: Sequence[int] | np.ndarray) -> StoreView:
    """The images at these positions, in this order."""
    places = np.stack([np.zeros(len(positions), np.int64), np.asarray(positions, np.int64)], axis=1)
    return _view([store], places, range(len(store.class_names)), store.class_names)


def name_classes(store: ProbabilityStore, class_names: Sequence[str]) -> StoreView:
    """A store as one of these classes; those that it does not know have probability 0.

    Raises
    ------
    InputError
        It knows one that is not among them.
    """
    foreign = [name for name in store.class_names if name not in class_names]
    if foreign:
        raise InputError(
            f"{store.folder}: required classes of the ensemble ({', '.join(class_names)}), got {', '.join(foreign)}"
        )
    planes = [store.class_names.index(name) if name in store.class_names else -1 for name in class_names]
    places = np.stack([np.zeros(len(store), np.int64), np.arange(len(store))], axis=1)
    return _view([store], places, planes, class_names)


def _view(
    parts: Sequence[ProbabilityStore], places: np.ndarray, planes: Sequence[int], class_names: Sequence[str]
) -> StoreView:
    first, shape = parts[0], (len(places), len(planes), parts[0].size, parts[0].size)
    return StoreView(
        folder=first.folder,
        image_ids=np.array([parts[part].image_ids[place] for part, place in places], np.int64),
        file_names=[parts[part].file_names[place] for part, place in places],
        class_names=list(class_names),
        size=first.size,
        data=SimpleNamespace(shape=shape, dtype=first.data.dtype),
        sums=None,
        facts=first.facts,
        parts=tuple(parts),
        places=np.asarray(places, np.int64).reshape(-1, 2),
        planes=tuple(planes),
    )

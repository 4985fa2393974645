"""Probabilities of many images on disk: written once in batches, resumable, checked whenever they are read."""

import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.format import write_array_header_1_0

from seglib.errors import InputError
from seglib.files import write_json

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

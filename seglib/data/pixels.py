"""Images decoded and masks painted once: pairs of one size, read from disk without keeping the set in memory."""

import errno
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from filelock import FileLock

from seglib import RESULTS
from seglib.data.coco import ANNOTATION_KINDS, CocoData
from seglib.data.images import EXIF, read_image
from seglib.data.masks import paint_mask
from seglib.data.verify import find_turns
from seglib.errors import InputError
from seglib.files import (
    array_header,
    cache_dir,
    checksums,
    hash_files,
    hash_text,
    read_json,
    replacing_folder,
    report_no_cache,
    require_space,
    write_json,
)

CHUNK = 32  # images decoded before they are written: bounds the memory of a build
THREADS = 8  # each holds a photograph in full size while it decodes, 0.2 GB with 24 megapixels
CHANNELS = {"images.npy": (3,), "masks.npy": ()}
SUMS = "checksums.npy"  # (N, 2) uint64: of each image and mask
FILES = (*CHANNELS, SUMS)
# seglib.RESULTS -> what stands for the code that decodes and paints in a cache's key. Of the first it is the digests of
# the code's files at the time, so that caches of that time stay in use; a later number stands for itself.
_PAINTERS = {
    1: ["cae44a098467cbbe3d5596ea3c08eb03", "b0a3aeec5b000631ccd82b209ded3c6a", "adea8753b4eafdefc7bc3763d72f02c5"]
}
Pair = tuple[np.ndarray, np.ndarray]  # image (S, S, 3) uint8 RGB and mask (S, S) uint8
Progress = Callable[[int, int], None]  # called with (images done, images in all)


@dataclass(frozen=True, eq=False)
class Pixels:
    """Pairs of an image and a mask of `image_size` S [px]: `image_ids` (N,) int64, and `read(index)`, which gives one."""

    image_ids: np.ndarray
    image_size: int
    read: Callable[[int], Pair]

    def __len__(self) -> int:
        return len(self.image_ids)


def open_pixels(
    data: CocoData,
    image_size: int,
    paint_order: str,
    background: str,
    cache: bool = True,
    progress: Progress | None = None,
) -> Pixels:
    """Open a data set as pairs of image and mask of one size.

    With the cache, the first opening of a combination of data and settings decodes every image into
    `cache_dir()`/pixels; processes that open the same one meanwhile wait for it. A cache whose content is not what was
    written is made again, with a warning. Where it cannot be written, images are decoded at each reading.

    Parameters
    ----------
    data : images and annotations; any change to either makes another cache.
    image_size : S, side of image and mask [px]. Images shrink by area and grow linearly, masks by nearest neighbour.
    paint_order, background : as in `paint_mask`.
    cache : False decodes at each reading: slower by far, and takes no disk.
    progress : called with (images done, images in all) while a cache is built.

    Raises
    ------
    InputError : an image cannot be read or the disk is too full; no cache is left then.
    """
    painted = data.painted
    rows_of_image = painted.groupby("image_id").indices
    read = partial(_decode, data, painted, rows_of_image, image_size, paint_order, background)
    pixels = Pixels(data.images["image_id"].to_numpy(np.int64), image_size, read)
    if not cache:
        return pixels
    about = {"image_size": image_size, "paint_order": paint_order, "background": background}
    folder = cache_dir() / "pixels" / _key(data, about)
    if _find_damage(folder):  # a whole one is read without a lock, which needs permission to write
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                if damage := _find_damage(folder):
                    if folder.exists():
                        warnings.warn(f"{folder}: {damage}; building the cache again", stacklevel=2)
                    _build(pixels, folder, {"json": str(data.json_path), "images": len(pixels)} | about, progress)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR):
                raise
            report_no_cache(cache_dir(), error.strerror)
            return pixels
    offsets = {name: np.load(folder / name, mmap_mode="r").offset for name in FILES}
    return replace(pixels, read=partial(_read_cached, folder, offsets, range(len(pixels)), image_size))


def resize_image(image: np.ndarray, image_size: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (S, S, 3): each side shrinks by area or grows linearly."""
    height, width = image.shape[:2]
    smaller = min(width, image_size), min(height, image_size)
    if smaller != (width, height):
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    if smaller != (image_size, image_size):
        image = cv2.resize(image, (image_size, image_size), interpolation=cv2.INTER_LINEAR)
    return image


def resize_mask(mask: np.ndarray, image_size: int) -> np.ndarray:
    """(H, W) uint8 -> (S, S) by nearest neighbour; a whole factor k gives mask[::k, ::k]."""
    return cv2.resize(mask, (image_size, image_size), interpolation=cv2.INTER_NEAREST)


def map_pixels(pixels: Pixels, ids: Mapping[int, int]) -> Pixels:
    """Pairs whose painted ids become others at each reading, 0 where `ids` does not say."""
    table = np.zeros(256, np.uint8)
    table[[*ids.keys()]] = [*ids.values()]
    return replace(pixels, read=partial(_read_mapped, pixels.read, table))


def _read_mapped(read: Callable[[int], Pair], table: np.ndarray, index: int) -> Pair:
    image, mask = read(index)
    return image, table[mask]


def _decode(
    data: CocoData,
    painted: pd.DataFrame,
    rows_of_image: Mapping,
    image_size: int,
    paint_order: str,
    background: str,
    index: int,
) -> Pair:
    row = data.images.iloc[index]
    image = read_image(row["path"], (row["width"], row["height"]), row.get("exif", EXIF[0]))
    annotations = painted.iloc[rows_of_image.get(row["image_id"], [])]
    try:
        mask = paint_mask(annotations, row["height"], row["width"], paint_order, background)
    except InputError as error:
        raise InputError(f"{data.json_path} [{row['file_name']}]: {error}") from error
    return resize_image(image, image_size), resize_mask(mask, image_size)


def _read_cached(folder: Path, offsets: Mapping[str, int], places: range, image_size: int, index: int) -> Pair:
    """Every reading opens, seeks and reads on its own: processes share no position in a file, a worker needs nothing but
    this small function, and, unlike with a memory map, no page stays counted as the process's memory."""
    arrays, sums = [], np.fromfile(folder / SUMS, np.uint64, 2, offset=offsets[SUMS] + places[index] * 16)
    for number, (name, channels) in enumerate(CHANNELS.items()):
        shape = (image_size, image_size, *channels)
        count = int(np.prod(shape))
        pixels = np.fromfile(folder / name, np.uint8, count, offset=offsets[name] + places[index] * count)
        if len(pixels) < count or len(sums) < 2 or checksums(pixels[None])[0] != sums[number]:
            with suppress(OSError):
                (folder / "meta.json").unlink()
            raise InputError(f"{folder / name}: the file was damaged after it was written; start again to rebuild it")
        arrays.append(pixels.reshape(shape))
    return arrays[0], arrays[1]


def _key(data: CocoData, about: Mapping[str, Any]) -> str:
    """Hash of all that decides the pixels."""
    images = data.images[["image_id", "file_name", "width", "height"]]
    parts = [
        [*about.values()],
        hash_files(data.images["path"]),
        images.to_dict("list"),
        data.painted[[*ANNOTATION_KINDS]].to_dict("list"),
        _PAINTERS.get(RESULTS, RESULTS),
        [cv2.__version__, version("pycocotools")],
    ]
    if about["paint_order"] == "area":  # earlier caches were painted by the areas that the file gave
        parts.append("by mask")
    if any(turns := find_turns(data)):  # and had these images as they are stored
        parts.append(turns)
    return hash_text(json.dumps(parts))


def _find_damage(folder: Path) -> str:
    """What is wrong with a cache, "" if nothing is."""
    try:
        hashes = read_json(folder / "meta.json")["hashes"]
        written = [hashes[name] for name in FILES]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"meta.json cannot be used ({error!r})"
    for name, digest, found in zip(FILES, written, hash_files([folder / name for name in FILES]), strict=True):
        if digest != found or not found:
            return f"{name} is not what was written"
    return ""


def _build(pixels: Pixels, folder: Path, about: Mapping[str, Any], progress: Progress | None) -> None:
    """Fill a temporary folder and rename it; the caller holds the lock."""
    for old in (folder.with_suffix(".part"), folder):  # of a build that an earlier version left, and what is damaged
        shutil.rmtree(old, ignore_errors=True)
    needed = len(pixels) * pixels.image_size**2 * 4
    fix = "set SEGLIB_CACHE to a folder on a disk with more, delete old caches in this one, or set cache to false to decode"
    what, fix = "the pixel cache needs", f"{fix} images at each reading"
    with require_space(folder.parent, needed, what, fix), replacing_folder(folder) as part:
        _write_arrays(pixels, part, progress)
        hashes = dict(zip(FILES, hash_files([part / name for name in FILES]), strict=True))
        write_json(part / "meta.json", {"hashes": hashes, **about})


def _write_arrays(pixels: Pixels, folder: Path, progress: Progress | None) -> None:
    """Pairs in order, decoded by threads (cv2 lets go of the interpreter lock), a chunk in memory at a time."""
    with ExitStack() as stack:
        files = [stack.enter_context(open(folder / name, "wb")) for name in CHANNELS]
        for file, channels in zip(files, CHANNELS.values(), strict=True):
            file.write(array_header((len(pixels), pixels.image_size, pixels.image_size, *channels), "|u1"))
        sums = stack.enter_context(open(folder / SUMS, "wb"))
        sums.write(array_header((len(pixels), 2), "<u8"))
        pool = stack.enter_context(ThreadPoolExecutor(THREADS))
        for start in range(0, len(pixels), CHUNK):
            for done, pair in enumerate(
                pool.map(pixels.read, range(start, min(start + CHUNK, len(pixels)))), start + 1
            ):
                for file, array in zip(files, pair, strict=True):
                    file.write(array.data)
                    sums.write(checksums(array[None]).tobytes())
                if progress:
                    progress(done, len(pixels))

"""Images decoded and masks painted once: pairs of fixed size, read from disk without keeping the set in memory."""

import errno
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock
from numpy.lib.format import write_array_header_1_0

from seglib import RESULTS
from seglib.data.coco import CocoData, read_image, resolve_image
from seglib.data.fingerprint import hash_files
from seglib.data.masks import paint_mask
from seglib.errors import InputError
from seglib.files import cache_dir, hash_text, write_json

CHUNK = 32  # images decoded before they are written: bounds the memory of a build
THREADS = 8  # each holds a photograph in full size while it decodes, 0.2 GB with 24 megapixels
CHANNELS = {"images.npy": (3,), "masks.npy": ()}
# seglib.RESULTS -> what stands for the code that decodes and paints in a cache's key. Of the first it is the digests of
# the code's files at the time, so that caches of that time stay in use; a later number stands for itself.
_PAINTERS = {
    1: ["cae44a098467cbbe3d5596ea3c08eb03", "b0a3aeec5b000631ccd82b209ded3c6a", "adea8753b4eafdefc7bc3763d72f02c5"]
}


@dataclass(frozen=True, eq=False)
class DecodedPixels:
    """Pairs decoded and painted anew at each reading; nothing is written."""

    data: CocoData
    image_size: int
    paint_order: str
    background: str
    rows_of_image: dict[int, np.ndarray]

    def __len__(self) -> int:
        return len(self.data.images)

    @property
    def image_ids(self) -> np.ndarray:
        """(N,) int64, in the order of reading."""
        return self.data.images["image_id"].to_numpy(np.int64)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (S, S, 3) uint8 RGB and mask (S, S) uint8 of one position."""
        row = self.data.images.iloc[index]
        path = resolve_image(self.data.data_dir, row["file_name"])
        image = read_image(path, (row["width"], row["height"]))
        annotations = self.data.annotations.iloc[self.rows_of_image.get(row["image_id"], [])]
        try:
            mask = paint_mask(annotations, row["height"], row["width"], self.paint_order, self.background)
        except InputError as error:
            raise InputError(f"{self.data.json_path} [{row['file_name']}]: {error}") from error
        return resize_image(image, self.image_size), resize_mask(mask, self.image_size)


@dataclass(frozen=True, eq=False)
class CachedPixels:
    """Pairs read from the arrays in `folder`.

    Every reading opens, seeks and reads on its own: processes share no position in a file, a worker needs nothing but
    this small object, and, unlike with a memory map, no page stays counted as the process's memory.
    """

    folder: Path
    image_ids: np.ndarray
    image_size: int
    offsets: dict[str, int]

    def __len__(self) -> int:
        return len(self.image_ids)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (S, S, 3) uint8 RGB and mask (S, S) uint8 of one position."""
        index = range(len(self))[index]
        return self._read("images.npy", index), self._read("masks.npy", index)

    def _read(self, name: str, index: int) -> np.ndarray:
        shape = (self.image_size, self.image_size, *CHANNELS[name])
        count = int(np.prod(shape))
        offset = self.offsets[name] + index * count
        pixels = np.fromfile(self.folder / name, np.uint8, count, offset=offset)
        if len(pixels) < count:
            raise InputError(f"{self.folder / name}: the file was cut after it was opened; start again to rebuild it")
        return pixels.reshape(shape)


Pixels = DecodedPixels | CachedPixels


def open_pixels(
    data: CocoData,
    image_size: int,
    paint_order: str,
    background: str,
    cache: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Pixels:
    """Open a data set as pairs of image and mask of one size.

    With the cache, the first opening of a combination of data and settings decodes every image into
    `cache_dir()`/pixels; processes that open the same one meanwhile wait for it. A cache whose content is not what was
    written is made again, with a warning.

    Parameters
    ----------
    data : images and annotations; any change to either makes another cache.
    image_size : S, side of image and mask [px]. Images shrink by area and grow linearly, masks by nearest neighbour.
    paint_order, background : as in `paint_mask`.
    cache : False decodes at each reading: slower by far, and takes no disk.
    progress : called with (images done, images in all) while a cache is built.

    Returns
    -------
    Object with `len()`, `image_ids` (N,) int64 and `read(index)` -> image (S, S, 3) uint8 RGB, mask (S, S) uint8.

    Raises
    ------
    InputError : an image cannot be read or the disk is too full; no cache is left then.
    """
    rows_of_image = data.annotations.groupby("image_id").indices
    decoded = DecodedPixels(data, image_size, paint_order, background, rows_of_image)
    if not cache:
        return decoded
    folder = cache_dir() / "pixels" / _key(decoded)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        damage = _find_damage(folder)
        if damage:
            if folder.exists():
                warnings.warn(f"{folder}: {damage}; building the cache again", stacklevel=2)
            _build(decoded, folder, progress)
        offsets = {name: np.load(folder / name, mmap_mode="r").offset for name in CHANNELS}
    return CachedPixels(folder, decoded.image_ids, image_size, offsets)


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


def _key(decoded: DecodedPixels) -> str:
    """Hash of all that decides the pixels, the code that makes them included."""
    data = decoded.data
    images = data.images[["image_id", "file_name", "width", "height"]]
    parts = [
        [decoded.image_size, decoded.paint_order, decoded.background],
        hash_files([resolve_image(data.data_dir, name) for name in images["file_name"]]),
        images.to_dict("list"),
        data.annotations.to_dict("list"),
        _PAINTERS.get(RESULTS, RESULTS),
        [cv2.__version__, version("pycocotools")],
    ]
    return hash_text(json.dumps(parts))


def _find_damage(folder: Path) -> str:
    """What is wrong with a cache, "" if nothing is."""
    try:
        hashes = json.loads((folder / "meta.json").read_bytes())["hashes"]
        written = [hashes[name] for name in CHANNELS]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"meta.json cannot be used ({error!r})"
    for name, digest, found in zip(CHANNELS, written, hash_files([folder / name for name in CHANNELS]), strict=True):
        if digest != found or not found:
            return f"{name} is not what was written"
    return ""


def _build(decoded: DecodedPixels, folder: Path, progress: Callable[[int, int], None] | None) -> None:
    """Fill a temporary folder and rename it; the caller holds the lock."""
    part = folder.with_suffix(".part")
    for old in (part, folder):  # what a killed build left, and what is damaged
        shutil.rmtree(old, ignore_errors=True)
    if _bytes_needed(decoded) > shutil.disk_usage(part.parent).free:
        raise _no_space(decoded, part.parent)
    part.mkdir()
    try:
        _write_arrays(decoded, part, progress)
        write_json(part / "meta.json", _describe(decoded, part))
        part.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(decoded, part.parent) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_arrays(decoded: DecodedPixels, folder: Path, progress: Callable[[int, int], None] | None) -> None:
    with ExitStack() as files:
        outputs = [files.enter_context(open(folder / name, "wb")) for name in CHANNELS]
        for file, channels in zip(outputs, CHANNELS.values(), strict=True):
            shape = (len(decoded), decoded.image_size, decoded.image_size, *channels)
            write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for done, pair in enumerate(_read_all(decoded), start=1):
            for file, array in zip(outputs, pair, strict=True):
                file.write(array.data)
            if progress:
                progress(done, len(decoded))


def _read_all(decoded: DecodedPixels) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs in order, decoded by threads (cv2 lets go of the interpreter lock), a chunk in memory at a time."""
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(decoded), CHUNK):
            yield from pool.map(decoded.read, range(start, min(start + CHUNK, len(decoded))))


def _describe(decoded: DecodedPixels, folder: Path) -> dict:
    """What meta.json says: the arrays' hashes, and for people which cache this is."""
    return {
        "hashes": dict(zip(CHANNELS, hash_files([folder / name for name in CHANNELS]), strict=True)),
        "json": str(decoded.data.json_path),
        "images": len(decoded),
        "image_size": decoded.image_size,
        "paint_order": decoded.paint_order,
        "background": decoded.background,
    }


def _bytes_needed(decoded: DecodedPixels) -> int:
    return len(decoded) * decoded.image_size**2 * 4


def _no_space(decoded: DecodedPixels, folder: Path) -> InputError:
    needed, free = _bytes_needed(decoded) / 1e9, shutil.disk_usage(folder).free / 1e9
    return InputError(
        f"{folder}: the pixel cache needs {needed:.2f} GB, got {free:.2f} GB free; set SEGLIB_CACHE to a folder on a disk "
        "with more, delete old caches in this one, or set cache to false to decode images at each reading"
    )

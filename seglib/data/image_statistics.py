"""Colours of every image, read once as a stream: mean and spread, black or constant pictures, perceptual hashes."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from seglib.data.coco import CocoData, read_image, resolve_image
from seglib.data.near_duplicates import hash_picture
from seglib.data.pixels import CHUNK, THREADS, resize_image
from seglib.errors import InputError

BLACK = 15  # an image with no value above it shows nothing
CONSTANT = 3  # [grey levels] between the darkest and the brightest value of each channel: what JPEG makes of one colour
CHANNELS = ("red", "green", "blue")


def measure_images(data: CocoData, image_size: int) -> pd.DataFrame:
    """Measure the pixels of each image at the training resolution; a chunk of images is in memory at a time.

    Returns
    -------
    DataFrame, one row an image, in the order of `data.images`
        `error`: why the image cannot be read, "" where it can be; `red`, `green`, `blue`: means, 0..255; `red_square`,
        ...: means of squares; `black`, `constant`: bool; `picture_hash`: uint64. Zeros where it cannot be read.
    """
    rows = []
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(data.images), CHUNK):
            chunk = data.images.iloc[start : start + CHUNK].itertuples()
            rows += pool.map(lambda row: _measure(data, row, image_size), chunk)
    return pd.DataFrame(rows, index=data.images.index)


def compute_colour_statistics(measured: pd.DataFrame, subset: np.ndarray) -> pd.DataFrame:
    """Mean and standard deviation of each channel over all pixels of each subset, in 0..1 as Normalize takes them."""
    return pd.DataFrame({name: _colours_of(measured[subset == name]) for name in pd.unique(subset)}).T


def _colours_of(measured: pd.DataFrame) -> dict[str, float]:
    sound = measured[measured["error"] == ""]
    means = {channel: sound[channel].mean() for channel in CHANNELS}
    deviations = {name: np.sqrt(sound[f"{name}_square"].mean() - mean**2) for name, mean in means.items()}
    return {f"mean {name}": value / 255 for name, value in means.items()} | {
        f"std {name}": value / 255 for name, value in deviations.items()
    }


def _measure(data: CocoData, row: tuple, image_size: int) -> dict:
    try:
        image = read_image(resolve_image(data.data_dir, row.file_name), (row.width, row.height))
    except InputError as error:
        nothing = dict.fromkeys([*CHANNELS, *(f"{channel}_square" for channel in CHANNELS)], 0.0)
        return {"error": str(error), **nothing, "black": False, "constant": False, "picture_hash": np.uint64(0)}
    image = resize_image(image, image_size)
    pixels = image.reshape(-1, 3)
    means = pixels.mean(axis=0)
    squares = np.square(pixels, dtype=np.uint32).mean(axis=0)
    return {
        "error": "",
        **dict(zip(CHANNELS, means, strict=True)),
        **{f"{channel}_square": value for channel, value in zip(CHANNELS, squares, strict=True)},
        "black": bool(pixels.max() <= BLACK),
        "constant": bool(np.ptp(pixels, axis=0).max() <= CONSTANT),
        "picture_hash": hash_picture(image),
    }

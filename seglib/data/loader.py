"""Batches of samples by (seed, epoch, index), and mixes of an image with others of its set."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from seglib import ranks
from seglib.data.augment import augment, build_augmentation
from seglib.data.dataset import Subset
from seglib.data.masks import IGNORE_INDEX, resize_rle, segmentation_to_rle
from seglib.errors import read_whole, require_known
from seglib.files import RUNS_AT_ONCE
from seglib.parameters import CountRange, ScaleRange
from seglib.parts import read_choices, register

NO_MIXING = MappingProxyType({})
MOST_WORKERS = 12  # loader processes that `auto` starts; of 391 images/s that an H200 takes, 8 bring 318

# Mixes of an image with others of its set: mosaic, another background, pasted objects; before augmentation. They take
# and give an image (S, S, 3) uint8 RGB and its mask (S, S) uint8.


class SampleMixing:
    """`mixing(image, mask, seed, epoch, index)` gives what (seed, epoch, index) make of a sample, and nothing else.

    Parameters
    ----------
    mixing : name -> probability or options, `python -m seglib list mixing` has them; those of batches are left alone.
    subset : the images to mix with.

    Raises
    ------
    InputError
        Options or classes that do not exist.
    """

    def __init__(self, mixing: Mapping[str, Any], subset: Subset):
        chosen = read_choices("mixing", mixing)  # those that are not named below are of batches
        others = OtherSamples(subset) if SAMPLE_MIXES.keys() & chosen.keys() else None
        self.steps = []
        for number, (name, function) in enumerate(SAMPLE_MIXES.items(), start=1):
            if name in chosen:
                options = {"p": 0.5, **chosen[name]}
                self.steps.append((number, options.pop("p"), partial(function, others=others, **options)))
        _find_class_ids(chosen.get("copy_paste", {}).get("classes", ()), subset)

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int, epoch: int, index: int) -> tuple:
        for number, p, step in self.steps:
            # A stream for each mix, apart from the augmentation's: adding one to a sweep does not change another's draws.
            rng = np.random.default_rng([seed, epoch, index, number])
            if rng.random() < p:
                image, mask = step(image, mask, rng)
        return image, mask


class OtherSamples:
    """The other images of a set, and the objects in them by class."""

    def __init__(self, subset: Subset):
        self.subset, annotations = subset, subset.data.annotations
        positions = pd.Index(subset.image_ids).get_indexer(annotations["image_id"])
        self.rows = np.flatnonzero(positions >= 0)
        self.positions = positions[self.rows]
        class_ids = annotations["class_id"].to_numpy()[self.rows]
        self.of_class = {int(class_id): np.flatnonzero(class_ids == class_id) for class_id in np.unique(class_ids)}

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Any image of the set with its mask."""
        return self.subset.read(int(rng.integers(len(self.subset))))

    def draw_object(self, rng: np.random.Generator, class_ids: list[int]) -> tuple[np.ndarray, np.ndarray, int] | None:
        """An object, its class drawn first: image (h, w, 3) uint8, its pixels (h, w) bool, class id; None if luck fails."""
        present = [class_id for class_id in class_ids or self.of_class if class_id in self.of_class]
        for _ in range(10 if present else 0):  # tries, until one has pixels left at this size
            class_id = present[rng.integers(len(present))]
            cut = self._cut(int(rng.choice(self.of_class[class_id])), class_id)
            if cut is not None:
                return *cut, class_id
        return None

    def _cut(self, number: int, class_id: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The visible part of an object in its box: pixels of its annotation that nothing was painted over."""
        data, position = self.subset.data, int(self.positions[number])
        row = data.images.iloc[int(self.subset.indices[position])]
        segmentation = data.annotations["segmentation"].iloc[self.rows[number]]
        rle = segmentation_to_rle(segmentation, int(row["height"]), int(row["width"]))
        image, mask = self.subset.read(position)
        visible = resize_rle(rle, self.subset.image_size) & (mask == class_id)
        if not visible.any():
            return None
        rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        return image[box], visible[box]


@register("mixing")
def mosaic(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, others: OtherSamples) -> tuple:
    """Four images around a point in the middle half, each a random part of its image at its own scale.

    Source: Bochkovskiy et al. 2020, YOLOv4.
    """
    size = len(mask)
    y, x = rng.integers(size // 4, size * 3 // 4, 2, endpoint=True)
    quadrants = [(rows, columns) for rows in ((0, y), (y, size)) for columns in ((0, x), (x, size))]
    sources = [(image, mask), *(others.draw(rng) for _ in range(3))]
    out = np.empty_like(image), np.empty_like(mask)
    for number, source in zip(rng.permutation(4), sources, strict=True):
        (top, bottom), (left, right) = quadrants[number]
        height, width = bottom - top, right - left
        row, column = rng.integers(size - height, endpoint=True), rng.integers(size - width, endpoint=True)
        for target, array in zip(out, source, strict=True):
            target[top:bottom, left:right] = array[row : row + height, column : column + width]
    return out


@register("mixing")
def background(
    image: np.ndarray,
    mask: np.ndarray,
    rng: np.random.Generator,
    others: OtherSamples,
    replace_with: Literal["image", "mean", "black", "noise"] = "image",
) -> tuple:
    """Keep the objects and put something else behind them.

    "image" is another image with its own mask, objects included, so that every label stays true; "mean", "black" and
    "noise" fill what is no object and leave its labels; an image without objects is left as it is.
    """
    objects = (mask != 0) & (mask != IGNORE_INDEX)
    if replace_with == "image":
        behind, mask_behind = others.draw(rng)
        return np.where(objects[..., None], image, behind), np.where(objects, mask, mask_behind)
    if not objects.any():
        return image, mask
    fills = {"mean": lambda: np.round(cv2.mean(image)[:3]), "black": lambda: 0,
             "noise": lambda: rng.integers(0, 256, image.shape)}  # fmt: skip
    return np.where(objects[..., None], image, np.asarray(fills[replace_with](), np.uint8)), mask


@register("mixing")
def copy_paste(
    image: np.ndarray,
    mask: np.ndarray,
    rng: np.random.Generator,
    others: OtherSamples,
    classes: list[str] = (),
    count: CountRange = (1, 3),
    scale: ScaleRange = (0.5, 1.5),
) -> tuple:
    """Paste objects of other images: each from a class drawn evenly, so that rare classes are seen more often.

    Source: Ghiasi et al. 2021, Simple Copy-Paste.

    Parameters
    ----------
    classes : names of the classes to paste; empty for all.
    count : fewest and most objects.
    scale : smallest and largest factor of an object's size.
    """
    image, mask = image.copy(), mask.copy()
    class_ids = _find_class_ids(classes, others.subset)
    for _ in range(rng.integers(*count, endpoint=True)):
        drawn = others.draw_object(rng, class_ids)
        if drawn is not None:
            _paste(image, mask, *drawn, scale, rng)
    return image, mask


def _paste(
    image: np.ndarray, mask: np.ndarray, patch: np.ndarray, visible: np.ndarray, class_id: int,
    scale: tuple[float, float], rng: np.random.Generator,
) -> None:  # fmt: skip
    """Scale an object, to at most the image's size, flip it half of the time, and lay it where all of it is inside."""
    height, width = visible.shape
    factor = min(rng.uniform(*scale), len(mask) / height, len(mask) / width)
    shape = width, height = max(1, round(width * factor)), max(1, round(height * factor))
    patch = cv2.resize(patch, shape, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    visible = cv2.resize(visible.view(np.uint8), shape, interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)
    if rng.random() < 0.5:
        patch, visible = patch[:, ::-1], visible[:, ::-1]
    top, left = rng.integers(len(mask) - height, endpoint=True), rng.integers(len(mask) - width, endpoint=True)
    box = slice(top, top + height), slice(left, left + width)
    image[box][visible] = patch[visible]
    mask[box][visible] = class_id


def _find_class_ids(names: Sequence[str], subset: Subset) -> list[int]:
    known = list(subset.data.class_names)
    for name in names:
        require_known("class", name, known[1:], "mixing.copy_paste.classes", limit=20)
    return [known.index(name) for name in names]


# In the order in which they are applied to one sample.
SAMPLE_MIXES = {mix.__name__: mix for mix in (mosaic, background, copy_paste)}


# From images to batches: loaders whose samples do not depend on the number of workers.


class SegmentationDataset(Dataset):
    """Samples as uint8 tensors: image (S, S, 3) RGB in 0..255, mask (S, S) class ids; keys are (epoch, position).

    With `expand` above 1 every image stands in an epoch that often: once as it is, then mixed and augmented copies.
    Images of extra sets stand in it as their weight says, always mixed and augmented. Position p is copy p // N of image
    p % N of the N images.
    """

    def __init__(
        self, subset: Subset, augmentation: str | Sequence, seed: int, mixing: Mapping = NO_MIXING, expand: int = 1
    ):
        self.subset, self.seed, self.expand = subset, seed, expand
        self.augmentation = build_augmentation(augmentation, subset.image_size)
        self.mixing = SampleMixing(mixing, subset)

    def __len__(self) -> int:
        """Samples of an epoch, the same number in each."""
        return len(self.choose_positions(epoch=0))

    def choose_positions(self, epoch: int) -> np.ndarray:
        """(len(self),) int64, the positions of an epoch, unshuffled: all own images, and of extra sets what their turn is.

        A weight of 0.5 draws a half of its images again in each epoch; 1.5 takes all, and a half of them twice.
        """
        count, weights = len(self.subset), self.subset.weights
        if weights is None:
            return np.arange(count * self.expand)
        positions = [copy * count + np.flatnonzero(np.isnan(weights)) for copy in range(self.expand)]
        rng = np.random.default_rng([self.seed, epoch, 1])  # apart from the stream that shuffles
        mixed = int(self.expand > 1)  # the first copy that is mixed and augmented
        for weight in np.unique(weights[~np.isnan(weights)]):
            images = np.flatnonzero(weights == weight)
            whole, drawn = divmod(max(1, round(weight * len(images))), len(images))
            positions += [(mixed + copy) * count + images for copy in range(whole)]
            positions.append((mixed + whole) * count + rng.choice(images, drawn, replace=False))
        return np.concatenate(positions)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, position = key
        copy, original = divmod(position, len(self.subset))
        image, mask = self.subset.read(original)
        if copy or self.expand == 1:
            image, mask = self.mixing(image, mask, self.seed, epoch, position)
            image, mask = augment(self.augmentation, image, mask, self.seed, epoch, position)
        return torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(np.ascontiguousarray(mask))


class EpochBatches:
    """Batches of (epoch, position); the order of an epoch depends on (seed, epoch) alone.

    Set `epoch` before a pass, and `first`: the number of batches that it leaves out at the beginning.
    `choose_positions(epoch)` gives the positions of an epoch, int64, as many in each.
    """

    def __init__(self, choose_positions: Callable[[int], np.ndarray], batch_size: int, seed: int, shuffle: bool):
        self.choose_positions, self.count = choose_positions, len(choose_positions(0))
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.epoch, self.first = 0, 0

    def __len__(self) -> int:
        # A last batch of one image has no variance to normalise with, and batch norm refuses it: it is left out.
        lonely = self.shuffle and self.batch_size > 1 and self.count % self.batch_size == 1 and self.count > 1
        return -(-self.count // self.batch_size) - lonely

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Give the keys of each batch; of several ranks each its part of every batch, or of the batches where none is shuffled."""
        order = self.choose_positions(self.epoch)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        starts = range(self.first * self.batch_size, len(self) * self.batch_size, self.batch_size)
        for start in starts if self.shuffle else ranks.take_share(starts):
            batch = order[start : start + self.batch_size]
            yield [(self.epoch, int(position)) for position in (ranks.take_share(batch) if self.shuffle else batch)]


def build_loader(
    subset: Subset,
    batch_size: int,
    *,
    shuffle: bool,
    augmentation: str | Sequence,
    seed: int,
    num_workers: int | str,
    mixing: Mapping = NO_MIXING,
    expand: int = 1,
) -> DataLoader:
    """Load batches: images (N, 3, S, S) uint8 in channels-last memory, masks (N, S, S) uint8.

    Set `loader.batch_sampler.epoch` before each pass. The samples are the same for any number of workers.

    Parameters
    ----------
    augmentation : a preset's name or a list of steps, see `build_augmentation`.
    num_workers : loader processes, or "auto", see `choose_workers`.
    mixing : name -> probability or options; those that mix an image with others of the subset, see `SampleMixing`.
    expand : how often each image stands in an epoch, see `SegmentationDataset`.
    """
    if num_workers == "auto":
        num_workers = choose_workers(len(subset) * expand, batch_size, subset.image_size)
    if num_workers:
        # Workers are forked: OpenCV's threads must be gone before (in a worker the same call waits for them for ever),
        # and each worker is one of several processes anyway.
        cv2.setNumThreads(1)
    is_forked = num_workers and sys.platform == "linux"  # Python 3.14 forks no more by itself
    dataset = SegmentationDataset(subset, augmentation, seed, mixing, expand)
    loader = DataLoader(
        dataset,
        batch_sampler=EpochBatches(dataset.choose_positions, batch_size, seed, shuffle),
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        multiprocessing_context="fork" if is_forked else None,
        generator=torch.Generator(),  # workers' seeds come from here, not from the stream that the model draws from
    )
    loader.built_from = {"seed": seed}
    if shuffle:
        loader.built_from |= {"augmentation": augmentation, "mixing": dict(mixing), "expand": expand}
    return loader


def choose_workers(num_images: int, batch_size: int, image_size: int) -> int:
    """Loader processes for a device: none on a CPU, which computes meanwhile; on CUDA what cores and shared memory allow.

    The cores are this process's, divided by the runs of `run_grid.py --workers`. Each process has up to three batches in
    /dev/shm, which is small in many containers: half of what is free there is left.
    """
    if not torch.cuda.is_available() or sys.platform != "linux":
        return 0
    cores = len(os.sched_getaffinity(0)) // (max(1, read_whole(RUNS_AT_ONCE, 1)) * ranks.count())
    fit = shutil.disk_usage("/dev/shm").free // 2 // (3 * batch_size * 4 * image_size**2)
    return min(MOST_WORKERS, max(1, cores - 1), -(-num_images // batch_size), fit)


def _collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, masks = zip(*samples, strict=True)
    return torch.stack(images).permute(0, 3, 1, 2), torch.stack(masks)

"""From images to batches: loaders whose samples do not depend on the number of workers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from seglib.data.augment import augment, build_augmentation
from seglib.data.dataset import Subset
from seglib.data.mixing import SampleMixing

Augmentation = str | Sequence
NO_MIXING = MappingProxyType({})


class SegmentationDataset(Dataset):
    """Samples as uint8 tensors: image (S, S, 3) RGB in 0..255, mask (S, S) class ids; keys are (epoch, position).

    With `expand` above 1 every image stands in an epoch that often: once as it is, then mixed and augmented copies.
    Images of extra sets stand in it as their weight says, always mixed and augmented. Position p is copy p // N of image
    p % N of the N images.
    """

    def __init__(
        self, subset: Subset, augmentation: Augmentation, seed: int, mixing: Mapping = NO_MIXING, expand: int = 1
    ):
        self.subset, self.seed, self.expand = subset, seed, expand
        self.augmentation = build_augmentation(augmentation, subset.image_size)
        self.mixing = SampleMixing(mixing, subset)

    def __len__(self) -> int:
        """Samples of an epoch, the same number in each."""
        return len(self.choose_positions(epoch=0))

    def choose_positions(self, epoch: int) -> np.ndarray:
        """(len(self),) int64, the positions of an epoch, unshuffled: all own images, and of extra sets what their turn is.

        A weight of 0.5 draws a half of its images anew each epoch; 1.5 takes all, and a half of them twice.
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
            draw = (self.seed, epoch, position)
            image, mask = self.mixing(image, mask, *draw)
            image, mask = augment(self.augmentation, image, mask, *draw)
        return torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(np.ascontiguousarray(mask))


class EpochBatches:
    """Batches of (epoch, position); the order of an epoch depends on (seed, epoch) alone.

    Set `epoch` before a pass, and `first`: the number of batches that it leaves out at the beginning.
    `choose_positions(epoch)` gives the positions of an epoch, (count,) int64; without it they are 0 to count - 1.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        choose_positions: Callable[[int], np.ndarray] | None = None,
    ):
        self.count, self.batch_size, self.seed, self.shuffle = count, batch_size, seed, shuffle
        self.choose_positions = choose_positions or (lambda epoch: np.arange(count))
        self.epoch, self.first = 0, 0

    def __len__(self) -> int:
        # A last batch of one image has no variance to normalise with, and batch norm refuses it: it is left out.
        lonely = self.shuffle and self.batch_size > 1 and self.count % self.batch_size == 1 and self.count > 1
        return -(-self.count // self.batch_size) - lonely

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self.choose_positions(self.epoch)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        for number in range(self.first, len(self)):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield [(self.epoch, int(position)) for position in batch]


def choose_batch_size(batch_size: int, count: int, debug: bool) -> int:
    """The batch size of a run on `count` training images: in a debug trial, one that leaves a few steps an epoch."""
    return min(batch_size, max(2, count // 4)) if debug else batch_size


def build_loader(
    subset: Subset,
    batch_size: int,
    *,
    shuffle: bool,
    augmentation: Augmentation,
    seed: int,
    num_workers: int,
    mixing: Mapping = NO_MIXING,
    expand: int = 1,
) -> DataLoader:
    """Load batches: images (N, 3, S, S) uint8 in channels-last memory, masks (N, S, S) uint8.

    Set `loader.batch_sampler.epoch` before each pass. The samples are the same for any number of workers.

    Parameters
    ----------
    augmentation : a preset's name or a list of steps, see `build_augmentation`.
    mixing : name -> probability or options; those that mix an image with others of the subset, see `SampleMixing`.
    expand : how often each image stands in an epoch, see `SegmentationDataset`.
    """
    if num_workers:
        # Workers are forked: OpenCV's threads must be gone before (in a worker the same call waits for them for ever),
        # and each worker is one of several processes anyway.
        cv2.setNumThreads(1)
    dataset = SegmentationDataset(subset, augmentation, seed, mixing, expand)
    return DataLoader(
        dataset,
        batch_sampler=EpochBatches(len(dataset), batch_size, seed, shuffle, dataset.choose_positions),
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # workers' seeds come from here, not from the stream that the model draws from
    )


def _collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, masks = zip(*samples, strict=True)
    return torch.stack(images).permute(0, 3, 1, 2), torch.stack(masks)

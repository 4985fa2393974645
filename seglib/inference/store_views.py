"""Stores seen otherwise, without a copy: folds joined to all images or averaged, some of the images, other classes."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from seglib.errors import InputError
from seglib.inference.probability_store import ProbabilityStore
from seglib.inference.weighted_sum import require_alike


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

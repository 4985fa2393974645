"""What the viewer lists: images with their masks and scores, sorted and filtered."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from seglib.errors import InputError

TRUTH = "truth"


class Sample(NamedTuple):
    """One image (H, W, 3) uint8 RGB and its masks (H, W) uint8 by name, the reference first."""

    image: np.ndarray
    masks: dict[str, np.ndarray]

    def crop(self, left: int, top: int, width: int, height: int) -> "Sample":
        """A part of the image and of its masks [px]."""
        part = slice(top, top + height), slice(left, left + width)
        return Sample(self.image[part], {name: mask[part] for name, mask in self.masks.items()})


class MaskSource:
    """A data set and the predictions for it, read one image at a time.

    Attributes
    ----------
    class_names : list of str
    image_ids : list, one id an image
    reference : name of the mask that the others are compared with: "truth", or the first run where there is no truth;
        None where there is neither.
    compared : names of the runs that are compared with the reference.
    """

    def __init__(self, dataset, predictions=None, class_names: Sequence[str] | None = None, truth: bool = True):
        self.dataset, self._table = dataset, None
        self.class_names = _find_class_names(dataset, class_names)
        self.image_ids = list(dataset.image_ids)
        self.runs = _name_runs(predictions)
        self._check_runs()
        names = [TRUTH, *self.runs] if truth else list(self.runs)
        if len(set(names)) < len(names):
            raise InputError(f"MaskViewer: a run must not be called {TRUTH!r}; give it another name")
        self.truth = truth
        self.reference, self.compared = (names[0] if names else None), names[1:]

    def __len__(self) -> int:
        return len(self.image_ids)

    def read(self, position: int) -> Sample:
        """Read an image and its masks, at the size of the predictions where there are any."""
        image, truth = self.dataset.read(position)
        masks = {name: np.asarray(run[position]) for name, run in self.runs.items()}
        height, width = next(iter(masks.values())).shape if masks else image.shape[:2]
        if image.shape[:2] != (height, width):
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        if not self.truth:
            return Sample(image, masks)
        if truth.shape != (height, width):
            truth = cv2.resize(truth, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return Sample(image, {TRUTH: truth, **masks})

    def get_table(self, progress: Callable[[int, int], None] | None = None) -> "ImageTable":
        """Of `build_image_table`, when it is first needed."""
        if self._table is None:
            self._table = build_image_table(self, progress)
        return self._table

    def _check_runs(self) -> None:
        shapes = {name: np.shape(run) for name, run in self.runs.items()}
        for name, shape in shapes.items():
            if len(shape) != 3 or shape[0] != len(self) or self.runs[name].dtype != np.uint8:
                raise InputError(
                    f"MaskViewer: predictions of {name!r} must be ({len(self)}, H, W) uint8, one mask an image, got "
                    f"{shape} {self.runs[name].dtype}; give class ids of the images of this data set in its order"
                )
        if len({shape[1:] for shape in shapes.values()}) > 1:
            sizes = ", ".join(f"{name} {shape[2]}x{shape[1]}" for name, shape in shapes.items())
            raise InputError(f"MaskViewer: all predictions must have one size, got {sizes}; resize one of them")


def _name_runs(predictions) -> dict[str, np.ndarray]:
    if predictions is None:
        return {}
    named = predictions if isinstance(predictions, Mapping) else {"prediction": predictions}
    # A memory-mapped file stays one: asarray does not read it, and np.memmap is an array already.
    return {str(name): run if isinstance(run, np.ndarray) else np.asarray(run) for name, run in named.items()}


def _find_class_names(dataset, class_names: Sequence[str] | None) -> list[str]:
    for owner in (dataset, getattr(dataset, "data", None)):
        if class_names is None:
            class_names = getattr(owner, "class_names", None)
    if class_names is None or not 1 <= len(class_names) <= 255:
        got = "none" if class_names is None else f"{len(class_names)}"
        raise InputError(f"MaskViewer: required 1 to 255 class names, got {got}; pass class_names=[...]")
    return [str(name) for name in class_names]


# What the viewer sorts and filters images by, computed in one pass over the masks, an image at a time.


class ImageTable(NamedTuple):
    """One row an image in the arrays, one row a fact in the tables; the reference is the truth where there is one.

    pixels : (N, C) int64 [px], the reference's.
    miou : (N, runs) float64, each image's own mIoU against the reference; NaN without a valid pixel.
    confused : columns position, run, true, predicted, pixels [px]: wrong pixels only.
    objects : columns position, class_id, area, across (its square root) [px]: the reference's connected objects.
    """

    pixels: np.ndarray
    miou: np.ndarray
    confused: pd.DataFrame
    objects: pd.DataFrame


class Choice(NamedTuple):
    """Which images, in which order. `None` and 0 stand for "any"."""

    sort: str = "position"  # one of `list_sorts`
    run: int = 0  # whose mIoU and confusions, an index of the compared runs
    true_class: int | None = None
    predicted: int | None = None
    under: float = 0  # [px] objects smaller than this across

    @property
    def needs_table(self) -> bool:
        return self.sort != "position" or self.true_class is not None or self.predicted is not None or self.under > 0


def list_sorts(source: MaskSource) -> dict[str, str]:
    """Label -> order, those that these masks allow."""
    sorts = {"position": "position"}
    if source.compared:
        score = "mIoU" if source.truth else f"agreement with {source.reference}"
        sorts |= {f"{score}, worst first": "worst mIoU", f"{score}, best first": "best mIoU"}
        sorts |= {"confused pixels, most first": "confused pixels"}
    if source.truth and len(source.compared) > 1:
        first, second = source.compared[:2]
        sorts |= {f"{first} ahead of {second}": "first run ahead", f"{second} ahead of {first}": "second run ahead"}
    if source.reference:
        sorts |= {"share of the class, most first": "class share", "smallest object first": "smallest object"}
    return sorts


def build_image_table(source: MaskSource, progress: Callable[[int, int], None] | None = None) -> ImageTable:
    """Read every mask once; `progress` is told (images done, images in all)."""
    count, num_classes, runs = len(source), len(source.class_names), len(source.compared)
    pixels, miou = np.zeros((count, num_classes), np.int64), np.full((count, runs), np.nan)
    confused, objects = [np.empty((0, 5), np.int32)], [np.empty((0, 3), np.int32)]
    for position in range(count):
        masks = source.read(position).masks
        reference = masks[source.reference]
        pixels[position] = np.bincount(reference.ravel(), minlength=256)[:num_classes]
        objects.append(_label_rows(measure_objects(reference, pixels[position]), position))
        for run, name in enumerate(source.compared):
            confusion = count_confusion(reference, masks[name], num_classes)
            miou[position, run] = image_miou(confusion)
            confused.append(_label_rows(list_wrong_pairs(confusion), position, run))
        if progress is not None:
            progress(position + 1, count)
    object_table = pd.DataFrame(np.concatenate(objects), columns=["position", "class_id", "area"])
    return ImageTable(
        pixels,
        miou,
        pd.DataFrame(np.concatenate(confused), columns=["position", "run", "true", "predicted", "pixels"]),
        object_table.assign(across=np.sqrt(object_table["area"])),
    )


def count_confusion(reference: np.ndarray, pred: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, C + 1) int64, the reference in rows; the last column takes predicted ids that are no class.

    Pixels whose reference is no class (255: ignored) are left out. Counted here because figures import no scores;
    a test compares with seglib.evaluation.metrics.
    """
    columns = num_classes + 1
    index = reference.astype(np.int32).ravel() * columns + np.minimum(pred, num_classes).ravel()
    return np.bincount(index, minlength=256 * columns)[: num_classes * columns].reshape(num_classes, columns)


def image_miou(confusion: np.ndarray) -> float:
    """Mean IoU of one (C, C + 1) matrix over the classes in either mask; NaN without a valid pixel."""
    square = confusion[:, :-1]
    hits, union = np.diagonal(square), confusion.sum(1) + square.sum(0) - np.diagonal(square)
    present = union > 0
    return float((hits[present] / union[present]).mean()) if present.any() else float("nan")


def list_wrong_pairs(confusion: np.ndarray) -> np.ndarray:
    """(pairs, 3) int32: true class, predicted class, pixels, of what is wrong in a (C, C + 1) matrix."""
    true, pred = np.nonzero(confusion)
    pairs = np.column_stack([true, pred, confusion[true, pred]]).astype(np.int32)
    return pairs[true != pred]


def measure_objects(mask: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(objects, 2) int32: class id and area of each connected object (8 neighbours); background 0 is none.

    pixels : (C,) of each class in the mask.
    """
    found = [np.empty((0, 2), np.int32)]
    for class_id in np.flatnonzero(pixels[1:]) + 1:
        own = (mask == class_id).view(np.uint8)
        left, top, width, height = cv2.boundingRect(own)  # most objects are small: labelling the rest takes longest
        part = own[top : top + height, left : left + width]
        areas = cv2.connectedComponentsWithStats(part)[2][1:, cv2.CC_STAT_AREA]
        found.append(np.column_stack([np.full(len(areas), class_id, np.int32), areas]))
    return np.concatenate(found)


def select_images(table: ImageTable | None, count: int, choice: Choice) -> np.ndarray:
    """Positions (M,) of the images that the filters leave, in the order of `choice.sort`; ties stay in order."""
    positions = np.arange(count)
    if table is None:
        return positions
    kept = np.ones(count, bool)
    if choice.true_class is not None:
        kept &= table.pixels[:, choice.true_class] > 0
    if choice.predicted is not None:
        kept &= _sum_confused(table, count, choice) > 0
    if choice.under > 0:
        kept &= _smallest(table, count, choice.true_class) < choice.under
    keys = np.nan_to_num(_sort_keys(table, count, choice), nan=np.inf)
    return positions[kept][np.argsort(keys[kept], kind="stable")]


def _sort_keys(table: ImageTable, count: int, choice: Choice) -> np.ndarray:
    """(N,) float64: smallest first."""
    match choice.sort:
        case "worst mIoU":
            return table.miou[:, choice.run]
        case "best mIoU":
            return -table.miou[:, choice.run]
        case "first run ahead":
            return table.miou[:, 1] - table.miou[:, 0]
        case "second run ahead":
            return table.miou[:, 0] - table.miou[:, 1]
        case "class share":
            return -_share(table, choice.true_class)
        case "confused pixels":
            return -_sum_confused(table, count, choice)
        case "smallest object":
            return _smallest(table, count, choice.true_class)
    return np.arange(count, dtype=float)


def _share(table: ImageTable, class_id: int | None) -> np.ndarray:
    """Share of the class, or of everything that is not background where none is chosen."""
    part = table.pixels[:, 1:].sum(1) if class_id is None else table.pixels[:, class_id]
    return part / np.maximum(1, table.pixels.sum(1))


def _sum_confused(table: ImageTable, count: int, choice: Choice) -> np.ndarray:
    """(N,) wrong pixels of the chosen run, of the chosen true and predicted class where there are any."""
    rows = table.confused[table.confused["run"] == choice.run]
    for column, class_id in (("true", choice.true_class), ("predicted", choice.predicted)):
        if class_id is not None:
            rows = rows[rows[column] == class_id]
    return np.bincount(rows["position"].to_numpy(np.int64), rows["pixels"].to_numpy(float), count)


def _smallest(table: ImageTable, count: int, class_id: int | None) -> np.ndarray:
    """(N,) size of the smallest object [px]; infinite where an image has none."""
    rows = table.objects if class_id is None else table.objects[table.objects["class_id"] == class_id]
    return rows.groupby("position")["across"].min().reindex(range(count), fill_value=np.inf).to_numpy(float)


def _label_rows(rows: np.ndarray, *labels: int) -> np.ndarray:
    """The rows with the same labels before each."""
    return np.column_stack([np.tile(np.array(labels, np.int32), (len(rows), 1)), rows])

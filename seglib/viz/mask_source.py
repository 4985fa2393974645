"""Images with their masks, true and predicted, behind one `read`: what the viewer shows, checked once."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

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
        self.dataset = dataset
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

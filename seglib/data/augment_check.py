"""What is wrong with an augmentation, found by running each of its steps."""

import sys
import warnings
from collections.abc import Sequence
from copy import deepcopy

if "torch" not in sys.modules:  # importing it would take longer than the checks
    sys.modules["albumentations.pytorch"] = None  # albumentations goes on without it where it cannot be imported

import albumentations as A
import cv2
import numpy as np

from seglib.data.augment import Step, augment, build_augmentation
from seglib.data.masks import IGNORE_INDEX
from seglib.data.pipeline_check import Sample, find_step_problems
from seglib.errors import InputError

DRAWS = 2  # of each step on each probe
_FIXES = {
    "mask gets ids that did not exist": "leave mask_interpolation out, set fill_mask to 255, or take the step out",
    "image becomes black": "weaken it",
    "image becomes of one colour": "weaken it",
}


def find_refusal(augmentation: str | Sequence, image_size: int) -> str:
    """Build an augmentation and run each of its steps, nested ones too, whatever its p; "" if all is well, else why not.

    Refused are steps that cannot be built or cannot run on an image and its mask alone, that return anything but uint8 RGB
    images, that give masks other ids than they had (255 excepted), that leave nothing of the image, and augmentations
    that may return another size than `image_size`.
    """
    try:
        steps = build_augmentation(augmentation, image_size).transforms
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # steps that find nothing to do on a probe say so
            _run_all(steps, _make_probes(image_size), "augmentation", image_size)
    except InputError as error:
        return str(error)
    return ""


def _run_all(steps: Sequence[Step], samples: list[Sample], where: str, image_size: int) -> None:
    resizing = ""
    for step in steps:
        before = _list_sizes(samples)
        samples = _run(step, samples, where, may_skip=True)
        if _list_sizes(samples) != before:
            resizing = type(step).__name__
    others = sorted(_list_sizes(samples) - {(image_size, image_size)})
    if others:
        raise InputError(
            f"{where} > {resizing}: required images of {image_size} x {image_size} (image_size) in the end, got"
            f" {others[0][0]} x {others[0][1]}; add Resize after it, or leave its height and width out"
        )


def _run(step: Step, samples: list[Sample], where: str, *, may_skip: bool) -> list[Sample]:
    """What samples become in the step; where it may be skipped, and that makes a difference in size, also unchanged ones."""
    where = f"{where} > {type(step).__name__}"
    if isinstance(step, A.OneOf | A.SomeOf):  # RandomOrder is a SomeOf; in OneOf p is a weight
        skips = isinstance(step, A.SomeOf)
        branches = [_run(inner, samples, where, may_skip=skips) for inner in step.transforms]
        turns = [branches[position % len(branches)] for position in range(len(samples))]
        outputs = [branch[position] for position, branch in enumerate(turns)]
        outputs += _pick_other_sizes(outputs, [sample for branch in branches for sample in branch])
    elif isinstance(step, A.BaseCompose):
        outputs = samples
        for inner in step.transforms:
            outputs = _run(inner, outputs, where, may_skip=True)
    else:
        outputs = [_apply(step, sample, where, draw) for draw, sample in enumerate(samples)]
    return outputs + (_pick_other_sizes(outputs, samples) if may_skip and step.p < 1 else [])


def _apply(step: A.BasicTransform, sample: Sample, where: str, draw: int) -> Sample:
    """Run one transform for certain, and refuse what it must not do."""
    forced = deepcopy(step)
    forced.p = 1.0
    try:
        image, mask = augment(A.Compose([forced]), *sample, 0, 0, draw)
    except Exception as error:  # whatever kind the library or OpenCV raises: each is a step that cannot run
        raise InputError(f"{where}: it cannot run on an image and its mask: {error or type(error).__name__}") from error
    if image.dtype != np.uint8:
        raise InputError(
            f"{where}: required uint8 images, which the steps after it and the model take (the model normalises them"
            f" itself; they would be normalised twice), got {image.dtype}; take it out"
        )
    if image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"{where}: required RGB images (H, W, 3), got {image.shape}; take it out")
    for problem, detail in find_step_problems(sample, (image, mask), {IGNORE_INDEX}, is_last=False):
        raise InputError(f"{where}: {problem}{detail}; {_FIXES.get(problem, 'take it out')}")
    return image, mask


def _list_sizes(samples: Sequence[Sample]) -> set[tuple[int, int]]:
    return {image.shape[:2] for image, _ in samples}


def _pick_other_sizes(samples: Sequence[Sample], candidates: Sequence[Sample]) -> list[Sample]:
    """A candidate of each size that no sample has."""
    by_size = {image.shape[:2]: (image, mask) for image, mask in candidates}
    return [by_size[size] for size in sorted(by_size.keys() - _list_sizes(samples))]


def _make_probes(image_size: int) -> list[Sample]:
    """Grainy pictures with masks whose ids are far apart, with and without background; one without any object."""
    rng, probes = np.random.default_rng(0), []
    for ids in ([0, 2, 7], [1, 4, 9, IGNORE_INDEX], [0]):
        blobs = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        image = cv2.resize(blobs, (image_size, image_size), interpolation=cv2.INTER_CUBIC)
        image = np.clip(image + rng.normal(0, 10, image.shape), 0, 255).astype(np.uint8)
        labels = np.array(ids, np.uint8)[np.arange(36).reshape(6, 6) % len(ids)]
        mask = cv2.resize(labels, (image_size, image_size), interpolation=cv2.INTER_NEAREST)
        probes += [(image, mask)] * DRAWS
    return probes

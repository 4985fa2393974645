"""What an augmentation must not do to an image and its mask: walked step by step on samples, or refused on probes."""

import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy

if "torch" not in sys.modules:  # importing it would take longer than the checks
    sys.modules["albumentations.pytorch"] = None  # albumentations goes on without it where it cannot be imported

import albumentations as A
import cv2
import numpy as np
import pandas as pd

from seglib.data.augment import Step, augment, build_augmentation
from seglib.data.images import BLACK, CONSTANT
from seglib.data.masks import IGNORE_INDEX
from seglib.errors import InputError

Sample = tuple[np.ndarray, np.ndarray]
Problem = tuple[str, str]  # what is wrong, and in detail
DRAWS = 6  # of each step on each sample: on 8 samples a step with p = 0.1 is seen to draw in 99 of 100 checks
PROBE_DRAWS = 2  # of each step on each probe
_FIXES = {
    "mask gets ids that did not exist": "leave mask_interpolation out, set fill_mask to 255, or take the step out",
    "image becomes black": "weaken it",
    "image becomes of one colour": "weaken it",
}


def check_pipeline(
    pipeline: A.Compose, samples: Sequence[Sample], num_classes: int, *, training: bool, background: str, seed: int = 0
) -> pd.DataFrame:
    """Run every step on every sample several times and list what is wrong.

    ================================ ==================================================================
    problem                          found when
    ================================ ==================================================================
    image is black / of one colour   it was not before the step (or is so as loaded)
    normalised twice                 values below 0 are rescaled by more than 2 or less than 1/2
    divided by 255 twice             values in 0..1 are rescaled to a twentieth or less
    never normalised                 the last step gives floats without a value below 0 (the model normalises uint8 only)
    not finite                       NaN or infinity in the image
    random                           the draws differ, in a pipeline that is not for training
    ids that did not exist           the mask has ids that it had not before the step; filling with 255 is allowed, with
                                     0 too where the background is a class
    ids that are no class            in the mask as loaded
    mask is not uint8, sizes differ
    ================================ ==================================================================

    Parameters
    ----------
    pipeline : of `build_augmentation`
    samples : image (H, W, 3) uint8 and mask (H, W) uint8, as loaded; eight or more
    training : whether the pipeline may draw
    background : {"class", "ignore"}

    Returns
    -------
    DataFrame
        A row for the input and for each step: `step`, `image_dtype`, `image_min`, `image_max`, `mask_dtype`, `random`,
        `problem` ("" where all is well; with the number of outputs that have it).
    """
    fills = {IGNORE_INDEX} | ({0} if background == "class" else set())
    problems = [problem for sample in samples for problem in _input_problems(*sample, num_classes)]
    rows = [_describe("(as loaded)", samples, False, problems)]
    current = [[sample] * DRAWS for sample in samples]
    for step in pipeline.transforms:
        single, is_last = A.Compose([deepcopy(step)]), step is pipeline.transforms[-1]

        def draw_all(states: Sequence[Sample], index: int, single: A.Compose = single) -> list[Sample]:
            return [augment(single, *state, seed, draw, index) for draw, state in enumerate(states)]

        is_random = any(_differ(draw_all(states[:1] * DRAWS, index)) for index, states in enumerate(current))
        following = [draw_all(states, index) for index, states in enumerate(current)]
        pairs = [pair for states in zip(current, following, strict=True) for pair in zip(*states, strict=True)]
        after = [outputs for _, outputs in pairs]
        problems = [problem for pair in pairs for problem in find_step_problems(*pair, fills, is_last)]
        if is_random and not training:
            problems += [("random, and this pipeline is not for training", "")] * len(after)
        rows.append(_describe(type(step).__name__, after, is_random, problems))
        current = following
    return pd.DataFrame(rows)


def _describe(name: str, outputs: Sequence[Sample], is_random: bool, problems: list[Problem]) -> dict:
    images, masks = zip(*outputs, strict=True)
    counts, first_detail = Counter(problem for problem, _ in problems), dict(reversed(problems))
    words = [f"{problem}{first_detail[problem]} ({count} of {len(outputs)})" for problem, count in counts.items()]
    return {
        "step": name,
        "image_dtype": ", ".join(sorted({str(image.dtype) for image in images})),
        "image_min": float(min(image.min() for image in images)),
        "image_max": float(max(image.max() for image in images)),
        "mask_dtype": ", ".join(sorted({str(mask.dtype) for mask in masks})),
        "random": is_random,
        "problem": "; ".join(words),
    }


def _differ(outputs: list[Sample]) -> bool:
    return any(not all(map(np.array_equal, outputs[0], other)) for other in outputs)


def _input_problems(image: np.ndarray, mask: np.ndarray, num_classes: int) -> Iterator[Problem]:
    if flat := _name_flat(image):
        yield f"image is {flat}", ""
    unknown = np.setdiff1d(mask, [*range(num_classes), IGNORE_INDEX])
    if len(unknown):
        yield "mask has ids that are no class", f": {_list(unknown)}"
    yield from _pair_problems(image, mask)


def find_step_problems(before: Sample, after: Sample, fills: set[int], is_last: bool) -> Iterator[Problem]:
    """What a step did to a sample that it must not, as `check_pipeline` lists it; `fills`: ids that it may add."""
    (image, mask), (new_image, new_mask) = before, after
    new_ids = np.setdiff1d(np.setdiff1d(new_mask, mask), list(fills))
    if len(new_ids):
        yield "mask gets ids that did not exist", f": {_list(new_ids)}"
    yield from _pair_problems(new_image, new_mask)
    if not np.isfinite(new_image).all():
        yield "image has values that are not finite", ""
        return
    if (flat := _name_flat(new_image)) and not _name_flat(image):
        yield f"image becomes {flat}", ""
    if rescaled := _name_rescaling(image, new_image):
        yield rescaled, f": {_range(image)} becomes {_range(new_image)}"
    if is_last and new_image.dtype.kind == "f" and new_image.min() >= 0:
        yield "never normalised (the model normalises uint8 only)", f": {_range(new_image)}"


def _pair_problems(image: np.ndarray, mask: np.ndarray) -> Iterator[Problem]:
    if mask.dtype != np.uint8:
        yield "mask is not uint8", f": {mask.dtype}"
    if mask.shape != image.shape[:2]:
        yield "image and mask differ in size", f": {image.shape[:2]} and {mask.shape}"


def _name_flat(image: np.ndarray) -> str:
    """How an image without content looks, "" for one that has some."""
    unit = 1 if image.dtype.kind in "ui" else 1 / 255
    if image.min() >= 0 and image.max() <= BLACK * unit:
        return "black"
    return "of one colour" if np.ptp(image.reshape(-1, image.shape[-1]), axis=0).max() <= CONSTANT * unit else ""


def _name_rescaling(before: np.ndarray, after: np.ndarray) -> str:
    """Whether a step multiplied values that had been scaled already; "" for any other change."""
    if before.dtype.kind != "f" or before.shape != after.shape:
        return ""
    x, y = before[..., 0].ravel().astype(np.float64), after[..., 0].ravel().astype(np.float64)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return ""
    factor, offset = np.polyfit(x, y, 1)
    if np.abs(factor * x + offset - y).max() > 1e-3 * np.ptp(y):  # no factor alone: another change
        return ""
    if before.min() < 0:
        return "" if 0.5 <= factor <= 2 else "normalised twice"
    return "divided by 255 twice" if before.max() <= 1 and factor <= 0.05 else ""


def _range(image: np.ndarray) -> str:
    return f"{image.min():.2g} to {image.max():.2g}"


def _list(ids: np.ndarray) -> str:
    return ", ".join(map(str, ids[:8])) + (" ..." if len(ids) > 8 else "")


# The refusal before a training, on probes.


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
        probes += [(image, mask)] * PROBE_DRAWS
    return probes

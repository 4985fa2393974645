"""What validation decided about an ensemble, applied to any images: vote, specialists, CRF, removal of components."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seglib.data.dataset import Subset
from seglib.evaluation.metrics import confusion_per_image, pooled_miou
from seglib.files import replacing
from seglib.inference.components import remove_small_components
from seglib.inference.ensemble import Votes, average_probabilities, hard_vote, soft_vote
from seglib.inference.ensemble_changes import read_pictures
from seglib.inference.ensemble_sample import read_mask
from seglib.inference.members import Member, spread_weights
from seglib.inference.postprocess import Tuned
from seglib.inference.probability_store import ProbabilityStore
from seglib.inference.specialists import add_specialists, follow_confident
from seglib.inference.store_views import take_images
from seglib.zoo.crf import CrfParams, dense_crf

Stores = Sequence[ProbabilityStore]


@dataclass(frozen=True)
class KeptMasks:
    """Masks (N, S, S) uint8 in a .npy file, read where they are looked at: mapped pages would count as memory."""

    path: Path
    shape: tuple[int, int, int]
    offset: int  # of the first mask [bytes]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice | Sequence[int]) -> np.ndarray:
        if isinstance(key, slice):
            key = range(len(self))[key]
        if not isinstance(key, int | np.integer):
            return np.stack([self[int(place)] for place in key])
        if not 0 <= key < len(self):
            raise IndexError(key)  # what ends a for loop over the masks
        side = self.shape[1]
        return np.fromfile(self.path, np.uint8, side * side, offset=self.offset + int(key) * side * side).reshape(
            side, side
        )


@dataclass(frozen=True, eq=False)
class Decisions:
    """How the members' probabilities become masks.

    Attributes
    ----------
    vote : "soft", "geometric" or "hard"
    weights : (M,) of the members
    tie_break : place of the member who decides ties of a hard vote; None for the surest class
    specialist_weight : of each specialist in a soft vote, on the scale of `weights`; 0 for none
    specialist_confidence : above which a specialist decides; 0 for never
    crf, components : None, or what was found; only what is on is used
    """

    vote: str
    weights: np.ndarray
    tie_break: int | None = None
    specialist_weight: float = 0.0
    specialist_confidence: float = 0.0
    crf: Tuned | None = None
    components: Tuned | None = None

    def for_runs(self, members: Sequence[Member]) -> "Decisions":
        """The same for one store a run, as `predict_test` gives them, where a member may be several folds."""
        counts = [len(member.folders) for member in members]
        first = None if self.tie_break is None else sum(counts[: self.tie_break])
        return replace(self, weights=spread_weights(members, self.weights), tie_break=first)

    def describe(self) -> dict[str, Any]:
        """Plain values for a record."""
        return asdict(replace(self, weights=0)) | {"weights": self.weights.tolist()}


def name_sources(stores: Stores) -> list[dict[str, str]]:
    """Grid and run, and the hash of the weights, of each store: what a submission's record names."""
    runs = [store.folder.parents[1] for store in stores]  # <grid>/<run>/probabilities/<store>
    return [
        {"run": f"{run.parent.name}/{run.name}", "weights_sha256": store.facts["weights_sha256"]}
        for run, store in zip(runs, stores, strict=True)
    ]


def average(decisions: Decisions, stores: Stores, specialists: Stores) -> Votes:
    """Merged probabilities, an image at a time: start, (1, C, S, S) float32. Of a hard vote, the soft one's."""
    stores, options = gather_voters(decisions, stores, specialists)
    return average_probabilities(stores, **options)


def gather_voters(decisions: Decisions, stores: Stores, specialists: Stores) -> tuple[Stores, dict[str, Any]]:
    """All stores that vote by weight, and `weights` and `mean` as the functions of `ensemble` take them."""
    weights = decisions.weights
    if len(specialists) and decisions.specialist_weight:
        own = np.full(len(specialists), decisions.specialist_weight)
        stores, weights = add_specialists(stores, weights, specialists, own)
    mean = "geometric" if decisions.vote == "geometric" else "arithmetic"
    return stores, {"weights": weights, "mean": mean}


def predict_masks(
    decisions: Decisions, stores: Stores, specialists: Stores, images: Subset, device: torch.device
) -> Votes:
    """Masks: position of the first image, (n, S, S) uint8.

    Parameters
    ----------
    stores, specialists : of `images`, in their order.
    """
    if decisions.crf and decisions.crf.on:
        votes = _refine(average(decisions, stores, specialists), decisions.crf, images, device)
    else:
        votes = _vote(decisions, stores, specialists)
    if len(specialists) and decisions.specialist_confidence:
        votes = follow_confident(votes, specialists, stores[0].class_names, decisions.specialist_confidence)
    return remove_components(votes, decisions.components)


def remove_components(votes: Votes, components: Tuned | None) -> Votes:
    """Masks without their small components, where that is on."""
    for start, preds in votes:
        if components and components.on:
            preds = np.stack([remove_small_components(pred, components.chosen) for pred in preds])
        yield start, preds


def split_masks(masks: KeptMasks) -> Votes:
    """Masks that were kept, an image at a time."""
    return ((image, masks[image : image + 1]) for image in range(len(masks)))


def name_images(votes: Votes, images: Subset) -> Iterator[tuple[str, np.ndarray]]:
    """File name and mask (or probabilities) of each image, as `write_submission` takes them."""
    names = images.data.images["file_name"].to_numpy()[images.indices]
    for start, results in votes:
        yield from zip(names[start : start + len(results)], results, strict=True)


def count_masks(truth: Subset, masks: KeptMasks) -> np.ndarray:
    """(N, C, C) int64 of masks (N, S, S), truth in rows, resized to them by nearest neighbour."""
    pairs, num_classes = MaskPairs(truth, masks), len(truth.data.class_names)
    counts = [
        confusion_per_image(*(torch.from_numpy(np.array(mask))[None] for mask in pair), num_classes) for pair in pairs
    ]
    return torch.cat(counts).numpy()


def keep_masks(path: str | Path, votes: Votes, images: int, size: int) -> KeptMasks:
    """Write masks as they come; the file is there when it is whole."""
    shape = (images, size, size)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        offset = file.tell()
        for _, preds in votes:
            file.write(np.ascontiguousarray(preds, np.uint8).tobytes())
    return KeptMasks(Path(path), shape, offset)


@dataclass(frozen=True, eq=False)
class Samples:
    """Some of the images for `search_crf`: samples[i] is (image (S, S, 3), probabilities (C, S, S), truth (S, S))."""

    decisions: Decisions
    stores: Stores
    specialists: Stores
    truth: Subset
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        position = [int(self.positions[number])]
        stores, specialists = (
            [take_images(store, position) for store in group] for group in (self.stores, self.specialists)
        )
        ((_, probabilities),) = average(self.decisions, stores, specialists)
        images, masks = read_pictures(self.truth, position, self.stores[0].size)
        return images[0], probabilities[0], masks[0]


@dataclass(frozen=True, eq=False)
class MaskPairs:
    """pairs[i] is (truth, pred) of an image, (S, S) uint8 both, for `tune_min_pixels`."""

    truth: Subset
    preds: KeptMasks

    def __len__(self) -> int:
        return len(self.preds)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        pred = self.preds[number]
        return read_mask(self.truth, number, len(pred)), pred


def gains_in_both_halves(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether the pooled mIoU gains in the first and in the second half of the images, and in all; both (N, C, C)."""
    half = len(before) // 2
    parts = (slice(half), slice(half, None), slice(None))
    return all(pooled_miou(after[part]) > pooled_miou(before[part]) for part in parts)


def _vote(decisions: Decisions, stores: Stores, specialists: Stores) -> Votes:
    if decisions.vote == "hard":
        return hard_vote(stores, decisions.weights, tie_break=decisions.tie_break)
    stores, options = gather_voters(decisions, stores, specialists)
    return soft_vote(stores, **options)


def _refine(votes: Votes, crf: Tuned, images: Subset, device: torch.device) -> Iterator[tuple[int, np.ndarray]]:
    params = CrfParams(**crf.chosen)
    for start, probabilities in votes:
        pictures, _ = read_pictures(images, [start], probabilities.shape[-1])
        refined = dense_crf(pictures[0], probabilities[0], params, device)
        yield start, refined.argmax(0)[None].astype(np.uint8)

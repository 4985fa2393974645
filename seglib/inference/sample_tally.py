"""Pooled confusions of many weightings of one sample, fast: only disputed pixels are voted on, in whole numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seglib.inference.ensemble_sample import PixelSample

CHUNK = 4096  # pixels whose scores are in the processor's caches together
WHOLE = 4096  # weights that add up to 1 are multiples of 1 / this
Scores = np.ndarray  # (C, P) int32: the weighted sum, and below it the class, so that one maximum finds both


@dataclass(frozen=True, eq=False)
class Tally:
    """The disputed pixels of a sample, ready to be counted.

    Attributes
    ----------
    planes : (M, C, P) uint8
    pairs : (P,) int64, C times the true class
    stands_for : (P,) float64
    agreed : (C, C) int64, pixels on which all members agree: the same for all weightings
    """

    planes: np.ndarray
    pairs: np.ndarray
    stands_for: np.ndarray
    agreed: np.ndarray

    @property
    def shift(self) -> int:
        """Bits that hold the class, turned round: of equal sums the lower class has the greater number."""
        return max(1, (self.planes.shape[1] - 1).bit_length())

    def start(self, factors: Sequence[int] = ()) -> Scores:
        """Scores of nobody's vote, or of members with these whole weights, of WHOLE together at most."""
        last, shape = (1 << self.shift) - 1, self.planes.shape[1:]
        scores = np.repeat(last - np.arange(shape[0], dtype=np.int32)[:, None], shape[1], axis=1)
        for member, factor in enumerate(factors):
            if factor:
                self.add(scores, member, factor)
        return scores

    def add(self, scores: Scores, member: int, factor: int = 1) -> None:
        """Add a member's vote, times `factor` (below 0: take it away)."""
        scores += np.multiply(self.planes[member], np.int32(factor << self.shift), dtype=np.int32)

    def count(self, scores: Scores, additions: Sequence[tuple[int, int]] = ((0, 0),)) -> np.ndarray:
        """Confusions (K, C, C) float64 of `scores` with each of K additions (member, factor) to it."""
        last, (classes, pixels) = np.int32((1 << self.shift) - 1), scores.shape
        factors = [np.int32(factor << self.shift) for _, factor in additions]
        best = np.empty((len(additions), pixels), np.int32)
        term = np.empty((classes, CHUNK), np.int32)
        for start in range(0, pixels, CHUNK):
            part = slice(start, min(start + CHUNK, pixels))
            room = term[:, : part.stop - start]
            for row, (member, _), factor in zip(best, additions, factors, strict=True):
                np.multiply(self.planes[member, :, part], factor, out=room, dtype=np.int32)
                np.add(room, scores[:, part], out=room)
                np.max(room, axis=0, out=row[part])
        best &= last
        counts = [np.bincount(self.pairs + (last - row), self.stands_for, classes**2) for row in best]
        return np.array(counts).reshape(-1, classes, classes) + self.agreed


def open_tally(sample: PixelSample) -> Tally:
    """Make a sample ready to be counted."""
    kept = sample.disputed
    pairs = sample.truth[kept].astype(np.int64) * sample.planes.shape[1]
    return Tally(sample.planes[:, :, kept], pairs, sample.stands_for[kept], sample.agreed.sum(0))


def make_whole(weights: np.ndarray) -> list[int]:
    """Weights (M,) of any scale as whole numbers that add up to about WHOLE."""
    return np.round(WHOLE * np.asarray(weights, np.float64) / np.sum(weights)).astype(int).tolist()

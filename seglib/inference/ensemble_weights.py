"""Which members and which weights: greedy selection on a sample, the best alone, or all the same."""

from typing import NamedTuple

import numpy as np

from seglib.evaluation.metrics import mean_iou
from seglib.inference.ensemble_sample import PixelSample
from seglib.inference.sample_tally import make_whole, open_tally


class Selection(NamedTuple):
    """Members in the order in which greedy selection drew them (any may come again), and the pooled mIoU after each."""

    drawn: list[int]
    miou: list[float]


def score_weights(sample: PixelSample, weights: np.ndarray) -> float:
    """Pooled mIoU of a weighted mean (M,), on the sample."""
    tally = open_tally(sample)
    return mean_iou(tally.count(tally.start(make_whole(weights)))[0])


def select_greedily(sample: PixelSample, draws: int = 0) -> Selection:
    """Draw members one after another, each the one that makes the mean of the drawn ones best by pooled mIoU.

    Any may be drawn again, which gives it weight; the first is the best member. Of equals the earlier is drawn.

    Source: Caruana et al. 2004, Ensemble selection from libraries of models.

    Parameters
    ----------
    draws : 0 is the number of members, at least 10.
    """
    tally, members = open_tally(sample), len(sample.planes)
    scores, path = tally.start(), Selection([], [])
    for _ in range(draws or max(10, members)):
        found = [mean_iou(confusion) for confusion in tally.count(scores, [(member, 1) for member in range(members)])]
        path.drawn.append(int(np.argmax(found)))
        path.miou.append(max(found))
        tally.add(scores, path.drawn[-1])
    return path


def weigh_path(path: Selection, members: int) -> np.ndarray:
    """(M,) weights that add up to 1: how often each was drawn up to the best mIoU of a path, the first of equals."""
    best = int(np.argmax(path.miou)) + 1
    return np.bincount(path.drawn[:best], minlength=members) / best


def find_greedy(sample: PixelSample) -> np.ndarray:
    """Weights of greedy selection."""
    return weigh_path(select_greedily(sample), len(sample.planes))


def find_mean(sample: PixelSample) -> np.ndarray:
    """Equal weights, searched for by nobody."""
    return np.full(len(sample.planes), 1 / len(sample.planes))


def find_best(sample: PixelSample) -> np.ndarray:
    """All weight on the member with the best pooled mIoU, the first of equals."""
    alone = np.eye(len(sample.planes))
    return alone[int(np.argmax([score_weights(sample, of_member) for of_member in alone]))]


SEARCHES = {"best": find_best, "greedy": find_greedy}

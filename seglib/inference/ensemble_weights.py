"""Which members and which weights: greedy selection, coordinate ascent, softmax weights, temperatures; on a sample."""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import softmax

from seglib.evaluation.metrics import mean_iou
from seglib.inference.ensemble import SMALLEST
from seglib.inference.ensemble_sample import PixelSample
from seglib.inference.sample_tally import WHOLE, make_whole, open_tally

STEPS = (0.0, 0.5, 0.8, 1.25, 2.0)  # a weight is multiplied by
TURNS = 4  # of coordinate ascent over all members, at most
HOTTEST = 20.0  # temperatures lie between 1 / this and this


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


def find_greedy(sample: PixelSample, seed: int = 0, bags: int = 0) -> np.ndarray:
    """Weights of greedy selection; with `bags`, the mean over so many selections among half of the members each.

    `seed` draws the halves.
    """
    members = len(sample.planes)
    if not bags:
        return weigh_path(select_greedily(sample), members)
    rng, weights = np.random.default_rng(seed), np.zeros(members)
    for _ in range(bags):
        chosen = np.sort(rng.choice(members, max(1, members // 2), replace=False))
        bag = PixelSample(sample.planes[chosen], *(getattr(sample, name) for name in
                          ("truth", "image", "stands_for", "disputed", "agreed")))  # fmt: skip
        weights[chosen] += weigh_path(select_greedily(bag), len(chosen))
    return weights / weights.sum()


def find_ascent(sample: PixelSample, seed: int = 0) -> np.ndarray:
    """Weights by coordinate ascent on pooled mIoU: from equal ones, each in turn is multiplied by what helps most.

    `seed` orders the members; it ends when a turn over all of them helps no more.
    """
    tally, members = open_tally(sample), len(sample.planes)
    weights, rng = np.full(members, 1 / members), np.random.default_rng(seed)
    best = mean_iou(tally.count(tally.start(make_whole(weights)))[0])
    for _ in range(TURNS):
        before = best
        for member in rng.permutation(members):
            tries = [weights[member] * step for step in STEPS] if weights[member] else [0.5 / members]
            whole = make_whole(weights)
            rest = tally.start([0 if each == member else factor for each, factor in enumerate(whole)])
            factors = [round(WHOLE * new) for new in tries]
            found = [mean_iou(confusion) for confusion in tally.count(rest, [(member, factor) for factor in factors])]
            found = [
                score if sum(whole) - whole[member] + factor else -1
                for score, factor in zip(found, factors, strict=True)
            ]
            if max(found) > best:
                best, weights[member] = max(found), tries[int(np.argmax(found))]
                weights /= weights.sum()
        if best <= before:
            break
    return weights


def find_softmax(sample: PixelSample, seed: int = 0) -> np.ndarray:
    """Weights softmax(a) that minimise the NLL of the weighted mean over all pixels; convex, so `seed` changes nothing."""
    pixels = np.arange(len(sample.truth))
    p = np.maximum(sample.planes[:, sample.truth, pixels] / 255, SMALLEST["uint8"])  # (M, P)
    share = sample.stands_for / sample.stands_for.sum()

    def loss(a: np.ndarray) -> tuple[float, np.ndarray]:
        weights = softmax(a)
        mixed = weights @ p
        pull = weights * (p @ (share / mixed))
        return -float(share @ np.log(mixed)), weights * pull.sum() - pull

    return softmax(minimize(loss, np.zeros(len(p)), jac=True, method="L-BFGS-B").x)


def find_mean(sample: PixelSample, seed: int = 0) -> np.ndarray:
    """Equal weights, searched for by nobody."""
    return np.full(len(sample.planes), 1 / len(sample.planes))


def find_best(sample: PixelSample, seed: int = 0) -> np.ndarray:
    """All weight on the member with the best pooled mIoU, the first of equals."""
    alone = np.eye(len(sample.planes))
    return alone[int(np.argmax([score_weights(sample, of_member) for of_member in alone]))]


def fit_temperatures(sample: PixelSample) -> np.ndarray:
    """(M,) temperatures T, each minimising its member's NLL with p^(1/T) / sum over valid pixels; above 1: overconfident.

    Probabilities that were rounded to 0 count as half of the smallest number above it.

    Source: Guo et al. 2017, On calibration of modern neural networks: softmax(logits / T) is p^(1/T), divided by its sum.
    """
    share, pixels = sample.stands_for / sample.stands_for.sum(), np.arange(len(sample.truth))

    def nll(log_heat: float, logs: np.ndarray) -> float:
        scaled = logs * np.float32(np.exp(-log_heat))
        scaled -= scaled.max(0)
        return float(share @ (np.log(np.exp(scaled).sum(0)) - scaled[sample.truth, pixels]))

    table = np.log(np.maximum(np.arange(256) / 255, SMALLEST["uint8"])).astype(np.float32)
    bounds = (-np.log(HOTTEST), np.log(HOTTEST))
    found = [
        minimize_scalar(nll, bounds=bounds, args=(table[of_member],), method="bounded").x for of_member in sample.planes
    ]
    return np.exp(found)


SEARCHES = {
    "best": find_best,
    "greedy": find_greedy,
    "ascent": find_ascent,
    "softmax": find_softmax,
}

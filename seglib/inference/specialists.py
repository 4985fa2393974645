"""Class specialists in an ensemble: they vote for their own classes, by weight or where they are confident."""

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import ArrayLike

from seglib.errors import InputError
from seglib.inference.ensemble import Votes, check_weights, decode_table, index_dtype
from seglib.inference.probability_store import ProbabilityStore
from seglib.inference.store_views import name_classes
from seglib.inference.weighted_sum import require_alike


def add_specialists(
    stores: Sequence[ProbabilityStore],
    weights: ArrayLike | None,
    specialists: Sequence[ProbabilityStore],
    specialist_weights: ArrayLike,
) -> tuple[list[ProbabilityStore], np.ndarray]:
    """Stores and weights (M + K, C) of a soft vote in which K specialists take part, by their own classes alone.

    Each class's probability is the weighted mean over those who know it: a specialist counts where it says one of its
    classes, and its background counts for nothing.

    Parameters
    ----------
    weights : (M,) of the members, None: all the same.
    specialist_weights : (K,) at least 0, on the scale of `weights`.
    """
    of_member, class_names = check_weights(weights, len(stores)), stores[0].class_names
    own = np.array([[name in store.class_names[1:] for name in class_names] for store in specialists], np.float64)
    known = np.concatenate([np.ones((len(stores), len(class_names))), own.reshape(-1, len(class_names))])
    given = np.concatenate([of_member, check_weights(specialist_weights, len(specialists))])[:, None] * known
    return [*stores, *(name_classes(store, class_names) for store in specialists)], given / given.sum(0)


def follow_confident(
    votes: Votes, specialists: Sequence[ProbabilityStore], class_names: Sequence[str], threshold: float
) -> Votes:
    """Votes in which a specialist decides where one of its classes has a probability above `threshold` (0..1).

    Of several the most confident decides; a specialist's background never does. `class_names` are those of the votes.
    """
    views = [name_classes(store, class_names) for store in specialists]
    require_alike(views)
    if not 0 <= threshold <= 1:
        raise InputError(f"specialists: threshold must be a probability from 0 to 1, got {threshold}")
    return _follow(votes, specialists, views, threshold)


def _follow(
    votes: Votes, specialists: Sequence[ProbabilityStore], views: Sequence[ProbabilityStore], threshold: float
) -> Votes:
    with ExitStack() as opened:
        files = [opened.enter_context(view.open()) for view in views]
        for start, preds in votes:
            preds = preds.copy()
            for image, pred in enumerate(preds):
                best = np.full(pred.shape, threshold, np.float32)
                for store, view, file in zip(specialists, views, files, strict=True):
                    for name in store.class_names[1:]:
                        class_id = view.class_names.index(name)
                        plane = np.empty(pred.size, view.data.dtype)
                        view.read_plane(file, start + image, class_id, plane)
                        p = decode_table(view.data.dtype)[plane.view(index_dtype(plane.dtype))].reshape(pred.shape)
                        pred[p > best] = class_id
                        np.maximum(best, p, out=best)
            yield start, preds

"""An ensemble's own probabilities on disk, as a member's are: for what comes after the vote."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike

from seglib.inference.ensemble import average_probabilities
from seglib.inference.probability_store import ProbabilityStore, describe_store, open_store, write_store
from seglib.inference.recipe import quantise
from seglib.inference.store_views import take_images


def store_vote(
    folder: str | Path,
    stores: Sequence[ProbabilityStore],
    weights: ArrayLike | None = None,
    *,
    mean: str = "arithmetic",
    temperatures: ArrayLike | None = None,
    dtype: str = "uint8",
) -> ProbabilityStore:
    """Write the mean of members' probabilities as a store, over one that was there; see `average_probabilities`.

    A killed writing of the same vote goes on where it was.
    """
    first, folder = stores[0], Path(folder)
    facts = {
        "runs": [store.facts.get("run", store.folder.name) for store in stores],
        "stores": [store.folder.name for store in stores],  # named by the hash of what they are made from
        "weights": None if weights is None else np.asarray(weights, np.float64).tolist(),
        "mean": mean,
        "temperatures": None if temperatures is None else np.asarray(temperatures, np.float64).tolist(),
    }

    def average(start: int) -> Iterator[np.ndarray]:
        rest = [take_images(store, np.arange(start, len(first))) for store in stores]
        for _, probabilities in average_probabilities(rest, weights, mean=mean, temperatures=temperatures):
            yield quantise(torch.from_numpy(probabilities), dtype).numpy()

    about = describe_store(first.image_ids, first.file_names, first.class_names, first.size, dtype, facts)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_store(folder, about, average, 1)
    return open_store(folder)

"""Seconds of survey, searches, their judgement and other votes over the stores of `weighted_sum.py --keep`, by hand.

python tests/benchmarks/ensemble.py FOLDER
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from seglib.data.dataset import Subset
from seglib.inference.ensemble import Ensemble
from seglib.inference.selection import (
    SEARCHES,
    judge_searches,
    survey_members,
    trace_selection,
)
from seglib.inference.stores import Store, open_store
from seglib.inference.votes import hard_vote, soft_vote


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    stores = [open_store(folder) for folder in sorted(arguments.folder.glob("member*"))]
    truth, names = draw_truth(stores[0]), [store.folder.name for store in stores]
    survey = measure("survey", lambda: survey_members(stores, truth))
    disputed = 1 - survey.agreed.sum() / survey.confusions[0].sum()
    print(f"  {len(survey.labels)} pixels drawn, {disputed:.0%} disputed")
    measure("correlation", lambda: Ensemble.correlate_errors(SimpleNamespace(survey=survey)))
    for name, find in SEARCHES.items():
        measure(f"search: {name}", lambda find=find: find(survey))  # what one counted, the next need not
    measure("curve", lambda: trace_selection(survey, names))
    measure("judge best and greedy", lambda: judge_searches(stores, truth, survey))
    measure("hard vote", lambda: exhaust(hard_vote(stores)))
    measure("geometric mean", lambda: exhaust(soft_vote(stores, mean="geometric")))


def draw_truth(store: Store) -> Subset:
    """Masks that resemble the first member's."""
    masks = np.random.default_rng(0).integers(0, len(store.class_names), (store.size, store.size)).astype(np.uint8)
    masks[: store.size // 2] = store.read(0).argmax(0)[: store.size // 2]
    pixels = SimpleNamespace(
        image_ids=store.image_ids, image_size=store.size, read=lambda index: (None, np.roll(masks, index, axis=-1))
    )
    images = pd.DataFrame({"group": [None] * len(store)})
    data = SimpleNamespace(class_names=tuple(store.class_names), images=images, json_path=Path("val.json"))
    return Subset(data, pixels, np.arange(len(store)))


def exhaust(votes) -> None:
    for _ in votes:
        pass


def measure(name: str, function: Callable):
    began, computed = time.perf_counter(), time.process_time()
    result = function()
    seconds, computed = time.perf_counter() - began, time.process_time() - computed
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name}: {seconds:.1f} s ({computed:.1f} s of processor); peak {peak:.0f} MB", flush=True)
    return result


if __name__ == "__main__":
    main()

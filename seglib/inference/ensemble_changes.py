"""What a vote changed, image by image: pixels won and lost against one member, and the pictures that show it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from seglib.data.dataset import Subset
from seglib.inference.ensemble import Votes
from seglib.inference.ensemble_sample import IGNORED, read_mask

KINDS = ("won", "lost", "wrong_both")


def tabulate_changes(truth: Subset, before: Votes, after: Votes) -> pd.DataFrame:
    """Valid pixels whose class the vote changed; both votes are of `truth`'s images, at one size.

    Returns
    -------
    One row an image: image_id, won (right after, wrong before), lost (the other way round), wrong_both [px].
    """
    rows = []
    for (start, old), (_, new) in zip(before, after, strict=True):
        for image, (was, now) in enumerate(zip(old, new, strict=True)):
            mask = read_mask(truth, start + image, len(now))
            changed = (was != now) & (mask != IGNORED)
            won, lost = int((changed & (now == mask)).sum()), int((changed & (was == mask)).sum())
            rows.append([truth.image_ids[start + image], won, lost, int(changed.sum()) - won - lost])
    return pd.DataFrame(rows, columns=["image_id", *KINDS])


def choose_changes(table: pd.DataFrame, count: int) -> tuple[list[int], list[str]]:
    """Positions and titles of images: half of them where most was won, net, half where most was lost; at least 2."""
    order = np.argsort(table["lost"].to_numpy() - table["won"].to_numpy(), kind="stable")
    count = min(max(2, count), len(order))
    chosen = [int(place) for place in (*order[: (count + 1) // 2], *order[len(order) - count // 2 :][::-1])]
    rows = [table.iloc[place] for place in chosen]
    return chosen, [f"image {row['image_id']}\nwon {row['won']} px\nlost {row['lost']} px" for row in rows]


def read_pictures(truth: Subset, positions: Sequence[int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, size, size, 3) and masks (n, size, size), uint8, resized by nearest neighbour."""
    images = []
    for position in positions:
        image = truth.read(position)[0]
        index = np.arange(size) * len(image) // size
        images.append(image[np.ix_(index, index)])
    return np.stack(images), np.stack([read_mask(truth, position, size) for position in positions])

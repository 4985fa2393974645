"""Hard vote of submissions, where nothing but their CSVs is left."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from seglib.data.masks import IGNORE_INDEX
from seglib.errors import InputError
from seglib.files import hash_file, write_json
from seglib.inference.ensemble import check_weights, count_votes, order_ties
from seglib.inference.submission_file import read_submission
from seglib.inference.submission_write import write_submission


def vote_files(
    paths: Sequence[str | Path], weights: ArrayLike | None = None, *, tie_break: str | Path = "", size: int = 256
) -> Iterator[tuple[str, np.ndarray]]:
    """Class with the greatest weight of votes at each pixel, over submissions in any order of rows.

    One submission's masks are in memory at a time; all of them lie in a temporary folder meanwhile, 64 KiB a mask.

    Parameters
    ----------
    weights : one a file, at least 0; None: all the same.
    tie_break : the file that decides ties where it voted for a tied class, then the others by falling weight, the
        earlier first; "" is the heaviest.
    size : side of the masks [px].

    Yields
    ------
    file name, mask (size, size) uint8, in the first file's order: what `write_rows` takes.

    Raises
    ------
    InputError
        Files that cannot be read or list other images, a file that comes twice, weights that do not fit.
    """
    paths = [Path(path) for path in paths]
    if len(paths) < 2 or len(set(paths)) < len(paths):
        raise InputError(
            f"vote: required at least two different submissions, got {', '.join(map(str, paths)) or 'none'}"
        )
    if tie_break and Path(tie_break) not in paths:
        raise InputError(f"tie_break: required one of the submissions ({', '.join(map(str, paths))}), got {tie_break}")
    of_file = check_weights(weights, len(paths))
    order = order_ties(of_file, paths.index(Path(tie_break)) if tie_break else None)
    return _vote(paths, of_file, order, size)


def write_vote(
    output: str | Path,
    paths: Sequence[str | Path],
    weights: ArrayLike | None = None,
    *,
    tie_break: str | Path = "",
    size: int = 256,
    num_classes: int = 0,
    force: bool = False,
) -> dict[str, object]:
    """Write the hard vote of submissions as a submission, and the record beside it, which names them by hash.

    The voted masks are in memory meanwhile, 64 KiB each.

    Parameters
    ----------
    output : CSV to write, in the first file's order of rows.
    paths, weights, tie_break, size : as `vote_files` takes them.
    num_classes : with the background; 0 is as many as were voted for, and then no id below 255 is refused.
    force : write in spite of doubts, see `write_submission`, which also says what the record holds.

    Raises
    ------
    InputError
        What `vote_files` and `write_submission` refuse, or there is a file already.
    """
    output = Path(output)
    for path in (output, output.with_suffix(".json")):
        if path.exists():
            raise InputError(f"{path}: required a new file, got one that is there already; name another --output")
    voted = dict(vote_files(paths, weights, tie_break=tie_break, size=size))
    of_file = check_weights(weights, len(paths)).tolist()
    sources = [
        {"run": Path(path).name, "hash": hash_file(path), "weight": weight}
        for path, weight in zip(paths, of_file, strict=True)
    ]
    found = min(IGNORE_INDEX, 1 + max(int(mask.max()) for mask in voted.values()))
    record = write_submission(
        output, voted.items(), list(voted), num_classes or found, size=size, sources=sources, force=force
    )
    record |= {"resizing": "none: hard vote of submissions", "tie_break": str(tie_break)}
    write_json(output.with_suffix(".json"), record)
    return record


def _vote(
    paths: Sequence[Path], weights: np.ndarray, order: Sequence[int], size: int
) -> Iterator[tuple[str, np.ndarray]]:
    with tempfile.TemporaryDirectory(prefix="seglib-vote-") as folder:
        names, kept = None, []
        for number, path in enumerate(paths):
            found, masks = read_submission(path, size)
            if names is not None and set(found) != set(names):
                other = sorted(set(found) ^ set(names))[0]
                raise InputError(
                    f"{path}: required the {len(names)} images of {paths[0]}, got {len(found)}; one is not in both: {other}"
                )
            names = names or found
            place = {name: row for row, name in enumerate(found)}
            kept.append(Path(folder) / str(number))
            masks[[place[name] for name in names]].tofile(kept[-1])
        for row, name in enumerate(names):
            preds = np.stack([np.fromfile(path, np.uint8, size * size, offset=row * size * size) for path in kept])
            yield name, count_votes(preds, weights, int(preds.max()) + 1, order).reshape(size, size)

"""Whether augmentations written as lists of steps can be built, known before a grid starts."""

import importlib.metadata
from collections.abc import Sequence

from seglib.files import PROJECT, hash_file
from seglib.runs.child_check import ask_child


def find_augmentation_refusals(specs: Sequence[dict]) -> list[str]:
    """Say for each {"augmentation": steps, "image_size": [px]} why it cannot be built, "" where it can.

    albumentations is asked in a child process, and its answers are remembered.
    """
    if not specs:
        return []
    folder = PROJECT / "seglib" / "data"
    code = [hash_file(path) for path in [*sorted(folder.glob("augment*.py")), folder / "pipeline_check.py"]]
    return ask_child("seglib.data.augment_check", specs, [importlib.metadata.version("albumentations"), code])

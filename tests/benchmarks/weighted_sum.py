"""Seconds of the weighted vote of many members, and the process's peak memory, by hand.

python tests/benchmarks/weighted_sum.py FOLDER [--members N] [--images N] [--size S] [--classes C] [--keep]

FOLDER takes members * images * classes * size^2 bytes: 11.8 GB for 10 members, 1,500 images, 256 px, 12 classes.
"""

import argparse
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from seglib.inference.stores import describe_store, open_store, write_store
from seglib.inference.votes import soft_vote


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--classes", type=int, default=12)
    parser.add_argument("--dtype", default="uint8")
    parser.add_argument("--keep", action="store_true", help="leave the stores, for another run of this benchmark")
    arguments = parser.parse_args()
    folders = [arguments.folder / f"member{member}" for member in range(arguments.members)]
    for member, folder in enumerate(folders):
        if not folder.exists():
            draw_store(folder, arguments, member)
    measure(folders)
    if not arguments.keep:
        for folder in folders:
            shutil.rmtree(folder)


def draw_store(folder: Path, arguments: argparse.Namespace, seed: int) -> None:
    names = [f"{image}.jpg" for image in range(arguments.images)]
    classes = [f"class {class_id}" for class_id in range(arguments.classes)]
    about = describe_store(np.arange(arguments.images), names, classes, arguments.size, arguments.dtype, {})
    generator = np.random.default_rng(seed)

    def predict(start: int) -> Iterator[np.ndarray]:
        probabilities = generator.random((1, *about["shape"][1:]), np.float32)
        stored = (
            (255 * probabilities).astype(np.uint8) if arguments.dtype == "uint8" else probabilities.astype(np.float16)
        )
        for image in range(start, arguments.images):
            yield np.roll(stored, image, axis=-1)

    write_store(folder, about, predict, 1)


def measure(folders: list[Path]) -> None:
    for name in ("first pass", "another weighting", "weights a class"):
        began, computed = time.perf_counter(), time.process_time()
        stores = [open_store(folder) for folder in folders]
        shape = (len(folders), len(stores[0].class_names)) if name == "weights a class" else len(folders)
        weights = np.random.default_rng(0).random(shape)
        pixels = sum(pred.size for pred in soft_vote(stores, weights))
        seconds, computed = time.perf_counter() - began, time.process_time() - computed
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        gigabytes = sum((folder / "probabilities.npy").stat().st_size for folder in folders) / 1e9
        print(
            f"{name}: {seconds:.1f} s ({computed:.1f} s of processor) for {gigabytes:.1f} GB, {pixels} pixels; peak {peak:.0f} MB"
        )


if __name__ == "__main__":
    main()

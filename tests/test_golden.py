"""Golden tests: the same parameters give the same bits as version 2e11906, which made the references.

`golden.json` has two parts. `everywhere` holds for all machines: masks, folds, votes, submission and leaderboard bytes.
`training` is by kind of CPU, since the last bits of a sum depend on its instructions: a kind that is not listed skips that
comparison. A run that was killed must equal the undisturbed one on every machine.

A test that fails here says: results changed. Where that is wanted, raise `seglib.RESULTS`, write the references anew with
`python tests/test_golden.py --write`, and say so in CHANGELOG.md.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml

from seglib.data.dataset import open_data
from seglib.data.loader import build_loader
from seglib.data.masks import PAINT_ORDERS, paint_mask
from seglib.data.splits import SPLITS, make_split
from seglib.data.synthetic import make_synthetic
from seglib.files import PROJECT
from seglib.inference.stores import describe_store, open_store, write_store
from seglib.inference.votes import hard_vote, soft_vote
from seglib.runs.leaderboard import collect_runs, write_leaderboard
from seglib.submission import write_submission

REFERENCES = Path(__file__).with_name("golden.json")
PARAMETERS = {
    "image_size": 64, "architecture": "Linknet", "encoder": "tu-test_resnet", "encoder_weights": "", "lr": 3e-3, "epochs": 3,
    "batch_size": 8, "augmentation": ["flips", "brightness", "dropout"], "precision": "float32", "num_workers": 0,
    "checkpoint_minutes": 0.0,
}  # fmt: skip
MIXED = {
    "mixing": {"copy_paste": 0.5, "cutmix": 0.5},
    "averaging": {"ema": {"decay": 0.9}},
    "accumulate": 2,
    "batch_size": 4,
}
WITHOUT_TIME = ("seconds", "memory_mb", "conditions")  # of history.csv: all the rest is the same again


def name_cpu() -> str:
    """The kind of CPU, as far as it decides the last bits of one thread."""
    vendor = "unknown"
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        vendor = next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), vendor)
    version = torch.__version__.split("+")[0]
    return f"{platform.machine()} {vendor} {torch.backends.cpu.get_cpu_capability()} torch {version}"


def digest(*parts: object) -> str:
    """Sixteen hex digits of arrays (with shape and type), bytes or texts."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            whole.update(f"{part.shape} {part.dtype}".encode())
            part = np.ascontiguousarray(part).tobytes()
        whole.update(part.encode() if isinstance(part, str) else part)
    return whole.hexdigest()[:16]


class Training:
    """A grid of one run, on one thread, started through the command line."""

    def __init__(self, folder: Path, data_dir: Path, changes: dict):
        fixed = PARAMETERS | changes | {"data_dir": str(data_dir)}
        (folder / "grid.yaml").write_text(
            yaml.safe_dump({"notebook": str(PROJECT / "notebooks/02_train.ipynb"), "fixed": fixed})
        )
        command = [sys.executable, PROJECT / "run_grid.py", folder / "grid.yaml", "--outputs", folder]
        self.command, self.run_dir = [*map(str, command)], folder / "grid" / "run"

    def start(self) -> subprocess.Popen:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
        return subprocess.Popen(
            self.command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def finish(self, process: subprocess.Popen | None = None) -> dict[str, str]:
        """Run to the end; return what must be the same again."""
        process = process or self.start()
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        history = pd.read_csv(self.run_dir / "history.csv", dtype=str).drop(columns=[*WITHOUT_TIME])
        with np.load(self.run_dir / "confusion.npz", allow_pickle=False) as saved:
            confusion = digest(*(saved[name] for name in ("confusion", "image_ids", "class_names")))
        record = json.loads((self.run_dir / "record.json").read_text())
        return {
            "weights": record["weights_sha256"],
            "confusion": confusion,
            "history": digest(history.to_csv(index=False)),
        }

    def has_an_epoch(self) -> bool:
        """Whether last.pt, which is written after history.csv, is of the first epoch or a later one."""
        history, last = self.run_dir / "history.csv", self.run_dir / "last.pt"
        return history.is_file() and last.stat().st_mtime_ns > history.stat().st_mtime_ns

    def kill_after_an_epoch(self) -> None:
        """Start, and kill the runner and all that it started as soon as an epoch is on disk."""
        process, deadline = self.start(), time.monotonic() + 120
        while not self.has_an_epoch():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            each.kill()
        process.communicate()


def train_all(folder: Path, data_dir: Path) -> dict[str, dict[str, str]]:
    """The plain and the mixed training, side by side: each has one thread."""
    trainings = {}
    for name, changes in {"plain": {}, "mixed": MIXED}.items():
        (folder / name).mkdir()
        trainings[name] = Training(folder / name, data_dir, changes)
    started = {name: training.start() for name, training in trainings.items()}
    return {name: training.finish(started[name]) for name, training in trainings.items()}


def paint_all() -> dict[str, str]:
    """Three objects that overlap, one of them of two parts, under each policy."""
    box = [[4, 4, 40, 4, 40, 30, 4, 30]]
    triangle = [[20.5, 10.25, 60, 20, 30, 46]]
    pieces = [[30, 2, 60, 2, 60, 20, 30, 20], [2, 36, 30, 36, 30, 46, 2, 46]]
    rows = [(3, 900.0, box), (1, 700.0, triangle), (2, 800.0, pieces)]
    frame = pd.DataFrame(rows, columns=["class_id", "area", "segmentation"])
    frame.insert(0, "annotation_id", range(len(rows)))
    return {
        f"{order}, {background}": digest(paint_mask(frame, 48, 64, order, background))
        for order, background in product(PAINT_ORDERS, ("class", "ignore"))
    }


def split_all() -> dict[str, str]:
    """Every fold of every split of 60 images with copies, groups and rare classes."""
    images = {
        "image_hashes": [f"{number % 57:032x}" for number in range(60)],
        "groups": [f"street {number * 7 % 16}" for number in range(60)],
        "classes_present": np.array([[1, number % 2, number % 3 == 0, number % 11 == 0] for number in range(60)], bool),
    }
    kinds = [kind for kind in SPLITS if kind != "given"]
    folds = {kind: [0] if kind == "holdout" else range(4) for kind in kinds}
    return {
        kind: digest(
            *(half for fold in folds[kind] for half in make_split(kind, **images, folds=4, fold=fold, seed=21))
        )
        for kind in kinds
    }


def vote_all(folder: Path) -> dict[str, str]:
    """Votes of three members that are often equal: uint8 probabilities from whole numbers."""
    stores = []
    for member in range(3):
        planes = np.arange(4 * 3 * 36).reshape(4, 3, 6, 6)
        array = ((planes * (member + 2) // 5) % 4 * 60).astype(np.uint8)
        names = [f"{number}.jpg" for number in range(4)]
        description = describe_store(np.arange(4), names, ["Background", "Paper", "Metal"], 6, "uint8", {})
        write_store(folder / f"m{member}", description, lambda start, array=array: iter([array[start:]]), 4)
        stores.append(open_store(folder / f"m{member}"))
    votes = {
        "soft": soft_vote(stores),
        "soft, weights": soft_vote(stores, [0.5, 0.25, 0.25]),
        "geometric": soft_vote(stores, mean="geometric"),
        "hard": hard_vote(stores),
        "hard, the third decides": hard_vote(stores, [0.3, 0.3, 0.3], tie_break=2),
    }
    return {name: digest(np.stack(list(vote))) for name, vote in votes.items()}


def submit(folder: Path) -> str:
    masks = (np.arange(3 * 32 * 32).reshape(3, 32, 32) // 7 % 12).astype(np.uint8)
    names = ["batch/2.jpg", "batch/10.jpg", "Ünï/1.jpg"]
    write_submission(folder / "s.csv", zip(names, masks, strict=True), names[::-1], 12, size=16)
    return digest((folder / "s.csv").read_bytes())


def rank_runs(folder: Path) -> str:
    """leaderboard.csv of runs with and without scores, one text that a spreadsheet would run."""
    losses, names = [{"cross_entropy": 1.0}, {"cross_entropy": 0.9, "focal": 0.1}], []
    for place, (loss, seed) in enumerate(product(losses, (21, 42))):
        names.append(f"run={place}")
        (folder / names[-1]).mkdir(parents=True)
        metrics = {
            "miou": 0.4 + place / 7,
            "miou_image": 1 / 3,
            "loss": 1.25,
            "iou": {"=Papier": 0.1 * place, "Glas": None},
        }
        record = {
            "status": "ok",
            "params": {"loss": loss, "seed": seed},
            "metrics": metrics,
            "best_epoch": 3,
            "seconds": 2.5,
        }
        if place == 3:
            record |= {"status": "failed", "error": "ZeroDivisionError: division by zero", "metrics": {}}
        (folder / names[-1] / "record.json").write_text(json.dumps(record))
    rows = collect_runs(folder, [*names, "run=planned"], ["loss", "seed"])
    return digest(write_leaderboard(folder, rows).read_bytes())


def draw_samples(data_dir: Path) -> str:
    """Two epochs of augmented and mixed samples: the (seed, epoch, index) streams."""
    images, _ = open_data(
        str(data_dir), "train.json", "val.json", split="given", folds=5, fold=0, seed=21, paint_order="class_id",
        background="class", image_size=64, cache=False,
    )  # fmt: skip
    loader = build_loader(
        images,
        4,
        shuffle=True,
        seed=21,
        num_workers=0,
        augmentation=["flips", "dropout"],
        mixing={"copy_paste": 0.5},
        expand=2,
    )
    drawn = []
    for epoch in (1, 2):
        loader.batch_sampler.epoch = epoch
        drawn += [array.numpy() for batch in loader for array in batch]
    return digest(*drawn)


def compute_everywhere(folder: Path, data_dir: Path) -> dict[str, object]:
    return {
        "masks": paint_all(),
        "folds": split_all(),
        "votes": vote_all(folder / "votes"),
        "submission": submit(folder),
        "leaderboard": rank_runs(folder / "grid"),
        "samples": draw_samples(data_dir),
    }


@pytest.fixture(scope="module")
def references() -> dict:
    return json.loads(REFERENCES.read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_data) -> dict[str, dict[str, str]]:
    return train_all(tmp_path_factory.mktemp("golden"), small_data)


def test_what_no_cpu_changes_is_as_before(references, tmp_path, small_data):
    assert compute_everywhere(tmp_path, small_data) == references["everywhere"]


def test_trainings_give_the_bits_of_before(references, trained):
    assert trained["mixed"]["weights"] != trained["plain"]["weights"]
    cpu = name_cpu()
    if cpu not in references["training"]:
        pytest.skip(
            f"golden.json has no references of {cpu}; on a version that is right: python tests/test_golden.py --write"
        )
    assert trained == references["training"][cpu]


def test_a_killed_training_goes_on_to_the_undisturbed_bits(trained, tmp_path, small_data):
    training = Training(tmp_path, small_data, {})
    training.kill_after_an_epoch()
    assert json.loads((training.run_dir / "record.json").read_text())["status"] == "running"  # it could not say more
    assert training.finish() == trained["plain"]
    assert "going on after epoch" in (training.run_dir / "02_train.ipynb").read_text()


def write_references(folder: Path) -> None:
    """Write the references of this machine, and say what changed."""
    before = json.loads(REFERENCES.read_text()) if REFERENCES.is_file() else {"everywhere": {}, "training": {}}
    data_dir = make_synthetic(folder / "small", num_images=40, image_size=64, seed=3)
    after = {
        "everywhere": compute_everywhere(folder, data_dir),
        "training": before["training"] | {name_cpu(): train_all(folder, data_dir)},
    }
    REFERENCES.write_text(json.dumps(after, indent=2, ensure_ascii=False) + "\n")
    print("nothing changed" if after == before else f"{REFERENCES} changed: see git diff, and raise seglib.RESULTS")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_golden.py --write")
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["SEGLIB_CACHE"] = f"{scratch}/cache"
        write_references(Path(scratch))

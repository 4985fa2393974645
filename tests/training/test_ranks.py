"""Two processes that train one model, over gloo on a CPU: the same steps as of one process."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from seglib import ranks
from seglib.data.loader import build_loader
from seglib.errors import InputError
from seglib.files import PROJECT
from seglib.training.device import seed_everything
from seglib.training.losses import build_loss
from seglib.training.optim import build_optimizer, build_scheduler
from seglib.training.trainer import Trainer


class Plain(nn.Module):
    """Without batch norm, whose statistics are each process's own on a CPU."""

    def __init__(self, num_classes):
        super().__init__()
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, num_classes, 1)]
        self.network = nn.Sequential(*layers)

    def forward(self, images):
        return self.network(images)


def train(subsets, run_dir, epochs=2, stop_after=None, batch_size=8, accumulate=1):
    """Train `Plain`; returns the history. `stop_after` epochs the process dies."""
    run_dir.mkdir(exist_ok=True, parents=True)
    train_set, val_set = subsets
    num_classes = len(train_set.data.class_names)
    loader = build_loader(train_set, batch_size, shuffle=True, augmentation="flips", seed=5, num_workers=0)
    val_loader = build_loader(val_set, batch_size, shuffle=False, augmentation="none", seed=5, num_workers=0)
    seed_everything(5, deterministic=True)
    model = Plain(num_classes)
    optimizer = build_optimizer("adamw", model, 1e-2, 1e-4)
    loss = build_loss({"cross_entropy": 1.0}, num_classes)
    parameters = {"seed": 5, "precision": "float32", "accumulate": accumulate, "clip_norm": 1.0}
    schedule = build_scheduler("cosine", optimizer, epochs, len(loader), 0.5)
    trainer = Trainer(
        model, optimizer, schedule, loader, val_loader, num_epochs=epochs, run_dir=run_dir, parameters=parameters
    )

    def compute_loss(images, targets):
        return loss(model(images), targets)

    print(trainer.estimate(compute_loss))
    for epoch in trainer.epochs():
        for images, targets in trainer.batches():
            trainer.step(compute_loss, images, targets)
        trainer.evaluate()
        if epoch == stop_after:
            os._exit(1)
    return trainer.history


_RANK = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_ranks
from seglib import ranks
from seglib.data.dataset import open_data
subsets = open_data({data!r}, "train.json", "val.json", split="given", folds=4, fold=0, seed=1,
                    paint_order="class_id", background="class", image_size=64, cache=False)
try:
    test_ranks.train(subsets, Path({folder!r}), **{options!r})
except ranks.GoneOnAlone as error:
    print(error)
"""


@pytest.fixture
def train_by_two(small_data, tmp_path):
    """Train in two processes; the history of the first, and what each printed last."""

    def train_by_two(name, **options):
        main, meeting = tmp_path / name, tmp_path / f"{name}-{np.random.default_rng().integers(10**9)}"
        meeting.mkdir()
        processes = []
        for number in range(2):
            folder = main / "ranks" / "1" if number else main
            shared = {ranks.NUMBER: str(number), ranks.COUNT: "2", ranks.FOLDER: str(main)}
            shared |= {ranks.MEETING: str(meeting / "meeting"), "OMP_NUM_THREADS": "1"}
            code = _RANK.format(
                tests=str(PROJECT / "tests/training"), data=str(small_data), folder=str(folder), options=options
            )
            processes.append(subprocess.Popen(
                [sys.executable, "-c", code], env=os.environ | shared, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True,
            ))  # fmt: skip
        printed = [process.communicate(timeout=120)[0] for process in processes]
        history = main / "history.csv"
        assert history.is_file(), printed
        return pd.read_csv(history), printed

    return train_by_two


NUMBERS = ["train_loss", "val_loss", "miou", "accuracy"]


def test_two_processes_make_the_steps_of_one(subsets, tmp_path, train_by_two):
    alone = train(subsets, tmp_path / "alone")
    together, printed = train_by_two("together")
    np.testing.assert_allclose(together[NUMBERS], alone[NUMBERS], atol=1e-5)
    assert together["conditions"].str.endswith(", 2 processes").all() and "goes on alone" in printed[1]
    one, two = (np.load(tmp_path / name / "confusion.npz") for name in ("alone", "together"))
    assert np.array_equal(one["image_ids"], two["image_ids"]) and one["confusion"].shape == two["confusion"].shape
    assert not (tmp_path / "together" / "ranks" / "1" / "best.pt").exists()
    weights = [torch.load(tmp_path / name / "best.pt", weights_only=True)["model"] for name in ("alone", "together")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_two_processes_that_were_killed_go_on_to_the_same_bits(train_by_two, tmp_path):
    whole, _ = train_by_two("whole")
    train_by_two("killed", stop_after=1)
    resumed, printed = train_by_two("killed")
    assert "going on after epoch 1" in printed[0] and "going on after epoch 1" in printed[1]
    assert (resumed[NUMBERS] == whole[NUMBERS]).all(axis=None)
    weights = [torch.load(tmp_path / name / "best.pt", weights_only=True)["model"] for name in ("whole", "killed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_batches_that_leave_a_process_without_an_image_are_refused(monkeypatch):
    monkeypatch.setenv(ranks.COUNT, "4")
    ranks.require_shares(16, 8)
    ranks.require_shares(17, 8)  # an image that would be alone is left out
    with pytest.raises(InputError, match=r"at least 4 images, one for each process, got 2 in the last one \(18 images"):
        ranks.require_shares(18, 8)
    with pytest.raises(InputError, match="got 3 in each"):
        ranks.require_shares(9, 3)


@pytest.mark.parametrize(("items", "count"), [(10, 3), (2, 4), (8, 2)])
def test_shares_are_whole_and_nearly_even(monkeypatch, items, count):
    monkeypatch.setenv(ranks.COUNT, str(count))
    shares = []
    for number in range(count):
        monkeypatch.setenv(ranks.NUMBER, str(number))
        shares.append(list(ranks.take_share(range(items))))
    assert [item for share in shares for item in share] == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1

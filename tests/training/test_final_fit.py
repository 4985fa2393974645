"""The last fit trains on all images from the best weights, survives a kill, and leaves best.pt alone."""

import pandas as pd
import pytest
import torch

from seglib.data.dataset import join
from seglib.data.loader import build_loader
from seglib.models import build_model
from seglib.training.checkpoint import hash_weights, load_checkpoint
from seglib.training.device import seed_everything
from seglib.training.estimate import estimate_training
from seglib.training.losses import build_loss
from seglib.training.optim import build_optimizer, build_scheduler
from seglib.training.step import Trainee
from seglib.training.trainer import fit_everything

OFTEN = 1e-9  # [min] between checkpoints


def fit(subsets, run_dir, kill_after=None, freeze_epochs=0):
    """As the notebook does, which estimates the training first: that freezes the encoder, if it is to be frozen."""
    run_dir.mkdir(exist_ok=True)
    loader = build_loader(join(*subsets), 8, shuffle=True, augmentation="flips", seed=1, num_workers=0)
    seed_everything(1, deterministic=True)
    model = build_model("FPN", "tu-resnet10t", 12)  # with dropout
    optimizer = build_optimizer("adamw", model, 1e-3, 0)
    schedule = build_scheduler("constant", optimizer, 20, len(loader), 0)
    trainee = Trainee(model, build_loss({"cross_entropy": 1.0}, 12), optimizer, schedule, torch.device("cpu"),
                      freeze_epochs=freeze_epochs)  # fmt: skip
    estimate_training(trainee, loader, loader, epochs=20, seed=1)
    trainee.set_mode(21)
    told = []

    def progress(done, total):
        told.append((done, total))
        if len(told) == kill_after:
            raise KeyboardInterrupt

    result = fit_everything(
        trainee, build_optimizer("adamw", model, 1e-4, 0), loader, after=20, epochs=2, seed=1, run_dir=run_dir,
        checkpoint_facts={"architecture": "FPN"}, progress=progress, minutes=OFTEN,
    )  # fmt: skip
    return result, told, len(loader)


def test_all_images_are_seen_and_the_weights_are_kept_apart(subsets, tmp_path):
    result, told, steps = fit(subsets, tmp_path)
    history = pd.read_csv(tmp_path / "final_fit" / "history.csv")
    assert steps == -(-sum(map(len, subsets)) // 8)
    assert told == [(step, 2 * steps) for step in range(1, 2 * steps + 1)]
    assert history["epoch"].tolist() == [21, 22] and set(history["lr"]) == {1e-4}
    final = load_checkpoint(tmp_path / "final.pt", required=("model", "architecture"))
    assert final["epoch"] == 22 and result["epochs"] == 2
    assert result["weights_sha256"] == hash_weights(final["model"])
    assert not (tmp_path / "best.pt").exists() and not (tmp_path / "last.pt").exists()


@pytest.mark.parametrize("freeze_epochs", [0, 1])
@pytest.mark.parametrize("kill_after", [1, 7])
def test_a_killed_last_fit_goes_on_to_the_same_weights(subsets, tmp_path, kill_after, freeze_epochs):
    fit(subsets, tmp_path / "whole", freeze_epochs=freeze_epochs)
    with pytest.raises(KeyboardInterrupt):
        fit(subsets, tmp_path / "killed", kill_after, freeze_epochs)
    fit(subsets, tmp_path / "killed", freeze_epochs=freeze_epochs)
    hashes = {
        hash_weights(load_checkpoint(tmp_path / name / "final.pt", ("model",))["model"]) for name in ("whole", "killed")
    }
    assert len(hashes) == 1

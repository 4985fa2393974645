"""The last fit trains on all images from the best weights, survives a kill, and leaves best.pt alone."""

import pandas as pd
import pytest

from seglib.data.loader import build_loader
from seglib.training.checkpoint import hash_weights, load_checkpoint
from seglib.training.optim import build_optimizer

OFTEN = 1e-9  # [min] between checkpoints


def fit(subsets, build_small, run_dir, kill_after=None, freeze_epochs=0):
    """As the notebook does, which estimates the training first: that freezes the encoder, if it is to be frozen."""
    train_images, val_images = subsets
    loader = build_loader(train_images + val_images, 8, shuffle=True, augmentation="flips", seed=1, num_workers=0)
    trainer, compute_loss = build_small(
        subsets, run_dir, epochs=20, architecture="FPN", freeze_epochs=freeze_epochs, checkpoint_minutes=OFTEN, seed=1
    )  # with dropout
    trainer.estimate(compute_loss)
    trainer.model.requires_grad_(True)
    steps = []

    class Counter:
        def on_step(self, trainer):
            steps.append((trainer.epoch, trainer.position.step))
            if len(steps) == kill_after:
                raise KeyboardInterrupt

    optimizer = build_optimizer("adamw", trainer.model, 1e-4, 0)
    return trainer.fit_all(compute_loss, loader, optimizer, 2, Counter()), steps, len(loader)


def test_all_images_are_seen_and_the_weights_are_kept_apart(subsets, build_small, tmp_path):
    result, made, steps = fit(subsets, build_small, tmp_path)
    history = pd.read_csv(tmp_path / "final_fit" / "history.csv")
    assert steps == -(-sum(map(len, subsets)) // 8)
    assert made == [(epoch, step) for epoch in (21, 22) for step in range(1, steps + 1)]
    assert history["epoch"].tolist() == [21, 22] and set(history["lr"]) == {1e-4}
    final = load_checkpoint(tmp_path / "final.pt", required=("model", "architecture"))
    assert final["epoch"] == 22 and result["epochs"] == 2
    assert result["weights_sha256"] == hash_weights(final["model"])
    assert not (tmp_path / "best.pt").exists() and not (tmp_path / "last.pt").exists()


@pytest.fixture(scope="module", params=[0, 1])
def undisturbed(request, subsets, build_small, tmp_path_factory):
    """Epochs with a frozen encoder, and the hash of the weights without a kill."""
    folder = tmp_path_factory.mktemp("whole")
    return request.param, fit(subsets, build_small, folder, freeze_epochs=request.param)[0]["weights_sha256"]


@pytest.mark.parametrize("kill_after", [1, 7])
def test_a_killed_last_fit_goes_on_to_the_same_weights(subsets, build_small, tmp_path, kill_after, undisturbed):
    freeze_epochs, expected = undisturbed
    with pytest.raises(KeyboardInterrupt):
        fit(subsets, build_small, tmp_path, kill_after, freeze_epochs)
    result, *_ = fit(subsets, build_small, tmp_path, freeze_epochs=freeze_epochs)
    assert result["weights_sha256"] == expected
    assert hash_weights(load_checkpoint(tmp_path / "final.pt", ("model",))["model"]) == expected

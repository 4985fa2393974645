"""One seed for everything that draws, and deterministic algorithms."""

import os
import random

import numpy as np
import torch


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed Python, NumPy and torch (all devices), and choose deterministic algorithms or the fast ones.

    Call it just before the model is built: initial weights are all that is drawn from these streams. The loader and
    the training loop derive theirs from (seed, epoch) themselves.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS sums in any order
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, libraries still draw from it
    torch.manual_seed(seed)


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed torch for one epoch, so that an epoch's dropout is the same whether or not the run was interrupted."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))

"""One seed for everything that draws, and deterministic algorithms."""

import os
import random

import numpy as np
import torch

# Without it cuBLAS adds up in any order. It is read once, before a process's first matrix product: in `seed_everything`
# it would come too late for a kernel that has already trained with `deterministic: false`.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed Python, NumPy and torch (all devices), and choose deterministic algorithms or the fast ones.

    Deterministic, float32 means IEEE float32 on every GPU; fast, the GPUs that can do so round the factors of their
    products to TF32's 10 bits. What CUDA cannot do deterministically, torch refuses when it gets there: see
    `seglib.training.determinism`.

    Call it just before the model is built: initial weights are all that is drawn from these streams. The loader and
    the training loop derive theirs from (seed, epoch) themselves.
    """
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not deterministic
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, libraries still draw from it
    torch.manual_seed(seed)


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed torch for one epoch, so that an epoch's dropout is the same whether or not the run was interrupted."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))

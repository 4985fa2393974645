"""Weights and training state on disk: written whole, loaded without pickle's code, hashed."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seglib.errors import InputError
from seglib.files import replacing


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write a checkpoint (tensors, numbers, texts, lists, dicts), whole or not at all."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: str | Path, required: tuple[str, ...]) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises
    ------
    InputError
        No such file, a truncated or foreign one, or one without the required entries.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such checkpoint") from error
    except Exception as error:  # a damaged file raises nearly anything
        cause = str(error).strip().split("\n")[0][:160]
        raise InputError(f"{path}: required a checkpoint, got {type(error).__name__}: {cause}") from error
    missing = [name for name in required if not isinstance(state, dict) or name not in state]
    if missing:
        raise InputError(f"{path}: required a checkpoint with {', '.join(required)}; it has no {', '.join(missing)}")
    return state


def hash_weights(state_dict: dict[str, Tensor]) -> str:
    """SHA-256 of all weights, bit for bit, with their names, shapes and dtypes; 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        weight = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

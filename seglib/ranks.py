"""Several processes (ranks), each with a device of its own, that train one model: which one this is, and sums over all.

Each step is the one that a single process would make: every rank takes its share of the step's images, and gradients,
losses and confusion matrices are added up. The first rank, 0, alone writes; what the others write is thrown away.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from seglib.errors import InputError, read_whole

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# In the environment of each of them, set by runs/execute.py: number, how many, the first one's folder, where they meet.
NUMBER, COUNT, FOLDER, MEETING = "SEGLIB_RANK", "SEGLIB_RANKS", "SEGLIB_RANKS_FOLDER", "SEGLIB_RANKS_MEETING"
LEFT = "left"  # beside where they meet: the first one goes on alone
T = TypeVar("T")


class GoneOnAlone(Exception):
    """Ends a rank that is not the first: the training is over."""


def count() -> int:
    """How many ranks train together."""
    return read_whole(COUNT, 1)


def number() -> int:
    """Which rank this is, from 0."""
    return read_whole(NUMBER, 0)


def is_first() -> bool:
    """Whether this process writes: the first of several, or the only one."""
    return number() == 0


def find_main_folder(run_dir: Path) -> Path:
    """The run's folder, which a rank that has one of its own reads checkpoints from."""
    return Path(os.environ[FOLDER]) if not is_first() else run_dir


def take_share(items: Sequence[T]) -> Sequence[T]:
    """This rank's part of what all do together: a piece without gaps, nearly as long as the others'."""
    return items[len(items) * number() // count() : len(items) * (number() + 1) // count()]


def join(model: "nn.Module", device: "torch.device") -> None:
    """Meet the other ranks; on CUDA batch norm is over the images of all of them, on a CPU over each rank's own."""
    if count() == 1:
        return
    from torch import distributed, nn

    if not distributed.is_initialized():
        address = f"file://{os.environ[MEETING]}"
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, init_method=address, rank=number(), world_size=count())
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, with the weights that the optimizer has


def leave() -> None:
    """Training together is over: the first goes on alone, the others end.

    Raises
    ------
    GoneOnAlone
        In each but the first.
    """
    if count() == 1:
        return
    from torch import distributed

    distributed.barrier()
    distributed.destroy_process_group()
    if not is_first():
        raise GoneOnAlone(f"rank {number()}: training is over, the first rank goes on alone")
    Path(os.environ[MEETING]).with_name(LEFT).touch()
    os.environ[COUNT] = "1"


def wait() -> None:
    """Wait for the others to get here: what the first wrote is there."""
    if count() > 1:
        from torch import distributed

        distributed.barrier()


def add_up(values: "Tensor") -> "Tensor":
    """The sum over all ranks."""
    if count() > 1:
        from torch import distributed

        distributed.all_reduce(values)
    return values


def add_gradients(model: "nn.Module") -> None:
    """Each weight's gradient becomes the sum over all ranks, in one message for each dtype."""
    if count() == 1:
        return
    import torch

    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    for dtype in dict.fromkeys(each.dtype for each in gradients):
        same = [each for each in gradients if each.dtype == dtype]
        summed = add_up(torch.cat([each.flatten() for each in same])).split([each.numel() for each in same])
        for each, total in zip(same, summed, strict=True):
            each.copy_(total.view_as(each))


def gather(items: list[Any]) -> list[Any]:
    """The lists of all ranks, one after the other."""
    if count() == 1:
        return items
    from torch import distributed

    lists: list[list] = [[] for _ in range(count())]
    distributed.all_gather_object(lists, items)
    return [item for each in lists for item in each]


def share_buffers(model: "nn.Module") -> None:
    """All get the first rank's buffers: what batch norm has counted differs where each counts its own images."""
    if count() > 1:
        from torch import distributed

        for buffer in model.buffers():
            distributed.broadcast(buffer, src=0)


def require_shares(num_images: int, batch_size: int) -> None:
    """Refuse batches, of which the last may be smaller, that leave a rank without an image.

    Raises
    ------
    InputError
    """
    last = num_images % batch_size or batch_size
    last = batch_size if last == 1 < num_images else last  # an image that would be alone is left out
    if min(last, batch_size) < count():
        raise InputError(
            f"gpus_per_run: required batches of at least {count()} images, one for each process, got {min(last, batch_size)}"
            f" in {'the last one' if last < batch_size else 'each'} ({num_images} images in batches of {batch_size}); choose"
            " another batch_size"
        )

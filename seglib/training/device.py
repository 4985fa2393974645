"""What a device computes in, its memory, seeds and deterministic algorithms."""

import gc
import os
import random
import resource
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker

from seglib.layers import replace_bilinear_resize

# What a device computes in, how batches reach it, and how much of its memory was used.


def choose_precision(precision: str, device: torch.device) -> str:
    """What `auto` means here: bfloat16 where the device computes in it natively, float32 otherwise."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def describe_device(device: torch.device) -> str:
    """The device's kind, with its name where several models of it compute other bits."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context in which layers compute in bfloat16 or float16 where that is safe; float32 leaves them alone."""
    return torch.autocast(device.type, dtype=getattr(torch, precision), enabled=precision != "float32")


def move(batch: Tensor, device: torch.device) -> Tensor:
    """Send a batch to the device without waiting for it (the loader pins its memory)."""
    return batch.to(device, non_blocking=True)


def forget_peak_memory(device: torch.device) -> None:
    """Begin a new peak, as far as the device lets one: a process on a CPU has one for its whole life."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def free_memory(device: torch.device) -> None:
    """Give back what nobody holds any more, after something did not fit; the peak that it left is forgotten."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        forget_peak_memory(device)


def peak_memory_mb(device: torch.device) -> float:
    """Highest memory [MB]: on CUDA the device's since `forget_peak_memory`, else the process's since it began."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    unit = 1 if sys.platform == "darwin" else 1024  # [bytes]
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


# One seed for everything that draws, and deterministic algorithms.


# Without it cuBLAS adds up in any order. It is read once, before a process's first matrix product: in `seed_everything`
# it would come too late for a kernel that has already trained with `deterministic: false`.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed Python, NumPy and torch (all devices), and choose deterministic algorithms or the fast ones.

    Deterministic, float32 means IEEE float32 on every GPU; fast, the GPUs that can do so round the factors of their
    products to TF32's 10 bits. What CUDA cannot do deterministically, torch refuses when it gets there: see
    `seglib.training.device`.

    Call it just before the model is built: initial weights are all that is drawn from these streams. The loader and
    the training loop derive theirs from (seed, epoch) themselves.
    """
    global _seed
    _seed = seed
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a thousand fills a step of memory that nothing reads
    if deterministic and torch.cuda.is_available():
        replace_bilinear_resize()
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not deterministic
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, libraries still draw from it
    torch.manual_seed(seed)


_seed: int | None = None


def last_seed() -> int | None:
    """What `seed_everything` was last called with in this process; None where it was not."""
    return _seed


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed torch for one epoch, so that an epoch's dropout is the same whether or not the run was interrupted."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))


# Which operators of a model have no deterministic form on CUDA, and the line that refuses them by name.


# aten operators that torch 2.11 to 2.13 refuses on CUDA under use_deterministic_algorithms(True), since they add up in any
# order: the calls of `alertNotDeterministic` in its sources that a network or a loss of images can meet. Not here, because
# another way is taken on CUDA in that mode: bilinear F.interpolate (`seglib.layers`), replicating F.pad (indexing), index_put,
# scatter_add, gather and index_select (sorting), convolutions, and attention (its flash and memory-efficient kernels add
# in order then, cuDNN's is passed over). The backward of max_pool2d gathers: it has one order.
REFUSED = {
    *(
        "_adaptive_avg_pool2d_backward",
        "adaptive_max_pool2d_backward",
        "fractional_max_pool2d_backward",
        "max_unpool2d",
    ),
    *("upsample_bicubic2d_backward", "_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward"),
    *("reflection_pad2d_backward", "grid_sampler_2d_backward", "nll_loss2d_forward", "kthvalue", "index_reduce", "put"),
    *("cumsum", "bincount", "histc"),
}
REFUSED_IN_FLOATS = {"cumsum", "bincount", "histc"}  # their results; bincount's are where it has weights


def find_nondeterministic(compute: Callable[[], Tensor | tuple[Tensor, ...]]) -> dict[str, str]:
    """Run a computation and its backward pass, on any device; report what CUDA would refuse in it.

    Parameters
    ----------
    compute : gives outputs whose sum is differentiated, such as `lambda: model(images)`. Gradients are added to what
        requires them, and a model in training mode moves its batch-norm statistics.

    Returns
    -------
    Names of aten operators, and of the module that each was first called in ("" outside of any).
    """
    with _warn_only(), ModuleTracker() as tracker, _Recorder(tracker) as recorder:
        outputs = compute()
        total = sum(output.sum() for output in (outputs if isinstance(outputs, tuple) else (outputs,)))
        if total.requires_grad:
            total.backward()
    return {name: recorder.modules.get(name.removesuffix("_backward"), "") for name in sorted(recorder.refused)}


def explain_nondeterminism(error: RuntimeError, model: nn.Module, images: Tensor) -> str:
    """Say in one line which part of a model CUDA refuses to compute deterministically; "" for any other error.

    Parameters
    ----------
    model : it is run once more, so call this where the error no longer holds memory.
    images : a batch, as the model takes it.
    """
    if "CUBLAS_WORKSPACE_CONFIG" in str(error):
        return (
            "deterministic: true needs CUBLAS_WORKSPACE_CONFIG=:4096:8 before the first matrix product of the process; "
            "unset that variable and restart the kernel, or set deterministic: false"
        )
    operator, refused, _ = str(error).partition(" does not have a deterministic implementation")
    if not refused:
        return ""
    found = find_nondeterministic(lambda: model(images))
    uses = ", ".join(f"{name} in {module}" for name, module in found.items())
    what = (
        f"{type(getattr(model, 'network', model)).__name__} uses {uses}"
        if uses
        else f"{operator} is used outside of the model"
    )
    return (
        f"deterministic: {what}, which has no deterministic form on CUDA; choose another "
        f"{'architecture or encoder' if uses else 'loss'}, or set deterministic: false"
    )


class _Recorder(TorchDispatchMode):
    """Notes the operators that are refused, and the module in which each operator is first called."""

    def __init__(self, tracker: ModuleTracker):
        super().__init__()
        self.tracker, self.modules, self.refused = tracker, {}, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        innermost = max(self.tracker.parents, key=len)  # "Global", and the path to it from the outermost class on
        self.modules.setdefault(name, innermost.partition(".")[2])
        if name in REFUSED and (name not in REFUSED_IN_FLOATS or result.is_floating_point()):
            self.refused.add(name)
        return result


@contextmanager
def _warn_only() -> Iterator[None]:
    mode = torch.get_deterministic_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.set_deterministic_debug_mode("warn")
            yield
    finally:
        torch.set_deterministic_debug_mode(mode)

"""Which operators of a model have no deterministic form on CUDA, and the line that refuses them by name."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker

# aten operators that torch 2.11 to 2.13 refuses on CUDA under use_deterministic_algorithms(True), since they add up in any
# order: the calls of `alertNotDeterministic` in its sources that a network or a loss of images can meet. Not here, because
# torch takes another way on CUDA in that mode: bilinear F.interpolate and replicating F.pad (indexing), index_put,
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
    model : a `SegmentationModel`; it is run once more, so call this where the error no longer holds memory.
    images : a batch, (N, 3, H, W) uint8.
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
    what = f"{type(model.network).__name__} uses {uses}" if uses else f"{operator} is used outside of the model"
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

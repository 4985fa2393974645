"""What a device computes in, how batches reach it, and how much of its memory was used."""

import resource
import sys

import torch
from torch import Tensor


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


def peak_memory_mb(device: torch.device) -> float:
    """Highest memory [MB]: on CUDA the device's since `forget_peak_memory`, else the process's since it began."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    unit = 1 if sys.platform == "darwin" else 1024  # [bytes]
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)

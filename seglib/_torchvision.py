"""Declares torchvision's operator schemas where its compiled part cannot load (a CPU-only torch)."""

import importlib.machinery
import importlib.util
from pathlib import Path

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries = []  # a torch Library withdraws its schemas when it is collected


def declare_missing() -> None:
    """Declare `torchvision::nms` and `::qnms` unless torchvision's own compiled library provides them."""
    import torch

    if _compiled_part_loads(torch):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _libraries.append(library)


def _compiled_part_loads(torch) -> bool:
    spec = importlib.machinery.PathFinder.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for library in sorted(Path(spec.origin).parent.glob("_C*.so")) + sorted(Path(spec.origin).parent.glob("_C*.pyd")):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return True
    return False

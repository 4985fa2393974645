"""Semantic-segmentation experiments as notebooks: a thin library under the notebooks."""

import importlib
import importlib.abc
import os
import sys

# Part of every run's key. Raise it by one when the same parameters give other bits (weights, scores, predictions), and
# only then: every finished run is to go again. The tests that compare with recorded hashes and scores say when.
RESULTS = 1

# albumentations asks PyPI for a newer version at each import, in every worker and notebook.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


class _DeclareTorchvisionOperators(importlib.abc.MetaPathFinder):
    """Make `import torchvision` work beside a CPU-only torch, without importing torch before anyone needs it.

    PyPI's torchvision is compiled against CUDA builds of torch. Beside a CPU build its compiled part cannot load, and
    the import fails with "operator torchvision::nms does not exist", which takes timm and
    segmentation-models-pytorch down with it. Segmentation needs neither operator: declaring their schemas is enough.
    """

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            from seglib._torchvision import declare_missing

            declare_missing()
        # None: the ordinary finders find the module


# The public names and their modules, which are imported when a name is first used: `import seglib` stays light.
_PUBLIC = {
    "DataAnalysis": "seglib.data.analysis",
    "ErrorAnalysis": "seglib.inference.analysis",
    "GridComparison": "seglib.inference.comparison",
    "MaskViewer": "seglib.viz.viewer",
    "Trainer": "seglib.training.trainer",
    "add_submission": "seglib.ledger",
    "build_averages": "seglib.training.averaging",
    "build_batch_mixing": "seglib.training.mixing",
    "build_loader": "seglib.data.loader",
    "build_loss": "seglib.training.losses",
    "build_model": "seglib.models",
    "build_optimizer": "seglib.training.optim",
    "build_scheduler": "seglib.training.optim",
    "choose_confidence": "seglib.inference.pseudo_labels",
    "count_pixels": "seglib.data.dataset",
    "fingerprint_sets": "seglib.data.layouts",
    "join_extra": "seglib.data.extra_data",
    "load_from_run": "seglib.training.checkpoint",
    "make_pseudo_labels": "seglib.inference.pseudo_labels",
    "open_data": "seglib.data.dataset",
    "open_ensemble": "seglib.inference.ensemble",
    "open_run": "seglib.runs.record",
    "open_trackers": "seglib.runs.trackers",
    "predict_examples": "seglib.training.scoring",
    "read_file_names": "seglib.submission",
    "read_parameters": "seglib.parameters",
    "register": "seglib.parts",
    "save_result": "seglib.runs.record",
    "seed_everything": "seglib.training.device",
    "write_submission": "seglib.submission",
}


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'seglib' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


if "torchvision" not in sys.modules:
    sys.meta_path.insert(0, _DeclareTorchvisionOperators())

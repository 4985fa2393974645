"""A finished run that nobody trained: a model with random weights, scored as training scores it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from seglib.data.dataset import open_data
from seglib.data.loader import build_loader
from seglib.evaluation.metrics import compute_metrics, save_confusion
from seglib.files import PROJECT, write_json
from seglib.models import build_model
from seglib.parameters import read_defaults
from seglib.training.checkpoint import hash_weights, save_checkpoint
from seglib.training.losses import build_loss
from seglib.training.scoring import evaluate

OVERRIDES = {"encoder_weights": "", "image_size": 64, "batch_size": 4}


def make_run(
    folder: Path, data_dir: Path, seed: int, make_model: Callable[[int], nn.Module] | None = None, **changes: object
) -> Path:
    """make_model: number of classes -> a model as a cell makes it by hand."""
    params = read_defaults(PROJECT / "notebooks" / "02_train.ipynb") | OVERRIDES | changes
    params |= {"data_dir": str(data_dir), "seed": seed}
    names = ("split", "folds", "fold", "paint_order", "background", "image_size", "cache")
    options = {name: params[name] for name in names} | {"seed": params["split_seed"]}
    train_images, val_images = open_data(str(data_dir), params["train_json"], params["val_json"], **options)
    class_names = list(val_images.data.class_names)
    built = {"architecture": "FPN", "encoder": "tu-test_resnet", "num_classes": len(class_names)}
    torch.manual_seed(seed)
    model = make_model(len(class_names)) if make_model else build_model(**built)
    if make_model:
        built |= {"architecture": type(model).__name__, "encoder": "", "made_by_hand": True}
    model.to(memory_format=torch.channels_last)
    loader = build_loader(val_images, params["batch_size"], shuffle=False, augmentation="none", seed=0, num_workers=0)
    loss = build_loss({"cross_entropy": 1.0}, len(class_names))
    confusion = evaluate(model, loader, lambda images, masks: loss(model(images), masks), len(class_names)).confusion
    folder.mkdir(parents=True)
    identity = {**built, "class_names": class_names, "image_size": params["image_size"]}
    save_checkpoint(folder / "best.pt", {"model": model.state_dict(), "epoch": 1, **identity})
    save_confusion(folder / "confusion.npz", confusion, val_images.image_ids, class_names)
    write_json(folder / "record.json", {
        "status": "ok", "finished_at": f"2024-01-0{seed}T00:00:00+0000", "params": params, "precision": "float32",
        "threads": torch.get_num_threads(), "weights_sha256": hash_weights(model.state_dict()),
        "train_images": len(train_images), "metrics": compute_metrics(confusion, class_names, 4),
        "made_by_hand": ["architecture"] if make_model else [],
    })  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def make_scored_run():
    """`make_scored_run(folder, data_dir, seed, make_model)`, see `make_run`."""
    return make_run


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory, small_data) -> tuple[Path, Path]:
    """Folders of two runs with other weights, in outputs/<grid>/<run>; tests must not write into them."""
    grid = tmp_path_factory.mktemp("outputs") / "grid"
    return make_run(grid / "seed=1", small_data, 1), make_run(grid / "seed=2", small_data, 2)


@pytest.fixture
def run_dir(two_runs, tmp_path) -> Path:
    """A run's folder of this test's own."""
    return Path(shutil.copytree(two_runs[0], tmp_path / "grid" / "run"))

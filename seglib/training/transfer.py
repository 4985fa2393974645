"""Start a model from the best weights of a finished run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from seglib.errors import InputError
from seglib.models.build import build_model
from seglib.training.checkpoint import load_checkpoint


def load_from_run(model: nn.Module, run_dir: str | Path, recipe: Mapping[str, Any], class_names: Sequence[str]) -> None:
    """Load best.pt of a run; where its classes are others, all but the layers that tell the classes apart.

    Parameters
    ----------
    recipe : the arguments that the model was built with: architecture, encoder, num_classes, image_size.
    class_names : of the model.

    Raises
    ------
    InputError
        No such run, or its model is another one.
    """
    path = Path(run_dir).expanduser() / "best.pt"
    best = load_checkpoint(path, required=("model", "architecture", "encoder", "class_names"))
    different = [
        f"{name} {recipe[name]}, got {best[name]}" for name in ("architecture", "encoder") if best[name] != recipe[name]
    ]
    if different:
        raise InputError(f"init_from {path}: required {' and '.join(different)}; take a run of the same model")
    weights, own = best["model"], model.state_dict()
    if best["class_names"] != list(class_names):
        heads = _find_heads(own, recipe)
        weights = {name: own[name] if name in heads else weight for name, weight in weights.items()}
        print(f"init_from: {len(heads)} tensors begin anew, because the classes are others: {', '.join(sorted(heads))}")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        cause = " ".join(str(error).split())[:200]
        raise InputError(
            f"init_from {path}: required weights of this model, got {cause}; is image_size the same?"
        ) from error


def _find_heads(own: Mapping, recipe: Mapping[str, Any]) -> set[str]:
    """Names of the tensors whose shape depends on the number of classes."""
    other = build_model(**{**recipe, "num_classes": recipe["num_classes"] + 1}).state_dict()
    return {name for name, weight in own.items() if weight.shape != other[name].shape}

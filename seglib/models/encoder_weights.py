"""Weights of encoders from local files, and the normalisation of images that weights expect."""

import re
from collections.abc import Iterator
from pathlib import Path

import segmentation_models_pytorch as smp
import timm
import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from timm.models import PretrainedCfg
from torch import Tensor, nn

from seglib.errors import InputError
from seglib.models.architectures import OWN_ENCODERS, timm_name

# ImageNet's statistics of RGB in 0..1: what timm's and torchvision's weights were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# How names in files and in encoders differ: timm wrapped by smp, whole models of smp, ours, torchvision's.
_PREFIXES = ("", "module.", "model.", "model.model.", "encoder.", "network.encoder.", "backbone.")
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)\.")  # torchvision's files: norm.1 for norm1
_HALF = (0.5, 0.5, 0.5)
_COUNTER = "num_batches_tracked"  # of batch norms; files from before torch 0.4.1, such as vgg16_bn's, have none


def find_normalisation(
    architecture: str, encoder: str, encoder_weights: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std in 0..1 that the encoder's weights expect; a few (Inception's, BEiT's) want 0.5."""
    name = timm_name(encoder)
    if not encoder_weights or architecture in OWN_ENCODERS:  # torchvision's and HRNet's weights want ImageNet's
        return IMAGENET_MEAN, IMAGENET_STD
    if name:
        settings = timm.get_pretrained_cfg(name) or PretrainedCfg()
        return tuple(settings.mean), tuple(settings.std)
    if encoder in ("xception", "inceptionv4", "inceptionresnetv2"):
        return _HALF, _HALF
    if encoder_weights != "imagenet":  # smp would download a file to tell
        return IMAGENET_MEAN, IMAGENET_STD
    settings = smp.encoders.get_preprocessing_params(encoder)
    return tuple(settings["mean"]), tuple(settings["std"])


def load_encoder_weights(encoder: nn.Module, path: Path) -> None:
    """Load a local state dict (.pth, or .safetensors) into an encoder; the classifier's own weights are left out.

    Position embeddings and bias tables of another image size are resampled as timm does for its own weights.

    Raises
    ------
    InputError
        The file is no state dict, or of another encoder.
    """
    weights = _read_state_dict(path)
    own = encoder.state_dict()
    named = max(({name: each[name] for name in own.keys() & each.keys()} for each in _rename(weights)), key=len)
    resampled = {name: _resample(encoder, name, value, own[name]) for name, value in named.items()}
    unfit = sorted(name for name, value in resampled.items() if value.shape != own[name].shape)
    missing = [name for name in own.keys() - named.keys() if not name.endswith(_COUNTER)]
    if unfit or missing:
        found = f"{len(named) - len(unfit)} that fit"
        if unfit:
            shapes = [list(tensors[unfit[0]].shape) for tensors in (named, own)]
            found += f" and {len(unfit)} of another shape (such as {unfit[0]}: {shapes[0]}, not {shapes[1]})"
        raise InputError(
            f"encoder_weights {path}: required the {len(own)} weights of this encoder, got {found}; the file has"
            f" {len(weights)} and is of another encoder{'' if missing else ' or image_size'}"
        )
    nn.Module.load_state_dict(encoder, own | resampled)  # smp's encoders would expect, and drop, a classifier


def _rename(weights: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The same weights under the names that encoders may have for them."""
    # timm flattens what it takes features from: stages.0.blocks is stages_0.blocks there.
    flattened = {re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", name): value for name, value in weights.items()}
    for named in (weights, flattened, {_OLD_DENSENET.sub(r"\1\2.", name): value for name, value in weights.items()}):
        for prefix in _PREFIXES:
            yield {prefix + name: value for name, value in named.items()}
            yield {name.removeprefix(prefix): value for name, value in named.items()}


def _resample(encoder: nn.Module, name: str, value: Tensor, wanted: Tensor) -> Tensor:
    """Bring what depends on the image size to the encoder's; anything else stays as it is."""
    if value.shape == wanted.shape or value.shape[-1] != wanted.shape[-1]:
        return value
    owner = encoder.get_submodule(name.rpartition(".")[0])
    try:
        if name.endswith("relative_position_bias_table"):
            return resize_rel_pos_bias_table(value, owner.window_size, tuple(wanted.shape))
        grid = getattr(getattr(owner, "patch_embed", None), "grid_size", None)
        if name.endswith("pos_embed") and value.ndim == 3 and grid:
            return resample_abs_pos_embed(value, grid, num_prefix_tokens=wanted.shape[1] - grid[0] * grid[1])
    except (AssertionError, RuntimeError, ValueError):  # not of a square image: counted as a weight that does not fit
        return value
    return value


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises nearly anything
        cause = str(error).strip().split("\n")[0][:160]
        raise InputError(
            f"encoder_weights {path}: required a state dict file, got {type(error).__name__}: {cause}"
        ) from error
    if isinstance(weights, dict):
        weights = weights.get("state_dict", weights.get("model", weights))
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(
            f"encoder_weights {path}: required a state dict (names to tensors), got {type(weights).__name__}"
        )
    return weights

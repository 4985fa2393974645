"""Builds a segmentation model by architecture and encoder name, and loads its encoder's weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seglib.errors import InputError
from seglib.models.architectures import ARCHITECTURES, check_names, encoder_options, timm_name
from seglib.models.depthwise import speed_up_dilated_depthwise
from seglib.models.encoder_weights import IMAGENET_MEAN, IMAGENET_STD, find_normalisation, load_encoder_weights
from seglib.models.refusals import explain_missing_weights, explain_refusal
from seglib.parts import check_architecture, find_parts, read_architecture
from seglib.runs.preflight import refuse_encoder, refuse_weights
from seglib.zoo.classic import replace_average_pools


class SegmentationModel(nn.Module):
    """A network that normalises its own input, so that no image is normalised twice or never.

    `forward` takes images (N, 3, H, W): uint8 RGB in 0..255 is normalised here; floats are taken as normalised already.
    It returns logits (N, num_classes, H, W), unnormalised scores for softmax over dim 1. In training mode a network
    with auxiliary heads returns a tuple of logits, the main ones first; the loss of each of the others counts
    `auxiliary_weight` times (0.0 for a network without).
    """

    takes_uint8 = True

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.network = network
        self.auxiliary_weight = float(getattr(network, "auxiliary_weight", 0.0))
        # Part of the weights: a checkpoint is normalised as its encoder was trained, however the model is rebuilt.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    @property
    def encoder(self) -> nn.Module | None:
        """What weights of ImageNet are for; None where the network is all of one piece."""
        return getattr(self.network, "encoder", None)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        if images.dtype == torch.uint8:
            images = (images.float() / 255 - self.mean) / self.std
        return self.network(images)


class _OwnModel(SegmentationModel):
    """A registered model: its images are normalised here too, and what it returns is checked."""

    def __init__(self, name: str, network: nn.Module, num_classes: int):
        super().__init__(network, IMAGENET_MEAN, IMAGENET_STD)
        self.name, self.num_classes = name, num_classes

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        outputs = super().forward(images)
        for logits in outputs if isinstance(outputs, tuple) else (outputs,):
            expected = (len(images), self.num_classes, *images.shape[2:])
            if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
                got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise InputError(f"architecture {self.name}: required logits (N, C, H, W) of {expected}, got {got}")
        return outputs


def build_model(
    architecture: str | Mapping[str, Any],
    encoder: str,
    num_classes: int,
    encoder_weights: str = "",
    image_size: int = 0,
) -> SegmentationModel:
    """Build a model.

    Parameters
    ----------
    architecture : a name in `ARCHITECTURES`, such as "FPN" or "FCN8s"; `python -m seglib list models` prints them; or
        a model that you registered, `{"TinyNet": {"width": 32}}` with options, which takes encoder "" and no weights.
    encoder : any encoder name that smp accepts, `tu-` names from timm included; some architectures take only their own
        (FCN8s: "vgg16"), and FC-DenseNets have none ("").
    num_classes : output channels, background included.
    encoder_weights : "imagenet" (downloaded on first use), "" (random) or a path to a local state dict of the encoder.
    image_size : side of the square input [px], for encoders that are built for one size (BEiT and other
        transformers); 0 leaves it at what the encoder was pretrained with. All others take any size.

    Raises
    ------
    InputError
        Unknown names, a pair that cannot be built, weights that cannot be had or do not fit.
    """
    model = _build_model(architecture, encoder, num_classes, encoder_weights, image_size)
    model.built_from = {"architecture": architecture, "encoder": encoder}
    model.built_from |= {"image_size": image_size} if image_size else {}
    model.begun_from = {"encoder_weights": encoder_weights, "init_from": ""}  # `load_from_run` says otherwise
    return model


def _build_model(
    architecture: str | Mapping[str, Any], encoder: str, num_classes: int, encoder_weights: str, image_size: int
) -> SegmentationModel:
    own = find_parts("model")
    architecture, options = read_architecture(check_architecture(architecture, own))
    if architecture in own:
        refusal = refuse_encoder(architecture, encoder, [""]) or refuse_weights(architecture, encoder, encoder_weights)
        if refusal:
            raise InputError(refusal)
        network = own[architecture].build(num_classes, **options)
        if not isinstance(network, nn.Module):
            raise InputError(f"architecture {architecture}: required an nn.Module, got {type(network).__name__}")
        return _OwnModel(architecture, network, num_classes)
    check_names(architecture, encoder)
    refusal = refuse_weights(architecture, encoder, encoder_weights)
    if refusal:
        raise InputError(refusal)
    arguments = (architecture, encoder, num_classes, image_size)
    if encoder_weights == "imagenet":
        _refuse_before_download(*arguments)
    try:
        network = _build_network(*arguments, imagenet=encoder_weights == "imagenet")
    except InputError:
        raise
    except Exception as error:  # smp raises whatever its parts raise, network errors included
        explain = explain_missing_weights if encoder_weights == "imagenet" else explain_refusal
        raise InputError(explain(architecture, encoder, error)) from error
    replace_average_pools(network)
    speed_up_dilated_depthwise(network)
    if encoder_weights not in ("", "imagenet"):
        load_encoder_weights(network.encoder, Path(encoder_weights).expanduser())
    return SegmentationModel(network, *find_normalisation(architecture, encoder, encoder_weights))


def _build_network(architecture: str, encoder: str, num_classes: int, image_size: int, imagenet: bool) -> nn.Module:
    weights = None
    if imagenet:
        weights = True if timm_name(encoder) else "imagenet"  # timm's names hold their weights' tag
    options = encoder_options(architecture, encoder, image_size)
    return ARCHITECTURES[architecture](encoder, encoder_weights=weights, classes=num_classes, **options)


def _refuse_before_download(architecture: str, encoder: str, num_classes: int, image_size: int) -> None:
    try:
        with torch.device("meta"):
            _build_network(architecture, encoder, num_classes, image_size, imagenet=False)
    except InputError:
        raise
    except Exception as error:
        if "meta tensors" not in str(error):  # a few encoders compute while they are built, which meta cannot
            raise InputError(explain_refusal(architecture, encoder, error)) from error

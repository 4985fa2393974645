"""Builds a segmentation model by architecture and encoder name, and loads its encoder's weights."""

from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.base import SegmentationModel as SmpModel
from torch import Tensor, nn

from seglib.errors import InputError, unknown_name

ARCHITECTURES = {
    name: model
    for name, model in vars(smp).items()
    if isinstance(model, type) and issubclass(model, SmpModel) and model is not SmpModel
}
# ImageNet's statistics of RGB in 0..1: what timm's and torchvision's weights were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class SegmentationModel(nn.Module):
    """A network that normalises its own input, so that no image is normalised twice or never.

    `forward` takes images (N, 3, H, W): uint8 RGB in 0..255 is normalised here; floats are taken as normalised already.
    It returns logits (N, num_classes, H, W), unnormalised scores for softmax over dim 1.
    """

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.network = network
        # Part of the weights: a checkpoint is normalised as its encoder was trained, however the model is rebuilt.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            images = (images.float() / 255 - self.mean) / self.std
        return self.network(images)


def build_model(architecture: str, encoder: str, num_classes: int, encoder_weights: str = "") -> SegmentationModel:
    """Build a model.

    Parameters
    ----------
    architecture : a name of segmentation-models-pytorch, such as "FPN" or "DeepLabV3Plus".
    encoder : any encoder name that smp accepts, `tu-` names from timm included.
    num_classes : output channels, background included.
    encoder_weights : "imagenet" (downloaded on first use), "" (random) or a path to a local state dict of the encoder.

    Raises
    ------
    InputError
        Unknown names, a pair that cannot be built, weights that cannot be had or do not fit.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(unknown_name("architecture", architecture, ARCHITECTURES, limit=20))
    _check_encoder_name(encoder)
    pretrained = "imagenet" if encoder_weights == "imagenet" else None
    if pretrained:
        _refuse_before_download(architecture, encoder, num_classes)
    weights = True if pretrained and encoder.startswith("tu-") else pretrained  # timm's names hold their weights' tag
    try:
        network = ARCHITECTURES[architecture](encoder, encoder_weights=weights, classes=num_classes)
    except Exception as error:  # smp raises whatever its parts raise, network errors included
        explain = _explain_missing_weights if pretrained else explain_refusal
        raise InputError(explain(architecture, encoder, error)) from error
    if encoder_weights not in ("", "imagenet"):
        _load_encoder_weights(network.encoder, Path(encoder_weights))
    return SegmentationModel(network, *_normalisation(encoder, pretrained))


def explain_refusal(architecture: str, encoder: str, error: BaseException) -> str:
    """Say in one line why smp cannot build this pair; its own words are sometimes empty."""
    text = str(error).strip().split("\n")[0].rstrip("!.")
    if "dilated" in text or "output_stride" in text or (not text and isinstance(error, AssertionError)):
        reason = f"encoder {encoder!r} cannot be dilated, which {architecture} needs"
    elif "Expected more than 1 value per channel" in text:
        reason = f"{architecture} pools to one pixel in front of a batch norm: batch_size must be at least 2, got 1"
    elif "downsampling pattern" in text:
        reason = f"{architecture} needs feature maps at several scales, which encoder {encoder!r} does not give"
    elif "Only Timm encoders" in text:
        reason = f"{architecture} takes timm's transformers only (encoder names that start with tu-), got {encoder!r}"
    elif "not support" in text and encoder.startswith("mit_"):
        reason = f"{architecture} does not take the encoders mit_b0 to mit_b5, got {encoder!r}"
    elif "doesn't match model" in text:
        reason = f"encoder {encoder!r} takes one image size only ({text})"
    else:
        reason = f"{architecture} with encoder {encoder!r} cannot be built ({type(error).__name__}: {text or 'no words'})"
    return reason


def _check_encoder_name(encoder: str) -> None:
    if encoder.startswith("tu-") or smp.encoders.is_equivalent_to_timm_universal(encoder):
        import timm

        names = timm.list_models()
        name = encoder.removeprefix("tu-").removeprefix("timm-").split(".")[0]  # `.tag` names the weights
        if name not in names and f"tf_{name}" not in names:
            raise InputError(unknown_name("encoder", encoder, [f"tu-{known}" for known in names]))
    elif encoder not in smp.encoders.get_encoder_names():
        raise InputError(unknown_name("encoder", encoder, smp.encoders.get_encoder_names()))


def _refuse_before_download(architecture: str, encoder: str, num_classes: int) -> None:
    try:
        with torch.device("meta"):
            ARCHITECTURES[architecture](encoder, encoder_weights=None, classes=num_classes)
    except Exception as error:
        if "meta tensors" not in str(error):  # a few encoders compute while they are built, which meta cannot
            raise InputError(explain_refusal(architecture, encoder, error)) from error


def _explain_missing_weights(architecture: str, encoder: str, error: BaseException) -> str:
    root = error
    while root.__cause__ or root.__context__:  # "Name or service not known" says more than what wraps it
        root = root.__cause__ or root.__context__
    cause = str(root).strip().split("\n")[0][:160] or type(root).__name__
    return (
        f"{architecture}: ImageNet weights of encoder {encoder!r} could not be had ({cause}); two ways out:"
        ' encoder_weights: "" trains from scratch, encoder_weights: PATH loads a state dict file from disk'
    )


def _load_encoder_weights(encoder: nn.Module, path: Path) -> None:
    """Load a local state dict (.pth, or .safetensors) into an encoder; the classifier's own weights are left out."""
    weights = _read_state_dict(path)
    own = encoder.state_dict()
    for prefix in ("", "model.", "encoder.", "network.encoder."):  # timm wrapped by smp; whole smp models; ours
        renamed = {prefix + name: value for name, value in weights.items()}
        stripped = {name.removeprefix(prefix): value for name, value in weights.items()}
        for candidate in (renamed, stripped):
            if all(name in candidate and candidate[name].shape == value.shape for name, value in own.items()):
                nn.Module.load_state_dict(encoder, {name: candidate[name] for name in own})
                return
    found = sum(name in weights and weights[name].shape == value.shape for name, value in own.items())
    raise InputError(
        f"encoder_weights {path}: required the {len(own)} weights of this encoder, got {found} that fit"
        f" (of {len(weights)} in the file); the file is of another encoder"
    )


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises nearly anything
        cause = str(error).strip().split("\n")[0][:160]
        raise InputError(f"encoder_weights {path}: required a state dict file, got {type(error).__name__}: {cause}") from error
    if isinstance(weights, dict):
        weights = weights.get("state_dict", weights.get("model", weights))
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"encoder_weights {path}: required a state dict (names to tensors), got {type(weights).__name__}")
    return weights


def _normalisation(encoder: str, pretrained: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std in 0..1 that the encoder's weights expect; a few (Inception's) want 0.5."""
    if pretrained is None:
        return IMAGENET_MEAN, IMAGENET_STD
    settings = smp.encoders.get_preprocessing_params(encoder, pretrained)
    return tuple(settings["mean"]), tuple(settings["std"])

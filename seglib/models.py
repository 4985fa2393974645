"""Models by name: which architecture goes with which encoder, and how they are built."""

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.base import SegmentationModel as SmpModel
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from timm.models import PretrainedCfg, get_arch_pretrained_cfgs
from torch import Tensor, nn

from seglib.errors import InputError, unknown_name
from seglib.files import expand, require_file
from seglib.layers import replace_average_pools, speed_up_dilated_depthwise
from seglib.parts import check_part, find_parts, read_choice

SMP = {
    name: model
    for name, model in vars(smp).items()
    if isinstance(model, type) and issubclass(model, SmpModel) and model is not SmpModel
}
# Of the zoo: the file, which is imported when one of it is built, and the encoders that each takes; the others take all
# that smp and timm can give them.
_ZOO = {
    "UNet3Plus": ("modern", None),
    **dict.fromkeys(("HRNet", "HRNetOCR"), ("modern", tuple(f"tu-{name}" for name in timm.list_models("hrnet_*")))),
    **dict.fromkeys(("TorchvisionFCN", "TorchvisionDeepLabV3"), ("classic", ("resnet50", "resnet101"))),
    **dict.fromkeys(("FCN32s", "FCN16s", "FCN8s", "SegNet", "DeconvNet"), ("classic", ("vgg16",))),
    **dict.fromkeys(("DilatedNet", "DeepLabV1", "DeepLabV2"), ("classic", ("vgg16",))),
    **dict.fromkeys(("FCDenseNet56", "FCDenseNet67", "FCDenseNet103"), ("modern", ("",))),
}
ARCHITECTURES = (*SMP, *_ZOO)
OWN_ENCODERS: dict[str, tuple[str, ...]] = {name: encoders for name, (_, encoders) in _ZOO.items() if encoders}
# ImageNet's statistics of RGB in 0..1: what timm's and torchvision's weights were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# How names in files and in encoders differ: timm wrapped by smp, whole models of smp, ours, torchvision's.
_PREFIXES = ("", "module.", "model.", "model.model.", "encoder.", "network.encoder.", "backbone.")
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)\.")  # torchvision's files: norm.1 for norm1
_HALF = (0.5, 0.5, 0.5)
_COUNTER = "num_batches_tracked"  # of batch norms; files from before torch 0.4.1, such as vgg16_bn's, have none


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
    architecture, options = read_choice("architecture", check_part("architecture", architecture, own, ARCHITECTURES))
    _check_encoder(
        architecture, encoder, encoder_weights, ("",) if architecture in own else OWN_ENCODERS.get(architecture)
    )
    if architecture in own:
        network = own[architecture].build(num_classes, **options)
        if not isinstance(network, nn.Module):
            raise InputError(f"architecture {architecture}: required an nn.Module, got {type(network).__name__}")
        return _OwnModel(architecture, network, num_classes)
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
        load_encoder_weights(network.encoder, expand(encoder_weights))
    return SegmentationModel(network, *find_normalisation(architecture, encoder, encoder_weights))


def _build_network(architecture: str, encoder: str, num_classes: int, image_size: int, imagenet: bool) -> nn.Module:
    weights = None
    if imagenet:
        weights = True if timm_name(encoder) else "imagenet"  # timm's names hold their weights' tag
    # DPT takes its features from inside a whole classifier, whose last layer would be dead weight. Transformers with
    # position embeddings, or with windows as wide as the image, are built for one size: "fixed" in timm's records.
    options = {"num_classes": 0} if architecture == "DPT" else {}
    if image_size and architecture not in OWN_ENCODERS and (name := timm_name(encoder)):
        settings = timm.get_pretrained_cfg(name)
        if settings is not None and settings.fixed_input_size:
            options["img_size"] = image_size
    build = SMP[architecture] if architecture in SMP else find_in_zoo(architecture)
    return build(encoder, encoder_weights=weights, classes=num_classes, **options)


def find_in_zoo(architecture: str) -> type[nn.Module]:
    """The class of one of the zoo's architectures."""
    return getattr(importlib.import_module(f"seglib.zoo.{_ZOO[architecture][0]}"), architecture)


def _refuse_before_download(architecture: str, encoder: str, num_classes: int, image_size: int) -> None:
    try:
        with torch.device("meta"):
            _build_network(architecture, encoder, num_classes, image_size, imagenet=False)
    except InputError:
        raise
    except Exception as error:
        if "meta tensors" not in str(error):  # a few encoders compute while they are built, which meta cannot
            raise InputError(explain_refusal(architecture, encoder, error)) from error


def _check_encoder(architecture: str, encoder: str, encoder_weights: str, own_encoders: Sequence[str] | None) -> None:
    """Refuse an encoder that nobody knows or that the architecture does not take, and weights for one without."""
    if own_encoders is not None:
        _check_own_encoder(architecture, encoder, own_encoders)
    elif not encoder:
        raise InputError(f'{architecture} needs an encoder, got ""; write one, such as encoder: resnet34')
    else:
        _check_encoder_name(encoder)
    if encoder_weights and not encoder:
        raise InputError(
            f'{architecture} has no encoder to load into, got {encoder_weights!r}; write encoder_weights: ""'
        )


def _check_own_encoder(architecture: str, encoder: str, own_encoders: Sequence[str]) -> None:
    plain = encoder.partition(".")[0] if encoder.startswith("tu-") else encoder  # `.tag` names the weights
    if plain not in own_encoders:
        *others, last = map(repr, own_encoders)
        takes = f"takes encoder {', '.join(others)}{' or ' if others else ''}{last}, got {encoder!r}"
        none = f'has no encoder to choose, got {encoder!r}; write encoder: ""'
        raise InputError(f"{architecture} {none if list(own_encoders) == [''] else takes}")
    if "." in encoder:
        _check_encoder_name(encoder)


def _check_encoder_name(encoder: str) -> None:
    name = timm_name(encoder)
    architecture_of_timm, _, tag = name.partition(".")
    known = timm.list_models() if name else smp.encoders.get_encoder_names()
    if (architecture_of_timm or encoder) not in known:
        raise InputError(unknown_name("encoder", encoder, [f"tu-{each}" for each in known] if name else known))
    if tag and name not in (tagged := get_arch_pretrained_cfgs(name)):
        raise InputError(unknown_name("encoder", encoder, [f"tu-{each}" for each in tagged]))


def timm_name(encoder: str) -> str:
    """timm's own name of an encoder that smp takes from timm; "" for one that smp has itself."""
    if encoder.startswith("tu-"):
        return encoder.removeprefix("tu-")
    if smp.encoders.is_equivalent_to_timm_universal(encoder):  # smp's names of old, such as timm-regnetx_002
        name = encoder.removeprefix("timm-")
        return f"tf_{name}" if name.startswith("mobilenetv3") else name
    return ""


# Weights of encoders from local files, and the normalisation that weights expect.


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
        require_file(path, times=1)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except InputError as error:
        raise InputError(f"encoder_weights {error}") from error
    except OSError as error:
        raise InputError(f"encoder_weights {path}: required a state dict file, got: {error.strerror}") from error
    except Exception as error:  # a damaged file raises nearly anything
        cause = str(error).strip().split("\n")[0][:160]
        raise InputError(
            f"encoder_weights {path}: required a state dict file, got {type(error).__name__}: {cause}"
        ) from error
    if isinstance(weights, dict):
        weights = weights.get("state_dict", weights.get("model", weights))
    is_named = isinstance(weights, dict) and all(isinstance(name, str) for name in weights)
    if not is_named or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(
            f"encoder_weights {path}: required a state dict (names to tensors), got {type(weights).__name__}"
        )
    return weights


# Words for what smp, timm and torch say.


def explain_refusal(architecture: str, encoder: str, error: BaseException, doing: str = "be built") -> str:
    """Say what an error of smp, timm or torch means for whoever chose the names; `doing` follows "cannot"."""
    text = str(error).strip().split("\n")[0].rstrip("!.")
    if "dilated" in text or "output_stride" in text or (not text and isinstance(error, AssertionError)):
        reason = f"encoder {encoder!r} cannot be dilated, which {architecture} needs"
    elif "Expected more than 1 value per channel" in text:
        reason = f"{architecture} pools to one pixel in front of a batch norm: batch_size must be at least 2, got 1"
    elif "downsampling pattern" in text:
        reason = (
            f"{architecture} needs feature maps at several scales, which encoder {encoder!r} does not give;"
            " DPT takes plain transformers"
        )
    elif "Only Timm encoders" in text:
        reason = f"{architecture} takes timm's transformers only (encoder names that start with tu-), got {encoder!r}"
    elif "not support" in text and encoder.startswith("mit_"):
        reason = f"{architecture} does not take the encoders mit_b0 to mit_b5, got {encoder!r}"
    elif divisor := re.search(r"Wrong input shape.* divisible by (\d+)", text):
        reason = f"{architecture} with encoder {encoder!r} takes an image_size that {divisor[1]} divides"
    elif "doesn't match model" in text:
        reason = f"encoder {encoder!r} takes one image size only ({text})"
    else:
        reason = (
            f"{architecture} with encoder {encoder!r} cannot {doing} ({type(error).__name__}: {text or 'no words'})"
        )
    return reason


def explain_missing_weights(architecture: str, encoder: str, error: BaseException) -> str:
    """Say why ImageNet weights could not be had, and what to write instead."""
    root = error
    while root.__cause__ or root.__context__:  # "Name or service not known" says more than what wraps it
        root = root.__cause__ or root.__context__
    lines = str(root).strip().split("\n")
    cause = (lines[1] if "size mismatch" in str(root) and len(lines) > 1 else lines[0]).strip()[:160]
    return (
        f"{architecture}: ImageNet weights of encoder {encoder!r} could not be had ({cause or type(root).__name__});"
        ' two ways out: encoder_weights: "" trains from scratch, encoder_weights: PATH loads a state dict file from disk'
    )

"""Architectures by name, which encoders each takes, and whether two names are ones that it knows."""

import segmentation_models_pytorch as smp
import timm
from segmentation_models_pytorch.base import SegmentationModel as SmpModel
from timm.models import get_arch_pretrained_cfgs
from torch import nn

from seglib.errors import InputError, unknown_name
from seglib.models import torchvision_models
from seglib.runs.preflight import refuse_encoder
from seglib.zoo import classic, fc_densenet, hrnet
from seglib.zoo.unet3plus import UNet3Plus

_SMP = {
    name: model
    for name, model in vars(smp).items()
    if isinstance(model, type) and issubclass(model, SmpModel) and model is not SmpModel
}
_HRNETS = {model.__name__: model for model in (hrnet.HRNet, hrnet.HRNetOCR)}
_TORCHVISION = {
    model.__name__: model for model in (torchvision_models.TorchvisionFCN, torchvision_models.TorchvisionDeepLabV3)
}

ARCHITECTURES: dict[str, type[nn.Module]] = {
    **_SMP,
    "UNet3Plus": UNet3Plus,
    **_HRNETS,
    **_TORCHVISION,
    **classic.CLASSIC,
    **fc_densenet.FC_DENSENETS,
}
# Architectures that take these encoders only; the others take all that smp and timm can give them.
OWN_ENCODERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_HRNETS, hrnet.ENCODERS),
    **dict.fromkeys(_TORCHVISION, torchvision_models.ENCODERS),
    **dict.fromkeys(classic.CLASSIC, classic.ENCODERS),
    **dict.fromkeys(fc_densenet.FC_DENSENETS, fc_densenet.ENCODERS),
}


def check_names(architecture: str, encoder: str) -> None:
    """Refuse names that nobody knows, and encoders that an architecture with encoders of its own does not take.

    Raises
    ------
    InputError
        One line, with the nearest names.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(unknown_name("architecture", architecture, ARCHITECTURES, limit=30))
    refusal = refuse_encoder(architecture, encoder, OWN_ENCODERS.get(architecture))
    if refusal:
        raise InputError(refusal)
    if architecture in OWN_ENCODERS:
        return
    name = timm_name(encoder)
    architecture_of_timm, _, tag = name.partition(".")  # `.tag` names the weights
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


def encoder_options(architecture: str, encoder: str, image_size: int) -> dict[str, int]:
    """What timm must be told about an encoder beside its name.

    Transformers with position embeddings, or with windows as wide as the image, are built for one image size [px]; "fixed"
    in timm's records means that `img_size` chooses it. DPT takes its features from inside a whole classifier,
    whose last layer would be dead weight.
    """
    options = {"num_classes": 0} if architecture == "DPT" else {}
    if image_size and architecture not in OWN_ENCODERS and (name := timm_name(encoder)):
        settings = timm.get_pretrained_cfg(name)
        if settings is not None and settings.fixed_input_size:
            options["img_size"] = image_size
    return options

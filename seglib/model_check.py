"""Whether a model can be built and run at an image size, found without computing where that is possible."""

import warnings
from collections.abc import Mapping
from itertools import islice
from typing import Any

import huggingface_hub
import segmentation_models_pytorch as smp
import torch

from seglib.errors import InputError
from seglib.models import SMP, build_model, explain_refusal, timm_name
from seglib.parts import find_parts, read_choice

STEP = 32  # sizes that are offered instead are multiples of it, as the configs want them [px]
NEAREST_STEPS = 8  # how many of them are tried on either side


def find_refusal(architecture: str | Mapping[str, Any], encoder: str, image_size: int, batch_size: int) -> str:
    """Build the model and push a batch through it without computing; "" if it works, else why not, in one line.

    Own models are built and run for real: they may do what cannot be done without numbers.

    Parameters
    ----------
    image_size : side of the square input [px]; where it is what does not fit, the nearest sizes that do are named.
    batch_size : images; one may be too few for batch norms.
    """
    refusal = _try(architecture, encoder, image_size, batch_size)
    if not refusal or "batch_size" in refusal:
        return refusal
    if not _can_be_built(architecture, encoder):
        known = isinstance(architecture, str) and architecture in SMP
        known = known and (encoder in smp.encoders.get_encoder_names() or timm_name(encoder))
        others = [name for name in SMP if name != architecture] if known else []
        fits = ", ".join(name for name in others if not _try(name, encoder, 128, 2))
        return f"{refusal}; architectures that take it: {fits}" if fits else refusal
    sizes = range(STEP, 2 * image_size + 1, STEP)
    below = [size for size in reversed(sizes) if size < image_size][:NEAREST_STEPS]
    above = [size for size in sizes if size > image_size][:NEAREST_STEPS]
    tried = sorted([*below, *above])
    fitting = [(size for size in each if not _try(architecture, encoder, size, batch_size)) for each in (below, above)]
    found = " or ".join(str(size) for sizes in fitting for size in islice(sizes, 1))
    return f"{refusal}; " + (
        f"nearest image_size: {found}" if found else f"no image_size from {tried[0]} to {tried[-1]} works"
    )


def find_missing_weights(
    architecture: str | Mapping[str, Any], encoder: str, image_size: int, encoder_weights: str
) -> str:
    """Build the model with its pretrained weights, downloaded where they are not; "" if they can be had, else why not.

    After a download that failed only weights that are on disk are looked for: each further try would take most of a minute.
    """
    try:
        build_model(architecture, encoder, 2, encoder_weights=encoder_weights, image_size=image_size)
    except InputError as error:
        huggingface_hub.constants.HF_HUB_OFFLINE |= encoder_weights == "imagenet"
        return str(error)
    return ""


def count_parameters(architecture: str, encoder: str) -> str:
    """Millions of parameters at 12 classes, such as "24.37"; "" for a pair that cannot be built and run."""
    if find_refusal(architecture, encoder, 128, 2):
        return ""
    with torch.device("cpu" if encoder.startswith("mit_") else "meta"):
        model = build_model(architecture, encoder, 12)
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f}"


def _try(architecture: Any, encoder: str, image_size: int, batch_size: int) -> str:
    num_classes, doing, refusal = 3, f"take image_size={image_size}", ""
    name, _ = read_choice("architecture", architecture)
    for device in ("cpu",) if name in find_parts("model") else ("meta", "cpu"):
        try:
            with torch.device(device), warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                model = build_model(architecture, encoder, num_classes, image_size=image_size).train()
                output, refusal = model(torch.zeros(min(batch_size, 2), 3, image_size, image_size)), ""
        except InputError as error:
            refusal = str(error)
        except Exception as error:  # models raise anything on sizes that they cannot take
            refusal = explain_refusal(name, encoder, error, doing)
        if "meta tensors" not in refusal:  # some encoders compute on the way (drop-path rates)
            break
    if refusal:
        return refusal
    for logits in output if isinstance(output, tuple) else (output,):
        if logits.shape[1:] != (num_classes, image_size, image_size):
            height, width = logits.shape[-2:]
            return f"{name} with encoder {encoder!r} cannot {doing} (its logits are {height} x {width} px)"
    return ""


def _can_be_built(architecture: Any, encoder: str) -> bool:
    """Whether it can at the size that the encoder was made for: if not, no other size would help."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            build_model(architecture, encoder, 3)
    except InputError as error:
        return "meta tensors" in str(error)
    except Exception:  # an own model, which may raise anything
        return False
    return True

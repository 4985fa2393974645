"""Tries whether a model can be built and run at an image size, and which sizes near it work where it cannot."""

import warnings
from collections.abc import Iterable

import torch

from seglib.errors import InputError
from seglib.models.build import build_model
from seglib.models.refusals import explain_refusal

STEP = 32  # sizes that are offered instead are multiples of it, as the configs want them [px]
NEAREST_STEPS = 8  # how many of them are tried on either side


def find_refusal(architecture: str, encoder: str, image_size: int, batch_size: int) -> str:
    """Build the model and push a batch through it without computing; "" if it works, else why not, in one line.

    Parameters
    ----------
    image_size : side of the square input [px]; where it is what does not fit, the nearest sizes that do are named.
    batch_size : images; one may be too few for batch norms.
    """
    refusal = _try(architecture, encoder, image_size, batch_size)
    if not refusal or "batch_size" in refusal or not _can_be_built(architecture, encoder):
        return refusal
    sizes = range(STEP, 2 * image_size + 1, STEP)
    below = [size for size in reversed(sizes) if size < image_size][:NEAREST_STEPS]
    above = [size for size in sizes if size > image_size][:NEAREST_STEPS]
    nearest = [_find_working(architecture, encoder, each, batch_size) for each in (below, above)]
    found = " or ".join(str(size) for size in nearest if size)
    tried = sorted([*below, *above])
    return f"{refusal}; " + (
        f"nearest image_size: {found}" if found else f"no image_size from {tried[0]} to {tried[-1]} works"
    )


def _find_working(architecture: str, encoder: str, sizes: Iterable[int], batch_size: int) -> int | None:
    return next((size for size in sizes if not _try(architecture, encoder, size, batch_size)), None)


def _try(architecture: str, encoder: str, image_size: int, batch_size: int) -> str:
    refusal = _try_on("meta", architecture, encoder, image_size, batch_size)
    if "meta tensors" in refusal:  # some encoders compute on the way (drop-path rates): these are built for real
        refusal = _try_on("cpu", architecture, encoder, image_size, batch_size)
    return refusal


def _try_on(device: str, architecture: str, encoder: str, image_size: int, batch_size: int) -> str:
    num_classes = 3
    doing = f"take image_size={image_size}"
    try:
        with torch.device(device), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            model = build_model(architecture, encoder, num_classes, image_size=image_size).train()
            output = model(torch.empty(min(batch_size, 2), 3, image_size, image_size))
    except InputError as error:
        return str(error)
    except Exception as error:  # models raise anything on sizes that they cannot take
        return explain_refusal(architecture, encoder, error, doing)
    for logits in output if isinstance(output, tuple) else (output,):
        if logits.shape[1:] != (num_classes, image_size, image_size):
            height, width = logits.shape[-2:]
            return f"{architecture} with encoder {encoder!r} cannot {doing} (its logits are {height} x {width} px)"
    return ""


def _can_be_built(architecture: str, encoder: str) -> bool:
    """Whether it can at the size that the encoder was made for: if not, no other size would help."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            build_model(architecture, encoder, 3)
    except InputError as error:
        return "meta tensors" in str(error)
    return True

"""What a pane of the viewer can show, its words, and how it is drawn."""

from typing import NamedTuple

import numpy as np

from seglib.viz.mask_source import MaskSource, Sample
from seglib.viz.overlay import ONLY_FIRST, ONLY_SECOND, WRONG, overlay_comparison, overlay_errors, overlay_mask


class Layer(NamedTuple):
    """kind: "image"; "mask" of `name`; "error" of `name`; "compare" of `name` with `other`."""

    kind: str
    name: str = ""
    other: str = ""


class Part(NamedTuple):
    """A piece of a caption, with a swatch of its colour where it has one."""

    text: str
    colour: tuple[int, int, int] | None = None


def list_layers(source: MaskSource) -> dict[str, Layer]:
    """Label -> layer, in the order of the menu."""
    layers = {"image": Layer("image")}
    for name in [source.reference, *source.compared] if source.reference else []:
        layers[name] = Layer("mask", name)
    for name in source.compared:
        label = f"error of {name}" if source.truth else f"{source.reference} against {name}"
        layers[label if len(source.compared) > 1 or not source.truth else "error"] = Layer("error", name)
    if source.truth and len(source.compared) > 1:
        first, second = source.compared[:2]
        layers[f"{first} against {second}"] = Layer("compare", first, second)
    return layers


def is_grey(layer: Layer) -> bool:
    """Whether the layer lies over the image without its colours."""
    return layer.kind in ("error", "compare")


def draw_overlay(
    layer: Layer, sample: Sample, source: MaskSource, colours: np.ndarray, shown: np.ndarray
) -> np.ndarray:
    """Draw what lies over the sample's image: (H, W, 4) uint8 RGBA. `colours` and `shown`: see `overlay_mask`."""
    masks = sample.masks
    match layer.kind:
        case "mask":
            return overlay_mask(masks[layer.name], colours, shown)
        case "error":
            return overlay_errors(masks[source.reference], masks[layer.name], shown)
        case "compare":
            return overlay_comparison(masks[source.reference], masks[layer.name], masks[layer.other], shown)
    return np.zeros((*sample.image.shape[:2], 4), np.uint8)


def caption_layer(label: str, layer: Layer, source: MaskSource) -> list[Part]:
    """The words above a pane: its label, then what its colours mean."""
    match layer.kind:
        case "error":
            return [Part(label), Part("wrong" if source.truth else "different", WRONG)]
        case "compare":
            only = [Part(f"{name} right", colour) for name, colour in
                    ((layer.name, ONLY_FIRST), (layer.other, ONLY_SECOND))]  # fmt: skip
            return [Part(label), *only, Part("both wrong", WRONG)]
    return [Part(label)]

"""Rows of pictures that show mistakes: their kinds, doubtful labels, two runs against each other."""

import io
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from seglib.viz.error_plots import KIND_COLOURS, OUTCOME_COLOURS
from seglib.viz.style import IGNORED, class_colours, colour_mask, use_font_for

PANEL = 2.0  # [inch] side of one picture: photographs are what makes an executed notebook large


def plot_kind_rows(
    images: np.ndarray, truths: np.ndarray, preds: np.ndarray, kinds: np.ndarray, class_names: Sequence[str],
    titles: Sequence[str],
) -> Figure:  # fmt: skip
    """image | truth | prediction | error by kind. kinds: (N, H, W) uint8, 0 for none, else 1 + place in KIND_COLOURS."""
    rows = [
        {"image": image, "truth": colour_mask(truth, len(class_names)), "prediction": colour_mask(pred, len(class_names)),
         "error": _tint(image, kind, [None, *KIND_COLOURS.values()], truth)}
        for image, truth, pred, kind in zip(images, truths, preds, kinds, strict=True)
    ]  # fmt: skip
    patches = [Patch(color=colour, label=f"error: {kind}") for kind, colour in KIND_COLOURS.items()]
    return _plot_rows(rows, titles, [*list_classes([truths, preds], class_names), *patches], class_names)


def plot_label_rows(
    images: np.ndarray, truths: np.ndarray, preds: np.ndarray, given: np.ndarray, class_names: Sequence[str],
    titles: Sequence[str],
) -> Figure:  # fmt: skip
    """image | truth | prediction | probability of the given label, dark where low. given: (N, H, W) float, 0..1."""
    rows = [
        {"image": image, "given label": colour_mask(truth, len(class_names)),
         "prediction": colour_mask(pred, len(class_names)), "p(given label): dark = 0": _shade(p, truth)}
        for image, truth, pred, p in zip(images, truths, preds, given, strict=True)
    ]  # fmt: skip
    return _plot_rows(rows, titles, list_classes([truths, preds], class_names), class_names)


def plot_duel_rows(
    images: np.ndarray, truths: np.ndarray, preds_a: np.ndarray, preds_b: np.ndarray, outcomes: np.ndarray,
    class_names: Sequence[str], names: tuple[str, str], titles: Sequence[str],
) -> Figure:  # fmt: skip
    """image | truth | A | B | who is right. outcomes: (N, H, W) uint8, places in OUTCOME_COLOURS."""
    colours = [None, OUTCOME_COLOURS["only_a"], OUTCOME_COLOURS["only_b"], OUTCOME_COLOURS["neither"]]
    rows = [
        {"image": image, "truth": colour_mask(truth, len(class_names)), names[0]: colour_mask(a, len(class_names)),
         names[1]: colour_mask(b, len(class_names)), "who is right": _tint(image, outcome, colours, truth)}
        for image, truth, a, b, outcome in zip(images, truths, preds_a, preds_b, outcomes, strict=True)
    ]  # fmt: skip
    labels = (f"only {names[0]} right", f"only {names[1]} right", "neither right")
    patches = [Patch(color=colour, label=label) for colour, label in zip(colours[1:], labels, strict=True)]
    return _plot_rows(rows, titles, [*list_classes([truths, preds_a, preds_b], class_names), *patches], class_names)


def show_pictures(figure: Figure) -> Image:
    """The figure as a notebook shows it: photographs as PNG would make each executed notebook megabytes large."""
    buffer = io.BytesIO()
    options = {"quality": 80, "subsampling": 0}  # colours as sharp as brightness: masks have edges
    figure.savefig(buffer, format="jpeg", dpi=100, bbox_inches="tight", pil_kwargs=options)
    return Image(buffer.getvalue(), format="jpeg", alt="rows of image, truth, prediction and errors")


def list_classes(masks: Sequence[np.ndarray], class_names: Sequence[str]) -> list[Patch]:
    """A legend of the classes that the masks have."""
    present, colours = np.unique(np.stack(masks)), class_colours(len(class_names)) / 255
    patches = [Patch(color=colours[index], label=class_names[index]) for index in present if index < len(class_names)]
    ignored = [Patch(color=np.array(IGNORED) / 255, label="(ignored)")]
    return patches + (ignored if (present >= len(class_names)).any() else [])


def _tint(image: np.ndarray, codes: np.ndarray, colours: Sequence[str | None], truth: np.ndarray) -> np.ndarray:
    """The image in pale grey, with codes painted in their colours (None: left pale), ignored pixels grey."""
    canvas = (160 + image.mean(axis=-1, keepdims=True) * 0.35).astype(np.uint8).repeat(3, axis=-1)
    for code, colour in enumerate(colours):
        if colour:
            canvas[codes == code] = np.round(255 * np.array(to_rgb(colour))).astype(np.uint8)
    canvas[truth == 255] = IGNORED
    return canvas


def _shade(probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    shaded = np.round(255 * plt.get_cmap("magma")(probability)[..., :3]).astype(np.uint8)
    shaded[truth == 255] = IGNORED
    return shaded


def _plot_rows(
    rows: Sequence[Mapping[str, np.ndarray]], titles: Sequence[str], patches: list[Patch], class_names: Sequence[str]
) -> Figure:
    """One row of named pictures each, names above the first; a legend below."""
    use_font_for([*class_names, *titles])
    columns = len(rows[0])
    figure, axes = plt.subplots(len(rows), columns, figsize=(columns * PANEL, PANEL * len(rows)), squeeze=False)
    for row, panels in enumerate(rows):
        for axis, (name, picture) in zip(axes[row], panels.items(), strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_title(name if row == 0 else "", fontsize=9)
        axes[row, 0].set_ylabel(titles[row], fontsize=8)
    figure.tight_layout(pad=0.4)
    figure.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=6, frameon=False, fontsize=8)
    plt.close(figure)
    return figure

"""Pictures of a data set's images and masks: overlaps under each policy, copies side by side, augmented samples."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from seglib.viz.style import IGNORED, class_colours, colour_mask, use_font_for

PANEL = 2.2  # [inch] side of one image


def plot_policies(
    images: Sequence[np.ndarray | None],
    layers: Sequence[tuple[np.ndarray, dict[str, np.ndarray]]],
    titles: Sequence[str],
    class_names: Sequence[str],
) -> Figure:
    """One row an image: image, how many objects lie on each pixel, the mask under each policy, where they disagree.

    Parameters
    ----------
    images : (S, S, 3) uint8 each; all None where there are no pixels, and the column is left out
    layers : objects on a pixel (S, S), and policy -> mask (S, S) uint8, of each image
    """
    use_font_for([*class_names, *titles])
    panels = [_policy_panels(image, *own, len(class_names)) for image, own in zip(images, layers, strict=True)]
    columns = len(panels[0])
    figure, axes = plt.subplots(
        len(panels), columns, figsize=(PANEL * columns, PANEL * len(panels) + 0.3), squeeze=False
    )
    for row, (shown, title) in enumerate(zip(panels, titles, strict=True)):
        for axis, (name, panel) in zip(axes[row], shown.items(), strict=True):
            _show(axis, panel, name if row == 0 else "")
        axes[row, 0].set_ylabel(title, fontsize=7)
    masks = np.concatenate([mask.ravel() for _, painted in layers for mask in painted.values()])
    return _finish(figure, masks, class_names)


def plot_copies(
    images: Sequence[tuple[np.ndarray, np.ndarray]], titles: Sequence[tuple[str, str]], notes: Sequence[str]
) -> Figure:
    """Pairs of images that are copies or nearly so, each pair side by side, three pairs in a row.

    Parameters
    ----------
    images : pairs of (S, S, 3) uint8
    titles : their names, short
    notes : what makes each pair one
    """
    use_font_for([name for pair in titles for name in pair])
    rows = -(-len(images) // 3)
    figure = plt.figure(figsize=(6 * PANEL, (PANEL + 0.5) * rows))
    grid = figure.add_gridspec(rows, 3, wspace=0.14, hspace=0.45)
    for number, (pair, names, note) in enumerate(zip(images, titles, notes, strict=True)):
        cell = grid[number // 3, number % 3].subgridspec(1, 2, wspace=0.03)
        for side, (image, name) in enumerate(zip(pair, names, strict=True)):
            axis = figure.add_subplot(cell[side])
            _show(axis, image, name)
            axis.title.set_fontsize(7)
            if side == 0:
                axis.set_ylabel(note, fontsize=7)
    plt.close(figure)
    return figure


def plot_augmentations(
    originals: Sequence[tuple[np.ndarray, np.ndarray]],
    draws: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]],
    class_names: Sequence[str],
) -> Figure:
    """Two rows a sample, image above mask: as loaded, then as each draw of the augmentation makes it.

    Parameters
    ----------
    originals : image (S, S, 3) uint8 and mask (S, S) uint8 of each sample
    draws : the same several times for each sample
    """
    use_font_for(class_names)
    columns = 1 + len(draws[0])
    figure, axes = plt.subplots(
        2 * len(originals), columns, figsize=(0.8 * PANEL * columns, 1.6 * PANEL * len(originals)), squeeze=False
    )
    for number, (original, drawn) in enumerate(zip(originals, draws, strict=True)):
        for column, (image, mask) in enumerate([original, *drawn]):
            title = ("as loaded" if column == 0 else f"draw {column}") if number == 0 else ""
            _show(axes[2 * number, column], image, title)
            _show(axes[2 * number + 1, column], colour_mask(mask, len(class_names)), "")
    masks = np.concatenate(
        [mask.ravel() for sample in ([o, *d] for o, d in zip(originals, draws, strict=True)) for _, mask in sample]
    )
    return _finish(figure, masks, class_names)


def _policy_panels(
    image: np.ndarray | None, depth: np.ndarray, painted: dict[str, np.ndarray], num_classes: int
) -> dict[str, np.ndarray]:
    masks = list(painted.values())
    disputed = np.any([mask != masks[0] for mask in masks[1:]], axis=0)
    layers = np.array([(245, 245, 245), (175, 195, 215), (230, 159, 0), (204, 30, 30)], np.uint8)[np.minimum(depth, 3)]
    return {
        **({} if image is None else {"image": image}),
        "objects on a pixel: 1, 2, 3+": layers,
        **{f"painted by {policy}": colour_mask(mask, num_classes) for policy, mask in painted.items()},
        "policies disagree": np.where(disputed[..., None], np.uint8([204, 30, 30]), np.uint8([245, 245, 245])),
    }


def _show(axis: Axes, panel: np.ndarray, title: str) -> None:
    axis.imshow(panel, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=8)


def _finish(figure: Figure, masks: np.ndarray, class_names: Sequence[str]) -> Figure:
    """A legend of the classes that the masks hold, below."""
    present, colours = np.flatnonzero(np.bincount(masks)), class_colours(len(class_names)) / 255
    patches = [Patch(color=colours[index], label=class_names[index]) for index in present if index < len(class_names)]
    if present[-1] >= len(class_names):
        patches.append(Patch(color=np.array(IGNORED) / 255, label="(ignored)"))
    figure.tight_layout(pad=0.4)
    figure.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=6, frameon=False, fontsize=8)
    plt.close(figure)
    return figure

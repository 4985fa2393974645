"""Rows of pictures: images, masks in their classes' colours, errors; arrays in, a matplotlib Figure out."""

import io
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from seglib.viz.plots import IGNORED, WIDTH, class_colours, colour_mask, cut, new_figure

PICTURE = 2.2  # [inch] side of a picture at most
WRONG = (204, 30, 30)
# Drawn beside masks, hence no colours of classes; apart in lightness, for colour-blind people.
KIND_COLOURS = {"boundary": "#f9a03f", "extent": "#e0324b", "segment": "#5c0a1a"}
OUTCOME_COLOURS = {"both": "#e8e8e8", "only_a": "#5e3c99", "only_b": "#7fbf7b", "neither": "#4a4a4a"}
CHANGES = {"won": "#00a0c0", "lost": "#b30059", "wrong before and after": "#4a4a4a"}

# Figures of pictures: arrays in, a matplotlib Figure out. Images (N, H, W, 3) uint8, masks (N, H, W) uint8 class ids.


def plot_batch(images: np.ndarray, masks: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Images above their masks."""
    coloured = [colour_mask(mask, len(class_names)) for mask in masks]
    rows = [dict(zip(map(str, range(1, len(images) + 1)), row, strict=True)) for row in (images, coloured)]
    return plot_pictures(rows, ["image", "mask"], list_classes(masks, class_names))


def plot_predictions(
    images: np.ndarray, truths: np.ndarray, preds: np.ndarray, class_names: Sequence[str], titles: Sequence[str]
) -> Figure:
    """image | truth | prediction | error (right pixels pale, wrong ones red, ignored ones grey)."""
    last = {"error: red = wrong": [show_errors(*each) for each in zip(images, truths, preds, strict=True)]}
    return _plot_rows(images, {"truth": truths, "prediction": preds}, last, class_names, titles)


def plot_kind_rows(
    images: np.ndarray, truths: np.ndarray, preds: np.ndarray, kinds: np.ndarray, class_names: Sequence[str],
    titles: Sequence[str],
) -> Figure:  # fmt: skip
    """image | truth | prediction | error by kind. kinds: (N, H, W) uint8, 0 for none, else 1 + place in KIND_COLOURS."""
    colours = {f"error: {kind}": colour for kind, colour in KIND_COLOURS.items()}
    return _plot_coded(images, {"truth": truths, "prediction": preds}, "error", kinds, colours, class_names, titles)


def plot_label_rows(
    images: np.ndarray, truths: np.ndarray, preds: np.ndarray, given: np.ndarray, class_names: Sequence[str],
    titles: Sequence[str],
) -> Figure:  # fmt: skip
    """image | truth | prediction | probability of the given label, dark where low. given: (N, H, W) float, 0..1."""
    last = np.round(255 * plt.get_cmap("magma")(given)[..., :3]).astype(np.uint8)
    last[truths >= len(class_names)] = IGNORED
    masks = {"given label": truths, "prediction": preds}
    return _plot_rows(images, masks, {"p(given label): dark = 0": last}, class_names, titles)


def plot_duel_rows(
    images: np.ndarray, truths: np.ndarray, preds_a: np.ndarray, preds_b: np.ndarray, outcomes: np.ndarray,
    class_names: Sequence[str], names: tuple[str, str], titles: Sequence[str],
) -> Figure:  # fmt: skip
    """image | truth | A | B | who is right. outcomes: (N, H, W) uint8, places in OUTCOME_COLOURS."""
    labels = (f"only {names[0]} right", f"only {names[1]} right", "neither right")
    colours = dict(zip(labels, [*OUTCOME_COLOURS.values()][1:], strict=True))
    masks = {"truth": truths, names[0]: preds_a, names[1]: preds_b}
    return _plot_coded(images, masks, "who is right", outcomes, colours, class_names, titles)


def plot_change_rows(
    images: np.ndarray, truths: np.ndarray, before: np.ndarray, after: np.ndarray, class_names: Sequence[str],
    names: tuple[str, str], titles: Sequence[str],
) -> Figure:  # fmt: skip
    """image | truth | best member | ensemble | what the vote changed."""
    colours = {f"changed: {label}": colour for label, colour in CHANGES.items()}
    masks = {"truth": truths, names[0]: before, names[1]: after}
    codes = np.select([before == after, after == truths, before == truths], [0, 1, 2], 3)
    return _plot_coded(images, masks, "changed by the vote", codes, colours, class_names, titles)


def plot_run_rows(
    images: np.ndarray, truths: np.ndarray, masks: Mapping[str, np.ndarray], class_names: Sequence[str],
    titles: Sequence[str],
) -> Figure:  # fmt: skip
    """image | truth | a prediction per condition; of `show_images`."""
    return _plot_rows(images, {"truth": truths, **masks}, {}, class_names, titles)


def plot_policies(
    images: Sequence[np.ndarray | None],
    layers: Sequence[tuple[np.ndarray, Mapping[str, np.ndarray]]],
    titles: Sequence[str],
    class_names: Sequence[str],
) -> Figure:
    """image | how many objects lie on each pixel | the mask under each policy | where they disagree.

    images : (S, S, 3) uint8 each; all None where there are no pixels, and the column is left out.
    layers : objects on a pixel (S, S), and policy -> mask (S, S) uint8, of each image.
    """
    depths = np.array([(245, 245, 245), (175, 195, 215), (230, 159, 0), WRONG], np.uint8)
    rows = []
    for image, (depth, painted) in zip(images, layers, strict=True):
        disputed = np.ptp(np.stack(list(painted.values())), axis=0) > 0
        row = {"objects on a pixel: 1, 2, 3+": depths[np.minimum(depth, 3)]}
        row |= {f"painted by {policy}": colour_mask(mask, len(class_names)) for policy, mask in painted.items()}
        row["policies disagree"] = np.where(disputed[..., None], depths[3], depths[0])
        rows.append(row if image is None else {"image": image} | row)
    masks = [mask for _, painted in layers for mask in painted.values()]
    return plot_pictures(rows, titles, list_classes(masks, class_names))


def plot_augmentations(
    originals: Sequence[tuple[np.ndarray, np.ndarray]],
    draws: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]],
    class_names: Sequence[str],
) -> Figure:
    """Two rows per sample, image above mask: as loaded, then as each draw of the augmentation makes it.

    originals : image (S, S, 3) uint8 and mask (S, S) uint8 of each sample; draws : the same several times for each.
    """
    rows, masks = [], []
    for original, drawn in zip(originals, draws, strict=True):
        columns = {"as loaded": original} | {f"draw {number}": pair for number, pair in enumerate(drawn, 1)}
        rows.append({name: image for name, (image, _) in columns.items()})
        rows.append({name: colour_mask(mask, len(class_names)) for name, (_, mask) in columns.items()})
        masks += [mask for _, mask in columns.values()]
    return plot_pictures(rows, [], list_classes(masks, class_names))


def plot_copies(
    images: Sequence[tuple[np.ndarray, np.ndarray]], titles: Sequence[tuple[str, str]], notes: Sequence[str]
) -> Figure:
    """Pairs of images (S, S, 3) uint8 that are copies or nearly so, with their names, and what makes each pair one."""
    rows = -(-len(images) // 2)
    figure, axes = new_figure(2.6 * rows, rows, 4, texts=[name for pair in titles for name in pair])
    pairs = axes.reshape(-1, 2)
    for (left, right), pair, names, note in zip(pairs, images, titles, notes, strict=False):
        show_picture(left, pair[0], names[0])
        show_picture(right, pair[1], names[1])
        left.set_ylabel(note)
    for axis in pairs[len(images) :].flat:
        axis.set_visible(False)
    return figure


def show_errors(image: np.ndarray, truth: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the image in pale grey where the prediction is right, red where wrong, grey where ignored."""
    return paint_codes(image, truth != pred, [None, WRONG], truth)


def _plot_coded(
    images: np.ndarray, masks: Mapping[str, np.ndarray], name: str, codes: np.ndarray, colours: Mapping[str, str],
    class_names: Sequence[str], titles: Sequence[str],
) -> Figure:  # fmt: skip
    """Last the pixels whose code is 1, 2, ... in the colours, label -> colour; truth is the first of the masks."""
    truths = next(iter(masks.values()))
    painted = [
        paint_codes(*each[:2], [None, *colours.values()], each[2]) for each in zip(images, codes, truths, strict=True)
    ]
    patches = [Patch(color=colour, label=label) for label, colour in colours.items()]
    return _plot_rows(images, masks, {name: painted}, class_names, titles, patches)


def _plot_rows(
    images: np.ndarray, masks: Mapping[str, np.ndarray], last: Mapping[str, Sequence[np.ndarray]],
    class_names: Sequence[str], titles: Sequence[str], patches: Sequence[Patch] = (),
) -> Figure:  # fmt: skip
    """One row per image: the image, its masks in their colours, the last picture."""
    columns = {"image": images, **{name: colour_mask(mask, len(class_names)) for name, mask in masks.items()}, **last}
    rows = [{name: column[index] for name, column in columns.items()} for index in range(len(images))]
    return plot_pictures(rows, titles, [*list_classes(masks.values(), class_names), *patches])


def list_classes(masks: Iterable[np.ndarray], class_names: Sequence[str]) -> list[Patch]:
    """A legend of the classes that the masks have, and of ignored pixels if any."""
    counts = sum(np.bincount(np.ravel(mask), minlength=256) for mask in masks)
    colours = class_colours(len(class_names)) / 255
    patches = [
        Patch(color=colour, label=cut(name, 60))
        for colour, name, count in zip(colours, class_names, counts, strict=False)
        if count
    ]
    ignored = counts[len(class_names) :].any()
    return patches + ([Patch(color=np.array(IGNORED) / 255, label="(ignored)")] if ignored else [])


def show_picture(axis: Axes, picture: np.ndarray, title: str = "") -> None:
    """One picture without axes; pixels stay sharp squares."""
    axis.imshow(picture, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.set_title(title)


def plot_pictures(rows: Sequence[Mapping[str, np.ndarray]], sides: Sequence[str], patches: Sequence[Patch]) -> Figure:
    """One row of named pictures (H, W, 3) uint8 each: names above the first row, `sides` at the left, a legend below."""
    labels = [str(patch.get_label()) for patch in patches]
    columns, (height, width) = len(rows[0]), next(iter(rows[0].values())).shape[:2]
    side = min(PICTURE, (WIDTH - 0.5) / columns)
    legend_columns = max(1, int(WIDTH / (0.4 + 0.09 * max(map(_count_columns, labels), default=0))))
    total = side * min(2, height / width) * len(rows) + 0.3 + 0.22 * -(-len(labels) // legend_columns)
    figure, axes = new_figure(
        total, len(rows), columns, width=max(5, 0.5 + side * columns), texts=[*labels, *sides, *rows[0]]
    )
    for number, row in enumerate(rows):
        for axis, (name, picture) in zip(axes[number], row.items(), strict=True):
            show_picture(axis, picture, "" if number else textwrap.fill(name, int(15 * side)))
        lines = sides[number].split("\n") if number < len(sides) else []
        axes[number, 0].set_ylabel("\n".join(cut(line, int(14 * side)) for line in lines))
    figure.legend(handles=list(patches), loc="outside lower center", ncols=legend_columns)
    return figure


def _count_columns(text: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)


def paint_codes(
    image: np.ndarray,
    codes: np.ndarray,
    colours: Sequence[str | tuple | None],
    truth: np.ndarray,
    ignore_index: int = 255,
) -> np.ndarray:
    """(H, W, 3) uint8: the image in pale grey, `codes` in their colours (None: left pale), ignored pixels grey."""
    canvas = (160 + image.mean(axis=-1, keepdims=True) * 0.35).astype(np.uint8).repeat(3, axis=-1)
    for code, colour in enumerate(colours):
        if colour is not None:
            rgb = np.round(255 * np.array(to_rgb(colour))) if isinstance(colour, str) else colour
            canvas[codes == code] = np.asarray(rgb, np.uint8)
    canvas[truth == ignore_index] = IGNORED
    return canvas


def show_pictures(figure: Figure) -> Image:
    """The figure as a notebook shows it: photographs as PNG would make each executed notebook megabytes large."""
    buffer = io.BytesIO()
    options = {"quality": 80, "subsampling": 0}  # colours as sharp as brightness: masks have edges
    figure.savefig(buffer, format="jpeg", dpi=100, bbox_inches="tight", pil_kwargs=options)
    return Image(buffer.getvalue(), format="jpeg", alt="rows of image, truth, prediction and errors")

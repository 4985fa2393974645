"""Figures of a data set: distributions and example pictures."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from seglib.viz.plots import IGNORED, TRAIN, VAL, class_colours, colour_mask, use_font_for

# Figures of a data set's tables: classes, objects, positions, splits, colours; readable with 3 and with 60 classes.


ROW = 0.21  # [inch] height of one class in a bar chart
GREY = "#555555"
_MOST_MAPS = 11  # classes with a heat map of their own


def plot_class_counts(classes: pd.DataFrame) -> Figure:
    """Annotations, images and pixels of each class side by side, log scale; `classes` of `tabulate_classes`."""
    order = np.argsort(classes["annotations"].to_numpy()[1:], kind="stable") + 1  # the largest on top
    order = np.append(order, 0) if classes["pixels"].iloc[0] else order
    figure, axes = _class_figure(classes.index, len(order), columns=3)
    colours = class_colours(len(classes))[order] / 255
    for axis, what in zip(axes, ("annotations", "images", "pixels"), strict=True):
        values = classes[what].to_numpy(float)[order]
        bars = axis.barh(range(len(order)), np.maximum(values - 0.5, 0), left=0.5, color=colours)
        labels = [f"{value:,.0f}" if what != "pixels" else _short(value) for value in values]
        axis.bar_label(bars, labels, padding=2, fontsize=7, color=GREY)
        axis.set(xscale="log", xlim=(0.5, max(10, values.max()) * 8), title=what)
    _name_rows(axes[0], classes.index[order])
    return _finish(figure)


def plot_image_contents(class_pixels: np.ndarray, present: np.ndarray, objects: pd.DataFrame) -> Figure:
    """Background's share of the images, classes and annotations in an image, as histograms over images."""
    total = np.maximum(1, class_pixels.sum(axis=1))
    empty, name = class_pixels[:, 0] / total, "the background"
    if not class_pixels[:, 0].any() and class_pixels[:, -1].any():
        empty, name = class_pixels[:, -1] / total, "ignored pixels"
    annotations = np.bincount(objects["image"], minlength=len(class_pixels))
    figure, axes = plt.subplots(1, 3, figsize=(12, 2.8))
    axes[0].hist(100 * empty, bins=np.linspace(0, 100, 26), color=TRAIN)
    axes[0].set(title=f"share of {name} in an image [%]", ylabel="images")
    for axis, values, title in ((axes[1], present.sum(axis=1), "classes"), (axes[2], annotations, "annotations")):
        step = max(1, -(-int(values.max(initial=0)) // 40))
        axis.hist(values, bins=np.arange(-0.5, values.max(initial=0) + step + 0.5, step), color=TRAIN, rwidth=0.9)
        axis.set_title(f"{title} in an image (median {np.median(values):g})")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    return _finish(figure, axes)


def plot_cooccurrence(cooccurrence: pd.DataFrame) -> Figure:
    """Share of the images with the row's class that show the column's too; of `count_cooccurrence`."""
    counts = np.diag(cooccurrence)
    order = [index for index in np.argsort(-counts, kind="stable") if counts[index]]
    shares = cooccurrence.to_numpy()[np.ix_(order, order)] / np.maximum(1, counts[order])[:, None]
    names = cooccurrence.index[order]
    use_font_for(names)
    side = 2.6 + (0.42 if len(names) <= 15 else ROW * 0.85) * len(names)
    figure, axis = plt.subplots(figsize=(side + 0.8, side))
    picture = axis.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    small = 9 if len(names) <= 15 else 6.5
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=small)
    axis.set_yticks(
        range(len(names)), [f"{name} ({counts[i]})" for i, name in zip(order, names, strict=True)], fontsize=small
    )
    for row, column in np.ndindex(shares.shape) if len(names) <= 15 else ():
        share = shares[row, column]
        axis.text(
            column,
            row,
            f"{100 * share:.0f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if share > 0.6 else "black",
        )
    figure.colorbar(picture, ax=axis, fraction=0.04, pad=0.02)
    axis.set_title("images with the row's class that show the column's too [%]", fontsize=10)
    return _finish(figure)


def plot_object_sizes(objects: pd.DataFrame, limits: Sequence[float], image_size: int) -> Figure:
    """Histogram of sqrt(area) [px] in the training image, log scale, with the share at or under each limit."""
    figure, axis = plt.subplots(figsize=(9, 3.4))
    sizes = objects["size"].clip(lower=0.5)
    smallest = np.floor(np.log2(sizes.min())) if len(sizes) else 0
    axis.hist(sizes, bins=2.0 ** np.arange(smallest, np.log2(image_size) + 0.3, 0.25), color=TRAIN, alpha=0.8)
    for number, limit in enumerate(limits):
        axis.axvline(limit, color=VAL, linewidth=1, linestyle="--")
        share = f"{100 * (objects['size'] <= limit).mean():.0f} % ≤ {limit:g} px" if len(objects) else f"{limit:g} px"
        place = {"transform": axis.get_xaxis_transform(), "ha": "center", "va": "bottom"}
        axis.text(limit, 1.01 + 0.07 * (number % 2), share, fontsize=8, color=VAL, **place)
    axis.set(xscale="log", xlabel=f"sqrt(area) [px] in an image of {image_size} px", ylabel="objects")
    _plain_log(axis)
    axis.set_title(f"size of {len(objects):,} objects", pad=26)
    return _finish(figure, [axis])


def plot_by_class(
    objects: pd.DataFrame, column: str, label: str, marks: Sequence[float], class_names: Sequence[str]
) -> Figure:
    """Spread of a positive quantity by class, largest median first: median, half and four fifths of the objects.

    Parameters
    ----------
    column : "size" or "aspect"
    marks : values at which to draw a line
    """
    grouped = objects[objects[column] > 0].groupby("class_id")[column]
    spread = pd.DataFrame({share: grouped.quantile(share) for share in (0.1, 0.25, 0.5, 0.75, 0.9)}).sort_values(0.5)
    counts = grouped.size().reindex(spread.index)
    figure, (axis,) = _class_figure(class_names, len(spread), columns=1)
    rows, colours = np.arange(len(spread)), class_colours(len(class_names))[spread.index] / 255
    axis.hlines(rows, spread[0.1], spread[0.9], color=colours, linewidth=1.5)
    axis.hlines(rows, spread[0.25], spread[0.75], color=colours, linewidth=6)
    axis.scatter(spread[0.5], rows, s=26, color=colours, edgecolor="white", linewidth=1.2, zorder=3)
    for mark in marks:
        axis.axvline(mark, color=GREY, linewidth=0.8, linestyle="--")
    axis.set(xscale="log", xlabel=f"{label}\ndot: median, bar: half of the objects, line: four fifths")
    _plain_log(axis)
    _name_rows(axis, [f"{class_names[index]} ({counts[index]:,})" for index in spread.index])
    return _finish(figure)


def plot_vanished(vanished: pd.DataFrame, class_names: Sequence[str]) -> Figure:
    """Share of the objects that vanish at each size, in all and for the classes that lose any; of `tabulate_vanished`."""
    shares = [name for name in vanished if name.startswith("share at")]
    table = vanished[vanished[shares].any(axis=1)].iloc[::-1]
    figure, (axis,) = _class_figure(class_names, 1.6 * len(table), columns=1)
    thickness, colours = 0.8 / len(shares), ("#999999", TRAIN, VAL)[-len(shares) :]
    for number, (name, colour) in enumerate(zip(shares, colours, strict=True)):
        rows = np.arange(len(table)) + 0.4 - (number + 0.5) * thickness
        bars = axis.barh(
            rows, 100 * table[name], thickness, color=colour, label=f"resized to {name.removeprefix('share at ')} px"
        )
        lost = table[name.replace("share", "vanish")]
        axis.bar_label(bars, [f"{count:,}" if count else "" for count in lost], padding=2, fontsize=7)
    axis.set_xlabel("objects of whose mask no pixel is left [%]; label: how many")
    axis.margins(x=0.1)
    _legend_above(axis)
    _name_rows(axis, [f"{name} ({count:,})" for name, count in table["objects"].items()])
    return _finish(figure)


def plot_positions(objects: pd.DataFrame, class_names: Sequence[str]) -> Figure:
    """Where in the image the middles of the objects lie: all, and the classes with the most objects."""
    counts = objects["class_id"].value_counts().head(_MOST_MAPS)
    maps = [("all", objects)] + [(class_names[index], objects[objects["class_id"] == index]) for index in counts.index]
    use_font_for(class_names)
    rows = -(-len(maps) // 6)
    figure, axes = plt.subplots(rows, 6, figsize=(12, 2.25 * rows), squeeze=False)
    for axis, (name, own) in zip(axes.flat, maps, strict=False):
        bins = 24 if len(own) > 2000 else 12
        density, _, _ = np.histogram2d(own["y"], own["x"], bins=bins, range=[[0, 1], [0, 1]])
        axis.imshow(density, cmap="magma", extent=(0, 1, 1, 0), interpolation="nearest", aspect="auto")
        axis.set(xticks=[], yticks=[])
        axis.set_title(f"{_cut(name, 24)} ({len(own):,})", fontsize=8)
    for axis in axes.flat[len(maps) :]:
        axis.set_visible(False)
    return _finish(figure)


def plot_class_pairs(pairs: pd.DataFrame, most: int = 15) -> Figure:
    """The class pairs with the most overlapping pixels, those of one class in grey; of `tabulate_class_pairs`."""
    top = pairs.head(most).iloc[::-1]
    names = [f"{a} + {b}" for a, b in zip(top["class_a"], top["class_b"], strict=True)]
    figure, (axis,) = _class_figure(names, len(top), columns=1)
    colours = np.where(top["class_a"] == top["class_b"], "#bbbbbb", TRAIN)
    bars = axis.barh(range(len(top)), top["pixels"], color=colours)
    axis.bar_label(bars, [f"{count:,}" for count in top["overlaps"]], padding=2, fontsize=7)
    axis.set(xlabel="overlapping pixels in the training images; label: pairs of annotations")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.margins(x=0.1)
    _name_rows(axis, names)
    return _finish(figure)


def plot_subsets(compared: pd.DataFrame) -> Figure:
    """Each class's share of the annotations and of the pixels in train and in val, log scale; of `compare_subsets`."""
    used = compared[compared[["annotations", "pixels"]].any(axis=1)]
    used = used.iloc[np.argsort(used["annotations"].sum(axis=1), kind="stable")]
    figure, axes = _class_figure(used.index, len(used), columns=2)
    for axis, what in zip(axes, ("annotation", "pixel"), strict=True):
        shares = 100 * used[f"{what}_share"]
        shares = shares[shares.any(axis=1)]
        rows = used.index.get_indexer(shares.index)
        shares = shares.where(shares > 0, shares[shares > 0].min().min() / 2)
        axis.hlines(rows, shares.min(axis=1), shares.max(axis=1), color="#bbbbbb", linewidth=2)
        axis.plot(shares["train"], rows, "o", color=TRAIN, markersize=5, label="train")
        axis.plot(shares["val"], rows, "s", color=VAL, markersize=4, label="val")
        axis.set(xscale="log", xlabel=f"share of {what}s [%]; leftmost: none")
        _plain_log(axis)
    _legend_above(axes[0])
    _name_rows(axes[0], used.index)
    return _finish(figure)


def plot_colours(measured: pd.DataFrame, subset: np.ndarray) -> Figure:
    """Mean brightness and mean of each channel of the images, train and val as shares; of `measure_images`."""
    sound = measured["error"] == ""
    figure, axes = plt.subplots(1, 4, figsize=(13, 2.6), sharey=True)
    brightness = measured[["red", "green", "blue"]].mean(axis=1)
    panels = {"brightness": brightness, **{name: measured[name] for name in ("red", "green", "blue")}}
    for axis, (name, values) in zip(axes, panels.items(), strict=True):
        for part, colour in (("train", TRAIN), ("val", VAL)):
            own = values[sound & (subset == part)]
            weights = np.full(len(own), 100 / max(1, len(own)))
            style = (
                {"histtype": "stepfilled", "alpha": 0.35} if part == "train" else {"histtype": "step", "linewidth": 1.8}
            )
            axis.hist(own, bins=np.arange(0, 257, 12), weights=weights, color=colour, label=part, **style)
        axis.set(title=f"{name}: mean of an image [0..255]", xlim=(0, 255))
    axes[0].set_ylabel("images [%]")
    axes[-1].legend(frameon=False, fontsize=8)
    return _finish(figure, axes)


def _class_figure(names: Sequence[str], rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    """Axes that share one row a class; call `_name_rows` on the first when they are drawn."""
    use_font_for(names)
    width = 7.5 if columns == 1 else 3.2 * columns + 2
    figure, axes = plt.subplots(1, columns, figsize=(width, 1.1 + ROW * max(4, rows)), sharey=True, squeeze=False)
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", alpha=0.25)
        axis.set_axisbelow(True)
    return figure, axes[0]


def _name_rows(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_ylim(-0.7, len(names) - 0.3)


def _legend_above(axis: Axes) -> None:
    """Where it covers no data."""
    axis.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)


def _plain_log(axis: Axes) -> None:
    """Numbers such as 20 and 0.5 on a logarithmic axis; more of them where it spans less."""
    lowest, highest = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest / lowest < 5000 else (1,)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.tick_params(axis="x", labelsize=8)


def _short(count: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def _cut(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _finish(figure: Figure, axes: Sequence[Axes] = ()) -> Figure:
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        axis.title.set_fontsize(10)
    figure.tight_layout()
    plt.close(figure)
    return figure


# Pictures of a data set's images and masks: overlaps under each policy, copies side by side, augmented samples.


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
    return _eda_pictures_finish(figure, masks, class_names)


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
    return _eda_pictures_finish(figure, masks, class_names)


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


def _eda_pictures_finish(figure: Figure, masks: np.ndarray, class_names: Sequence[str]) -> Figure:
    """A legend of the classes that the masks hold, below."""
    present, colours = np.flatnonzero(np.bincount(masks)), class_colours(len(class_names)) / 255
    patches = [Patch(color=colours[index], label=class_names[index]) for index in present if index < len(class_names)]
    if present[-1] >= len(class_names):
        patches.append(Patch(color=np.array(IGNORED) / 255, label="(ignored)"))
    figure.tight_layout(pad=0.4)
    figure.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=6, frameon=False, fontsize=8)
    plt.close(figure)
    return figure

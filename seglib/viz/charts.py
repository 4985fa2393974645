"""Figures of a data set's, a run's and an ensemble's tables; legible with 1 class and with 60, in Korean too."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from seglib.viz.pictures import CHANGES, KIND_COLOURS, OUTCOME_COLOURS
from seglib.viz.plots import (
    MAX_CLASSES,
    PALE,
    ROW,
    TRAIN,
    VAL,
    WIDTH,
    class_colours,
    cut,
    draw_heatmap,
    draw_pairs,
    draw_stack,
    name_rows,
    new_figure,
    new_rows,
    put_legend_above,
    use_plain_log,
    write_beside,
    write_count,
)

INK, GREY = "#333333", "#8a8a8a"
MISSED, INVENTED = "#0072b2", "#e69f00"
MAX_PAIRED = 28  # classes of a matrix without numbers
MAX_MAPS = 11  # classes with a heat map of their positions

# A data set.


def plot_class_counts(classes: pd.DataFrame) -> Figure:
    """Annotations, images and pixels of each class side by side, log scale; `classes` of `tabulate_classes`."""
    order = np.argsort(-classes["annotations"].to_numpy()[1:], kind="stable") + 1
    order = np.append(0, order) if classes["pixels"].iloc[0] else order
    colours = class_colours(len(classes))[order] / 255
    figure, axes = new_rows(classes.index[order], 3, height=0.23)
    for axis, what in zip(axes, ("annotations", "images", "pixels"), strict=True):
        values = classes[what].to_numpy(float)[order]
        bars = axis.barh(range(len(order)), np.maximum(values - 0.5, 0), left=0.5, color=colours)
        axis.bar_label(bars, [write_count(value) for value in values], padding=2, color=INK)
        axis.set(xscale="log", xlim=(0.5, max(10, values.max(initial=0)) * 12), title=what)
        axis.xaxis.set_major_formatter(lambda count, _: write_count(count))
    return figure


def plot_image_contents(class_pixels: np.ndarray, present: np.ndarray, objects: pd.DataFrame) -> Figure:
    """Background's share of the images, classes and annotations in an image, as histograms over images."""
    share, name = class_pixels[:, 0], "the background"
    if not share.any() and class_pixels[:, -1].any():
        share, name = class_pixels[:, -1], "ignored pixels"
    annotations = np.bincount(objects["image"], minlength=len(class_pixels))
    figure, (axes,) = new_figure(2.6, 1, 3)
    sns.histplot(x=100 * share / np.maximum(1, class_pixels.sum(axis=1)), bins=25, binrange=(0, 100), ax=axes[0])
    axes[0].set(xlabel=f"share of {name} in an image [%]", ylabel="images")
    for axis, values, what in ((axes[1], present.sum(axis=1), "classes"), (axes[2], annotations, "annotations")):
        step = max(1, -(-int(values.max(initial=0)) // 40))
        edges = np.arange(-0.5, values.max(initial=0) + step + 0.5, step)
        sns.histplot(x=values, bins=edges, shrink=0.9, ax=axis)
        axis.set(xlabel=f"{what} in an image (median {np.median(values):g})", ylabel="")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    return figure


def plot_cooccurrence(cooccurrence: pd.DataFrame) -> Figure:
    """Share of the images with the row's class that show the column's too; of `count_cooccurrence`."""
    counts = pd.Series(np.diag(cooccurrence), cooccurrence.index).sort_values(ascending=False, kind="stable")
    found = counts[counts > 0]
    shown = found.head(MAX_PAIRED)
    shares = 100 * cooccurrence.loc[shown.index, shown.index].div(shown, axis=0)
    few, height = len(shown) <= MAX_CLASSES, 2.2 + (0.36 if len(shown) <= MAX_CLASSES else 0.19) * len(shown)
    figure, ((axis,),) = new_figure(height, width=min(WIDTH, height + 1.6), texts=shown.index)
    texts = shares.map("{:.0f}".format).to_numpy() if few else None
    rows = shares.set_axis([f"{cut(name, 30)} ({count})" for name, count in shown.items()])
    draw_heatmap(axis, rows, texts, cmap="Blues", vmin=0, vmax=100, cbar=True)
    left_out = f"; the {len(shown)} most frequent of {len(found)}" if len(shown) < len(found) else ""
    axis.set_title(f"images with the row's class that show the column's too [%]{left_out}")
    return figure


def plot_object_sizes(objects: pd.DataFrame, limits: Sequence[float], image_size: int) -> Figure:
    """Histogram of sqrt(area) [px] in the training image, log scale, and the share at or under each size."""
    figure, ((axis,),) = new_figure(3.3)
    sizes, shares = objects["size"].clip(lower=0.5), axis.twinx()
    low = np.floor(np.log2(sizes.min())) if len(sizes) else 0
    axis.set_xscale("log", base=10)
    axis.hist(sizes, bins=2.0 ** np.arange(low, np.log2(image_size) + 0.3, 0.25), color=TRAIN, alpha=0.5)
    if len(sizes):
        sns.ecdfplot(x=sizes, stat="percent", color=INK, ax=shares)
    shares.set(ylabel="objects of at most this size [%]", ylim=(0, 103))
    shares.spines["right"].set_visible(True)
    shares.tick_params("x", which="both", labelbottom=False)
    for number, limit in enumerate(limits):
        axis.axvline(limit, color=VAL, linewidth=1, linestyle="--")
        share = f"{100 * (objects['size'] <= limit).mean():.0f} % ≤ {limit:g} px" if len(objects) else f"{limit:g} px"
        place = {"transform": axis.get_xaxis_transform(), "ha": "center", "va": "bottom"}
        axis.text(limit, 1.01 + 0.07 * (number % 2), share, color=VAL, **place)
    axis.set(xlabel=f"sqrt(area) [px] in an image of {image_size} px", ylabel="objects")
    use_plain_log(axis)
    axis.set_title(f"size of {len(objects):,} objects", pad=28)
    return figure


def plot_by_class(
    objects: pd.DataFrame, column: str, label: str, marks: Sequence[float], class_names: Sequence[str]
) -> Figure:
    """Spread of a positive quantity by class, largest median first: median, half and four fifths of the objects.

    column : "size" or "aspect"; marks : values at which to draw a line.
    """
    grouped = objects[objects[column] > 0].groupby("class_id")[column]
    spread = pd.DataFrame({share: grouped.quantile(share) for share in (0.1, 0.25, 0.5, 0.75, 0.9)})
    spread = spread.sort_values(0.5, ascending=False)
    counts, rows = grouped.size(), np.arange(len(spread))
    names = [f"{cut(class_names[index], 40)} ({counts[index]:,})" for index in spread.index]
    figure, (axis,) = new_rows(names, height=0.24)
    colours = class_colours(len(class_names))[spread.index.to_numpy(int)] / 255
    axis.hlines(rows, spread[0.1], spread[0.9], color=colours, linewidth=1.5)
    axis.hlines(rows, spread[0.25], spread[0.75], color=colours, linewidth=7)
    axis.scatter(spread[0.5], rows, s=28, color=colours, edgecolor="white", linewidth=1.2, zorder=3)
    for mark in marks:
        axis.axvline(mark, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    axis.set(xscale="log", xlabel=f"{label}\ndot: median, bar: half of the objects, line: four fifths")
    use_plain_log(axis)
    return figure


def plot_vanished(vanished: pd.DataFrame) -> Figure:
    """Share of the objects that vanish at each size, in all and for the classes that lose any; of `tabulate_vanished`."""
    shares = [name for name in vanished if name.startswith("share at")]
    table = vanished[vanished[shares].any(axis=1)]
    names = [f"{name} ({count:,})" for name, count in table["objects"].items()]
    figure, (axis,) = new_rows(names, height=0.2 + 0.1 * len(shares))
    thickness = 0.8 / len(shares)
    for number, (name, colour) in enumerate(zip(shares, ("#999999", TRAIN, VAL)[-len(shares) :], strict=True)):
        rows = np.arange(len(table)) - 0.4 + (number + 0.5) * thickness
        label = f"resized to {name.removeprefix('share at ')} px"
        bars = axis.barh(rows, 100 * table[name], thickness, color=colour, label=label)
        lost = table[name.replace("share", "vanish")]
        axis.bar_label(bars, [f"{count:,}" if count else "" for count in lost], padding=2)
    axis.set_xlabel("objects of whose mask no pixel is left [%]; label: how many")
    axis.margins(x=0.1)
    put_legend_above(axis)
    return figure


def plot_positions(objects: pd.DataFrame, class_names: Sequence[str]) -> Figure:
    """Where in the image the middles of the objects lie: all, and the classes with the most objects."""
    most = objects["class_id"].value_counts().head(MAX_MAPS).index
    maps = {"all": objects} | {class_names[index]: objects[objects["class_id"] == index] for index in most}
    rows = -(-len(maps) // 4)
    figure, axes = new_figure(2.1 * rows, rows, 4, texts=class_names)
    for axis, (name, own) in zip(axes.flat, maps.items(), strict=False):
        bins = 24 if len(own) > 2000 else 12
        axis.hist2d(own["x"], own["y"], bins=bins, range=[[0, 1], [0, 1]], cmap="magma")
        axis.set(xticks=[], yticks=[], ylim=(1, 0))
        axis.set_title(f"{cut(name, 20)} ({len(own):,})")
    for axis in axes.flat[len(maps) :]:
        axis.set_visible(False)
    if len(most) < (total := objects["class_id"].nunique()):
        figure.supxlabel(f"the {len(most)} classes with the most objects, of {total}")
    return figure


def plot_class_pairs(pairs: pd.DataFrame, most: int = 15) -> Figure:
    """The class pairs with the most overlapping pixels, those of one class in grey; of `tabulate_class_pairs`."""
    top = pairs.head(most)
    names = [f"{cut(a, 22)} + {cut(b, 22)}" for a, b in zip(top["class_a"], top["class_b"], strict=True)]
    figure, (axis,) = new_rows(names)
    bars = axis.barh(range(len(top)), top["pixels"], color=np.where(top["class_a"] == top["class_b"], PALE, TRAIN))
    axis.bar_label(bars, [f"{count:,}" for count in top["overlaps"]], padding=2)
    axis.set(xlabel="overlapping pixels in the training images; label: pairs of annotations")
    axis.xaxis.set_major_formatter(lambda value, _: write_count(value))
    axis.margins(x=0.1)
    return figure


def plot_subsets(compared: pd.DataFrame) -> Figure:
    """Each class's share of the annotations and of the pixels in train and in val, log scale; of `compare_subsets`."""
    used = compared[compared[["annotations", "pixels"]].any(axis=1)]
    used = used.iloc[np.argsort(-used["annotations"].sum(axis=1), kind="stable")]
    figure, axes = new_rows(used.index, 2, height=0.23)
    for axis, what in zip(axes, ("annotation", "pixel"), strict=True):
        shares = 100 * used[f"{what}_share"]
        shares = shares[shares.any(axis=1)]
        rows = used.index.get_indexer(shares.index)
        shares = shares.where(shares > 0, shares[shares > 0].min().min() / 2)
        draw_pairs(axis, shares, {"train": ("train", TRAIN, "o"), "val": ("val", VAL, "s")}, rows)
        axis.set(xscale="log", xlabel=f"share of {what}s [%]; leftmost: none")
        use_plain_log(axis)
    put_legend_above(axes[0])
    return figure


def plot_colours(measured: pd.DataFrame, subset: np.ndarray) -> Figure:
    """Mean brightness and mean of each channel of the images, train and val as shares; of `measure_images`."""
    channels = ["red", "green", "blue"]
    table = measured.assign(brightness=measured[channels].mean(axis=1), subset=subset)[measured["error"] == ""]
    figure, (axes,) = new_figure(2.6, 1, 4, sharey=True)
    for axis, name in zip(axes, ["brightness", *channels], strict=True):
        sns.histplot(
            table, x=name, hue="subset", hue_order=["train", "val"], palette=[TRAIN, VAL], bins=22, binrange=(0, 256),
            stat="percent", common_norm=False, element="step", alpha=0.25, legend=name == "blue", ax=axis,
        )  # fmt: skip
        axis.set(title=name, xlabel="mean of an image [0..255]", ylabel="images [%]", xlim=(0, 256))
    if axes[-1].get_legend():
        sns.move_legend(axes[-1], "best", title=None)
    return figure


# A run's errors.


def plot_class_table(table: pd.DataFrame, miou: float) -> Figure:
    """Each class's union as one bar (IoU, lost to missed pixels, lost to invented ones), beside precision and recall.

    table: of `tabulate_classes`; absent classes are left out.
    """
    shown = table.dropna(subset=["iou"]).sort_values("iou", ascending=False, ignore_index=True)
    names = [f"{cut(name, 36)}  {iou:.3f}" for name, iou in zip(shown["class"], shown["iou"], strict=True)]
    figure, (left, right) = new_rows(names, 2, width_ratios=(1.5, 1))
    lost = {"lost: missed": (shown["lost_missed"], MISSED), "lost: invented": (shown["lost_invented"], INVENTED)}
    draw_stack(left, {"IoU": (shown["iou"], GREY)} | lost)
    left.axvline(miou, color=INK, linestyle="--", linewidth=1)
    left.set(xlim=(0, 1), xlabel=f"share of the class's union (dashed: mIoU {miou:.4f})")
    draw_pairs(right, shown, {"precision": ("precision", INVENTED, "o"), "recall": ("recall", MISSED, "s")})
    right.set(xlim=(-0.02, 1.02), xlabel="precision, recall")
    put_legend_above(left)
    put_legend_above(right)
    return figure


def plot_confusion(confusion: np.ndarray, lost: np.ndarray, gain: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Four heat maps, truth in rows: pixels, percent of the row, mIoU points lost to each confusion and won by its fix.

    Classes without pixels are left out, and of more than 12 the ones that lose least. confusion (C, C) int64; lost and
    gain (C, C) float64 in 0..1, see `seglib.evaluation.errors`.
    """
    present = np.flatnonzero(confusion.sum(0) + confusion.sum(1))
    costly = np.argsort(-(lost.sum(0) + lost.sum(1))[present], kind="stable")[:MAX_CLASSES]
    chosen = np.sort(present[costly])
    cell, names = np.ix_(chosen, chosen), [cut(class_names[index], 18) for index in chosen]
    share = 100 * confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    lost, gain, pixels = 100 * lost[cell], 100 * gain[cell], confusion[cell]
    figure, axes = new_figure(2.6 + 0.48 * len(names), 2, 2, texts=names, sharex=True, sharey=True)
    points = Normalize(0, max(0.01, lost.max(initial=0), gain.max(initial=0)))
    counts = LogNorm(1, max(2, pixels.max(initial=0)))
    panels = [
        ("pixels (log)", pixels, counts, "Greys", write_count),
        ("% of the true class", share[cell], Normalize(0, 100), "Blues", "{:.0f}".format),
        ("mIoU points lost (add up)", lost, points, "Reds", "{:.1f}".format),
        ("mIoU points won if fixed alone", gain, points, "Reds", "{:.1f}".format),
    ]
    for axis, (title, matrix, norm, cmap, write) in zip(axes.flat, panels, strict=True):
        texts = [[write(value) if write(value).strip("0.") else "" for value in row] for row in matrix]
        table = pd.DataFrame(matrix, names, names)
        draw_heatmap(axis, table, np.array(texts), norm=norm, cmap=cmap, mask=matrix <= 0, vmin=0, vmax=1)
        axis.set_title(title)
    figure.supylabel("true class")
    left_out = f" (the {len(chosen)} most costly of {len(present)})" if len(chosen) < len(present) else ""
    figure.supxlabel(f"predicted class{left_out}")
    return figure


def plot_gains(table: pd.DataFrame, count: int = 15) -> Figure:
    """The most costly confusions: mIoU points won if one were fixed alone, and the points that are lost to it.

    table: of `tabulate_confusions`.
    """
    shown = table.head(count)
    pairs = zip(shown["true"], shown["predicted"], strict=True)
    figure, (axis,) = new_rows([f"{cut(true, 22)}  taken for  {cut(pred, 22)}" for true, pred in pairs])
    rows, points = np.arange(len(shown)), 100 * shown[["gain", "lost"]]
    axis.barh(rows, points["gain"], color=MISSED, label="gain, if this alone were fixed")
    axis.plot(points["lost"], rows, "D", color=INVENTED, markersize=5, label="lost (adds up to 1 - mIoU)")
    for row, (gain, lost) in enumerate(points.to_numpy()):
        write_beside(axis, max(gain, lost), row, f"{gain:+.2f}", 9)
    axis.set(xlabel="mIoU points", xlim=(0, 1.18 * max(0.1, points.max().max() if len(points) else 0)))
    put_legend_above(axis)
    return figure


def plot_recall(by_size: pd.DataFrame, by_class: pd.DataFrame) -> Figure:
    """Objects found and their pixels' recall with 95 % intervals; tables of `summarise_objects`, names in the index."""
    styles = {"found": ("found at IoU 0.5", "o", MISSED, -0.13), "recall": ("mean pixel recall", "s", INVENTED, 0.13)}
    rows = max(len(by_size), len(by_class))
    figure, (axes,) = new_figure(1.3 + ROW * max(5, rows), 1, 2, width_ratios=(1, 1.2), texts=map(str, by_class.index))
    for axis, table, title in zip(axes, (by_size, by_class), ("by size, sqrt(area) [px]", "by class"), strict=True):
        for column, (label, marker, colour, shift) in styles.items():
            ends = (table[column] - table[f"{column}_low"]).clip(0), (table[f"{column}_high"] - table[column]).clip(0)
            style = {"fmt": marker, "color": colour, "label": label, "capsize": 2, "markersize": 5}
            axis.errorbar(table[column], np.arange(len(table)) + shift, xerr=ends, **style)
        name_rows(axis, [f"{cut(name, 30)}  (n={n})" for name, n in zip(table.index, table["objects"], strict=True)])
        axis.set(title=title, xlim=(-0.03, 1.03), xlabel="share of objects; mean recall of their pixels")
        axis.grid(True)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def plot_kinds(
    kinds: pd.DataFrame, unions: Sequence[int], iou: Sequence[float], boundary_iou: Sequence[float]
) -> Figure:
    """Missed (left) and invented (right) pixels of each class by kind, in percent of its union; IoU and Boundary IoU.

    kinds : by class, of `count_error_kinds`; unions : (C,) pixels in truth or prediction, classes without any are left
    out; iou, boundary_iou : (C,).
    """
    table = kinds.assign(union=np.asarray(unions), iou=np.asarray(iou), boundary=np.asarray(boundary_iou))
    table = table[table["union"] > 0]
    figure, (left, right) = new_rows(list(table["class"]), 2, width_ratios=(1.6, 1))
    for side, sign, mark in (("missed", -1, "_"), ("invented", 1, "")):  # of labels with "_" the legend has none
        shares = {kind: 100 * table[f"{side}_{kind}"] / table["union"] for kind in KIND_COLOURS}
        draw_stack(left, {f"{mark}{kind}": (share, KIND_COLOURS[kind]) for kind, share in shares.items()}, sign)
    left.axvline(0, color=INK, linewidth=1)
    left.set(xlim=(-100, 100), xlabel="missed   ◂   % of the class's union   ▸   invented")
    left.set_xticks(range(-100, 101, 50), [abs(tick) for tick in range(-100, 101, 50)])
    marks = {"iou": ("IoU", INK, "o"), "boundary": ("Boundary IoU", KIND_COLOURS["boundary"], "D")}
    draw_pairs(right, table, marks)
    right.set(xlim=(-0.02, 1.02), xlabel="IoU")
    put_legend_above(left)
    put_legend_above(right)
    return figure


def plot_reliability(table: pd.DataFrame, error: float) -> Figure:
    """Accuracy against confidence by bin, and how many pixels lie in each; table of `tabulate_reliability`."""
    figure, ((top,), (bottom,)) = new_figure(4.8, 2, 1, width=4.8, height_ratios=(3, 1), sharex=True)
    width = np.diff(table.index).min() if len(table) > 1 else 0.05
    top.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    top.plot(table["confidence"], table["accuracy"], "o-", color=MISSED, markersize=5)
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    top.set_title(f"expected calibration error {error:.4f}\nbelow the dashed line: overconfident")
    top.grid(True)
    bottom.bar(table.index, 100 * table["share"], width=width, align="edge", color=GREY, edgecolor="white")
    bottom.set(xlabel="confidence of a pixel", ylabel="% of pixels")
    return figure


def plot_outcomes(table: pd.DataFrame, name_a: str, name_b: str) -> Figure:
    """Who predicts a class's true pixels right, in percent; by class, of `count_outcomes`."""
    counts = table.set_index("class")[list(OUTCOME_COLOURS)]
    counts = counts[counts.sum(axis=1) > 0]
    share = 100 * counts.div(counts.sum(axis=1), axis=0)
    labels = ("both right", f"only {name_a}", f"only {name_b}", "neither")
    figure, (axis,) = new_rows(list(share.index))
    parts = zip(labels, OUTCOME_COLOURS.items(), strict=True)
    draw_stack(axis, {label: (share[column], colour) for label, (column, colour) in parts})
    axis.set(xlim=(0, 100), xlabel="% of the class's true pixels")
    put_legend_above(axis, 4 if len(name_a + name_b) < 60 else 1)
    return figure


# An ensemble.


def plot_members(table: pd.DataFrame) -> Figure:
    """IoU by member (rows) of the classes on which members differ most, mIoU first; the best of a column is framed.

    table: of `tabulate_members`.
    """
    scores = table.drop(columns=["member", "miou", "miou_image", "accuracy"]).astype(float)
    spread = (scores.max() - scores.min()).fillna(-1)
    shown = {*spread.sort_values(ascending=False, kind="stable").index[:MAX_CLASSES]}
    classes = [name for name in scores.columns if name in shown]
    rest = f" ({len(classes)} of {len(spread)}, where members differ most)" if len(classes) < len(spread) else ""
    names, columns = [cut(name, 40) for name in table["member"]], ["mIoU", *(cut(name, 18) for name in classes)]
    values = pd.DataFrame(table[["miou", *classes]].to_numpy(float), names, columns)
    figure, ((axis,),) = new_figure(1.5 + 0.32 * len(table), texts=[*columns, *names])
    texts = values.map("{:.3f}".format).replace("nan", "-").to_numpy()
    draw_heatmap(axis, values.fillna(0), texts, vmin=0, vmax=1, cmap="Blues")
    for row, column in np.argwhere(values.eq(values.max()) & values.gt(values.min())):
        frame = Rectangle((column + 0.04, row + 0.06), 0.92, 0.88, fill=False, edgecolor=CHANGES["lost"], linewidth=1.6)
        axis.add_patch(frame)
    axis.axvline(1, color="white", linewidth=4)
    axis.set_title(f"IoU of each class{rest}; framed: the best of its column")
    return figure


def plot_error_correlation(phi: np.ndarray, names: Sequence[str]) -> Figure:
    """Do members err on the same pixels? phi: (M, M) of `correlate_errors`; pale pairs have most to give each other."""
    apart = np.where(np.eye(len(names), dtype=bool), np.nan, phi)
    names = [cut(name, 40) for name in names]
    side = 2.6 + 0.45 * len(names)
    figure, ((axis,),) = new_figure(side, width=min(WIDTH, side + 1.6), texts=names)
    texts = np.vectorize("{:.2f}".format)(apart)
    options = {"vmin": min(0, np.nanmin([*apart.ravel(), 0])), "vmax": 1, "cmap": "Purples"}
    draw_heatmap(axis, pd.DataFrame(apart, names, names), texts, square=True, cbar=True, **options)
    axis.set_title("correlation of errors (phi)\n1: the same pixels are wrong")
    return figure


def plot_member_curve(curve: pd.DataFrame, mean_miou: float) -> Figure:
    """Pooled mIoU against the number of members, above who was drawn.

    curve: of `trace_selection`; mean_miou: of the plain mean of all.
    """
    names = list(dict.fromkeys(curve["member"]))
    height = 0.23 * len(names) + 0.2
    figure, ((axis,), (below,)) = new_figure(4.1 + height, 2, sharex=True, height_ratios=(3.2, height), texts=names)
    for column, style, colour, label in (
        ("best_mean", "s:", GREY, "plain mean of so many of the best"),
        ("searched", "o-", INVENTED, "greedy, on the images it was chosen on"),
        ("held_out", "D-", MISSED, "greedy, on images it did not see"),
    ):
        axis.plot(curve["draw"], curve[column], style, color=colour, markersize=5, label=label)
    axis.axhline(mean_miou, color=INK, linestyle="--", linewidth=1, label=f"plain mean of all: {mean_miou:.4f}")
    axis.set(ylabel="pooled mIoU")
    put_legend_above(axis, 2)
    below.plot(curve["draw"], [names.index(name) for name in curve["member"]], "s", color=INK, markersize=7)
    name_rows(below, [cut(name, 40) for name in names])
    below.set(xticks=curve["draw"], xlabel="members drawn; the squares say which")
    for each in (axis, below):
        each.grid(True)
    return figure


def plot_class_gains(table: pd.DataFrame, best: str) -> Figure:
    """What each class gains over the best member, in points of IoU.

    table : of `compare_class_iou(ensemble, best member, class_names)`; classes that are in neither are left out.
    """
    shown = table.dropna(subset=["difference"]).sort_values("difference", ascending=False, ignore_index=True)
    points = 100 * shown["difference"]
    figure, (axis,) = new_rows(list(shown["class"]))
    axis.barh(shown.index, points, color=[CHANGES["won" if gain >= 0 else "lost"] for gain in points])
    axis.axvline(0, color=INK, linewidth=1)
    right = axis.get_yaxis_transform()
    for row, (gain, before, after) in enumerate(zip(points, shown["iou_b"], shown["iou_a"], strict=True)):
        write_beside(axis, gain, row, f"{gain:+.2f}", 4 if gain >= 0 else -4)
        axis.text(1.01, row, f"{before:.3f} → {after:.3f}", transform=right, va="center")
    reach = 1.3 * max(0.1, points.abs().max() if len(points) else 0)
    low, high = ((points < 0).any(), (points > 0).any()) if len(points) else (True, True)
    axis.set(xlabel="points of IoU", xlim=(-reach if low else -0.1 * reach, reach if high else 0.1 * reach))
    axis.set_title(f"gain of each class over the best member ({cut(best, 50)})")
    return figure

"""Figures of errors: confusions, causes, objects, and pictures beside them."""

import io
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from seglib.viz.plots import IGNORED, class_colours, colour_mask, use_font_for

# Figures of where predictions and truth differ: tables in, a matplotlib Figure out.


RIGHT, MISSED, INVENTED, INK = "#9a9a9a", "#0072b2", "#e69f00", "#333333"
# Drawn beside masks, hence no colours of classes; apart in lightness, for colour-blind people.
KIND_COLOURS = {"boundary": "#f9a03f", "extent": "#e0324b", "segment": "#5c0a1a"}
OUTCOME_COLOURS = {"both": "#e8e8e8", "only_a": "#5e3c99", "only_b": "#7fbf7b", "neither": "#4a4a4a"}
MAX_CLASSES = 16  # rows that a heat map can show with legible names


def plot_class_table(table: pd.DataFrame, miou: float) -> Figure:
    """Each class's union as one bar (IoU, lost to missed pixels, lost to invented ones), beside precision and recall.

    table: of `tabulate_classes`; absent classes are left out.
    """
    use_font_for(table["class"].tolist())
    shown = table.dropna(subset=["iou"]).sort_values("iou", ascending=False, ignore_index=True)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 1.3 + 0.3 * len(shown)), width_ratios=(1.5, 1), sharey=True, layout="constrained"
    )
    start = np.zeros(len(shown))
    parts = {
        "iou": ("IoU", RIGHT),
        "lost_missed": ("lost: missed", MISSED),
        "lost_invented": ("lost: invented", INVENTED),
    }
    for column, (label, colour) in parts.items():
        left.barh(shown.index, shown[column], left=start, color=colour, label=label)
        start += shown[column].to_numpy()
    left.axvline(miou, color=INK, linestyle="--", linewidth=1)
    left.set(xlim=(0, 1), xlabel=f"share of the class's union (dashed: mIoU {miou:.4f})")
    left.set_yticks(shown.index, [f"{name}  {iou:.3f}" for name, iou in zip(shown["class"], shown["iou"], strict=True)])
    right.plot(shown["precision"], shown.index, "o", color=INVENTED, label="precision")
    right.plot(shown["recall"], shown.index, "s", color=MISSED, label="recall", markersize=5)
    right.set(xlim=(-0.02, 1.02), xlabel="precision, recall")
    right.grid(alpha=0.3)
    left.invert_yaxis()
    for axis in (left, right):
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize=8)
    return _finish(figure)


def plot_confusion(confusion: np.ndarray, lost: np.ndarray, gain: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Four heat maps, truth in rows: pixels, percent of the row, mIoU points lost to each confusion and won by its fix.

    Classes without pixels are left out, and of more than 16 the ones that lose least. confusion (C, C) int64; lost and
    gain (C, C) float64 in 0..1, see `seglib.evaluation.errors`.
    """
    use_font_for(class_names)
    present = np.flatnonzero(confusion.sum(0) + confusion.sum(1))
    dearest = np.argsort(-(lost.sum(0) + lost.sum(1))[present], kind="stable")[:MAX_CLASSES]
    chosen = np.sort(present[dearest])
    cell, names = np.ix_(chosen, chosen), [class_names[index] for index in chosen]
    share = 100 * confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    lost, gain, pixels = 100 * lost[cell], 100 * gain[cell], confusion[cell]
    side = 1.6 + 0.33 * len(names)
    figure, axes = plt.subplots(2, 2, figsize=(2 * side, 2 * side), sharex=True, sharey=True, layout="constrained")
    top = max(0.01, lost.max(initial=0), gain.max(initial=0))
    _draw_matrix(axes[0, 0], pixels, names, "pixels (log)", LogNorm(1, max(2, pixels.max(initial=0))), "Greys", _short)
    _draw_matrix(axes[0, 1], share[cell], names, "% of the true class", Normalize(0, 100), "Blues", "{:.0f}".format)
    _draw_matrix(axes[1, 0], lost, names, "mIoU points lost (add up)", Normalize(0, top), "Reds", "{:.1f}".format)
    _draw_matrix(axes[1, 1], gain, names, "mIoU points won if fixed alone", Normalize(0, top), "Reds", "{:.1f}".format)
    figure.supylabel("true class", fontsize=10)
    left_out = f" (the {len(chosen)} dearest of {len(present)})" if len(chosen) < len(present) else ""
    figure.supxlabel(f"predicted class{left_out}", fontsize=10)
    return _finish(figure)


def plot_gains(table: pd.DataFrame, count: int = 15) -> Figure:
    """The dearest confusions: mIoU points won if one were fixed alone, and the points that are lost to it.

    table: of `tabulate_confusions`.
    """
    shown = table.head(count)
    labels = (shown["true"] + "  taken for  " + shown["predicted"]).tolist()
    use_font_for(labels)
    figure, axis = plt.subplots(figsize=(8.5, 1.2 + 0.29 * max(1, len(shown))), layout="constrained")
    rows = np.arange(len(shown))
    axis.barh(rows, 100 * shown["gain"], color=MISSED, label="gain, if this alone were fixed")
    axis.plot(100 * shown["lost"], rows, "D", color=INVENTED, markersize=5, label="lost (adds up to 1 - mIoU)")
    for row, (gain, lost) in enumerate(100 * shown[["gain", "lost"]].to_numpy()):
        axis.annotate(
            f"{gain:+.2f}", (max(gain, lost), row), (9, 0), textcoords="offset points", va="center", fontsize=8
        )
    axis.set_yticks(rows, labels, fontsize=9)
    axis.invert_yaxis()
    axis.set(xlabel="mIoU points", xlim=(0, 118 * max(0.001, shown[["gain", "lost"]].max().max())))
    axis.legend(loc="lower right", frameon=False, fontsize=8)
    return _finish(figure)


def plot_recall(by_size: pd.DataFrame, by_class: pd.DataFrame) -> Figure:
    """Objects found and their pixels' recall with 95 % intervals; tables of `summarise_objects`, names in the index."""
    use_font_for([str(name) for name in by_class.index])
    figure, axes = plt.subplots(
        1, 2, figsize=(11, 1.6 + 0.3 * max(5, len(by_class))), width_ratios=(1, 1.2), layout="constrained"
    )
    for axis, table, title in zip(axes, (by_size, by_class), ("by size, sqrt(area) [px]", "by class"), strict=True):
        rows = np.arange(len(table))
        styles = (
            ("found", "o", MISSED, "found at IoU 0.5", -0.13),
            ("recall", "s", INVENTED, "mean pixel recall", 0.13),
        )
        for column, marker, colour, label, shift in styles:
            ends = (table[column] - table[f"{column}_low"]).clip(0), (table[f"{column}_high"] - table[column]).clip(0)
            axis.errorbar(
                table[column], rows + shift, xerr=ends, fmt=marker, color=colour, label=label, capsize=2, markersize=5
            )
        axis.set_yticks(rows, [f"{name}  (n={n})" for name, n in zip(table.index, table["objects"], strict=True)])
        axis.set(
            xlim=(-0.03, 1.03), ylim=(len(rows) - 0.4, -0.6), xlabel="share of objects; mean recall of their pixels"
        )
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2, frameon=False, fontsize=8)
    return _finish(figure)


def plot_kinds(
    kinds: pd.DataFrame, unions: Sequence[int], iou: Sequence[float], boundary_iou: Sequence[float]
) -> Figure:
    """Missed (left) and invented (right) pixels of each class by kind, in percent of its union; IoU and Boundary IoU.

    Parameters
    ----------
    kinds : by class, of `count_error_kinds`.
    unions : (C,) pixels in truth or prediction; classes without any are left out.
    iou, boundary_iou : (C,)
    """
    use_font_for(kinds["class"].tolist())
    present = np.flatnonzero(np.asarray(unions) > 0)
    rows, names = np.arange(len(present)), kinds["class"].iloc[present]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 1.4 + 0.3 * len(present)), width_ratios=(1.6, 1), sharey=True, layout="constrained"
    )
    for side, sign in (("missed", -1), ("invented", 1)):
        start = np.zeros(len(present))
        for kind, colour in KIND_COLOURS.items():
            share = sign * 100 * kinds[f"{side}_{kind}"].to_numpy()[present] / np.asarray(unions)[present]
            left.barh(rows, share, left=start, color=colour, label=kind if sign > 0 else None)
            start += share
    left.axvline(0, color=INK, linewidth=1)
    left.set(xlim=(-100, 100), xlabel="missed   ◂   % of the class's union   ▸   invented")
    left.set_xticks(range(-100, 101, 50), [abs(tick) for tick in range(-100, 101, 50)])
    left.set_yticks(rows, names)
    iou, boundary_iou = np.asarray(iou)[present], np.asarray(boundary_iou)[present]
    right.hlines(rows, iou, boundary_iou, color=RIGHT, linewidth=2)
    right.plot(iou, rows, "o", color=INK, label="IoU")
    right.plot(boundary_iou, rows, "D", color=KIND_COLOURS["boundary"], label="Boundary IoU")
    right.set(xlim=(-0.02, 1.02), xlabel="IoU")
    right.grid(alpha=0.3)
    left.invert_yaxis()
    for axis in (left, right):
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize=8)
    return _finish(figure)


def plot_reliability(table: pd.DataFrame, error: float) -> Figure:
    """Accuracy against confidence by bin, and how many pixels lie in each; table of `tabulate_reliability`."""
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(4.6, 4.8), height_ratios=(3, 1), sharex=True, layout="constrained"
    )
    width = np.diff(table.index).min() if len(table) > 1 else 0.05
    top.plot([0, 1], [0, 1], "--", color=RIGHT, linewidth=1)
    top.plot(table["confidence"], table["accuracy"], "o-", color=MISSED, markersize=5)
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    top.set_title(f"expected calibration error {error:.4f}\nbelow the dashed line: overconfident", fontsize=10)
    top.grid(alpha=0.3)
    bottom.bar(table.index, 100 * table["share"], width=width, align="edge", color=RIGHT, edgecolor="white")
    bottom.set(xlabel="confidence of a pixel", ylabel="% of pixels")
    return _finish(figure)


def plot_outcomes(table: pd.DataFrame, name_a: str, name_b: str) -> Figure:
    """Who predicts a class's true pixels right, in percent; by class, of `count_outcomes`."""
    use_font_for(table["class"].tolist())
    columns = list(OUTCOME_COLOURS)
    shown = table[table[columns].sum(axis=1) > 0]
    share = 100 * shown[columns].div(shown[columns].sum(axis=1), axis=0)
    labels = {"both": "both right", "only_a": f"only {name_a}", "only_b": f"only {name_b}", "neither": "neither"}
    figure, axis = plt.subplots(figsize=(9, 1.5 + 0.3 * len(shown)), layout="constrained")
    rows, start = np.arange(len(shown)), np.zeros(len(shown))
    for column, colour in OUTCOME_COLOURS.items():
        axis.barh(rows, share[column], left=start, color=colour, label=labels[column])
        start += share[column].to_numpy()
    axis.set_yticks(rows, shown["class"])
    axis.invert_yaxis()
    axis.set(xlim=(0, 100), xlabel="% of the class's true pixels")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False, fontsize=8)
    return _finish(figure)


def _draw_matrix(axis: Axes, matrix: np.ndarray, names: Sequence[str], title: str, norm, cmap: str, write) -> None:
    axis.imshow(np.ma.masked_less_equal(matrix, 0), norm=norm, cmap=cmap, aspect="equal")
    axis.set_title(title, fontsize=10)
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    for (row, column), value in np.ndenumerate(matrix):
        text = write(value) if value > 0 else ""
        if text.strip("0."):
            dark = norm(value) > 0.5
            axis.text(column, row, text, ha="center", va="center", fontsize=6, color="white" if dark else INK)


def _short(count: float) -> str:
    """12, 3.4k, 56k, 7.8M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f}{unit}" if count < 10 * size else f"{count / size:.0f}{unit}"
    return f"{count:.0f}"


def _finish(figure: Figure) -> Figure:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    plt.close(figure)
    return figure


# Rows of pictures that show mistakes: their kinds, doubtful labels, two runs against each other.


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

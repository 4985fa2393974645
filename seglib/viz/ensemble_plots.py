"""Figures of an ensemble: its members, whose errors coincide, what more members bring, what the vote changed."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from seglib.viz.error_plots import list_classes
from seglib.viz.plots import IGNORED, colour_mask, use_font_for

WON, LOST, MOVED, INK = "#00a0c0", "#b30059", "#4a4a4a", "#333333"  # apart in lightness and hue, and no class's colour
CHANGES = {"won": WON, "lost": LOST, "wrong before and after": MOVED}
PANEL = 2.0  # [inch] side of one picture
MAX_CLASSES = 24  # columns with legible names


def plot_members(table: pd.DataFrame) -> Figure:
    """IoU of each class by member (rows), mIoU first; the best of a column is framed. table: of `tabulate_members`."""
    classes = [name for name in table.columns if name not in ("member", "miou", "miou_image", "accuracy")][:MAX_CLASSES]
    columns = ["miou", *classes]
    use_font_for([*classes, *table["member"]])
    values = table[columns].to_numpy(np.float64)
    figure, axis = plt.subplots(figsize=(3 + 0.55 * len(columns), 1.7 + 0.34 * len(table)), layout="constrained")
    axis.imshow(np.ma.masked_invalid(values), vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        best = np.isfinite(value) and np.nanmin(values[:, column]) < value >= np.nanmax(values[:, column])
        text = f"{value:.3f}" if np.isfinite(value) else "-"
        axis.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if value > 0.5 else INK)
        if best:
            axis.add_patch(
                plt.Rectangle((column - 0.46, row - 0.44), 0.92, 0.88, fill=False, edgecolor=LOST, linewidth=1.4)
            )
    axis.set_xticks(
        range(len(columns)), ["mIoU", *classes], rotation=50, ha="right", rotation_mode="anchor", fontsize=8
    )
    axis.set_yticks(range(len(table)), table["member"], fontsize=8)
    axis.axvline(0.5, color="white", linewidth=4)
    axis.set_title("IoU of each class; framed: the best of its column", fontsize=10)
    return _finish(figure)


def plot_error_correlation(phi: np.ndarray, names: Sequence[str]) -> Figure:
    """Do members err on the same pixels? phi: (M, M) of `correlate_errors`; pale pairs have most to give each other."""
    use_font_for(names)
    side = 1.8 + 0.5 * len(names)
    figure, axis = plt.subplots(figsize=(side + 1.8, side + 0.6), layout="constrained")
    apart = np.where(np.eye(len(names), dtype=bool), np.nan, phi)
    shown = axis.imshow(
        np.ma.masked_invalid(apart), vmin=min(0, np.nanmin([*apart.ravel(), 0])), vmax=1, cmap="Purples"
    )
    for (row, column), value in np.ndenumerate(apart):
        text = f"{value:.2f}" if np.isfinite(value) else ""
        axis.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if value > 0.5 else INK)
    axis.set_xticks(range(len(names)), names, rotation=50, ha="right", rotation_mode="anchor", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_title("correlation of errors (phi)\n1: the same pixels are wrong", fontsize=10)
    figure.colorbar(shown, ax=axis, shrink=0.7)
    return _finish(figure)


def plot_member_curve(curve: pd.DataFrame, mean_miou: float) -> Figure:
    """Pooled mIoU against the number of members, above who was drawn.

    curve: of `trace_selection`; mean_miou: of the plain mean of all.
    """
    names = list(dict.fromkeys(curve["member"]))
    use_font_for(names)
    figure, (axis, below) = plt.subplots(
        2, 1, figsize=(max(6.5, 2.5 + 0.35 * len(curve)), 4.1 + 0.22 * len(names)), sharex=True, layout="constrained",
        height_ratios=(3.2, 0.22 * len(names) + 0.1),
    )  # fmt: skip
    lines = (
        ("best_mean", "s:", "#8a8a8a", "plain mean of so many of the best"),
        ("searched", "o-", "#e69f00", "greedy, on the images it was chosen on"),
        ("held_out", "D-", "#0072b2", "greedy, on images it did not see"),
    )
    for column, style, colour, label in lines:
        axis.plot(curve["draw"], curve[column], style, color=colour, markersize=5, label=label)
    axis.axhline(mean_miou, color=INK, linestyle="--", linewidth=1, label=f"plain mean of all: {mean_miou:.4f}")
    axis.set(ylabel="pooled mIoU")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False, fontsize=8)
    below.plot(curve["draw"], [names.index(name) for name in curve["member"]], "s", color=INK, markersize=7)
    below.set_yticks(range(len(names)), names, fontsize=8)
    below.set(ylim=(len(names) - 0.4, -0.6), xticks=curve["draw"], xlabel="members drawn; the squares say which")
    below.grid(alpha=0.3)
    return _finish(figure)


def plot_class_gains(table: pd.DataFrame, best: str) -> Figure:
    """What each class gains over the best member, in points of IoU.

    table : of `compare_class_iou(ensemble, best member, class_names)`; classes that are in neither are left out.
    """
    shown = table.dropna(subset=["difference"]).sort_values("difference", ascending=False, ignore_index=True)
    use_font_for([*shown["class"], best])
    figure, axis = plt.subplots(figsize=(8, 1.5 + 0.3 * max(1, len(shown))), layout="constrained")
    points = 100 * shown["difference"]
    axis.barh(shown.index, points, color=[WON if gain >= 0 else LOST for gain in points])
    axis.axvline(0, color=INK, linewidth=1)
    reach = 1.3 * max(0.1, points.abs().max() if len(points) else 0)
    for row, (gain, before, after) in enumerate(zip(points, shown["iou_b"], shown["iou_a"], strict=True)):
        axis.annotate(f"{gain:+.2f}", (gain, row), (4 if gain >= 0 else -4, 0), textcoords="offset points", va="center",
                      ha="left" if gain >= 0 else "right", fontsize=8)  # fmt: skip
        axis.text(
            1.01, row, f"{before:.3f} → {after:.3f}", transform=axis.get_yaxis_transform(), va="center", fontsize=8
        )
    axis.set_yticks(shown.index, shown["class"])
    axis.invert_yaxis()
    low = -reach if (points < 0).any() else -0.1 * reach
    axis.set(xlabel="points of IoU", xlim=(low, reach if (points > 0).any() else 0.1 * reach))
    axis.set_title(f"gain of each class over the best member ({best})", fontsize=10)
    return _finish(figure)


def plot_change_rows(
    images: np.ndarray, truths: np.ndarray, before: np.ndarray, after: np.ndarray, class_names: Sequence[str],
    names: tuple[str, str], titles: Sequence[str],
) -> Figure:  # fmt: skip
    """image | truth | best member | ensemble | what the vote changed. images (N, H, W, 3), the others (N, H, W) uint8."""
    use_font_for([*class_names, *names, *titles])
    heads = ["image", "truth", *names, "changed by the vote"]
    figure, axes = plt.subplots(len(images), 5, figsize=(5 * PANEL, PANEL * len(images)), squeeze=False)
    for row, (image, *masks) in enumerate(zip(images, truths, before, after, strict=True)):
        pictures = [image, *(colour_mask(mask, len(class_names)) for mask in masks), show_changes(image, *masks)]
        for axis, picture, head in zip(axes[row], pictures, heads, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_title(head if row == 0 else "", fontsize=9)
        axes[row, 0].set_ylabel(titles[row], fontsize=8)
    figure.tight_layout(pad=0.4)
    patches = [Patch(color=colour, label=f"changed: {label}") for label, colour in CHANGES.items()]
    handles = [*list_classes([truths, before, after], class_names), *patches]
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=6, frameon=False, fontsize=8)
    plt.close(figure)
    return figure


def show_changes(image: np.ndarray, truth: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the image in pale grey, changed pixels in the colours of `CHANGES`, ignored ones grey."""
    canvas = (160 + image.mean(axis=-1, keepdims=True) * 0.35).astype(np.uint8).repeat(3, axis=-1)
    changed = before != after
    masks = (changed & (after == truth), changed & (before == truth), changed & (before != truth) & (after != truth))
    for mask, colour in zip(masks, CHANGES.values(), strict=True):
        canvas[mask] = np.round(255 * np.array(to_rgb(colour))).astype(np.uint8)
    canvas[truth == 255] = IGNORED
    return canvas


def _finish(figure: Figure) -> Figure:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    plt.close(figure)
    return figure

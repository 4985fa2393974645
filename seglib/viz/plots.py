"""Figures of training and predictions: arrays and tables in, a matplotlib Figure out."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from seglib.viz.style import IGNORED, class_colours, colour_mask, use_font_for

PANEL = 2.4  # [inch] side of one image
TRAIN, VAL = "#0072b2", "#d55e00"
AVERAGED = ("#009e73", "#cc79a7", "#e69f00")  # ema, swa, snapshot


def save_figure(figure: Figure, run_dir: Path, name: str) -> Figure:
    """Write run_dir/figures/<name>.png and hand the figure on, to be shown by the cell."""
    folder = Path(run_dir) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
    return figure


def plot_batch(images: np.ndarray, masks: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Images (N, H, W, 3) uint8 above their masks (N, H, W) uint8."""
    use_font_for(class_names)
    figure, axes = plt.subplots(2, len(images), figsize=(PANEL * len(images), 2 * PANEL), squeeze=False)
    for column, (image, mask) in enumerate(zip(images, masks, strict=True)):
        _show(axes[0, column], image, "image" if column == 0 else "")
        _show(axes[1, column], colour_mask(mask, len(class_names)), "mask" if column == 0 else "")
    _finish(figure, _legend(masks, class_names))
    return figure


def plot_predictions(
    images: np.ndarray, truths: np.ndarray, preds: np.ndarray, class_names: Sequence[str], titles: Sequence[str]
) -> Figure:
    """One row an image: image, truth, prediction, error (right pixels pale, wrong ones red, ignored ones grey)."""
    use_font_for(class_names)
    figure, axes = plt.subplots(len(images), 4, figsize=(4 * PANEL, PANEL * len(images)), squeeze=False)
    num_classes = len(class_names)
    for row, (image, truth, pred) in enumerate(zip(images, truths, preds, strict=True)):
        panels = {
            "image": image,
            "truth": colour_mask(truth, num_classes),
            "prediction": colour_mask(pred, num_classes),
            "error: red = wrong": show_errors(image, truth, pred),
        }
        for column, (name, panel) in enumerate(panels.items()):
            _show(axes[row, column], panel, name if row == 0 else "")
        axes[row, 0].set_ylabel(titles[row], fontsize=8)
    _finish(figure, _legend(np.concatenate([truths.ravel(), preds.ravel()]), class_names))
    return figure


def show_errors(image: np.ndarray, truth: np.ndarray, pred: np.ndarray, ignore_index: int = 255) -> np.ndarray:
    """(H, W, 3) uint8: the image in pale grey where the prediction is right, red where wrong, grey where ignored."""
    pale = (160 + image.mean(axis=-1, keepdims=True) * 0.35).astype(np.uint8).repeat(3, axis=-1)
    pale[(truth != pred) & (truth != ignore_index)] = (204, 30, 30)
    pale[truth == ignore_index] = IGNORED
    return pale


def plot_history(history: pd.DataFrame, epochs: int) -> Figure:
    """Losses, mIoU, learning rate and memory over the epochs; the best mIoU is marked."""
    figure, axes = plt.subplots(1, 4, figsize=(14, 2.9))
    _plot_losses(axes[0], history)
    _plot_scores(axes[1], history)
    axes[2].plot(history["epoch"], history["lr"], color="#444444", marker="o", markersize=3)
    axes[2].set_title("learning rate")
    axes[3].plot(history["epoch"], history["memory_mb"], color="#444444", marker="o", markersize=3)
    axes[3].set(title="peak memory [MB]", ylim=(0, None))
    for axis in axes:
        axis.set(xlabel="epoch", xlim=(0.8, max(2, epochs) + 0.2))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.tight_layout()
    plt.close(figure)
    return figure


def plot_schedule(rates: np.ndarray, steps_per_epoch: int) -> Figure:
    """Learning rates (steps, groups) of a training that is to come; groups with the same rate are one line."""
    figure, axis = plt.subplots(figsize=(6, 2.4))
    epochs = np.arange(len(rates)) / steps_per_epoch
    for colour, group in zip((TRAIN, VAL), np.unique(rates, axis=1).T[::-1], strict=False):
        axis.step(epochs, group, color=colour, where="post", label=f"up to {group.max():.2g}")
    axis.set(
        title="learning rate before training", xlabel="epoch", xlim=(0, len(rates) / steps_per_epoch), ylim=(0, None)
    )
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    figure.tight_layout()
    plt.close(figure)
    return figure


def plot_class_iou(iou: dict[str, float], miou: float) -> Figure:
    """IoU of each class as bars, worst last, with their mean; absent classes are said, not drawn as zero."""
    use_font_for(list(iou))
    known = sorted(((name, value) for name, value in iou.items() if np.isfinite(value)), key=lambda item: item[1])
    colours = dict(zip(iou, class_colours(len(iou)) / 255, strict=True))
    figure, axis = plt.subplots(figsize=(7, 0.6 + 0.32 * len(known)))
    bars = axis.barh(
        [name for name, _ in known], [value for _, value in known], color=[colours[name] for name, _ in known]
    )
    axis.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
    axis.axvline(miou, color="#444444", linestyle="--", linewidth=1)
    absent = [name for name, value in iou.items() if not np.isfinite(value)]
    note = f"; absent from truth and prediction: {', '.join(absent)}" if absent else ""
    axis.set_title(f"IoU by class (dashed: mIoU {miou:.4f}{note})", fontsize=10)
    axis.set_xlim(0, 1.08)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    plt.close(figure)
    return figure


def _plot_losses(axis: Axes, history: pd.DataFrame) -> None:
    axis.plot(history["epoch"], history["train_loss"], color=TRAIN, marker="o", markersize=3, label="train")
    axis.plot(history["epoch"], history["val_loss"], color=VAL, marker="s", markersize=3, label="validation")
    axis.set(title="loss", ylim=(0, None))
    axis.legend(frameon=False, fontsize=8)


def _plot_scores(axis: Axes, history: pd.DataFrame) -> None:
    axis.plot(history["epoch"], history["miou"], color=VAL, marker="s", markersize=3, label="pooled")
    axis.plot(
        history["epoch"], history["miou_image"], color="#999999", marker=".", markersize=3, label="mean of images"
    )
    for colour, name in zip(AVERAGED, ("ema", "swa", "snapshot"), strict=True):
        if f"{name}_miou" in history:
            axis.plot(
                history["epoch"],
                history[f"{name}_miou"],
                color=colour,
                marker="^",
                markersize=4,
                label=f"pooled, {name}",
            )
    if history["miou"].notna().any():
        best = history.loc[history["miou"].idxmax()]
        axis.annotate(f"{best['miou']:.3f}", (best["epoch"], best["miou"]), (0, 5), textcoords="offset points",
                      ha="center", fontsize=8)  # fmt: skip
        highest = history[[name for name in history if name.endswith(("miou", "miou_image"))]].max().max()
        axis.set_ylim(0, 1.18 * max(0.05, highest))
    axis.set_title("validation mIoU")
    axis.legend(frameon=False, fontsize=8, loc="lower right")


def _show(axis: Axes, panel: np.ndarray, title: str) -> None:
    axis.imshow(panel, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)


def _legend(masks: np.ndarray, class_names: Sequence[str]) -> list[Patch]:
    """The classes that these masks have, and ignored pixels if any."""
    present, colours = np.unique(masks), class_colours(len(class_names)) / 255
    patches = [Patch(color=colours[index], label=class_names[index]) for index in present if index < len(class_names)]
    if (present >= len(class_names)).any():
        patches.append(Patch(color=np.array(IGNORED) / 255, label="(ignored)"))
    return patches


def _finish(figure: Figure, patches: list[Patch]) -> None:
    figure.tight_layout(pad=0.4, h_pad=1.0)  # a row's titles stay clear of the row above
    figure.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=6, frameon=False, fontsize=8)
    plt.close(figure)

"""Figures of training, their style, and live progress."""

import colorsys
import io
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.display import DisplayHandle, Image, display
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from seglib.files import write_json
from seglib.runs.leaderboard import format_seconds

# One look for all figures: a fixed colour for each class, and a font that has the class names' letters.


IGNORED = (128, 128, 128)
# Background, then colours that stay apart for colour-blind people (Okabe and Ito 2008, Tol 2021), light and dark mixed.
_COLOURS = [
    "202020", "0072b2", "e69f00", "56b4e9", "d55e00", "009e73", "f0e442", "cc79a7", "882255", "88ccee", "aa4499",
    "999933", "332288", "ddcc77", "661100", "44aa99", "ee99aa", "117733", "994455", "77aadd", "bbcc33",
]  # fmt: skip


def class_colours(num_classes: int) -> np.ndarray:
    """(num_classes, 3) uint8 RGB, the same for a class id in every figure."""
    colours = [tuple(bytes.fromhex(colour)) for colour in _COLOURS[:num_classes]]
    for index in range(len(colours), num_classes):  # golden-ratio hues: neighbours differ most
        shade = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.45 + 0.2 * (index % 3), 0.95 - 0.25 * (index % 2))
        colours.append(tuple(round(255 * part) for part in shade))
    return np.array(colours, np.uint8)


def colour_mask(mask: np.ndarray, num_classes: int) -> np.ndarray:
    """Class ids (H, W) uint8 to colours (H, W, 3) uint8; ids that are no class (255: ignored) become grey."""
    table = np.full((256, 3), IGNORED, np.uint8)
    table[:num_classes] = class_colours(num_classes)
    return table[mask]


def use_font_for(texts: Sequence[str]) -> None:
    """Choose an installed font that has all letters of these texts; Korean class names need one.

    Where none has, a warning says which to install.
    """
    letters = frozenset(letter for text in texts for letter in text if ord(letter) > 0x2FF)
    if not letters:
        return
    family = _find_family(letters)
    if family is None:
        sample = "".join(sorted(letters)[:8])
        warnings.warn(
            f"no installed font has the letters {sample!r}; for Korean install NanumGothic (apt-get install fonts-nanum) "
            "or Noto Sans CJK (fonts-noto-cjk) and restart the notebook",
            stacklevel=2,
        )
        return
    # by name: of a generic family ("sans-serif") matplotlib takes the first font alone, and boxes for what it lacks
    matplotlib.rcParams["font.family"] = ["DejaVu Sans", family]


@cache
def _find_family(letters: frozenset[str]) -> str | None:
    """The family of a font with all letters: of those that matplotlib knows, else of those installed since it looked."""
    family = _search_known(letters)
    if family is None:
        known = {font.fname for font in font_manager.fontManager.ttflist}
        for path in set(font_manager.findSystemFonts()) - known:
            font_manager.fontManager.addfont(path)
        family = _search_known(letters)
    return family


def _search_known(letters: frozenset[str]) -> str | None:
    needed = {ord(letter) for letter in letters}
    fonts = [font for font in font_manager.fontManager.ttflist if os.path.isfile(font.fname)]
    for font in sorted(fonts, key=lambda font: (font.name != "NanumGothic", "Noto" not in font.name, font.name)):
        if needed <= font_manager.get_font(font.fname).get_charmap().keys():
            return font.name
    return None


# Figures of training and predictions: arrays and tables in, a matplotlib Figure out.


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


# One line that says how far a long step is, updated in place, and told to whoever waits outside the notebook.


def show_progress(what: str, folder: Path) -> Callable[[int, int], None]:
    """A function to call with (done, total), about twice a second at most; it writes folder/progress.json too.

    The line is made with the first call: a step that had nothing to do shows nothing.
    """
    began, told, line = time.monotonic(), 0.0, None

    def tell(done: int, total: int) -> None:
        nonlocal told, line
        if time.monotonic() - told < 0.5 and done < total:
            return
        told = time.monotonic()
        left = (told - began) / done * (total - done)
        text = f"{what} {done}/{total}, " + (f"{format_seconds(left)} left" if left else format_seconds(told - began))
        write_json(folder / "progress.json", {"text": text})
        if get_ipython() is None:
            print(f"\r{text}    ", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif line is None:
            line = display({"text/plain": text}, raw=True, display_id=True)
        else:
            line.update({"text/plain": text}, raw=True)

    return tell


# What a person sees while a model trains: one progress line and one figure, updated in place, kept as they ended.


class LiveTraining:
    """Shows progress in the notebook, and writes run_dir/progress.json for whoever waits outside.

    Displays are updated in place: an executed notebook holds one line and one picture, however long the training was.
    """

    def __init__(self, run_dir: Path, epochs: int):
        self.path, self.epochs = Path(run_dir) / "progress.json", epochs
        self.began, self.told, self.drawn = time.monotonic(), 0.0, 0.0
        self.first = None  # epochs, and part of one, that were done before this process
        self.score = ""
        self.line: DisplayHandle | None = None
        self.figure: DisplayHandle | None = None

    def on_step(self, trainer: Any) -> None:
        self.epochs = trainer.num_epochs
        self.step(trainer.position.epoch, trainer.position.step, len(trainer.train_loader))

    def on_epoch(self, trainer: Any) -> None:
        self.epoch(trainer.history)

    def on_end(self, trainer: Any) -> None:
        self.end(trainer.history)

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Tell where training is, about twice a second."""
        self.first = epoch - 1 + (step - 1) / steps if self.first is None else self.first
        if time.monotonic() - self.told < 0.5 and not (epoch == self.epochs and step == steps):
            return
        done = epoch - 1 + step / steps
        spent = time.monotonic() - self.began
        left = spent / (done - self.first) * (self.epochs - done)
        self._tell(f"epoch {epoch}/{self.epochs}, step {step}/{steps}{self.score}, {format_seconds(left)} left")

    def epoch(self, history: pd.DataFrame) -> None:
        """Draw the curves, at most every three seconds."""
        last = history.iloc[-1]
        self.score = f", loss {last['train_loss']:.4f}" + (f", mIoU {last['miou']:.4f}" if "miou" in last else "")
        if time.monotonic() - self.drawn > 3:
            self._draw(history)
            self.drawn = time.monotonic()

    def end(self, history: pd.DataFrame) -> None:
        """Say how long it took and draw the curves once more, as they stay."""
        early = f", stopped early of {self.epochs}" if len(history) < self.epochs else ""
        self._tell(f"{len(history)} epochs in {format_seconds(time.monotonic() - self.began)}{early}{self.score}")
        self._draw(history)

    def _tell(self, text: str) -> None:
        self.told = time.monotonic()
        write_json(self.path, {"text": text})
        if get_ipython() is None:
            print(f"\r{text}    ", end="", file=sys.stderr, flush=True)
        elif self.line is None:
            self.line = display({"text/plain": text}, raw=True, display_id=True)
        else:
            self.line.update({"text/plain": text}, raw=True)

    def _draw(self, history: pd.DataFrame) -> None:
        if get_ipython() is None or "miou" not in history:
            return
        buffer = io.BytesIO()
        plot_history(history, self.epochs).savefig(buffer, format="png", dpi=90, bbox_inches="tight")
        image = Image(buffer.getvalue(), format="png", alt="loss, mIoU, learning rate and memory over the epochs")
        if self.figure is None:
            self.figure = display(image, display_id=True)
        else:
            self.figure.update(image)

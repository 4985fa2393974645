"""One style for all figures, live progress, and figures of training, predictions, errors and ensembles."""

import colorsys
import io
import os
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from IPython.display import Image, display
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from seglib.errors import printable
from seglib.files import replacing, write_json, write_table
from seglib.text import format_seconds

# A page of 1,366 px shows 900 px of a figure at 100 dpi: wider ones would be shrunk, and 8 points are 11 px.
WIDTH, SMALL, MEDIUM = 9.0, 8.5, 9.5
ROW = 0.29  # [inch] height of a class in a chart
STYLE = {
    "font.size": SMALL, "axes.titlesize": MEDIUM, "axes.labelsize": SMALL, "legend.fontsize": SMALL,
    "xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "figure.titlesize": MEDIUM, "figure.labelsize": SMALL,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "grid.alpha": 0.25,
    "legend.frameon": False, "legend.borderpad": 0.1,
    "text.parse_math": False,  # class and file names have dollars in them; no text of ours is a formula
}  # fmt: skip
TRAIN, VAL, PALE = "#0072b2", "#d55e00", "#bbbbbb"
MAX_CLASSES = 12  # of a matrix with legible numbers
AVERAGED = {"ema": "#009e73", "swa": "#cc79a7", "snapshot": "#e69f00"}
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


def colour_table(num_classes: int) -> np.ndarray:
    """(256, 3) uint8 RGB by id: each class's fixed colour; ids that are no class (255: ignored) are grey."""
    table = np.full((256, 3), IGNORED, np.uint8)
    table[:num_classes] = class_colours(num_classes)
    return table


def colour_mask(mask: np.ndarray, num_classes: int) -> np.ndarray:
    """Class ids (H, W) uint8 to colours (H, W, 3) uint8; ids that are no class (255: ignored) become grey."""
    return colour_table(num_classes)[mask]


def use_font_for(texts: Iterable[str]) -> None:
    """Choose an installed font that has all letters of these texts; Korean class names need one.

    Where none has, a warning says which to install.
    """
    letters = {letter for text in texts for letter in text if ord(letter) > 0x2FF and letter.isprintable()}
    letters = frozenset(letters - {*"→–≤"})
    if not letters:
        return
    family = _find_family(letters)
    if family is None:
        warnings.warn(
            f"no installed font has the letters {''.join(sorted(letters)[:8])!r}; for Korean install NanumGothic "
            "(apt-get install fonts-nanum) or Noto Sans CJK (fonts-noto-cjk) and restart the notebook",
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
    # matplotlib's own last resort is a box for any letter
    fonts = [font for font in fonts if not font.name.startswith("Last Resort")]
    for font in sorted(fonts, key=lambda font: (font.name != "NanumGothic", "Noto" not in font.name, font.name)):
        if needed <= font_manager.get_font(font.fname).get_charmap().keys():
            return font.name
    return None


# Parts of figures.


def new_figure(
    height: float, rows: int = 1, columns: int = 1, *, width: float = WIDTH, texts: Iterable[str] = (), **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure [inch] in the one style of the project with letters for these texts, and its axes (rows, columns)."""
    matplotlib.rcParams.update(STYLE)
    use_font_for(texts)
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options)
    plt.close(figure)  # the cell shows it, once
    return figure, axes


def new_rows(names: Sequence[str], columns: int = 1, height: float = ROW, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure whose axes (columns,) share one row per name, the first on top."""
    options.setdefault("sharey", True)
    figure, axes = new_figure(1 + height * max(3, len(names)), 1, columns, texts=names, **options)
    for axis in axes[0]:
        axis.grid(axis="x")
    name_rows(axes[0, 0], [cut(name, 44) for name in names])
    return figure, axes[0]


def draw_heatmap(axis: Axes, table: pd.DataFrame, texts: np.ndarray | None = None, **options: Any) -> None:
    """seaborn's heat map with texts (rows, columns) in the cells; names are never left out, NaN stays white."""
    options = {"cbar": False, "linewidths": 0.4, "xticklabels": True, "yticklabels": True} | options
    sns.heatmap(table, annot=texts, fmt="", ax=axis, **options)
    axis.set(xlabel="", ylabel="")
    axis.tick_params(length=0)
    axis.tick_params("y", rotation=0)
    slanted = {"rotation": 50, "ha": "right", "rotation_mode": "anchor"}
    few = len(table.columns) <= MAX_CLASSES + 1
    axis.set_xticks(axis.get_xticks(), table.columns, **(slanted if few else {"rotation": 90}))


def draw_pairs(
    axis: Axes, table: pd.DataFrame, marks: Mapping[str, tuple[str, str, str]], rows: np.ndarray | None = None
) -> None:
    """Two values per row as markers with a line between them; column -> (label, colour, marker)."""
    rows = np.arange(len(table)) if rows is None else rows
    values = table[list(marks)]
    axis.hlines(rows, values.min(axis=1), values.max(axis=1), color=PALE, linewidth=2)
    for column, (label, colour, marker) in marks.items():
        axis.plot(values[column], rows, marker, color=colour, markersize=5, label=label)


def draw_stack(axis: Axes, parts: Mapping[str, tuple[Any, str]], sign: int = 1) -> None:
    """Bars end to end in each row; label -> (values, colour)."""
    start = 0.0
    for label, (values, colour) in parts.items():
        axis.barh(np.arange(len(values)), sign * np.asarray(values), left=start, color=colour, label=label)
        start = start + sign * np.asarray(values)


def name_rows(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)


def write_beside(axis: Axes, x: float, row: int, text: str, shift: float) -> None:
    """At the end of a bar, `shift` points away from it."""
    side = "left" if shift > 0 else "right"
    axis.annotate(text, (x, row), (shift, 0), textcoords="offset points", va="center", ha=side)


def put_legend_above(axis: Axes, columns: int = 4) -> None:
    """Where it covers no data."""
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns)


def use_plain_log(axis: Axes) -> None:
    """Numbers such as 20 and 0.5 on a logarithmic axis; more of them where it spans less."""
    lowest, highest = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest / lowest < 5000 else (1,)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())


def write_count(count: float) -> str:
    """12, 3.4k, 56k, 7.8M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f}{unit}" if count < 10 * size else f"{count / size:.0f}{unit}"
    return f"{count:.0f}"


def cut(name: object, length: int) -> str:
    """A long name ends with an ellipsis; what would turn the direction of writing is shown."""
    text = printable(str(name))
    return text if len(text) <= length else text[: length - 1] + "…"


def save_figure(figure: Figure, run_dir: Path, name: str) -> Figure:
    """Write run_dir/figures/<name>.png and hand the figure on, to be shown by the cell."""
    with replacing(Path(run_dir) / "figures" / f"{name}.png") as temporary:
        figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")
    return figure


# Progress: one line, updated in place, written for whoever waits outside the notebook too.


class ProgressLine:
    """One line of text in a cell's output (or on the terminal), and in folder/progress.json where a folder is given."""

    def __init__(self, folder: str | Path | None = None):
        self.folder, self.handle = folder, None
        self.began, self.written = time.monotonic(), 0.0

    def write(self, text: str, last: bool = False, every: float = 0.5) -> None:
        """Replace the line, about twice a second at most; the `last` one always."""
        if time.monotonic() - self.written < every and not last:
            return
        self.written = time.monotonic()
        if self.folder is not None:
            write_json(Path(self.folder) / "progress.json", {"text": text})
        if get_ipython() is None:
            print(f"\r{text}    ", end="\n" if last else "", file=sys.stderr, flush=True)
        elif self.handle is None:
            self.handle = display({"text/plain": text}, raw=True, display_id=True)
        else:
            self.handle.update({"text/plain": text}, raw=True)


def save_table(table: pd.DataFrame, folder: Path, name: str, *, index: bool = False) -> None:
    """Write folder/<name>.csv, in which no text is a formula."""
    write_table(Path(folder) / f"{name}.csv", table if index else table.reset_index(drop=True))


def show_progress(what: str, folder: str | Path | None = None) -> Callable[[int, int], None]:
    """A function to call with (done, total), which shows how far a long step is and how long it still takes."""
    line = ProgressLine(folder)

    def report(done: int, total: int) -> None:
        spent = time.monotonic() - line.began
        left = spent / max(1, done) * (total - done)
        ending = f"{format_seconds(left)} left" if done < total else format_seconds(spent)
        line.write(f"{what} {done}/{total}, {ending}", last=done >= total)

    return report


class LiveTraining:
    """A callback of the trainer: one progress line and one picture of the curves, updated in place.

    An executed notebook holds them as they ended, however long the training was.
    """

    def __init__(self, run_dir: str | Path | None = None, epochs: int = 0):
        self.line, self.epochs = ProgressLine(run_dir), epochs
        self.first: float | None = None  # epochs, and part of one, that were done before this process
        self.score, self.figure, self.drawn = "", None, 0.0

    def on_step(self, trainer: Any) -> None:
        """Show where training is."""
        self.line.folder, self.epochs = trainer.run_dir, trainer.num_epochs
        epoch, step, steps = trainer.position.epoch, trainer.position.step, len(trainer.train_loader)
        self.first = epoch - 1 + (step - 1) / steps if self.first is None else self.first
        done = epoch - 1 + step / steps
        left = (time.monotonic() - self.line.began) / (done - self.first) * (self.epochs - done)
        self.line.write(f"epoch {epoch}/{self.epochs}, step {step}/{steps}{self.score}, {format_seconds(left)} left")

    def on_epoch(self, trainer: Any) -> None:
        """Draw the curves, at most every three seconds."""
        last = trainer.history.iloc[-1]
        self.score = f", loss {last['train_loss']:.4f}" + (f", mIoU {last['miou']:.4f}" if "miou" in last else "")
        if time.monotonic() - self.drawn > 3:
            self._draw(trainer.history)
            self.drawn = time.monotonic()

    def on_end(self, trainer: Any) -> None:
        """Say how long it took and draw the curves once more, as they stay."""
        self.line.folder, self.epochs, history = trainer.run_dir, trainer.num_epochs, trainer.history
        early = f", stopped early of {self.epochs}" if len(history) < self.epochs else ""
        spent = format_seconds(time.monotonic() - self.line.began)
        self.line.write(f"{len(history)} epochs in {spent}{early}{self.score}", last=True)
        self._draw(history)

    def _draw(self, history: pd.DataFrame) -> None:
        if get_ipython() is None or history.empty:
            return
        buffer = io.BytesIO()
        plot_history(history, self.epochs).savefig(buffer, format="png", dpi=100, bbox_inches="tight")
        picture = Image(buffer.getvalue(), format="png", alt="loss, mIoU, learning rate and memory over the epochs")
        if self.figure is None:
            self.figure = display(picture, display_id=True)
        else:
            self.figure.update(picture)


# Figures of a training.


def plot_history(history: pd.DataFrame, epochs: int) -> Figure:
    """Losses, mIoU, learning rate and memory over the epochs; the best mIoU is marked."""
    figure, (axes,) = new_figure(2.7, 1, 4, width_ratios=(1.25, 1.4, 1, 1))
    _plot_curves(axes[0], history, {"train_loss": ("train", TRAIN, "o"), "val_loss": ("validation", VAL, "s")})
    averages = {f"{name}_miou": (f"pooled, {name}", colour, "^") for name, colour in AVERAGED.items()}
    scores = {"miou": ("pooled", VAL, "s"), "miou_image": ("mean of images", "#999999", "."), **averages}
    _plot_curves(axes[1], history, scores)
    _plot_curves(axes[2], history, {"lr": ("", "#444444", "o")})
    _plot_curves(axes[3], history, {"memory_mb": ("", "#444444", "o")})
    for axis, title in zip(axes, ("loss", "validation mIoU", "learning rate", "peak memory [MB]"), strict=True):
        axis.set(title=title, xlabel="epoch", xlim=(0.8, max(2, epochs) + 0.2))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axis.yaxis.set_major_formatter("{x:g}")
    if "miou" in history and history["miou"].notna().any():
        best = history.loc[history["miou"].idxmax()]
        options = {"textcoords": "offset points", "ha": "center", "fontsize": SMALL}
        axes[1].annotate(f"{best['miou']:.3f}", (best["epoch"], best["miou"]), (0, 5), **options)
        axes[1].set_ylim(0, 1.18 * max(0.05, axes[1].dataLim.y1))
    return figure


def _plot_curves(axis: Axes, history: pd.DataFrame, curves: Mapping[str, tuple[str, str, str]]) -> None:
    """Those columns that the history has; column -> (label, colour, marker)."""
    for column in [column for column in curves if column in history]:
        label, colour, marker = curves[column]
        axis.plot(history["epoch"], history[column], color=colour, marker=marker, markersize=3.5, label=label or None)
    axis.set_ylim(0, None)
    axis.grid(True)
    if axis.get_legend_handles_labels()[0]:
        axis.legend()


def plot_schedule(rates: np.ndarray, steps_per_epoch: int) -> Figure:
    """Learning rates (steps, groups) of a training that is to come; groups with the same rate are one line."""
    figure, ((axis,),) = new_figure(2.4, width=6)
    epochs = np.arange(len(rates)) / steps_per_epoch
    for colour, group in zip((TRAIN, VAL), np.unique(rates, axis=1).T[::-1], strict=False):
        axis.step(epochs, group, color=colour, where="post", label=f"up to {group.max():.2g}")
    axis.set(title="learning rate before training", xlabel="epoch", xlim=(0, epochs.size / steps_per_epoch))
    axis.set_ylim(0, None)
    axis.grid(True)
    axis.legend()
    return figure


def plot_class_iou(iou: Mapping[str, float], miou: float) -> Figure:
    """IoU of each class as bars, best first, with their mean; absent classes are said, not drawn as zero."""
    values = pd.Series(iou, dtype=float)
    colours = pd.Series(list(class_colours(len(values)) / 255), values.index)
    known = values.dropna().sort_values(ascending=False, kind="stable")
    figure, (axis,) = new_rows(list(known.index), width=7)
    bars = axis.barh(range(len(known)), known, color=list(colours[known.index]))
    axis.bar_label(bars, fmt="%.3f", padding=3, fontsize=SMALL)
    axis.axvline(miou, color="#444444", linestyle="--", linewidth=1)
    absent = ", ".join(values.index[values.isna()])
    rest = f"; absent from truth and prediction: {absent})" if absent else ")"
    axis.set(title=textwrap.fill(f"IoU by class (dashed: mIoU {miou:.4f}{rest}", 90), xlim=(0, 1.08))
    return figure

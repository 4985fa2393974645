"""Figures of grids that are compared: verdicts, noise, classes, curves, parameters, pictures."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from seglib.text import shorten
from seglib.viz.charts import GREY, INK
from seglib.viz.plots import MAX_CLASSES, SMALL, cut, draw_heatmap, new_figure, new_rows, put_legend_above

VERDICTS = {"better": ("#009e73", "^"), "worse": ("#d55e00", "v"), "equal": ("#0072b2", "s")}
UNDECIDED = (GREY, "o")
WIDE = 20  # of the largest to the smallest value: from it an axis is logarithmic
LINES = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#882255", "#999933"]


def plot_verdicts(conditions: pd.DataFrame, worthwhile: float) -> Figure:
    """Each condition's difference from its baseline with the interval of its verdict; of `tabulate_conditions`."""
    table = conditions.dropna(subset="difference").sort_values("difference", ascending=False)
    figure, (axis,) = new_rows(list(table["condition"]), height=0.34)
    axis.axvspan(-worthwhile, worthwhile, color="#e8e8e8", zorder=0)
    axis.axvline(0, color=INK, linewidth=0.8)
    for row, each in enumerate(table.itertuples()):
        colour, marker = VERDICTS.get(each.verdict, UNDECIDED)
        axis.plot([each.low, each.high], [row, row], color=colour, linewidth=2)
        axis.plot(each.difference, row, marker, color=colour, markersize=6)
        text = f"{each.difference:+.4f} {each.verdict}" + (f" ({each.hint})" if each.hint else "")
        axis.annotate(text, (1.01, row), xycoords=("axes fraction", "data"), va="center", annotation_clip=False)
    axis.set(xlabel=f"difference of mIoU from the baseline; grey: less than {worthwhile:g}")
    return figure


def plot_noises(noises: pd.DataFrame, blocks: str) -> Figure:
    """Three intervals around each difference from the baseline: other blocks (seeds, folds), other images, both."""
    table = noises.sort_values("difference", ascending=False, ignore_index=True)
    figure, (axis,) = new_rows(list(table["condition"]), height=0.44)
    axis.axvline(0, color=INK, linewidth=0.8)
    rows = np.arange(len(table))
    for shift, name, label, colour in (
        (-0.22, "seed_", f"other {blocks}", LINES[0]),
        (0, "image_", "other images", LINES[1]),
        (0.22, "", "both", INK),
    ):
        known = table[f"{name}low"].notna()
        ends = table.loc[known, f"{name}low"], table.loc[known, f"{name}high"]
        axis.hlines(rows[known] + shift, *ends, color=colour, linewidth=2.2, label=label)
    axis.plot(table["difference"], rows, "o", color=INK, markersize=4)
    axis.set(xlabel="difference of mIoU from the baseline, 95 % intervals")
    put_legend_above(axis)
    return figure


def plot_class_differences(classes: pd.DataFrame) -> Figure:
    """IoU of each class minus the baseline's, in points; a star where it is surely another. Of `compare_classes`."""
    classes = classes[classes.groupby("class")["difference"].transform("count") > 0]
    names, labels = classes["class"].unique(), classes["condition"].unique()
    shape = len(names), len(labels)
    values = 100 * classes["difference"].to_numpy().reshape(shape)  # by class, then by condition
    stars = np.where(classes["verdict"].ne("").to_numpy().reshape(shape), "*", "")
    table = pd.DataFrame(values, names, [cut(label, 30) for label in labels])
    figure, ((axis,),) = new_figure(
        1.6 + 0.27 * len(names), width=min(9.0, 3.2 + 1.1 * len(labels)), texts=[*names, *labels]
    )
    few = len(labels) <= MAX_CLASSES
    texts = np.char.add(table.map("{:+.1f}".format).to_numpy(str), stars) if few else stars
    reach = max(1.0, np.nanmax(np.abs(table.to_numpy()), initial=0.0))
    draw_heatmap(axis, table, texts, cmap="PuOr_r", vmin=-reach, vmax=reach, cbar=not few)
    axis.set_title("IoU minus the baseline's, in points; * surely another, over all classes and conditions together")
    return figure


def plot_condition_curves(curves: pd.DataFrame, conditions: Sequence[str]) -> Figure:
    """Validation mIoU and loss over the epochs: mean of a condition's runs, band of one standard deviation.

    curves : of `read_curves`; conditions : which of them, at most eight are drawn.
    """
    drawn = list(conditions)[: len(LINES)]
    left_out = f" (the first {len(drawn)} of {len(conditions)} conditions)" if len(drawn) < len(conditions) else ""
    curves = curves[curves["condition"].isin(drawn)].assign(
        condition=lambda table: table["condition"].map(lambda name: cut(name, 40))
    )
    figure, (axes,) = new_figure(3.4, 1, 2, texts=drawn)
    options = {
        "hue": "condition",
        "hue_order": [cut(name, 40) for name in drawn],
        "palette": LINES[: len(drawn)],
        "errorbar": "sd",
        "err_kws": {"alpha": 0.12},
    }
    for axis, column, title in zip(axes, ("miou", "val_loss"), ("validation mIoU", "validation loss"), strict=True):
        sns.lineplot(curves, x="epoch", y=column, ax=axis, legend=axis is axes[0], **options)
        low, high = curves[column].quantile([0.15, 0.85])  # the first epochs would hide the others
        limits = {"bottom": low} if column == "miou" else {"top": high + (high - curves[column].min()) / 4}
        axis.set(title=title + left_out, xlabel="epoch", ylabel="")
        axis.set_ylim(**limits)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axis.grid(True)
    axes[0].get_legend().remove()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 if max(map(len, labels), default=0) > 25 else 4)
    return figure


def plot_score_by(runs: pd.DataFrame, name: str) -> Figure:
    """mIoU of each run against a numeric parameter, and the means; of `tabulate_runs`. Logarithmic over a factor of 20."""
    figure, ((axis,),) = new_figure(3.0, width=6)
    means = runs.groupby(name)["miou"].mean()
    if 2 * len(means) <= len(runs):  # values of a search differ in each run
        axis.plot(means.index, means, color=LINES[0], linewidth=1.5, label="mean")
    sns.scatterplot(runs, x=name, y="miou", color=LINES[1], edgecolor="white", label="a run", ax=axis)
    if runs[name].min() > 0 and runs[name].max() / runs[name].min() >= WIDE:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    axis.set(xlabel=name, ylabel="validation mIoU")
    axis.grid(True)
    put_legend_above(axis)
    return figure


def plot_parallel(runs: pd.DataFrame, varied: Sequence[str]) -> Figure:
    """A line per run through the values of what varies, to its mIoU; yellow is best. Of `tabulate_runs`."""
    figure, ((axis,),) = new_figure(3.6, texts=varied)
    scaled = {name: _scale(runs[name]) for name in varied} | {"mIoU": _scale(runs["miou"])}
    places = np.column_stack([values for values, _ in scaled.values()])
    norm = Normalize(runs["miou"].min(), runs["miou"].max() + 1e-12)
    colours = sns.color_palette("viridis", as_cmap=True)(norm(runs["miou"]))
    for row in np.argsort(runs["miou"].to_numpy(), kind="stable"):  # the best on top
        axis.plot(places[row], color=colours[row], linewidth=1.8, alpha=0.85)
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.5}
    options = {"textcoords": "offset points", "va": "center", "fontsize": SMALL, "bbox": box, "zorder": 3}
    for column, (_, ticks) in enumerate(scaled.values()):
        axis.axvline(column, color=INK, linewidth=0.8)
        shift, side, most = (4, "left", 40) if column else (-4, "right", 22)  # left of the first axis nothing is drawn
        for place, text in ticks:
            axis.annotate(cut(text, most), (column, place), (shift, 0), ha=side, **options)
    axis.set_xticks(range(len(scaled)), [cut(name, 24) for name in scaled])
    axis.set(yticks=[], ylim=(-0.06, 1.06), xlim=(-0.05, len(scaled) - 0.7))
    axis.spines[:].set_visible(False)
    return figure


def _scale(values: pd.Series) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Places 0..1, and the texts at them: numbers by their size, anything else in the order of its texts."""
    if all(type(value) in (int, float) for value in values) and len({*values}) > 1:
        shown = sorted({*values}) if values.nunique() <= 6 else np.linspace(values.min(), values.max(), 4)
        is_wide = min(values) > 0 and max(values) / min(values) >= WIDE
        scale = (LogNorm if is_wide else Normalize)(min(values), max(values))
        return np.array(scale([*values])), [(float(scale(value)), f"{value:.4g}") for value in shown]
    texts = [shorten(value) for value in values]
    names = sorted(set(texts))
    places = dict(zip(names, np.arange(len(names)) / max(1, len(names) - 1), strict=True))
    return np.array([places[text] for text in texts]), [(place, text) for text, place in places.items()]

"""What the tables say, in words made from their numbers: one sentence a finding."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from seglib.data.painted import PaintedCounts
from seglib.data.statistics import ALL, compute_divergence

FEW = 20  # annotations: a class with fewer is hardly learnt, and scored by luck


def describe_problems(problems: pd.DataFrame) -> str:
    """Of `verify_coco`'s table."""
    counts = problems["severity"].value_counts()
    errors, warnings = int(counts.get("error", 0)), int(counts.get("warning", 0))
    if not errors:
        return f"**Annotations:** no errors, {warnings} warnings."
    names = ", ".join(problems.loc[problems["severity"] == "error", "problem"].unique())
    return f"**Annotations:** {errors:,} errors ({names}) and {warnings} warnings; training refuses this data until they are mended."


def describe_classes(classes: pd.DataFrame, counts: PaintedCounts) -> str:
    """Imbalance and the background's share."""
    foreground = classes.iloc[1:].sort_values("annotations", ascending=False)
    present = foreground[foreground["annotations"] > 0]
    if present.empty:
        return "**Classes:** no annotation can be painted."
    most, least = present.iloc[0], present.iloc[-1]
    ratio = most["annotations"] / least["annotations"]
    few, absent = int((present["annotations"] < FEW).sum()), len(foreground) - len(present)
    pixels = counts.class_pixels.sum(axis=0)
    return (
        f"**Classes:** {present.index[0]} has {most['annotations']:,.0f} annotations, {ratio:,.0f} times as many as "
        f"{present.index[-1]} ({least['annotations']:,.0f}); {few} of {len(foreground)} classes have fewer than {FEW}, "
        f"{absent} none. {_percent(pixels[0] / pixels.sum())} of all pixels are background, "
        f"{_percent(pixels[-1] / pixels.sum())} are ignored."
    )


def describe_sizes(sizes: pd.DataFrame, image_size: int) -> str:
    """Of `tabulate_sizes`."""
    if ALL not in sizes.index:
        return "**Sizes:** there are no objects."
    row = sizes.loc[ALL]
    shares = [f"{_percent(row[name])} are at or under {name.removeprefix('<=')} px" for name in sizes if name[0] == "<"]
    return f"**Sizes:** at {image_size} px the median object is {row['median']:.0f} px across; {', '.join(shares)}."


def describe_vanished(vanished: pd.DataFrame) -> str:
    """Of `tabulate_vanished`."""
    told = []
    for name in [name for name in vanished if name.startswith("vanish at")]:
        lost, by_class = vanished.loc[ALL, name], vanished.drop(ALL)[name]
        most = f", most of them {by_class.idxmax()} ({by_class.max():,})" if lost else ""
        share = _percent(lost / max(1, vanished.loc[ALL, "objects"]))
        told.append(f"at {name.removeprefix('vanish at ')} px {lost:,} objects ({share}) vanish{most}")
    return f"**Resizing:** of {vanished.loc[ALL, 'objects']:,} objects, {'; '.join(told)}."


def describe_overlaps(objects: pd.DataFrame, overlaps: pd.DataFrame, pairs: pd.DataFrame, counts: PaintedCounts) -> str:
    """Of `find_overlaps`, `tabulate_class_pairs` and `count_painted`."""
    if overlaps.empty:
        return "**Overlaps:** no two annotations overlap; the painting order makes no difference."
    involved = pd.unique(overlaps[["first", "second"]].to_numpy().ravel()).size
    disputed, covered = counts.disputed.sum(), max(1, counts.covered.sum())
    different = pairs[pairs["class_a"] != pairs["class_b"]]
    most = [f" Of different classes, {row.class_a} and {row.class_b} share most pixels ({row.overlaps:,} pairs of annotations)."
            for row in different.head(1).itertuples()]  # fmt: skip
    return (
        f"**Overlaps:** {involved:,} of {len(objects):,} annotations ({_percent(involved / len(objects))}) overlap "
        f"another; the three painting policies disagree in {disputed:,} px, {_percent(disputed / covered)} of the "
        f"objects' pixels, in {np.count_nonzero(counts.disputed):,} images.{''.join(most)}"
    )


def describe_split(subset: np.ndarray, compared: pd.DataFrame) -> str:
    """Of `compare_subsets`."""
    train, val = (int((subset == name).sum()) for name in ("train", "val"))
    if not val:
        return "**Split:** there is one set of images and no validation images to compare it with."
    by_annotations, by_pixels = (compute_divergence(compared, what) for what in ("annotations", "pixels"))
    annotations = compared["annotations"].iloc[1:]
    absent = annotations.index[(annotations["val"] == 0) & (annotations["train"] > 0)].tolist()
    told = f"; absent from val: {', '.join(absent[:8])}{' ...' if len(absent) > 8 else ''}" if absent else ""
    return (
        f"**Split:** {train:,} images train, {val:,} validate; Jensen-Shannon divergence {by_annotations:.4f} of "
        f"annotations, {by_pixels:.4f} of the objects' pixels, by class (0: the same, 1: nothing in common){told}."
    )


def describe_duplicates(near: pd.DataFrame | None) -> str:
    """Of `find_near_duplicates`; None where there were no pixels to look at."""
    if near is None:
        return "**Copies:** not looked for, there are no pixels."
    across, within = near[near["across"]], near[~near["across"]]
    return (
        f"**Copies:** {across['exact'].sum():,} pairs of images with one content stand on both sides of the split, and "
        f"{(~across['exact']).sum():,} pairs that look nearly the same; within train or val there are "
        f"{within['exact'].sum():,} and {(~within['exact']).sum():,}"
        + (": a random split would separate many of these, a split by group would not." if len(within) else ".")
    )


def describe_colours(measured: pd.DataFrame | None, colours: pd.DataFrame | None) -> str:
    """Of `measure_images` and `compute_colour_statistics`; None where there were no pixels to look at."""
    if measured is None:
        return "**Colours:** not measured, there are no pixels."
    row = colours.iloc[0]
    means, deviations = (
        ", ".join(f"{row[name]:.3f}" for name in row.index if name.startswith(what)) for what in ("mean", "std")
    )
    unreadable = int((measured["error"] != "").sum())
    return (
        f"**Colours:** {colours.index[0]} has mean ({means}) and std ({deviations}); {int(measured['black'].sum())} images "
        f"are black, {int((measured['constant'] & ~measured['black']).sum())} of one colour, {unreadable} cannot be read."
    )


def describe_pipelines(checks: dict[str, pd.DataFrame]) -> str:
    """Of `check_pipeline`, by the pipeline's name."""
    faults = [fault for name, table in checks.items() for fault in _faults(name, table)]
    if not checks:
        return "**Augmentation:** not checked, there are no pixels."
    return f"**Augmentation:** {'; '.join(faults) or 'no fault found in ' + ' and '.join(checks)}."


def _faults(name: str, table: pd.DataFrame) -> Iterator[str]:
    for row in table[table["problem"] != ""].itertuples():
        yield f"{name}, {row.step}: {row.problem}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

"""What the notebooks show of predictions: the error analysis of a finished run, a few examples after training."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from seglib.evaluation import compare, errors
from seglib.evaluation.metrics import calibration_error, pooled_miou, tabulate_reliability
from seglib.inference.predict import (
    count_confusion,
    describe_agreement,
    open_predictions,
    probability_of_labels,
    take_images,
)
from seglib.inference.runs import (
    find_newest_run,
    load_finished_run,
    prepare_output_dir,
    require_same_images,
    save_tables,
)
from seglib.inference.votes import find_scenes_of
from seglib.runs.conditions import compare_over_seeds


class ErrorAnalysis:
    """What is wrong with a finished run's predictions of its validation images, which are made where there are none.

    Parameters
    ----------
    run_dir : its folder; "" is the newest run under outputs/.
    output_dir : where results go; "" is 03_error_analysis in the run's folder.
    data_dir : where the run's data is now; "" where it was when the run was trained.
    batch_size : images predicted at a time; 0 is the run's own, which gives the same bits.
    keep_probabilities : keep float16 probabilities of all classes in the run's folder.
    show_progress : `seglib.viz.plots.show_progress`, or a function like it.

    Raises
    ------
    InputError
        The run is not finished, its files, parts or data are not those of the run, or the predictions are not.

    Attributes
    ----------
    run, folder, preds : the run, where results go, and the run's predictions (N, S, S) uint8.
    scenes, how_scenes : (N,) int and words, see `find_scenes`: intervals are over other scenes.
    confusion : (N, C, C) int64, truth in rows; `pooled` is its sum, `miou` the score of that.
    lost, gain : (C, C) float64, see `lost_to_confusions` and `gain_of_confusions`.
    kinds : wrong pixels by kind, near_edges : the share of them that lies at the boundaries of the truth.
    tables : classes, confusions, error_kinds, images, objects, objects_by_size, objects_by_class,
        objects_by_class_and_size, reliability, and after `compare` two_runs.
    """

    def __init__(
        self,
        run_dir: str | Path = "",
        output_dir: str | Path = "",
        data_dir: str = "",
        *,
        batch_size: int = 0,
        keep_probabilities: bool = False,
        show_progress: Callable[[str, Path], Callable[[int, int], None]] | None = None,
    ):
        self.run = run = load_finished_run(run_dir or find_newest_run(), data_dir)
        self.folder = prepare_output_dir(str(output_dir), run.folder, "03_error_analysis")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        progress = show_progress and show_progress(f"predicting {run.folder.name}", self.folder)
        options = {"batch_size": batch_size, "keep_probabilities": keep_probabilities, "progress": progress}
        predictions = open_predictions(run, device, **options)
        self.store, self.preds, self.class_names = predictions.store, predictions.preds, run.class_names
        self.scenes, self.how_scenes = find_scenes_of(run.val_images)
        self.confusion = count_confusion(run, self.preds)
        self.pooled, self.miou = self.confusion.sum(axis=0), pooled_miou(self.confusion)
        self.lost, self.gain = sum(errors.lost_to_confusions(self.pooled)), errors.gain_of_confusions(self.pooled)
        self.calibration_error = calibration_error(predictions.reliability)
        self.two_runs: tuple[float, float, float] | None = None
        self.tables = self._tabulate(predictions)

    def __repr__(self) -> str:
        return f"{self.run.folder}: mIoU {self.miou:.4f}\n{describe_agreement(self.run, self.confusion)}\n{self.how_scenes}"

    def pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(truth, pred) of each image, (S, S) uint8 both, one at a time."""
        for position, pred in enumerate(self.preds):
            yield self.run.val_images.read(position)[1], np.asarray(pred)

    def _tabulate(self, predictions: Any) -> dict[str, pd.DataFrame]:
        names, images = self.class_names, self.run.val_images
        boundary_iou, self.near_edges = errors.boundary_iou(self.pairs(), len(names))
        error_kinds, self.kinds = errors.count_error_kinds(self.pairs(), names)
        objects = errors.measure_objects(images.data, images.image_ids, self.pairs())
        objects["class"] = pd.Categorical.from_codes(objects["class_id"], names)
        objects["scene"] = objects["image_id"].map(dict(zip(images.image_ids, self.scenes, strict=True)))
        quality = {"softmin": predictions.softmin, "given": predictions.given}
        by = {"size": "bin", "class": "class", "class_and_size": ["class", "bin"]}
        recall = {name: errors.summarise_objects(objects, columns) for name, columns in by.items()}
        return {
            "classes": errors.tabulate_classes(self.pooled, names).assign(boundary_iou=boundary_iou),
            "confusions": errors.tabulate_confusions(self.pooled, names),
            "error_kinds": error_kinds,
            "images": errors.tabulate_images(self.confusion, images.image_ids).assign(**quality),
            "objects": objects,
            **{f"objects_by_{name}": table for name, table in recall.items()},
            "reliability": tabulate_reliability(predictions.reliability),
        }

    def lost_to_missed(self) -> pd.DataFrame:
        """mIoU points lost to the missed pixels of objects: classes in rows, sizes in columns."""
        return errors.lost_to_missed(self.tables["objects"], self.pooled, self.class_names)

    def show_images(self, by: str, count: int) -> tuple:
        """What `plot_kind_rows` draws: images by "miou" (worst first), "gain" (most costly first) or "typical"."""
        chosen, titles = errors.choose_images(self.tables["images"], by, count)
        images, truths, preds = take_images(self.run.val_images, self.preds, chosen)
        return images, truths, preds, errors.show_kinds(truths, preds), self.class_names, titles

    def show_labels(self, count: int) -> tuple:
        """What `plot_label_rows` draws: the images whose labels the model finds least likely."""
        chosen, titles = errors.choose_images(self.tables["images"], "softmin", count)
        images, truths, preds = take_images(self.run.val_images, self.preds, chosen)
        given = probability_of_labels(self.store, truths, chosen)
        return images, truths, preds, given, self.class_names, titles

    def compare(self, other: "ErrorAnalysis | None") -> None:
        """Compare this run (A) with another (B) on the same images; `tables["two_runs"]` has the classes."""
        self.two_runs = None
        self.tables.pop("two_runs", None)
        if other is None:
            return
        require_same_images(self.run, other.run)
        self.two_runs = compare.compare_images(self.confusion, other.confusion, self.scenes)
        self.over_seeds = compare_over_seeds(self.run.folder, other.run.folder)
        triples = ((truth, pred, b) for (truth, pred), b in zip(self.pairs(), other.preds, strict=True))
        outcomes, self._outcomes_by_image = compare.count_outcomes(triples, self.class_names)
        ious = compare.compare_class_iou(self.confusion, other.confusion, self.class_names)
        self.tables["two_runs"] = ious.merge(outcomes, on="class")

    def show_disagreements(self, other: "ErrorAnalysis", count: int) -> tuple:
        """What `plot_duel_rows` draws: the images with the most pixels that only A gets right, then only B."""
        _, only_a, only_b, _ = self._outcomes_by_image.T
        image_ids, words = self.run.val_images.image_ids, ("only A", "only B")
        chosen, titles = compare.choose_changes(only_a, only_b, image_ids, count, words)
        images, truths, preds = take_images(self.run.val_images, self.preds, chosen)
        others = np.stack([other.preds[position] for position in chosen])
        outcomes = compare.show_outcomes(truths, preds, others)
        return images, truths, preds, others, outcomes, self.class_names, ("A", "B"), titles

    def describe(self, count: int) -> list[str]:
        """The findings, a sentence or two each; `count` images are named whose labels deserve a second look."""
        tables = self.tables
        return [
            describe_classes(tables["classes"]),
            describe_confusions(tables["confusions"]),
            describe_images(tables["images"]),
            describe_objects(tables["objects_by_size"], int((tables["objects"]["visible"] == 0).sum())),
            describe_kinds(self.kinds, self.near_edges),
            describe_calibration(tables["reliability"], self.calibration_error),
            describe_labels(tables["images"], count),
            *([describe_difference(*self.two_runs, self.how_scenes, self.over_seeds)] if self.two_runs else []),
        ]

    def save(self, lines: list[str]) -> None:
        """Write every table as CSV, and the findings as findings.md."""
        save_tables(self.folder, self.tables, lines)


# The findings in words.


def describe_classes(classes: pd.DataFrame) -> str:
    """What the mean hides; table of `tabulate_classes`."""
    known = classes.dropna(subset=["iou"]).sort_values("iou")
    zero = known.loc[known["iou"] < 0.005, "class"].tolist()
    missed, invented = 100 * known["lost_missed"].mean(), 100 * known["lost_invented"].mean()
    text = f"mIoU **{known['iou'].mean():.4f}** over {len(known)} classes, from {_named(known.iloc[0])} to {_named(known.iloc[-1])}."
    text += f" Missed pixels cost {missed:.1f} points, invented ones {invented:.1f}."
    if zero:
        text += f" At zero: {', '.join(zero)}; they alone hold back {100 * len(zero) / len(known):.1f} points."
    return text


def describe_confusions(confusions: pd.DataFrame) -> str:
    """What to work on next; table of `tabulate_confusions`."""
    if confusions.empty:
        return "Nothing is confused."
    first = confusions.iloc[0]
    share = confusions["lost"].head(5).sum() / confusions["lost"].sum()
    return (
        f"Work on next: **{first['true']} taken for {first['predicted']}**, {first['share']:.0%} of its pixels; fixed alone,"
        f" mIoU would change by {first['gain']:+.4f}. The five most costly of {len(confusions)} confusions hold {share:.0%}"
        " of what is lost."
    )


def describe_images(images: pd.DataFrame) -> str:
    """How concentrated the mistakes are; table of `tabulate_images`."""
    first, scores = images["gain"].idxmax(), images["miou"].dropna()
    return (
        f"Images score from {scores.min():.3f} to {scores.max():.3f} (median {scores.median():.3f}). The most costly is"
        f" {images.loc[first, 'image_id']}: predicted perfectly, it would change the mIoU by {images.loc[first, 'gain']:+.4f}."
    )


def describe_objects(by_size: pd.DataFrame, uncounted: int) -> str:
    """Which sizes are found; table of `summarise_objects` by size, and the objects without a visible pixel."""
    if by_size.empty:
        return "No annotated object has a visible pixel."
    total = by_size["objects"].sum()
    found = (by_size["found"] * by_size["objects"]).sum() / total
    parts = [f"{row.found:.0%} of the {row.objects} of {row.Index}" for row in by_size.itertuples()]
    worst = by_size["missed"].idxmax()
    gone = f" {uncounted} objects have no pixel left at this size and count nowhere." if uncounted else ""
    return (
        f"Of {total} objects **{found:.0%} are found** at IoU 0.5: {', '.join(parts)}. Most missed pixels belong to objects"
        f" of {worst} ({by_size['missed'].max() / max(1, by_size['missed'].sum()):.0%}).{gone}"
    )


def describe_kinds(kinds: pd.Series, near: float) -> str:
    """Where wrong pixels lie; counts of `count_error_kinds`, and the share near true boundaries."""
    if not kinds.sum():
        return "No pixel is wrong."
    share = kinds / kinds.sum()
    meaning = {
        "boundary": "edges are drawn inexactly: resolution, and a loss that sees boundaries",
        "extent": "objects are found, and cut short or spilt over",
        "segment": "whole objects are missed or invented: more such examples, or a better classifier",
    }
    listed = ", ".join(f"{value:.0%} {name}" for name, value in share.items())
    return (
        f"Wrong pixels: {listed}. Mostly **{share.idxmax()}**: {meaning[share.idxmax()]}. {near:.0%} lie within 2 %"
        " of the diagonal of a true boundary."
    )


def describe_calibration(reliability: pd.DataFrame, error: float) -> str:
    """Whether probabilities mean what they say; table of `tabulate_reliability`."""
    bias = float(((reliability["confidence"] - reliability["accuracy"]) * reliability["share"]).sum())
    word = "over" if bias > 0 else "under"
    return f"Calibration error {error:.3f}: pixels are **{word}confident** by {abs(bias):.3f} on average."


def describe_labels(images: pd.DataFrame, count: int) -> str:
    """Which images' labels deserve a second look; needs the column softmin."""
    lowest = images.sort_values("softmin")["image_id"].head(count)
    return f"Look again at the labels of images {', '.join(map(str, lowest))}."


def describe_difference(difference: float, low: float, high: float, scenes: str, seeds: str) -> str:
    """How two runs differ on these images, which is no verdict on what they were made with; `seeds` says what is.

    `scenes` are the words of `find_scenes`.
    """
    if np.isnan(low):
        images = f"not known, {scenes} say nothing of others"
    else:
        words = "it could" if low <= 0 <= high else "hardly"
        images = f"{words}, 95 % interval {low:+.4f} to {high:+.4f} over {scenes}"
    return (
        f"A minus B: **{difference:+.4f}** mIoU on these images. Would other images change who is ahead? {images}."
        f" Would other seeds? {seeds}"
    )


def _named(row: pd.Series) -> str:
    return f"{row['class']} ({row['iou']:.3f})"

"""The error analysis of a finished run: its tables, pictures and findings, each made when it is first asked for."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from seglib.evaluation import errors, findings
from seglib.evaluation.compare import (
    bootstrap_difference,
    choose_disagreements,
    compare_class_iou,
    count_outcomes,
    show_outcomes,
)
from seglib.evaluation.metrics import pooled_miou
from seglib.files import write_text
from seglib.inference.predict import (
    Predictions,
    count_confusion,
    describe_agreement,
    open_predictions,
    probability_of_labels,
    take_images,
)
from seglib.inference.runs import (
    FinishedRun,
    find_newest_run,
    load_finished_run,
    prepare_output_dir,
    require_same_images,
)


class ErrorAnalysis:
    """What is wrong with a run's predictions of its validation images.

    Attributes
    ----------
    run, folder, preds : the run, where results go, and the run's predictions (N, S, S) uint8.
    confusion : (N, C, C) int64, truth in rows; `pooled` is its sum, `miou` the score of that.
    classes, confusions, error_kinds, images, objects, reliability : tables, see `seglib.evaluation.errors`.
    lost, gain : (C, C) float64, see `lost_to_confusions` and `gain_of_confusions`.
    kinds : wrong pixels by kind; near_edges : the share of them that lies at the boundaries of the truth.
    """

    def __init__(self, run: FinishedRun, folder: Path, device: torch.device, predictions: Predictions):
        self.run, self.folder, self.device = run, folder, device
        self.predictions, self.preds = predictions, predictions.preds
        self.class_names, self.image_ids = run.class_names, run.val_images.image_ids
        self.confusion = count_confusion(run, self.preds)
        self.pooled, self.miou = self.confusion.sum(axis=0), pooled_miou(self.confusion)
        missed, invented = errors.lost_to_confusions(self.pooled)
        self.lost, self.gain = missed + invented, errors.gain_of_confusions(self.pooled)

    def __repr__(self) -> str:
        return f"{self.run.folder}: mIoU {self.miou:.4f}\n{describe_agreement(self.run, self.confusion)}"

    @cached_property
    def _boundaries(self) -> tuple[np.ndarray, float]:
        return errors.boundary_iou(self._pairs(), len(self.class_names))

    @property
    def near_edges(self) -> float:
        return self._boundaries[1]

    @cached_property
    def classes(self) -> pd.DataFrame:
        return errors.tabulate_classes(self.pooled, self.class_names).assign(boundary_iou=self._boundaries[0])

    @cached_property
    def confusions(self) -> pd.DataFrame:
        return errors.tabulate_confusions(self.pooled, self.class_names)

    @cached_property
    def _kinds(self) -> tuple[pd.DataFrame, pd.Series]:
        return errors.count_error_kinds(self._pairs(), self.class_names)

    @property
    def error_kinds(self) -> pd.DataFrame:
        return self._kinds[0]

    @property
    def kinds(self) -> pd.Series:
        return self._kinds[1]

    @cached_property
    def images(self) -> pd.DataFrame:
        table = errors.tabulate_images(self.confusion, self.image_ids)
        return table.assign(softmin=self.predictions.softmin, given=self.predictions.given)

    @cached_property
    def objects(self) -> pd.DataFrame:
        table = errors.measure_objects(self.run.val_images.data, self.image_ids, self._pairs())
        return table.assign(**{"class": pd.Categorical.from_codes(table["class_id"], self.class_names)})

    def recall(self, by: str | list[str], resamples: int) -> pd.DataFrame:
        """Recall of the objects by "class", "bin" (their size) or both, with 95 % intervals; see `summarise_objects`."""
        return errors.summarise_objects(self.objects, by, resamples)

    def lost_to_missed(self) -> pd.DataFrame:
        """mIoU points lost to the missed pixels of objects: classes in rows, sizes in columns."""
        return errors.lost_to_missed(self.objects, self.pooled, self.class_names)

    @cached_property
    def reliability(self) -> pd.DataFrame:
        return findings.tabulate_reliability(self.predictions.reliability)

    @property
    def calibration_error(self) -> float:
        return findings.calibration_error(self.predictions.reliability)

    def show_images(self, by: str, count: int) -> tuple:
        """What `plot_kind_rows` draws: images by "miou" (worst first), "gain" (most costly first) or "typical"."""
        chosen, titles = errors.choose_images(self.images, by, count)
        images, truths, preds = take_images(self.run.val_images, self.preds, chosen)
        return images, truths, preds, errors.show_kinds(truths, preds), self.class_names, titles

    def show_labels(self, count: int) -> tuple:
        """What `plot_label_rows` draws: the images whose labels the model finds least likely."""
        chosen, titles = errors.choose_images(self.images, "softmin", count)
        given = probability_of_labels(self.run, chosen, self.device)
        return *take_images(self.run.val_images, self.preds, chosen), given, self.class_names, titles

    def compare(self, run_dir: str, data_dir: str = "", resamples: int = 1000, **options: Any) -> "Comparison":
        """Compare this run (A) with another (B) on the same images; options are those of `analyse_run`."""
        other = analyse_run(run_dir, self.folder, data_dir, **options)
        require_same_images(self.run, other.run)
        return Comparison(self, other, resamples)

    def describe(self, count: int, resamples: int, comparison: "Comparison | None" = None) -> list[str]:
        """The findings, a sentence or two each; `count` images are named whose labels deserve a second look."""
        return [
            findings.describe_classes(self.classes),
            findings.describe_confusions(self.confusions),
            findings.describe_images(self.images),
            findings.describe_objects(self.recall("bin", resamples), int((self.objects["visible"] == 0).sum())),
            findings.describe_kinds(self.kinds, self.near_edges),
            findings.describe_calibration(self.reliability, self.calibration_error),
            findings.describe_labels(self.images, count),
            *([findings.describe_difference(*comparison.difference)] if comparison else []),
        ]

    def save_tables(self, lines: Sequence[str], resamples: int, comparison: "Comparison | None" = None) -> int:
        """Write every table as CSV, and the findings as findings.md; return how many tables there are."""
        names = ("classes", "confusions", "error_kinds", "images", "objects", "reliability")
        tables = {name: getattr(self, name) for name in names}
        for name, by in {"class": "class", "class_and_size": ["class", "bin"], "size": "bin"}.items():
            tables[f"objects_by_{name}"] = self.recall(by, resamples)
        tables |= {"two_runs": comparison.classes} if comparison else {}
        for name, table in tables.items():
            write_text(self.folder / f"{name}.csv", table.to_csv(index=not isinstance(table.index, pd.RangeIndex)))
        write_text(self.folder / "findings.md", "\n".join(f"- {line}" for line in lines) + "\n")
        return len(tables)

    def _pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return self.run.pair_masks(self.preds)


class Comparison:
    """Two runs (A, B) on the same images.

    Attributes
    ----------
    a, b : ErrorAnalysis
    difference : pooled mIoU of A minus that of B, and its 95 % interval over the choice of images.
    classes : one row per class: iou_a, iou_b, difference, and pixels that both, only A, only B or neither gets right.
    """

    def __init__(self, a: ErrorAnalysis, b: ErrorAnalysis, resamples: int):
        self.a, self.b = a, b
        self.difference = bootstrap_difference(a.confusion, b.confusion, resamples)
        triples = ((truth, pred, other) for (truth, pred), other in zip(a._pairs(), b.preds, strict=True))
        outcomes, self._by_image = count_outcomes(triples, a.class_names)
        self.classes = compare_class_iou(a.confusion, b.confusion, a.class_names).merge(outcomes, on="class")

    def __repr__(self) -> str:
        return f"A {self.a}\nB {self.b}"

    def show_images(self, count: int) -> tuple:
        """What `plot_duel_rows` draws: the images with the most pixels that only A gets right, then only B."""
        chosen, titles = choose_disagreements(self._by_image, self.a.image_ids, count)
        images, truths, preds = take_images(self.a.run.val_images, self.a.preds, chosen)
        others = np.stack([self.b.preds[position] for position in chosen])
        outcomes = show_outcomes(truths, preds, others)
        return images, truths, preds, others, outcomes, self.a.class_names, ("A", "B"), titles


def analyse_run(
    run_dir: str | Path = "",
    output_dir: str | Path = "",
    data_dir: str = "",
    *,
    batch_size: int = 0,
    keep_probabilities: bool = False,
    show_progress: Callable[[str, Path], Callable[[int, int], None]] | None = None,
) -> ErrorAnalysis:
    """Open a finished run and its predictions, which are made first where there are none.

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
    """
    run = load_finished_run(run_dir or find_newest_run(), data_dir)
    folder = prepare_output_dir(str(output_dir), run.folder, "03_error_analysis")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    progress = show_progress and show_progress(f"predicting {run.folder.name}", folder)
    options = {"batch_size": batch_size, "keep_probabilities": keep_probabilities, "progress": progress}
    return ErrorAnalysis(run, folder, device, open_predictions(run, device, **options))

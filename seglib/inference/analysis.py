"""What the notebooks show of predictions: the error analysis of a finished run, a few examples after training."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from seglib.evaluation import compare, errors, findings
from seglib.evaluation.metrics import load_confusion, mean_iou, pooled_miou
from seglib.files import write_table, write_text
from seglib.inference.predict import (
    count_confusion,
    describe_agreement,
    open_predictions,
    predict,
    probability_of_labels,
    take_images,
)
from seglib.inference.runs import find_newest_run, load_finished_run, prepare_output_dir, require_same_images
from seglib.inference.votes import find_scenes_of
from seglib.runs.conditions import compare_over_seeds
from seglib.training.trainer import Trainer


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
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        progress = show_progress and show_progress(f"predicting {run.folder.name}", self.folder)
        options = {"batch_size": batch_size, "keep_probabilities": keep_probabilities, "progress": progress}
        predictions = open_predictions(run, self.device, **options)
        self.preds, self.class_names = predictions.preds, run.class_names
        self.scenes, self.how_scenes = find_scenes_of(run.val_images)
        self.confusion = count_confusion(run, self.preds)
        self.pooled, self.miou = self.confusion.sum(axis=0), pooled_miou(self.confusion)
        self.lost, self.gain = sum(errors.lost_to_confusions(self.pooled)), errors.gain_of_confusions(self.pooled)
        self.calibration_error = findings.calibration_error(predictions.reliability)
        self.two_runs: tuple[float, float, float] | None = None
        self.tables = self._tabulate(predictions)

    def __repr__(self) -> str:
        return f"{self.run.folder}: mIoU {self.miou:.4f}\n{describe_agreement(self.run, self.confusion)}\n{self.how_scenes}"

    def pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(truth, pred) of each image, (S, S) uint8 both, one at a time."""
        return self.run.pair_masks(self.preds)

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
            "reliability": findings.tabulate_reliability(predictions.reliability),
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
        given = probability_of_labels(self.run, chosen, self.device)
        return *take_images(self.run.val_images, self.preds, chosen), given, self.class_names, titles

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
        image_ids = self.run.val_images.image_ids
        chosen, titles = compare.choose_disagreements(self._outcomes_by_image, image_ids, count)
        images, truths, preds = take_images(self.run.val_images, self.preds, chosen)
        others = np.stack([other.preds[position] for position in chosen])
        outcomes = compare.show_outcomes(truths, preds, others)
        return images, truths, preds, others, outcomes, self.class_names, ("A", "B"), titles

    def describe(self, count: int) -> list[str]:
        """The findings, a sentence or two each; `count` images are named whose labels deserve a second look."""
        tables = self.tables
        return [
            findings.describe_classes(tables["classes"]),
            findings.describe_confusions(tables["confusions"]),
            findings.describe_images(tables["images"]),
            findings.describe_objects(tables["objects_by_size"], int((tables["objects"]["visible"] == 0).sum())),
            findings.describe_kinds(self.kinds, self.near_edges),
            findings.describe_calibration(tables["reliability"], self.calibration_error),
            findings.describe_labels(tables["images"], count),
            *(
                [findings.describe_difference(*self.two_runs, self.how_scenes, self.over_seeds)]
                if self.two_runs
                else []
            ),
        ]

    def save(self, lines: list[str]) -> None:
        """Write every table as CSV, and the findings as findings.md."""
        for name, table in self.tables.items():
            write_table(self.folder / f"{name}.csv", table)
        write_text(self.folder / "findings.md", "\n".join(f"- {line}" for line in lines) + "\n")


def choose_spread(confusion: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of images from the worst to the best by their own mIoU, evenly spread, and these mIoUs.

    Images without a valid pixel are left out. confusion: (images, classes, classes).
    """
    scores = np.array([mean_iou(matrix) for matrix in confusion])
    order = np.argsort(scores)[: np.isfinite(scores).sum()]
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).astype(int))]
    return chosen, scores[chosen]


def predict_examples(trainer: Trainer, count: int) -> tuple:
    """What `plot_predictions` draws: validation images from the worst to the best, predicted by a trainer's best weights.

    Returns
    -------
    images (N, S, S, 3) uint8 RGB, truths and preds (N, S, S) uint8, class names, titles.
    """
    trainer.load_best()
    confusion, image_ids, class_names = load_confusion(trainer.run_dir / "confusion.npz")
    chosen, scores = choose_spread(confusion, count)
    images = trainer.val_loader.dataset.subset
    titles = [f"image {image_ids[place]}\nmIoU {score:.3f}" for place, score in zip(chosen, scores, strict=True)]
    return *predict(trainer.model, images, chosen, trainer.device, trainer.precision), class_names, titles

"""An ensemble: members, what each counts for, how they vote, and what follows the vote; each step judged where it is taken."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from seglib.data.coco import load_coco
from seglib.data.dataset import Subset
from seglib.data.masks import IGNORE_INDEX
from seglib.errors import InputError
from seglib.evaluation.compare import compare_class_iou
from seglib.evaluation.metrics import compute_metrics, pooled_miou
from seglib.inference.postprocess import (
    compare_objects,
    describe_step,
    draw_crf_candidates,
    remove_small_components,
    search_crf,
    search_min_pixels,
)
from seglib.inference.predict import open_test_images, predict_run
from seglib.inference.runs import Member, find_free_dir, find_index, find_members, find_newest_run, load_finished_run
from seglib.inference.selection import (
    Survey,
    correlate_errors,
    deal_images,
    judge_searches,
    recommend_weights,
    survey_members,
    tabulate_members,
    trace_selection,
)
from seglib.inference.stores import Progress, Store, average_stores, join_stores, keep_masks, require_alike
from seglib.inference.votes import (
    add_specialists,
    average_probabilities,
    check_weights,
    count_masks,
    follow_confident,
    hard_vote,
    read_mask,
    require_truth,
    score_weighted,
    soft_vote,
)
from seglib.submission import count_shares
from seglib.zoo.crf import CrfParams, dense_crf

FOLDS = 5  # of the images, for what is judged on those not seen
Steps = tuple[dict[str, Any], ...]


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Members that vote on images: validation images, then those of a test set (`predict_test`).

    Never changed: `try_views`, `weigh`, `set_vote`, `try_specialists`, `try_crf` and `try_components` return a new one, in
    which the step is taken where it helps, with a row more in `tabulate_steps`.

    Attributes
    ----------
    members, specialists : runs that know all classes, and those of some
    options : of `predict_run`: device, size, merge, sliding, tta
    data_dir : where the runs' data is now; "" where it was
    seed : of samples and searches
    folder : where masks are kept
    progress : what -> function of (done, total)
    stores, special_stores : one Store per member, of `images` in their order
    images : Subset; of validation images with masks
    weights : (M,) of the stores
    vote : "soft", "geometric" or "hard"; `tie_break` is the place of the store that decides ties, None the surest class
    specialist_weight, specialist_confidence : see `add_specialists`, `follow_confident`; 0 for never
    crf, components : what was found, see `search_crf`; None where nothing was searched
    """

    members: Sequence[Member]
    specialists: Sequence[Member]
    options: Mapping[str, Any]
    data_dir: str = ""
    seed: int = 0
    folder: Path = Path()
    progress: Callable[[str], Progress | None] = lambda what: None
    stores: Sequence[Store] = ()
    special_stores: Sequence[Store] = ()
    images: Subset | None = None
    weights: np.ndarray = field(default_factory=lambda: np.ones(0))
    vote: str = "soft"
    tie_break: int | None = None
    specialist_weight: float = 0.0
    specialist_confidence: float = 0.0
    crf: Mapping[str, Any] | None = None
    components: Mapping[str, Any] | None = None
    steps: Steps = ()

    def __post_init__(self):
        if self.stores:
            require_alike(self.stores)
            require_truth(self.stores[0], self.images)
            check_weights(self.weights, len(self.stores))

    # Who takes part, and their predictions.

    @property
    def names(self) -> list[str]:
        """Of the members."""
        return [member.name for member in self.members]

    @property
    def class_names(self) -> list[str]:
        """Background first."""
        return list(self.stores[0].class_names)

    def find_output_dir(self) -> Path:
        """A folder for results, 04_ensemble (or .2, ...) in the grid of the first member."""
        return find_free_dir(self.members[0].folders[0].parent / "04_ensemble")

    def open_test_images(self, json_name: str) -> Subset:
        """Open the images of a test set, see `seglib.inference.predict.open_test_images`."""
        largest = max(self.members, key=lambda member: member.image_size)
        return open_test_images(load_finished_run(largest.folders[0], self.data_dir), json_name)

    def predict(self, folder: Path, progress: Callable[[str], Progress | None] = lambda what: None) -> "Ensemble":
        """Predict the images that members are scored on, each by models that have not seen it; weights are equal.

        Parameters
        ----------
        folder : where masks are kept.
        progress : text -> function of (done, total), such as `partial(show_progress, folder=folder)`.

        Raises
        ------
        InputError
            Runs that cannot be opened or predicted, or that have other images.
        """
        kept = replace(self, folder=Path(folder), progress=progress)
        everyone = [*self.members, *self.specialists]
        stores, truth = predict_validation(everyone, **self._prediction("predicting: image", progress))
        count, weights = len(self.members), np.full(len(self.members), 1 / len(self.members))
        return replace(
            kept, stores=stores[:count], special_stores=stores[count:], images=truth, weights=weights, steps=()
        )

    def try_views(self, tta: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> "Ensemble":
        """Predict in other views too, see `build_views`; taken where both halves of the images gain. {}: as it is."""
        if not tta:
            return self
        viewed = replace(self, options={**self.options, "tta": tta}).predict(self.folder, self.progress)
        used = gains_in_both_halves(self.mean_confusion, viewed.mean_confusion)
        return (viewed if used else self)._add_step("TTA", self.mean_miou, viewed.mean_miou, used)

    def predict_test(self, json_name: str, test_dir: str = "") -> "Ensemble":
        """The same decisions on other images, see `seglib.inference.predict.open_test_images`.

        All runs of a member vote, each with an equal part of its weight; runs that were fitted to all images at the end
        predict with these weights. Folds of a specialist are averaged: a threshold that was chosen on one prediction per
        image is no threshold for the highest of five.
        """
        options = self._prediction("predicting test: image", self.progress) | {"test_dir": test_dir}
        stores = predict_test(self.members, json_name, **options)
        special = iter(predict_test(self.specialists, json_name, **options)) if self.special_stores else iter(())
        special_stores = [average_stores([next(special) for _ in member.folders]) for member in self.specialists]
        counts = [len(member.folders) for member in self.members]
        return replace(
            self,
            stores=stores,
            special_stores=special_stores if self.special_stores else (),
            images=self.open_test_images(json_name),
            weights=np.repeat(self.weights / counts, counts),
            tie_break=None if self.tie_break is None else sum(counts[: self.tie_break]),
        )

    @property
    def sources(self) -> list[dict[str, str]]:
        """Grid and run, and the hash of the weights, of each store: what a submission's record names."""
        stores = [*self.stores, *self.special_stores]
        runs = [store.folder.parents[1] for store in stores]  # <grid>/<run>/probabilities/<store>
        return [
            {"run": f"{run.parent.name}/{run.name}", "weights_sha256": store.facts.get("weights_sha256")}
            for run, store in zip(runs, stores, strict=True)
        ]

    # What the members are worth, and their weights.

    @cached_property
    def mean_confusion(self) -> np.ndarray:
        """(N, C, C) int64 of the plain mean of the members."""
        return score_weighted(self.stores, self.images)

    @property
    def mean_miou(self) -> float:
        """Pooled mIoU of the plain mean of the members."""
        return pooled_miou(self.mean_confusion)

    @cached_property
    def survey(self) -> Survey:
        """What one pass over all members found."""
        return survey_members(self.stores, self.images, seed=self.seed)

    def tabulate_members(self) -> pd.DataFrame:
        """One row per member: member, miou, miou_image, accuracy, then IoU by class name."""
        return tabulate_members(self.names, self.survey.confusions, self.class_names)

    def correlate_errors(self) -> np.ndarray:
        """(M, M) phi coefficients of "this pixel is wrong": 1 for the same pixels, 0 for errors that are independent."""
        return correlate_errors(self.survey)

    def judge_weights(self, resamples: int = 1000) -> pd.DataFrame:
        """Search weights, judged on images that the search did not see, see `judge_searches`; a column per member."""
        options = {"folds": FOLDS, "seed": self.seed, "resamples": resamples}
        table, weights = judge_searches(self.stores, self.images, self.survey, **options)
        shares = pd.DataFrame(
            [weights[name] for name in table["weights"]], columns=[f"weight of {n}" for n in self.names]
        )
        return pd.concat([table, shares], axis=1)

    def trace_selection(self) -> pd.DataFrame:
        """Pooled mIoU against the number of members, see `seglib.inference.selection.trace_selection`."""
        return trace_selection(self.survey, deal_images(self.images, FOLDS, self.seed), self.names)

    def weigh(self, choice: str | Mapping[str, float], judged: pd.DataFrame) -> "Ensemble":
        """Set the weights.

        Parameters
        ----------
        choice : "auto" (what is better than the plain mean on images not seen, else this), a row of `judged`, or
            member -> weight.
        judged : of `judge_weights`.
        """
        if isinstance(choice, Mapping):
            weights, name, held_out = np.zeros(len(self.members)), "given", None
            for member, weight in choice.items():
                weights[find_index(self.members, member)] = weight
            miou = pooled_miou(score_weighted(self.stores, self.images, weights))
        else:
            name, why = recommend_weights(judged)
            print(why)
            name = name if choice == "auto" else choice
            row = judged.set_index("weights").loc[name]
            weights = row[[f"weight of {member}" for member in self.names]].to_numpy(np.float64)
            miou = held_out = float(row["held_out"])
        best = self.tabulate_members()["miou"].max()
        weighed = self._add_step("plain mean, beside the best member", best, self.mean_miou, name == "mean")
        label = f"weights: {name}" + (", held out" if held_out is not None else "")
        weighed = weighed._add_step(label, self.mean_miou, miou, name != "mean", held_out=held_out is not None)
        return weighed._change(weights=weights)

    # How they vote, and what follows.

    def average(self) -> Iterator[np.ndarray]:
        """Merged probabilities of one image after another, (C, S, S) float32. Of a hard vote, the soft one's."""
        stores, options = self._gather()
        return average_probabilities(stores, **options)

    def predict_masks(self) -> Iterator[np.ndarray]:
        """Masks of one image after another, (S, S) uint8: vote, CRF, specialists, components."""
        if self.crf and self.crf["on"]:
            masks = map(self._refine, range(len(self.images)), self.average())
        elif self.vote == "hard":
            masks = hard_vote(self.stores, self.weights, tie_break=self.tie_break)
        else:
            stores, options = self._gather()
            masks = soft_vote(stores, **options)
        if self.special_stores and self.specialist_confidence:
            masks = follow_confident(masks, self.special_stores, self.class_names, self.specialist_confidence)
        if self.components and self.components["on"]:
            masks = (remove_small_components(mask, self.components["chosen"]) for mask in masks)
        return masks

    @cached_property
    def masks(self) -> np.ndarray:
        """(N, S, S) uint8, a memory map of a file in `folder`."""
        return self._keep("final" if self.components else "voted", self.predict_masks())

    @cached_property
    def confusion(self) -> np.ndarray:
        """(N, C, C) int64 of the masks."""
        return count_masks(self.images, self.masks)

    @property
    def miou(self) -> float:
        """Pooled mIoU of the masks, on images that the choices have seen."""
        return pooled_miou(self.confusion)

    @property
    def miou_held_out(self) -> float:
        """What to expect of other images: the plain mean's mIoU, and the gains of what is used on images not seen."""
        gains = [step["after"] - step["before"] for step in self.steps if step["used"] and step["held_out"]]
        return self.mean_miou + sum(gains)

    def take_images(self, positions: Sequence[int] | np.ndarray) -> "Ensemble":
        """The same decisions on some of the images."""
        images = Subset(self.images.data, self.images.pixels, self.images.indices[positions])
        stores, special = ([store.take(positions) for store in each] for each in (self.stores, self.special_stores))
        return replace(self, stores=stores, special_stores=special, images=images)

    def set_vote(self, vote: str, tie_break: str = "") -> "Ensemble":
        """Vote otherwise, with the weights of the soft vote; `tie_break` names the member who decides a hard vote's ties."""
        place = find_index(self.members, tie_break) if tie_break else None
        voted = self._change(vote=vote, tie_break=place)
        if vote == "soft":
            return voted
        soft = pooled_miou(score_weighted(self.stores, self.images, self.weights))
        return voted._add_step(f"{vote} vote", soft, voted.miou, True)

    def try_specialists(self, weight: float = 0.0, confidence: float = 0.0) -> "Ensemble":
        """Let specialists decide by their own classes, where both halves of the images gain.

        Parameters
        ----------
        weight : of each in a soft vote, where a member has 1 on average.
        confidence : a specialist decides where its class has a higher probability (0..1).
        """
        scale = float(np.mean(self.weights)) * weight
        if not (self.special_stores and (scale or confidence)):
            return self
        helped = self._change(specialist_weight=scale, specialist_confidence=confidence)
        helped._set("masks", helped._keep("specialists", helped.predict_masks()))
        used = gains_in_both_halves(self.confusion, helped.confusion)
        return (helped if used else self)._add_step("specialists", self.miou, helped.miou, used)

    def try_crf(self, candidates: int, images: int) -> "Ensemble":
        """Search a dense CRF's parameters on some images, spread evenly; 0 candidates: as it is. See `search_crf`."""
        if not candidates:
            return self
        positions = np.unique(np.linspace(0, len(self.images) - 1, images).astype(int))
        size = self.stores[0].size
        drawn = draw_crf_candidates(candidates, self.seed, size, pixels_per_cluster=16)
        some = self.take_images(positions)
        averages = some.average()

        def read(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            picture, mask = read_pair(some.images, number, size)
            return picture, next(averages), mask

        found = search_crf(read, len(positions), drawn, self.options["device"], self.progress("CRF"))
        print(describe_step(found))
        refined = self._change(crf=found)
        if found["on"]:
            refined._set("masks", refined._keep("crf", refined.predict_masks()))
        else:
            refined._set("masks", self.masks)
        step = f"CRF, held out, {len(positions)} images"
        return refined._add_step(step, found["miou_before"], found["miou_held_out"], found["on"], held_out=True)

    def try_components(self, search: bool = True) -> "Ensemble":
        """Remove small components, their size chosen per class, see `search_min_pixels`; the masks are kept as final."""
        cleaned, masks = self, self.masks
        if search:
            progress = self.progress("components: image")
            found = search_min_pixels(self._read_pair, len(masks), len(self.class_names), progress=progress)
            print(describe_step(found))
            cleaned = self._change(components=found)._add_step(
                "components, held out", found["miou_before"], found["miou_held_out"], found["on"], held_out=True
            )
            if found["on"]:
                masks = (remove_small_components(np.array(mask), found["chosen"]) for mask in masks)
        cleaned = cleaned._change(components=cleaned.components)
        cleaned._set("masks", self._keep("final", masks))
        return cleaned

    # What it came to.

    def tabulate_steps(self) -> pd.DataFrame:
        """One row per step: step, before, after (mIoU of the same images), used, held_out, points of mIoU gained."""
        table = pd.DataFrame(self.steps, columns=["step", "before", "after", "used", "held_out"])
        return table.assign(points=100 * (table["after"] - table["before"]))

    def compare_objects(self, before: "Ensemble", resamples: int = 1000) -> pd.DataFrame:
        """Recall of the annotated objects by size, in another ensemble's masks and in these."""
        pairs = zip(before.masks, self.masks, strict=True)
        triples = ((self._read_pair(place)[0], *pair) for place, pair in enumerate(pairs))
        return compare_objects(self.images.data, self.images.image_ids, triples, resamples)

    @cached_property
    def best_masks(self) -> np.ndarray:
        """(N, S, S) uint8, the masks of the best member alone."""
        return self._keep("best_member", soft_vote([self.stores[self.best]]))

    @property
    def best(self) -> int:
        """Place of the member with the highest pooled mIoU."""
        return int(self.tabulate_members()["miou"].argmax())

    def compare_classes(self) -> pd.DataFrame:
        """One row per class: its IoU in these masks and in the best member's, see `compare_class_iou`."""
        return compare_class_iou(self.confusion, self.survey.confusions[self.best], self.class_names)

    def tabulate_changes(self) -> pd.DataFrame:
        """What changed from the best member to these masks, see `seglib.inference.ensemble.tabulate_changes`."""
        return tabulate_changes(self.images, self.best_masks, self.masks)

    def show_changes(self, count: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """Images, truths, the best member's masks, these masks, and titles: see `choose_changes`."""
        positions, titles = choose_changes(self.tabulate_changes(), count)
        pairs = [read_pair(self.images, position, self.stores[0].size) for position in positions]
        images, truths = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
        return images, truths, self.best_masks[positions], self.masks[positions], titles

    def name_results(self, resizing: str = "nearest") -> Iterator[tuple[str, np.ndarray]]:
        """File name, and mask or (`resizing` "probabilities") probabilities of each image, as `write_submission` takes them."""
        results = self.average() if resizing == "probabilities" else self.predict_masks()
        return zip(self.stores[0].file_names, results, strict=True)

    def count_shares(self) -> np.ndarray:
        """(C,) pixel share of each class in the training data, which a submission is compared with."""
        return count_shares(load_coco(self.images.data.data_dir, self.members[0].params["train_json"]))

    def describe(self) -> dict[str, Any]:
        """Plain values for a record: with them the same decisions can be made again."""
        names = ("vote", "tie_break", "specialist_weight", "specialist_confidence", "crf", "components")
        everyone = [*self.members, *self.specialists]
        return {
            "members": {member.name: [str(folder) for folder in member.folders] for member in everyone},
            "merging": {name: self.options.get(name) for name in ("tta", "merge", "sliding", "size")},
            "decisions": {name: getattr(self, name) for name in names} | {"weights": self.weights.tolist()},
            "steps": self.tabulate_steps().to_dict("records"),
            "miou_held_out": self.miou_held_out,
            "miou_seen": self.miou,
            "iou": compute_metrics(self.confusion, self.class_names, 1)["iou"],
        }

    def _prediction(self, what: str, progress: Callable[[str], Progress | None]) -> dict[str, Any]:
        return {**self.options, "data_dir": self.data_dir, "progress": progress(what)}

    def _gather(self) -> tuple[Sequence[Store], dict[str, Any]]:
        """All stores that vote by weight, and the options of the vote."""
        stores, weights = self.stores, self.weights
        if self.special_stores and self.specialist_weight:
            own = np.full(len(self.special_stores), self.specialist_weight)
            stores, weights = add_specialists(stores, weights, self.special_stores, own)
        return stores, {"weights": weights, "mean": "geometric" if self.vote == "geometric" else "arithmetic"}

    def _refine(self, position: int, probabilities: np.ndarray) -> np.ndarray:
        picture, _ = read_pair(self.images, position, probabilities.shape[-1])
        refined = dense_crf(picture, probabilities, CrfParams(**self.crf["chosen"]), self.options["device"])
        return refined.argmax(0).astype(np.uint8)

    def _read_pair(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        mask = np.array(self.masks[position])
        return read_mask(self.images, position, len(mask)), mask

    def _keep(self, name: str, masks: Iterator[np.ndarray]) -> np.ndarray:
        return keep_masks(self.folder / f"masks_{name}.npy", masks, len(self.images), self.stores[0].size)

    def _set(self, name: str, value: Any) -> None:
        """Give a cached property its value."""
        vars(self)[name] = value

    def _add_step(self, step: str, before: float, after: float, used: bool, held_out: bool = False) -> "Ensemble":
        row = {"step": step, "before": before, "after": after, "used": bool(used), "held_out": held_out}
        return self._change(steps=(*self.steps, row))

    def _change(self, **changes: Any) -> "Ensemble":
        """A new one, which knows what this one has computed, as far as the changes leave it true."""
        changed = replace(self, **changes)
        names = ["survey", "mean_confusion", "best_masks"] + ["masks", "confusion"] * (changes.keys() <= {"steps"})
        vars(changed).update({name: vars(self)[name] for name in names if name in vars(self)})
        return changed


def open_ensemble(
    members: str | Path | Sequence[str | Path] = "",
    *,
    top: int = 0,
    data_dir: str = "",
    size: int = 0,
    merge: str = "mean",
    sliding: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "",
) -> Ensemble:
    """The runs that vote together, see `find_members`; nothing is predicted yet.

    Parameters
    ----------
    members : folders of finished runs and of grids; "" is the grid of the newest run.
    top : only so many of the best by recorded mIoU; 0 is all.
    data_dir : where the runs' data is now; "" where it was.
    size : side at which members are merged [px]; 0 is the largest input size among them.
    merge, sliding : see `predict_run`.
    device : "" is a GPU where there is one.
    """
    given = members if not isinstance(members, str | Path) else [members or find_newest_run().parent]
    found, specialists = find_members([str(each) for each in given], top)
    size = size or max(member.image_size for member in [*found, *specialists])
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    options = {"device": chosen, "size": size, "merge": merge, "sliding": sliding or {}}
    return Ensemble(found, specialists, options, data_dir, seed)


# Predictions of members: out-of-fold on the validation images, of each fold on test images.


def predict_validation(members: Sequence[Member], *, data_dir: str = "", **options: Any) -> tuple[list[Store], Subset]:
    """Predict the images that members are scored on, each by models that have not seen it; one model in memory at a time.

    Parameters
    ----------
    data_dir : where the runs' data is now; "" where it was.
    options : of `predict_run`: device, size, tta, merge, sliding, resize, dtype, batch_size, progress.

    Returns
    -------
    stores : one per member, of the same images in the same order.
    truth : these images with their masks, at the largest input size among the members that know all classes.

    Raises
    ------
    InputError
        Runs that cannot be opened or predicted, or that have other images.
    """
    predicted = []
    for member in members:
        stores, subsets = [], []
        for folder in member.folders:
            run = load_finished_run(folder, data_dir)
            stores.append(predict_run(run, run.val_images, **options))
            subsets.append(run.val_images)
            del run  # and its model
        indices = np.sort(np.concatenate([subset.indices for subset in subsets]))
        images = Subset(subsets[0].data, subsets[0].pixels, indices)
        predicted.append((stores[0] if len(stores) == 1 else join_stores(stores, images.image_ids), images))
    _require_same_files([store for store, _ in predicted])
    full = [images for member, (_, images) in zip(members, predicted, strict=True) if not member.focus_classes]
    return [store for store, _ in predicted], max(full or [predicted[0][1]], key=lambda images: images.image_size)


def predict_test(
    members: Sequence[Member], json_name: str, *, data_dir: str = "", test_dir: str = "", **options: Any
) -> list[Store]:
    """Predict other images by all runs of all members, one store per run.

    A run that was fitted to all images at the end predicts with these weights, its final.pt.

    Parameters
    ----------
    json_name : see `open_test_images`; in `test_dir`, or with "" beside the validation images.
    data_dir, options : those of `predict_validation`.
    """
    stores = []
    for folder in [folder for member in members for folder in member.folders]:
        run = load_finished_run(folder, data_dir)
        stores.append(predict_run(run, open_test_images(run, json_name, test_dir), final=True, **options))
        del run
    _require_same_files(stores)
    return stores


def _require_same_files(stores: Sequence[Store]) -> None:
    """Ids may be alike by chance, of two data sets that both count from 1."""
    for store in stores[1:]:
        if store.file_names != stores[0].file_names:
            raise InputError(f"{store.folder}: required the images of {stores[0].folder}, got others, or another order")


# What a vote changed, image by image.


def gains_in_both_halves(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether the pooled mIoU gains in the first and in the second half of the images, and in all; both (N, C, C)."""
    half = len(before) // 2
    parts = (slice(half), slice(half, None), slice(None))
    return all(pooled_miou(after[part]) > pooled_miou(before[part]) for part in parts)


def tabulate_changes(truth: Subset, before: Iterable[np.ndarray], after: Iterable[np.ndarray]) -> pd.DataFrame:
    """Valid pixels whose class differs between two sets of masks of `truth`'s images, at one size.

    Returns
    -------
    One row per image: image_id, won (right after, wrong before), lost (the other way round), wrong_both [px].
    """
    rows = []
    for position, (was, now) in enumerate(zip(before, after, strict=True)):
        mask = read_mask(truth, position, len(now))
        changed = (was != now) & (mask != IGNORE_INDEX)
        won, lost = int((changed & (now == mask)).sum()), int((changed & (was == mask)).sum())
        rows.append([truth.image_ids[position], won, lost, int(changed.sum()) - won - lost])
    return pd.DataFrame(rows, columns=["image_id", "won", "lost", "wrong_both"])


def choose_changes(table: pd.DataFrame, count: int) -> tuple[list[int], list[str]]:
    """Positions and titles of images: half of them where most was won, net, half where most was lost; at least 2."""
    order = np.argsort((table["lost"] - table["won"]).to_numpy(), kind="stable")
    count = min(max(2, count), len(order))
    chosen = [int(place) for place in (*order[: (count + 1) // 2], *order[len(order) - count // 2 :][::-1])]
    rows = [table.iloc[place] for place in chosen]
    return chosen, [f"image {row['image_id']}\nwon {row['won']} px\nlost {row['lost']} px" for row in rows]


def read_pair(truth: Subset, position: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (size, size, 3) and mask (size, size), uint8, resized by nearest neighbour."""
    image = truth.read(position)[0]
    index = np.arange(size) * len(image) // size
    return image[np.ix_(index, index)], read_mask(truth, position, size)

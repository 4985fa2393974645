"""An ensemble: members, what each counts for, how they vote, and what follows the vote; each step judged where it is taken."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from seglib.data.coco import load_coco
from seglib.data.dataset import Subset, ignore_annotations
from seglib.evaluation.compare import GAIN, choose_changes, compare_class_iou, measure_gain
from seglib.evaluation.metrics import compute_metrics, pooled_miou
from seglib.files import find_free_folder
from seglib.inference import postprocess, selection, votes
from seglib.inference.predict import open_test_images, predict_test, predict_validation
from seglib.inference.runs import Member, find_index, find_members, find_newest_run, load_finished_run
from seglib.inference.stores import Progress, Store, average_stores, keep_masks, require_alike
from seglib.runs.record import read_record
from seglib.submission import count_shares
from seglib.zoo.crf import CrfParams, dense_crf


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Members that vote on images: validation images, then those of a test set (`predict_test`).

    Never changed: each step (`try_views`, `weigh`, ...) returns a new one, in which it is taken where it surely helps (the
    95 % interval of its gain over other scenes is above 0), with a row more in `tabulate_steps`.

    Attributes
    ----------
    members, specialists : runs that know all classes, and those of some
    options : of `predict_run`: device, size, merge, sliding, tta
    data_dir, seed : where the runs' data is now, "" where it was; of samples and searches
    folder, progress : where masks are kept; what -> function of (done, total)
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
    steps: tuple[dict[str, Any], ...] = ()

    def __post_init__(self):
        if self.stores:
            require_alike(self.stores)
            votes.require_truth(self.stores[0], self.images)
            votes.check_weights(self.weights, len(self.stores))

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
        folder = self.members[0].folders[0].parent / "04_ensemble"
        return find_free_folder(folder, lambda path: (read_record(path) or {}).get("status") == "ok")

    def open_test_images(self, json_name: str) -> Subset:
        """Open the images of a test set, see `seglib.inference.predict.open_test_images`."""
        largest = max(self.members, key=lambda member: member.image_size)
        return open_test_images(load_finished_run(largest.folders[0], self.data_dir), json_name)

    def predict(self, folder: Path, progress: Callable[[str], Progress | None] = lambda what: None) -> "Ensemble":
        """Predict the images that members are scored on, each by models that have not seen it; weights are equal.

        folder : where masks are kept. progress : text -> function of (done, total), such as `partial(show_progress, folder=folder)`.
        Raises InputError for runs that cannot be opened or predicted, or that have other images.
        """
        options = {**self.options, "data_dir": self.data_dir, "progress": progress("predicting: image")}
        stores, truth = predict_validation([*self.members, *self.specialists], **options)
        count = len(self.members)
        predicted = {"stores": stores[:count], "special_stores": stores[count:], "images": truth}
        return replace(self, folder=Path(folder), progress=progress, weights=np.full(count, 1 / count), **predicted)

    def try_views(self, tta: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> "Ensemble":
        """Predict in other views too, see `build_views`; taken where the images surely gain. {}: as it is."""
        if not tta:
            return self
        viewed = replace(self, options={**self.options, "tta": tta}).predict(self.folder, self.progress)
        return self._choose("TTA", viewed, self.mean_confusion, viewed.mean_confusion)

    @cached_property
    def scenes(self) -> np.ndarray:
        """(N,) int, of the images: see `find_scenes`."""
        return votes.find_scenes_of(self.images)[0]

    def predict_test(self, json_name: str) -> "Ensemble":
        """The same decisions on other images, see `seglib.inference.predict.open_test_images`.

        All runs of a member vote, each with an equal part of its weight, by their last fit where they have one. Folds of a
        specialist are averaged: a threshold of one prediction per image is none for the highest of five.
        """
        options = {**self.options, "data_dir": self.data_dir, "progress": self.progress("predicting test: image")}
        predict = partial(predict_test, json_name=json_name, **options)
        counts = [len(member.folders) for member in self.members]
        return replace(
            self,
            stores=predict(self.members),
            special_stores=[average_stores(predict([member])) for member in self.specialists],
            images=self.open_test_images(json_name),
            weights=np.repeat(self.weights / counts, counts),
            tie_break=None if self.tie_break is None else sum(counts[: self.tie_break]),
        )

    @property
    def sources(self) -> list[dict[str, str]]:
        """Grid and run, and the hash of the weights, of each store: what a submission's record names."""
        stores = [*self.stores, *self.special_stores]
        runs = ["/".join(store.folder.parts[-4:-2]) for store in stores]  # <grid>/<run>/probabilities/<store>
        hashes = [store.origin.get("weights_sha256") for store in stores]
        return [{"run": run, "weights_sha256": sha256} for run, sha256 in zip(runs, hashes, strict=True)]

    @cached_property
    def mean_confusion(self) -> np.ndarray:
        """(N, C, C) int64 of the plain mean of the members."""
        return votes.score_weighted(self.stores, self.images)

    @property
    def mean_miou(self) -> float:
        """Pooled mIoU of the plain mean of the members."""
        return pooled_miou(self.mean_confusion)

    @cached_property
    def survey(self) -> selection.Survey:
        """What one pass over all members found."""
        return selection.survey_members(self.stores, self.images, seed=self.seed)

    def tabulate_members(self) -> pd.DataFrame:
        """One row per member: member, miou, miou_image, accuracy, then IoU by class name."""
        found = [compute_metrics(confusion, self.class_names, 1) for confusion in self.survey.confusions]
        scores = [{name: each[name] for name in ("miou", "miou_image", "accuracy")} | each["iou"] for each in found]
        return pd.DataFrame([{"member": name} | each for name, each in zip(self.names, scores, strict=True)])

    def correlate_errors(self) -> np.ndarray:
        """(M, M) phi coefficients of "this pixel is wrong": 1 for the same pixels, 0 for independent errors, NaN for none."""
        total, both = float(self.survey.confusions[0].sum()), self.survey.errors.astype(np.float64)
        one = np.diag(both)
        spread = np.sqrt(one * (total - one))
        scale, gap = np.outer(spread, spread), total * both - np.outer(one, one)
        return np.divide(gap, scale, out=np.full(both.shape, np.nan), where=scale > 0)

    def judge_weights(self) -> pd.DataFrame:
        """Search weights, judged on images that the search did not see, see `judge_searches`; a column per member."""
        table, weights = selection.judge_searches(self.stores, self.images, self.survey)
        columns = [f"weight of {name}" for name in self.names]
        return pd.concat([table, pd.DataFrame(weights.values(), columns=columns)], axis=1)

    def trace_selection(self) -> pd.DataFrame:
        """Pooled mIoU against the number of members, see `trace_selection`."""
        return selection.trace_selection(self.survey, self.names)

    def weigh(self, choice: str | Mapping[str, float], judged: pd.DataFrame) -> "Ensemble":
        """Set the weights: "auto" (what is better than the plain mean on images not seen, else this), a row of `judged` (of
        `judge_weights`), or member -> weight.
        """
        if isinstance(choice, Mapping):
            weights, name = np.zeros(len(self.members)), "given"
            for member, weight in choice.items():
                weights[find_index(self.members, member)] = weight
            confusion = votes.score_weighted(self.stores, self.images, weights)
            weighing, chosen_on = measure_gain(self.mean_confusion, confusion, self.scenes), "none: given by hand"
        else:
            name, why = selection.recommend_weights(judged)
            print(why)
            name = name if choice == "auto" else choice
            row = judged.set_index("weights").loc[name]
            weights = row[[f"weight of {member}" for member in self.names]].to_numpy(np.float64)
            gains = (100 * row[["gain", "low", "high"]]).tolist()
            weighing = dict(zip(GAIN, [self.mean_miou, row["held_out"], *gains], strict=True))
            chosen_on = "none: equal weights" if name == "mean" else "other folds of scenes"
        alone = measure_gain(self.survey.confusions[self.best], self.mean_confusion, self.scenes)
        weighed = self._add_step("plain mean, beside the best member", alone, name == "mean", "all (the best member)")
        return weighed._add_step(f"weights: {name}", weighing, name != "mean", chosen_on, True)._change(weights=weights)

    def average(self) -> Iterator[np.ndarray]:
        """Merged probabilities of one image after another, (C, S, S) float32. Of a hard vote, the soft one's."""
        stores, options = self._gather()
        return votes.average_probabilities(stores, **options)

    def predict_masks(self) -> Iterator[np.ndarray]:
        """Masks of one image after another, (S, S) uint8: vote, CRF, specialists, components."""
        if self.crf and self.crf["on"]:
            masks = map(self._refine, range(len(self.images)), self.average())
        elif self.vote == "hard":
            masks = votes.hard_vote(self.stores, self.weights, tie_break=self.tie_break)
        else:
            stores, options = self._gather()
            masks = votes.soft_vote(stores, **options)
        if self.special_stores and self.specialist_confidence:
            masks = votes.follow_confident(masks, self.special_stores, self.class_names, self.specialist_confidence)
        return self._clean(masks, self.components)

    @cached_property
    def masks(self) -> np.ndarray:
        """(N, S, S) uint8, a memory map of a file in `folder`."""
        return self._keep("voted", self.predict_masks())

    @cached_property
    def confusion(self) -> np.ndarray:
        """(N, C, C) int64 of the masks."""
        return votes.count_masks(self.images, self.masks)

    @property
    def miou(self) -> float:
        """Pooled mIoU of the masks, on images that the choices have seen."""
        return pooled_miou(self.confusion)

    @property
    def miou_held_out(self) -> float:
        """What to expect of other images: the plain mean's mIoU and the held-out gains of what is used, capped at `miou`."""
        gains = [step["after"] - step["before"] for step in self.steps if step["used"] and step["held_out"]]
        return min(self.mean_miou + sum(gains), self.miou)

    def summarise(self) -> str:
        """One line: what is expected, and whether that is more than the best member has alone."""
        beside = measure_gain(self.survey.confusions[self.best], self.confusion, self.scenes)
        return selection.describe_ensemble(self.miou_held_out, self.names[self.best], beside)

    def set_vote(self, vote: str, tie_break: str = "") -> "Ensemble":
        """Vote otherwise, with the weights of the soft vote; `tie_break` names the member who decides a hard vote's ties."""
        place = find_index(self.members, tie_break) if tie_break else None
        voted = self._change(vote=vote, tie_break=place)
        if vote == "soft":
            return voted
        soft = votes.score_weighted(self.stores, self.images, self.weights)
        gain = measure_gain(soft, voted.confusion, self.scenes)
        return voted._add_step(f"{vote} vote", gain, True, "none: asked for", True)

    def try_specialists(self, weight: float = 0.0, confidence: float = 0.0) -> "Ensemble":
        """Let specialists decide by their own classes, where the images surely gain.

        weight : of each in a soft vote, where a member has 1 on average. confidence : a specialist decides where its class
        has a higher probability (0..1).
        """
        scale = float(np.mean(self.weights)) * weight
        if not (self.special_stores and (scale or confidence)):
            return self
        helped = self._change("specialists", specialist_weight=scale, specialist_confidence=confidence)
        return self._choose("specialists", helped, self.confusion, helped.confusion)

    def try_crf(self, candidates: int, count: int) -> "Ensemble":
        """Search a dense CRF's parameters on some images, spread evenly, see `search_crf`; where these gain, all images are
        refined and judged, those of the search by what was not chosen on them. 0 candidates: as it is."""
        if not candidates:
            return self
        positions = np.unique(np.linspace(0, len(self.images) - 1, count).astype(int))
        size = self.stores[0].size
        drawn = postprocess.draw_crf_candidates(candidates, self.seed, size, pixels_per_cluster=16)
        images = Subset(self.images.data, self.images.pixels, self.images.indices[positions])
        stores, special = ([store.take(positions) for store in each] for each in (self.stores, self.special_stores))
        averages = replace(self, stores=stores, special_stores=special, images=images).average()

        def read(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            picture, mask = votes.read_pair(images, number, size)
            return picture, next(averages), mask

        device, scenes = self.options["device"], self.scenes[positions]
        found = postprocess.search_crf(read, len(positions), drawn, device, self.progress("CRF"), scenes)
        print(postprocess.describe_step(found))
        held_out, how = found.pop("held_out"), (f"{len(positions)} images, the other half of their scenes", True)
        measured = found
        if found["on"]:
            refined = self._change("crf", crf=found)
            after = refined.confusion.copy()
            after[positions] = held_out
            measured = measure_gain(self.confusion, after, self.scenes)
            if measured["low"] > 0:
                return refined._add_step("CRF", measured, True, *how)
            print("CRF: off; all images together do not surely gain")
        return self._change(crf=found | {"on": False})._add_step("CRF", measured, False, *how)

    def try_components(self, search: bool = True) -> "Ensemble":
        """Remove small components, their size chosen per class, see `search_min_pixels`; the masks are kept as final."""
        if not search:
            return self._change("final", self.masks)
        options = {"progress": self.progress("components: image"), "scenes": self.scenes}
        found = postprocess.search_min_pixels(self._read_pair, len(self.masks), len(self.class_names), **options)
        found.pop("held_out")
        print(postprocess.describe_step(found))
        cleaned = self._change("final", self._clean(self.masks, found), components=found)
        return cleaned._add_step("components", found, found["on"], "the other half of the scenes", True)

    def tabulate_steps(self) -> pd.DataFrame:
        """One row per step: step, before, after (mIoU of the same images), points gained, low, high (their 95 % interval over
        other scenes), used, chosen_on (which images chose it), held_out (whether it was measured on others)."""
        return pd.DataFrame(self.steps, columns=["step", *GAIN, "used", "chosen_on", "held_out"])

    def compare_objects(self, before: "Ensemble") -> pd.DataFrame:
        """Recall of the annotated objects by size, in another ensemble's masks and in these."""
        pairs = zip(before.masks, self.masks, strict=True)
        triples = ((self._read_pair(place)[0], *pair) for place, pair in enumerate(pairs))
        return postprocess.compare_objects(self.images.data, self.images.image_ids, triples, self.scenes)

    @cached_property
    def best_masks(self) -> np.ndarray:
        """(N, S, S) uint8, the masks of the best member alone."""
        return self._keep("best_member", votes.soft_vote([self.stores[self.best]]))

    @property
    def best(self) -> int:
        """Place of the member with the highest pooled mIoU."""
        return int(self.tabulate_members()["miou"].argmax())

    def compare_classes(self) -> pd.DataFrame:
        """One row per class: its IoU in these masks and in the best member's, see `compare_class_iou`."""
        return compare_class_iou(self.confusion, self.survey.confusions[self.best], self.class_names)

    def tabulate_changes(self) -> pd.DataFrame:
        """What changed from the best member to these masks, see `seglib.inference.votes.tabulate_changes`."""
        return votes.tabulate_changes(self.images, self.best_masks, self.masks)

    def show_changes(self, count: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """Images, truths, the best member's masks, these masks, and titles: see `choose_changes`."""
        changes = self.tabulate_changes()
        positions, titles = choose_changes(changes["won"], changes["lost"], self.images.image_ids, count)
        pairs = (votes.read_pair(self.images, position, self.stores[0].size) for position in positions)
        images, truths = map(np.stack, zip(*pairs, strict=True))
        return images, truths, self.best_masks[positions], self.masks[positions], titles

    def name_results(self, resizing: str = "nearest") -> Iterator[tuple[str, np.ndarray]]:
        """File name, and mask or (`resizing` "probabilities") probabilities of each image, as `write_submission` takes them."""
        results = self.average() if resizing == "probabilities" else self.predict_masks()
        return zip(self.stores[0].file_names, results, strict=True)

    def count_shares(self) -> np.ndarray:
        """(C,) pixel share of each class in the training data, which a submission is compared with."""
        params = self.members[0].params
        data = load_coco(self.images.data.data_dir, params["train_json"])
        return count_shares(ignore_annotations(data, params.get("ignore_classes", [])))

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
            "best_member": {"name": self.names[self.best], "miou": pooled_miou(self.survey.confusions[self.best])},
            "result": self.summarise(),
            "iou": compute_metrics(self.confusion, self.class_names, 1)["iou"],
        }

    def _gather(self) -> tuple[Sequence[Store], dict[str, Any]]:
        """All stores that vote by weight, and the options of the vote."""
        stores, weights = self.stores, self.weights
        if self.special_stores and self.specialist_weight:
            own = np.full(len(self.special_stores), self.specialist_weight)
            stores, weights = votes.add_specialists(stores, weights, self.special_stores, own)
        return stores, {"weights": weights, "mean": "geometric" if self.vote == "geometric" else "arithmetic"}

    def _refine(self, position: int, probabilities: np.ndarray) -> np.ndarray:
        picture, _ = votes.read_pair(self.images, position, probabilities.shape[-1])
        refined = dense_crf(picture, probabilities, CrfParams(**self.crf["chosen"]), self.options["device"])
        return refined.argmax(0).astype(np.uint8)

    def _read_pair(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        mask = np.array(self.masks[position])
        return votes.read_mask(self.images, position, len(mask)), mask

    def _keep(self, name: str, masks: Iterator[np.ndarray]) -> np.ndarray:
        return keep_masks(self.folder / f"masks_{name}.npy", masks, len(self.images), self.stores[0].size)

    def _clean(self, masks: Iterable[np.ndarray], found: Mapping[str, Any] | None) -> Iterator[np.ndarray]:
        on = found and found["on"]
        return (postprocess.remove_small_components(np.array(mask), found["chosen"]) if on else mask for mask in masks)

    def _choose(self, step: str, other: "Ensemble", before: np.ndarray, after: np.ndarray) -> "Ensemble":
        """The other one where its gain over other scenes is surely above 0, else this one; before, after: (N, C, C)."""
        measured = measure_gain(before, after, self.scenes)
        chosen = other if measured["low"] > 0 else self
        return chosen._add_step(step, measured, chosen is other, "all, on or off")

    def _add_step(self, step: str, measured: Mapping, used: bool, chosen_on: str, held_out: bool = False) -> "Ensemble":
        how = {"used": bool(used), "chosen_on": chosen_on, "held_out": held_out}
        return self._change(steps=(*self.steps, {"step": step, **{name: measured[name] for name in GAIN}, **how}))

    def _change(self, name: str = "", masks: Iterable[np.ndarray] | None = None, **changes: Any) -> "Ensemble":
        """A new one, which knows what this one has computed as far as the changes leave it true.

        With a name it has masks of its own, which are kept under it: those given, or those that it predicts.
        """
        changed, known = replace(self, **changes), ["survey", "mean_confusion", "best_masks", "scenes"]
        known += ["masks", "confusion"] * (changes.keys() <= {"steps", "crf"} and not name)
        vars(changed).update({each: vars(self)[each] for each in known if each in vars(self)})
        if name:
            vars(changed)["masks"] = changed._keep(name, changed.predict_masks() if masks is None else masks)
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
) -> Ensemble:
    """The runs that vote together, see `find_members`; nothing is predicted yet.

    Parameters
    ----------
    members : folders of finished runs and of grids; "" is the grid of the newest run.
    top : only so many of the best by recorded mIoU; 0 is all.
    data_dir, seed : see `Ensemble`.
    size : side at which members are merged [px]; 0 is the largest input size among them.
    merge, sliding : see `predict_run`.
    """
    given = members if not isinstance(members, str | Path) else [members or find_newest_run().parent]
    found, specialists = find_members([str(each) for each in given], top)
    size = size or max(member.image_size for member in [*found, *specialists])
    chosen = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = {"device": chosen, "size": size, "merge": merge, "sliding": sliding or {}}
    return Ensemble(found, specialists, options, data_dir, seed)

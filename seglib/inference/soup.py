"""Average the weights of finished runs, greedily.

`python -m seglib soup RUN RUN ... --output DIR [--uniform] [--select-by miou]`
"""

import argparse
import inspect
import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from seglib.data.dataset import Subset, count_pixels, open_data
from seglib.data.loader import build_loader
from seglib.errors import InputError, InputErrors
from seglib.evaluation.metrics import compute_metrics, save_confusion
from seglib.inference.runs import FinishedRun, load_finished_run
from seglib.parts import find_kept_parts, load_parts
from seglib.runs.leaderboard import align
from seglib.runs.record import open_run, save_result
from seglib.training.averaging import estimate_batch_norm
from seglib.training.checkpoint import hash_weights, load_checkpoint, save_checkpoint
from seglib.training.device import describe_device, peak_memory_mb, seed_everything
from seglib.training.losses import build_loss
from seglib.training.step import ComputeLoss
from seglib.training.trainer import Evaluation, evaluate, order
from seglib.viz.plots import show_progress
from seglib.vocabulary import Selection

# Scores members and soups of finished runs: the model, the images and the loss that all of them share.


@dataclass(frozen=True)
class Scored:
    """A model that was scored: `runs` are the members averaged in it, `score` is in the unit of `select_by`."""

    runs: list[Path]
    evaluation: Evaluation
    metrics: dict[str, Any]
    score: float
    rank: float


@dataclass(frozen=True)
class Scorer:
    """One model, which holds each member and each soup in turn, and what it is scored with."""

    model: nn.Module
    compute_loss: ComputeLoss
    precision: str
    class_names: list[str]
    select_by: str
    batch_size: int
    train_loader: DataLoader
    val_loader: DataLoader
    count: Callable[[Iterable], Iterator]  # passes batches on and shows progress

    def score(self, runs: list[Path]) -> Scored:
        """Score the model as it is now; weights that were averaged get batch-norm statistics of their own first."""
        if len(runs) > 1:
            estimate_batch_norm(self.model, self.count(self.train_loader), self.batch_size, self.precision)
        evaluation = evaluate(
            self.model, self.count(self.val_loader), self.compute_loss, len(self.class_names), self.precision
        )
        metrics = compute_metrics(evaluation.confusion, self.class_names, self.batch_size) | {"loss": evaluation.loss}
        score = metrics[self.select_by]
        return Scored(runs, evaluation, metrics, score, order(metrics | {"val_loss": evaluation.loss}, self.select_by))


def open_scorer(
    first: FinishedRun, records: Sequence[Mapping[str, Any]], soups: int, select_by: str, data_dir: str, output: Path
) -> Scorer:
    """Make ready to score members and soups as the first of the runs was scored.

    Parameters
    ----------
    records : of all members.
    soups : how many will be scored besides, for the progress that is shown and written to `output`.
    """
    params, names = first.record["params"], first.class_names
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seed_everything(params["seed"], params["deterministic"])
    model = first.model.to(device, memory_format=torch.channels_last)
    if all(record.get("best_epoch", 1) <= record["params"].get("freeze_epochs", 0) for record in records):
        model.encoder.requires_grad_(False)  # was frozen throughout, and so its batch norms stay as they are
    train_images = _open_training_images(params, data_dir)
    load_parts(find_kept_parts(first.folder))
    loss = build_loss(params["loss"], len(names), class_names=names,
                      class_pixels=count_pixels(train_images).loc[names].to_numpy())  # fmt: skip
    train_loader = build_loader(
        train_images, first.batch_size, shuffle=True, augmentation=params["augmentation"], mixing=params["mixing"],
        expand=params["expand"], seed=params["seed"], num_workers=params["num_workers"],
    )  # fmt: skip
    val_loader = build_loader(
        first.val_images, first.batch_size, shuffle=False, augmentation="none", seed=0, num_workers=0
    )
    total = (len(records) + soups) * len(val_loader) + soups * len(train_loader)
    count = _count_batches(show_progress("soup: batches", output), total)
    return Scorer(
        model, lambda images, masks: loss(model(images), masks), first.record["precision"], names, select_by,
        first.batch_size, train_loader, val_loader, count,
    )  # fmt: skip


def _open_training_images(params: Mapping[str, Any], data_dir: str) -> Subset:
    params = params | ({"data_dir": data_dir} if data_dir else {})
    names = inspect.signature(open_data).parameters
    train_images, _ = open_data(**{name: params[name] for name in names if name in params})
    return train_images.take_debug_share() if params["debug"] else train_images


def _count_batches(tell: Callable[[int, int], None], total: int) -> Callable[[Iterable], Iterator]:
    done = itertools.count(1)

    def count(batches: Iterable) -> Iterator:
        for batch in batches:
            yield batch
            tell(next(done), total)

    return count


# Model soup: the mean of several finished runs' weights, kept where it is better than the best of them.


Weights = dict[str, Tensor]
MUST_AGREE = ("architecture", "encoder", "image_size", "paint_order", "background")


def make_soup(
    run_dirs: Sequence[str | Path],
    output_dir: str | Path,
    *,
    uniform: bool = False,
    select_by: str = "miou",
    data_dir: str = "",
    report: Callable[[str], None] = print,
) -> Path:
    """Average the best weights of finished runs; write the result as a finished run, and return its folder.

    Greedy: from the best run on, each next best is added where the soup does not get worse by it on the validation
    images. Uniform: all of them. Where no soup is better than the best run, the folder holds that run's weights. One run's
    weights are in memory beside the mean. Batch-norm statistics are estimated anew on the training images as the first run
    was shown them, those of `extra_data` left out; see `estimate_batch_norm`.

    Source: Wortsman et al. 2022, Model soups.

    Parameters
    ----------
    output_dir : a new or empty folder: best.pt, confusion.npz and record.json, whose `soup` says what is in it.
    select_by : {"miou", "miou_image", "accuracy", "loss"}; the loss is that of the first run.
    data_dir : where the runs' data is now; "" where it was.
    report : called with lines for people.

    Raises
    ------
    InputError
        Fewer than two runs, runs that cannot be averaged or compared, an output_dir that holds something.
    """
    began, output = time.monotonic(), Path(output_dir).expanduser().resolve()
    folders = [Path(folder).expanduser().resolve() for folder in run_dirs]
    _check_folders(folders, output)
    first, records = _open_members(folders, data_dir)
    warning = describe_starts([record["params"] for record in records])
    if warning:
        report(warning)
    output = open_run({}, output)
    scorer = open_scorer(first, records, 1 if uniform else len(folders) - 1, select_by, data_dir, output)
    members = [_score_member(scorer, folder) for folder in folders]
    ranked = sorted(members, key=lambda each: -each.rank)
    soups, weights = (_mix_uniform if uniform else _mix_greedily)(scorer, ranked)
    best = ranked[0]
    kept = max([best, *soups], key=lambda each: (each.rank, len(each.runs)))
    report(_format_result(folders, members, soups, kept, select_by))
    soup = {
        "method": "uniform" if uniform else "greedy", "select_by": select_by, "members": [str(folder) for folder in folders],
        "kept": [str(folder) for folder in kept.runs],
        "scores": [{"runs": [str(run) for run in each.runs], "score": each.score} for each in [*members, *soups]],
    }  # fmt: skip
    record = records[folders.index(best.runs[0])]
    _save(
        output, scorer, kept, best.runs[0], _load_weights(best.runs[0]) if kept is best else weights, soup=soup,
        params=record["params"], best_epoch=record.get("best_epoch"), train_images=record["train_images"],
        seconds=round(time.monotonic() - began, 2),
    )  # fmt: skip
    return output


def describe_starts(params: Sequence[Mapping[str, Any]]) -> str:
    """What to expect of runs that did not start from the same weights, in one line; "" if they did.

    params: of each run's record. A run starts from `init_from`, else from `encoder_weights` and what its seed draws.
    """
    starts = {
        f"init_from {each['init_from']}"
        if each.get("init_from")
        else f"{each['encoder_weights'] or 'no'} weights, seed {each['seed']}"
        for each in params
    }
    if len(starts) == 1:
        return ""
    return (
        f"these runs did not start from the same weights ({'; '.join(sorted(starts))}): the mean of such runs is usually far"
        " worse than each of them, and the best run is kept then; for a soup, fine-tune all from one run (init_from)"
    )


def _mix_greedily(scorer: Scorer, members: list[Scored]) -> tuple[list[Scored], Weights]:
    """Every soup that was tried, in order, and the weights of the last one that was kept."""
    kept, soups = members[0], []
    weights = _load_weights(kept.runs[0])
    for member in members[1:]:
        candidate = _mean(weights, len(kept.runs), _load_weights(member.runs[0]))
        scorer.model.load_state_dict(candidate)
        soups.append(scorer.score([*kept.runs, *member.runs]))
        if soups[-1].rank >= kept.rank:
            kept, weights = soups[-1], _read_weights(scorer.model)
    return soups, weights


def _mix_uniform(scorer: Scorer, members: list[Scored]) -> tuple[list[Scored], Weights]:
    runs = [member.runs[0] for member in members]
    weights = _load_weights(runs[0])
    for count, run in enumerate(runs[1:], 1):
        weights = _mean(weights, count, _load_weights(run))
    scorer.model.load_state_dict(weights)
    return [scorer.score(runs)], _read_weights(scorer.model)


def _mean(mean: Weights, count: int, weights: Weights) -> Weights:
    """The mean of `count` weights and one more, written over the latter; counters are the latter's."""
    for name, weight in weights.items():
        if weight.is_floating_point():
            weight.copy_(mean[name].lerp(weight, 1 / (count + 1)))
    return weights


def _load_weights(folder: Path) -> Weights:
    return load_checkpoint(folder / "best.pt", required=("model",))["model"]


def _read_weights(model: nn.Module) -> Weights:
    return {name: weight.detach().cpu().clone() for name, weight in model.state_dict().items()}


def _score_member(scorer: Scorer, folder: Path) -> Scored:
    scorer.model.load_state_dict(_load_weights(folder))
    return scorer.score([folder])


def _check_folders(folders: Sequence[Path], output: Path) -> None:
    if len(folders) < 2:
        raise InputError(f"soup: required two runs or more, got {len(folders)}; name the folders of finished runs")
    twice = [str(folder) for folder in dict.fromkeys(folders) if folders.count(folder) > 1]
    if twice:
        raise InputError(f"soup: required different runs, got {', '.join(twice)} more than once; name each once")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(
            f"output {output}: required a new or empty folder, got one that holds something; choose another"
        )


def _open_members(folders: Sequence[Path], data_dir: str) -> tuple[FinishedRun, list[Mapping[str, Any]]]:
    """The first run, and the records of all; those that cannot be averaged with the first are refused."""
    first = load_finished_run(folders[0], data_dir)
    records, problems = [first.record], []
    for folder in folders[1:]:
        run = load_finished_run(folder, data_dir)
        facts, others = (_read_facts(each) for each in (first, run))
        differing = [name for name in facts if facts[name] != others[name]]
        if differing:
            problems.append(
                f"{folder}: required the {', '.join(differing)} of {folders[0]}, got others; leave it out of the soup"
            )
        records.append(run.record)
    if problems:
        raise InputErrors(problems)
    return first, records


def _read_facts(run: FinishedRun) -> dict[str, Any]:
    shapes = {name: weight.shape for name, weight in run.model.state_dict().items()}
    return {name: run.record["params"][name] for name in MUST_AGREE} | {
        "shapes of weights": shapes,
        "classes": run.class_names,
        "validation images": run.val_images.image_ids.tolist(),
        "validation masks": run.confusion.sum(axis=2).tolist(),  # ids alone may be those of other images
    }


def _save(output: Path, scorer: Scorer, kept: Scored, best: Path, weights: Weights, **fields: Any) -> None:
    facts = load_checkpoint(best / "best.pt", required=("model",))
    if len(kept.runs) > 1:
        facts["weights"] = "soup"
    save_checkpoint(output / "best.pt", facts | {"model": weights})
    image_ids, device = scorer.val_loader.dataset.subset.image_ids, next(scorer.model.parameters()).device
    save_confusion(output / "confusion.npz", kept.evaluation.confusion, image_ids, scorer.class_names)
    save_result(
        output, metrics=kept.metrics, weights_sha256=hash_weights(weights), device=describe_device(device),
        precision=scorer.precision, threads=torch.get_num_threads(), val_images=len(image_ids),
        peak_memory_mb=peak_memory_mb(device), deterministic=fields["params"]["deterministic"], **fields,
    )  # fmt: skip


def _format_result(
    folders: list[Path], members: list[Scored], soups: list[Scored], kept: Scored, select_by: str
) -> str:
    root = os.path.commonpath([folder.parent for folder in folders])
    names = {folder: str(folder.relative_to(root)) for folder in folders}
    best, soup = max(members, key=lambda each: each.rank), max(soups, key=lambda each: each.rank)
    lines = [["", select_by, ""]]
    lines += [[names[each.runs[0]], f"{each.score:.4f}", "best member" if each is best else ""] for each in members]
    for each in soups:
        added = (
            f"soup of all {len(each.runs)}"
            if len(soups) == 1
            else f"soup of {len(each.runs)}: + {names[each.runs[-1]]}"
        )
        lines.append([added, f"{each.score:.4f}", "in" if set(each.runs) <= set(kept.runs) else "left out"])
    table = align(lines, {0}, {0, 2}, shutil.get_terminal_size().columns)
    difference = f"{soup.score - best.score:+.4f} against the best member"
    if kept is best:
        return f"{table}\nno soup is better ({difference}): {names[best.runs[0]]} is kept as it is"
    return (
        f"{table}\nsoup of {len(kept.runs)}: {select_by} {kept.score:.4f}, {difference}; chosen on these validation images,"
        " so expect a little less on others"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m seglib soup", description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a finished training run")
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder, which is then a finished run")
    parser.add_argument("--uniform", action="store_true", help="average all; else those that make the soup better")
    parser.add_argument("--select-by", default="miou", choices=get_args(Selection))
    parser.add_argument("--data-dir", default="", metavar="DIR", help="where the runs' data is now, if it moved")
    options = parser.parse_args(arguments)
    try:
        output = make_soup(
            options.runs, options.output, uniform=options.uniform, select_by=options.select_by,
            data_dir=options.data_dir,
        )  # fmt: skip
    except InputError as error:
        parser.exit(2, f"{error}\n")
    print(f"results are in {output}")


if __name__ == "__main__":
    print("python -m seglib.inference.soup is now: python -m seglib soup", file=sys.stderr)
    main()

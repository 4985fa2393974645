"""Average the weights of finished runs, greedily.

`python -m seglib soup RUN RUN ... --output DIR [--uniform] [--select-by miou]`
"""

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, channels_last, nn

from seglib.data.dataset import count_pixels
from seglib.data.loader import build_loader
from seglib.errors import InputError, InputErrors
from seglib.evaluation.metrics import compute_metrics, save_confusion
from seglib.files import expand
from seglib.inference.runs import FinishedRun, find_differences, load_finished_run
from seglib.parts import find_kept_parts, load_parts
from seglib.runs.record import open_run, save_result
from seglib.training.averaging import estimate_batch_norm
from seglib.training.checkpoint import hash_weights, load_checkpoint, save_checkpoint
from seglib.training.device import describe_device, peak_memory_mb, seed_everything
from seglib.training.losses import build_loss
from seglib.training.scoring import evaluate, order
from seglib.viz.plots import show_progress

Weights = dict[str, Tensor]


class Candidate(NamedTuple):
    """The mean of some runs, scored: `score` in the unit of `select_by`, `order` so that higher is better."""

    runs: list[Path]
    confusion: np.ndarray
    metrics: dict[str, Any]
    score: float
    order: float


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
    weights are in memory beside the mean. Batch-norm statistics are estimated again on the training images as the first
    run was shown them, those of `extra_data` left out; see `estimate_batch_norm`.

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
    began, output = time.monotonic(), expand(output_dir).resolve()
    folders = [expand(folder).resolve() for folder in run_dirs]
    _check_folders(folders, output)
    first, records = _open_members(folders, data_dir)
    if warning := describe_starts([record["params"] for record in records]):
        report(warning)
    output = open_run({}, output)
    score = _build_scorer(first, records, select_by, len(folders) + (1 if uniform else len(folders) - 1), output)
    members = [score([folder], _load_weights(folder)) for folder in folders]
    best, *others = sorted(members, key=lambda each: -each.order)
    soups, kept, weights = _average(first.model, score, best, [each.runs[0] for each in others], uniform)
    report(_format_result(members, soups, kept, select_by))
    checkpoint = load_checkpoint(best.runs[0] / "best.pt", required=("model",)) | {"model": weights}
    save_checkpoint(output / "best.pt", checkpoint | ({} if kept is best else {"weights": "soup"}))
    load_parts(find_kept_parts(best.runs[0]), keep_in=output)
    val = first.val_images
    save_confusion(output / "confusion.npz", kept.confusion, val.image_ids, first.class_names, val.images)
    scores = [{"runs": [*map(str, each.runs)], "score": each.score} for each in [*members, *soups]]
    soup = {"method": "uniform" if uniform else "greedy", "select_by": select_by, "members": [*map(str, folders)]}
    record, device = records[folders.index(best.runs[0])], next(first.model.parameters()).device
    save_result(
        output, soup=soup | {"kept": [*map(str, kept.runs)], "scores": scores}, metrics=kept.metrics,
        weights_sha256=hash_weights(weights), precision=first.record["precision"], threads=torch.get_num_threads(),
        device=describe_device(device), peak_memory_mb=peak_memory_mb(device), val_images=len(first.val_images),
        deterministic=record["params"]["deterministic"], seconds=round(time.monotonic() - began, 2),
        params=record["params"], best_epoch=record.get("best_epoch"), train_images=record["train_images"],
    )  # fmt: skip
    return output


def describe_starts(params: Sequence[Mapping[str, Any]]) -> str:
    """What to expect of runs that did not start from the same weights, in one line; "" if they did.

    params: of each run's record. A run starts from `init_from`, else from `encoder_weights` and what its seed draws.
    """
    drawn = [f"{each['encoder_weights'] or 'no'} weights, seed {each['seed']}" for each in params]
    starts = {each.get("init_from") or start for each, start in zip(params, drawn, strict=True)}
    if len(starts) == 1:
        return ""
    return (
        f"these runs did not start from the same weights ({'; '.join(sorted(starts))}): the mean of such runs is usually far"
        " worse than each of them, and the best run is kept then; for a soup, fine-tune all from one run (init_from)"
    )


def _check_folders(folders: Sequence[Path], output: Path) -> None:
    if len(folders) < 2:
        raise InputError(f"soup: required two runs or more, got {len(folders)}; name the folders of finished runs")
    if twice := [str(folder) for folder in dict.fromkeys(folders) if folders.count(folder) > 1]:
        raise InputError(f"soup: required different runs, got {', '.join(twice)} more than once; name each once")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        got = "one that holds something; choose another"
        raise InputError(f"output {output}: required a new or empty folder, got {got}")


def _open_members(folders: Sequence[Path], data_dir: str) -> tuple[FinishedRun, list[Mapping[str, Any]]]:
    """The first run, and the records of all; those that cannot be averaged with the first are refused."""
    first = load_finished_run(folders[0], data_dir)
    records, problems, shapes = [first.record], [], _list_shapes(first.model)
    for folder in folders[1:]:
        run = load_finished_run(folder, data_dir)
        records.append(run.record)
        differing = find_differences(first, run, "architecture", "encoder")
        differing += ["shapes of weights"] if _list_shapes(run.model) != shapes else []
        if differing:
            required = f"required the {', '.join(differing)} of {folders[0]}, got others"
            problems.append(f"{folder}: {required}; leave it out of the soup")
    if problems:
        raise InputErrors(problems)
    return first, records


def _list_shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in model.state_dict().items()}


def _build_scorer(
    first: FinishedRun, records: Sequence[Mapping[str, Any]], select_by: str, total: int, output: Path
) -> Callable[[list[Path], Weights], Candidate]:
    """A function that scores weights in the first run's model, as that run was scored, `total` times in all."""
    params, precision = first.record["params"], first.record["precision"]
    names, size = first.class_names, first.batch_size
    seed_everything(params["seed"], params["deterministic"])
    model = first.model.to("cuda" if torch.cuda.is_available() else "cpu", memory_format=channels_last)
    frozen = [each.get("best_epoch", 1) <= each["params"].get("freeze_epochs", 0) for each in records]
    if getattr(model, "encoder", None) is not None and all(frozen):
        model.encoder.requires_grad_(False)  # was frozen throughout, and so its batch norms stay as they are
    pixels = count_pixels(first.train_images).loc[names].to_numpy()
    loss = build_loss(params["loss"], len(names), class_names=names, class_pixels=pixels)
    options = {name: params[name] for name in ("augmentation", "mixing", "expand", "seed", "num_workers")}
    train_loader = build_loader(first.train_images, size, shuffle=True, **options)
    val_loader = build_loader(first.val_images, size, shuffle=False, augmentation="none", seed=0, num_workers=0)
    done, progress = count(1), show_progress("soup: scored", output)

    def score(runs: list[Path], weights: Weights) -> Candidate:
        model.load_state_dict(weights)
        if len(runs) > 1:
            estimate_batch_norm(model, train_loader, size, precision)
        found = evaluate(model, val_loader, lambda images, masks: loss(model(images), masks), len(names), precision)
        metrics = compute_metrics(found.confusion, names, size) | {"loss": found.loss}
        progress(next(done), total)
        ordered = order(metrics | {"val_loss": found.loss}, select_by)
        return Candidate(runs, found.confusion, metrics, metrics[select_by], ordered)

    return score


def _average(
    model: nn.Module, score: Callable, best: Candidate, others: list[Path], uniform: bool
) -> tuple[list[Candidate], Candidate, Weights]:
    """Every soup that was tried, in order; the best of all candidates, and its weights."""
    soups, kept, weights = [], best, _load_weights(best.runs[0])
    runs, mean = best.runs, weights
    for run in others:
        runs, mean = [*runs, run], _add(mean, len(runs), _load_weights(run))
        if uniform and run != others[-1]:
            continue
        soups.append(score(runs, mean))
        if soups[-1].order >= kept.order:
            kept = soups[-1]  # its weights are the model's, whose batch norms were estimated again
            weights = {name: weight.detach().cpu().clone() for name, weight in model.state_dict().items()}
        runs, mean = kept.runs, weights
    return soups, kept, weights


def _add(mean: Weights, number: int, weights: Weights) -> Weights:
    """The mean of `number` weights and one more, written over the latter; counters are the latter's."""
    for name, weight in weights.items():
        if weight.is_floating_point():
            weight.copy_(mean[name].lerp(weight, 1 / (number + 1)))
    return weights


def _load_weights(folder: Path) -> Weights:
    return load_checkpoint(folder / "best.pt", required=("model",))["model"]


def _format_result(members: list[Candidate], soups: list[Candidate], kept: Candidate, select_by: str) -> str:
    root = os.path.commonpath([each.runs[0].parent for each in members])
    names = {each.runs[0]: str(each.runs[0].relative_to(root)) for each in members}
    best, soup = (max(group, key=lambda each: each.order) for group in (members, soups))
    rows = [(names[each.runs[0]], f"{each.score:.4f}", "best member" if each is best else "") for each in members]
    for each in soups:
        added = f"{len(each.runs)}: + {names[each.runs[-1]]}" if len(soups) > 1 else f"all {len(each.runs)}"
        rows.append((f"soup of {added}", f"{each.score:.4f}", "in" if {*each.runs} <= {*kept.runs} else "left out"))
    table = pd.DataFrame(rows, columns=["", select_by, " "]).to_string(index=False)
    difference = f"{soup.score - best.score:+.4f} against the best member"
    if kept is best:
        return f"{table}\nno soup is better ({difference}): {names[best.runs[0]]} is kept as it is"
    line = f"soup of {len(kept.runs)}: {select_by} {kept.score:.4f}, {difference}"
    return f"{table}\n{line}; chosen on these validation images, so expect a little less on others"


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks; exit code 2 for runs and folders that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m seglib soup", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("run_dirs", nargs="+", metavar="RUN", help="folder of a finished training run")
    parser.add_argument("--output", required=True, metavar="DIR", dest="output_dir", help="a new folder")
    parser.add_argument("--uniform", action="store_true", help="average all; else those that make the soup better")
    parser.add_argument("--select-by", default="miou", choices=("miou", "miou_image", "loss", "accuracy"))
    parser.add_argument("--data-dir", default="", metavar="DIR", help="where the runs' data is now, if it moved")
    try:
        print(f"results are in {make_soup(**vars(parser.parse_args(arguments)))}")
    except InputError as error:
        parser.exit(2, f"{error}\n")
    return 0

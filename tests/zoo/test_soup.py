"""Soups of finished runs: what is averaged, what is kept, what is refused; the result opens as a finished run."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch

from seglib.data.dataset import open_data
from seglib.data.loader import build_loader
from seglib.errors import InputError
from seglib.evaluation.metrics import compute_metrics, load_confusion, save_confusion
from seglib.files import PROJECT, write_json
from seglib.inference.predict import count_confusion, open_predictions
from seglib.inference.runs import load_finished_run
from seglib.models import build_model
from seglib.parameters import read_defaults
from seglib.runs.leaderboard import collect_runs
from seglib.training.averaging import estimate_batch_norm
from seglib.training.checkpoint import hash_weights, load_checkpoint, save_checkpoint
from seglib.training.losses import build_loss
from seglib.training.scoring import Evaluation, evaluate
from seglib.zoo import soup
from seglib.zoo.soup import describe_starts, main, make_soup

CPU = torch.device("cpu")
ARCHITECTURE, ENCODER = "Linknet", "tu-test_resnet"
OVERRIDES = {"architecture": ARCHITECTURE, "encoder": ENCODER, "encoder_weights": "", "image_size": 64, "batch_size": 8,
             "augmentation": "none", "precision": "float32", "init_from": "base"}  # fmt: skip
OPENED = (
    "train_json",
    "val_json",
    "split",
    "folds",
    "fold",
    "seed",
    "paint_order",
    "background",
    "image_size",
    "cache",
)


def train(model, images, masks, steps, seed):
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(images), (8,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[chosen]), masks[chosen].long(), ignore_index=255).backward()
        optimizer.step()


def save_run(folder, data_dir, model, val_images, train_images, seed):
    params = (
        read_defaults(PROJECT / "notebooks" / "02_train.ipynb") | OVERRIDES | {"data_dir": str(data_dir), "seed": seed}
    )
    names = list(val_images.data.class_names)
    loader = build_loader(val_images, 8, shuffle=False, augmentation="none", seed=0, num_workers=0)
    loss = build_loss(params["loss"], len(names))
    confusion = evaluate(model, loader, lambda images, masks: loss(model(images), masks), len(names)).confusion
    folder.mkdir(parents=True)
    identity = {
        "architecture": ARCHITECTURE,
        "encoder": ENCODER,
        "num_classes": len(names),
        "class_names": names,
        "image_size": 64,
    }
    save_checkpoint(folder / "best.pt", {"model": model.state_dict(), "epoch": 3, **identity})
    save_confusion(folder / "confusion.npz", confusion, val_images.image_ids, names)
    write_json(folder / "record.json", {
        "status": "ok", "params": params, "precision": "float32", "threads": 1, "best_epoch": 3,
        "weights_sha256": hash_weights(model.state_dict()), "train_images": len(train_images),
        "metrics": compute_metrics(confusion, names, 8),
    })  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small_data):
    """Three runs that were fine-tuned from one, each on its own draws."""
    defaults = read_defaults(PROJECT / "notebooks" / "02_train.ipynb") | OVERRIDES
    train_images, val_images = open_data(str(small_data), **{name: defaults[name] for name in OPENED})
    pairs = [train_images.read(position) for position in range(len(train_images))]
    images, masks = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs, strict=True))
    images = images.permute(0, 3, 1, 2)
    torch.manual_seed(0)
    model = build_model(ARCHITECTURE, ENCODER, len(val_images.data.class_names)).to(memory_format=torch.channels_last)
    train(model, images, masks, 6, seed=0)
    base = {name: weight.clone() for name, weight in model.state_dict().items()}
    folder = tmp_path_factory.mktemp("outputs") / "grid"
    for seed in (1, 2, 3):
        model.load_state_dict(base)
        train(model, images, masks, 2, seed)
        save_run(folder / f"seed={seed}", small_data, model, val_images, train_images, seed)
    return [folder / f"seed={seed}" for seed in (1, 2, 3)]


@pytest.fixture
def copies(runs, tmp_path):
    """The runs, in folders of this test's own."""
    return [shutil.copytree(run, tmp_path / "runs" / run.name) for run in runs]


def change_params(run, **params):
    record = json.loads((run / "record.json").read_text())
    write_json(run / "record.json", record | {"params": record["params"] | params})


def read_weights(run):
    return load_checkpoint(run / "best.pt", required=("model",))["model"]


def read_record(folder):
    return json.loads((folder / "record.json").read_text())


def signature(*runs):
    return float(np.mean([read_weights(run)["network.segmentation_head.0.bias"].sum().item() for run in runs]))


def image_count(run):
    return len(load_confusion(run / "confusion.npz")[1])


@pytest.fixture
def worth(monkeypatch, runs):
    """Set what sets of runs are worth: pixels of 100 that are wrong."""

    def set_worth(**wrong):
        table = [(signature(*(runs[int(digit) - 1] for digit in name[1:])), pixels) for name, pixels in wrong.items()]

        def fake(model, batches, compute_loss, num_classes, precision):
            list(batches)
            value = model.network.segmentation_head[0].bias.detach().sum().item()
            distance, pixels = min((abs(each - value), pixels) for each, pixels in table)
            assert distance < 1e-5
            confusion = np.zeros((image_count(runs[0]), num_classes, num_classes), np.int64)
            confusion[:, 0, 0], confusion[:, 0, 1] = 100 - pixels, pixels
            return Evaluation(confusion, float(pixels))

        monkeypatch.setattr(soup, "evaluate", fake)

    return set_worth


def test_a_uniform_soup_is_the_mean_with_its_own_statistics(runs, worth, tmp_path):
    worth(_1=30, _2=20, _3=10, _123=5)
    soup = read_weights(make_soup(runs, tmp_path / "soup", uniform=True, select_by="accuracy"))
    members = [read_weights(run) for run in runs]
    model = load_finished_run(runs[0]).model
    for name, weight in soup.items():
        if "running" not in name and weight.is_floating_point():
            torch.testing.assert_close(weight, torch.stack([each[name] for each in members]).mean(0))
    model.load_state_dict(soup)
    train_images, _ = open_data(**{name: read_record(runs[0])["params"][name] for name in ("data_dir", *OPENED)})
    loader = build_loader(train_images, 8, shuffle=True, augmentation="none", seed=1, num_workers=0)
    estimate_batch_norm(model, loader, 8, "float32")
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, soup[name])


def test_a_greedy_soup_takes_the_best_first_and_leaves_out_what_makes_it_worse(runs, worth, tmp_path):
    """Run 3 is best; with 2 it is worse; with 1 it is better."""
    worth(_1=30, _2=20, _3=10, _23=15, _13=8)
    lines = []
    folder = make_soup(runs, tmp_path / "soup", select_by="accuracy", report=lines.append)
    soup = read_record(folder)["soup"]
    assert soup["kept"] == [str(runs[2]), str(runs[0])]
    assert [each["score"] for each in soup["scores"]] == pytest.approx([0.7, 0.8, 0.9, 0.85, 0.92])
    assert soup["members"] == [str(run) for run in runs]
    weight = "network.segmentation_head.0.weight"
    expected = (read_weights(runs[2])[weight] + read_weights(runs[0])[weight]) / 2
    torch.testing.assert_close(read_weights(folder)[weight], expected)
    table = " ".join("\n".join(lines).split())
    assert "soup of 2: + seed=2 0.8500 left out soup of 2: + seed=1 0.9200 in" in table
    assert "soup of 2: accuracy 0.9200, +0.0200 against the best member; chosen on these validation images" in table
    assert read_record(folder)["params"]["seed"] == 3


@pytest.mark.parametrize("uniform", [False, True])
def test_a_soup_that_is_worse_leaves_the_best_run_as_it_was(runs, worth, tmp_path, uniform):
    worth(_1=30, _2=20, _3=10, _23=40, _13=40, _123=40)
    lines = []
    folder = make_soup(runs, tmp_path / "soup", uniform=uniform, select_by="loss", report=lines.append)
    assert hash_weights(read_weights(folder)) == read_record(runs[2])["weights_sha256"]
    assert read_record(folder)["soup"]["kept"] == [str(runs[2])]
    assert read_record(folder)["metrics"]["loss"] == 10
    assert "no soup is better (+30.0000 against the best member): seed=3 is kept as it is" in lines[-1]


def test_a_soup_is_a_finished_run(runs, tmp_path, capsys):
    folder = make_soup(runs[:2], tmp_path / "grid" / "soup", uniform=True, select_by="loss")
    run = load_finished_run(folder)
    record = read_record(folder)
    members = [each["score"] for each in record["soup"]["scores"]]
    assert (record["status"], len(members)) == ("ok", 3)
    assert record["metrics"]["loss"] == min(members)
    predictions = open_predictions(run, CPU)
    np.testing.assert_array_equal(count_confusion(run, predictions.preds), run.confusion)
    (row,) = collect_runs(folder.parent, ["soup"], ["seed"])
    assert row.status == "ok"
    assert row.miou == record["metrics"]["miou"]
    assert "soup: scored" in capsys.readouterr().err


def test_the_same_soup_has_the_same_bits_and_members_score_what_their_runs_did(runs, tmp_path):
    one, other = (make_soup(runs[:2], tmp_path / name, uniform=True) for name in ("one", "other"))
    assert hash_weights(read_weights(one)) == hash_weights(read_weights(other))
    scores = [each["score"] for each in read_record(one)["soup"]["scores"]]
    assert scores[:2] == [read_record(run)["metrics"]["miou"] for run in runs[:2]]


def test_runs_that_differ_are_refused_by_name_all_at_once(copies, tmp_path):
    change_params(copies[1], paint_order="area")
    confusion, image_ids, class_names = load_confusion(copies[2] / "confusion.npz")
    save_confusion(copies[2] / "confusion.npz", confusion[::-1], image_ids, class_names)
    with pytest.raises(InputError) as caught:
        make_soup(copies, tmp_path / "soup")
    first, second = str(caught.value).split("\n")
    assert first.startswith(f"{copies[1]}: required the paint_order")
    assert f"{copies[2]}: required the validation masks of {copies[0]}, got others; leave it out of the soup" in second
    assert not (tmp_path / "soup").exists()


def test_another_architecture_is_refused(copies, tmp_path):
    names = load_confusion(copies[1] / "confusion.npz")[2]
    model = build_model("Unet", ENCODER, len(names))
    best = load_checkpoint(copies[1] / "best.pt", required=("model",))
    save_checkpoint(copies[1] / "best.pt", best | {"model": model.state_dict(), "architecture": "Unet"})
    record = read_record(copies[1]) | {"weights_sha256": hash_weights(model.state_dict())}
    write_json(copies[1] / "record.json", record | {"params": record["params"] | {"architecture": "Unet"}})
    with pytest.raises(InputError, match="required the architecture, shapes of weights of"):
        make_soup(copies[:2], tmp_path / "soup")


def test_one_run_or_the_same_run_twice_is_no_soup(runs, tmp_path):
    with pytest.raises(InputError, match="soup: required two runs or more, got 1"):
        make_soup(runs[:1], tmp_path / "soup")
    with pytest.raises(InputError, match=r"required different runs, got .*seed=1 more than once"):
        make_soup([runs[0], runs[0].parent / "." / "seed=1"], tmp_path / "soup")


def test_nothing_is_written_over(runs, tmp_path):
    (tmp_path / "soup").mkdir()
    (tmp_path / "soup" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="required a new or empty folder, got one that holds something"):
        make_soup(runs, tmp_path / "soup")


def test_runs_with_other_beginnings_are_warned_of():
    seeds = [{"encoder_weights": "", "seed": seed} for seed in (1, 2)]
    assert "did not start from the same weights (no weights, seed 1; no weights, seed 2)" in describe_starts(seeds)
    assert "usually far worse" in describe_starts(seeds)
    assert describe_starts([each | {"init_from": "base"} for each in seeds]) == ""
    assert describe_starts([seeds[0], seeds[0] | {"lr": 0.1}]) == ""


def test_the_command_line_prints_the_table_or_what_is_wrong(runs, tmp_path, monkeypatch, capsys):
    words = [
        "soup",
        str(runs[0]),
        str(runs[1]),
        "--output",
        str(tmp_path / "soup"),
        "--uniform",
        "--select-by",
        "miou_image",
    ]
    monkeypatch.setattr(sys, "argv", words)
    main()
    printed = capsys.readouterr().out
    assert "best member" in printed
    assert f"results are in {tmp_path / 'soup'}" in printed
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "required a new or empty folder" in capsys.readouterr().err

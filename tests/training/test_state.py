"""A killed training goes on to the same bits; damaged and foreign checkpoints are set aside; more epochs continue."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from seglib.errors import InputError, StoppedForNow
from seglib.files import STOP_AFTER, write_json
from seglib.training.checkpoint import hash_weights, load_checkpoint, name_differences
from seglib.training.scoring import find_best

OFTEN = 1e-9  # [min] between checkpoints: one after every step


def weights_hash(run_dir, name="last.pt"):
    return hash_weights(load_checkpoint(run_dir / name, required=("model",))["model"])


def same_files(folder, other):
    confusions = [np.load(each / "confusion.npz")["confusion"] for each in (folder, other)]
    return np.array_equal(*confusions) and all(
        weights_hash(folder, name) == weights_hash(other, name) for name in ("last.pt", "best.pt")
    )


@pytest.fixture(scope="module")
def uninterrupted(subsets, train_small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train_small(subsets, folder)


@pytest.mark.parametrize("minutes", [0, OFTEN])
@pytest.mark.parametrize("when", [(1, 1), (2, 2), (3, 1)])
def test_a_killed_run_goes_on_to_the_same_weights(subsets, train_small, uninterrupted, tmp_path, when, minutes, capsys):
    folder, whole = uninterrupted
    with pytest.raises(KeyboardInterrupt):
        train_small(subsets, tmp_path / "killed", kill=when, minutes=minutes)
    resumed = train_small(subsets, tmp_path / "killed")
    assert same_files(tmp_path / "killed", folder)
    same = ["epoch", "lr", "train_loss", "val_loss", "miou"]
    pd.testing.assert_frame_equal(resumed[same], whole[same])
    step = f" and step {when[1]} of the next" if minutes else ""
    assert (f"going on after epoch {when[0] - 1}{step}, where" in capsys.readouterr().out) == bool(
        when[0] > 1 or minutes
    )


def test_a_run_that_the_runner_stops_for_now_goes_on_to_the_same_weights(
    subsets, train_small, uninterrupted, tmp_path, monkeypatch
):
    for epoch in (1, 2, 2):
        monkeypatch.setenv(STOP_AFTER, f"{epoch}")
        with pytest.raises(StoppedForNow, match=rf"^after epoch {epoch}, mIoU 0\.\d{{4}}$"):
            train_small(subsets, tmp_path / "stopped")
        assert len(pd.read_csv(tmp_path / "stopped" / "history.csv")) == epoch
    monkeypatch.setenv(STOP_AFTER, "0")
    train_small(subsets, tmp_path / "stopped")
    assert same_files(tmp_path / "stopped", uninterrupted[0])


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "plateau", "epochs": 5},
        {"mixing": {"snapmix": 0.7, "mixup": {"p": 0.7}}, "workers": 2},
        {"averaging": {"ema": {"decay": 0.9}, "swa": {"start": 0.4}}},
        {"architecture": "FPN"},  # draws dropout in every step
        {"precision": "float16", "clip_norm": 1.0},  # a scaler that has learnt
    ],
    ids=["plateau", "mixed batches", "averages", "dropout", "scaler"],
)
def test_whatever_a_step_depends_on_survives_a_kill_in_the_middle_of_an_epoch(subsets, train_small, tmp_path, options):
    train_small(subsets, tmp_path / "whole", **options)
    for when in ((2, 3), (3, 2)):
        with pytest.raises(KeyboardInterrupt):
            train_small(subsets, tmp_path / "killed", kill=when, minutes=OFTEN, **options)
    train_small(subsets, tmp_path / "killed", **options)
    assert same_files(tmp_path / "killed", tmp_path / "whole")


class Decay:
    """Shrinks the weights after each step, ever less, and counts: it must know how far it was."""

    def __init__(self):
        self.rate, self.calls = 0.1, {"step": 0, "epoch": 0}

    def on_step(self, trainer):
        self.calls["step"] += 1
        self.rate *= 0.7
        with torch.no_grad():
            for weight in trainer.model.parameters():
                weight *= 1 - self.rate

    def on_epoch(self, trainer):
        self.calls["epoch"] += 1

    def state_dict(self):
        return {"rate": torch.tensor(self.rate), "calls": dict(self.calls)}

    def load_state_dict(self, state):
        self.rate, self.calls = state["rate"].item(), dict(state["calls"])


@pytest.mark.parametrize("minutes", [0, OFTEN])
def test_a_callback_goes_on_after_a_kill_where_it_was(subsets, train_small, tmp_path, minutes):
    whole, killed, on = Decay(), Decay(), Decay()
    train_small(subsets, tmp_path / "whole", callback=whole)
    with pytest.raises(KeyboardInterrupt):
        train_small(subsets, tmp_path / "killed", callback=killed, kill=(2, 2), minutes=minutes)
    train_small(subsets, tmp_path / "killed", callback=on)
    assert (
        whole.calls == {"step": 3 * -(-len(subsets[0]) // 8), "epoch": 3}
        and on.calls == whole.calls
        and on.rate == pytest.approx(whole.rate)
    )
    assert same_files(tmp_path / "killed", tmp_path / "whole")


def test_a_callback_that_fails_at_its_state_costs_no_training(subsets, train_small, tmp_path):
    train_small(subsets, tmp_path / "run", callback=Decay(), epochs=1)
    before = (tmp_path / "run" / "last.pt").read_bytes()
    broken = Decay()
    broken.load_state_dict = lambda state: 1 / 0
    with pytest.raises(ZeroDivisionError):
        train_small(subsets, tmp_path / "run", callback=broken, epochs=1)
    assert (tmp_path / "run" / "last.pt").read_bytes() == before


def test_a_state_that_cannot_be_read_again_or_of_another_callback_is_refused(subsets, train_small, tmp_path, capsys):
    odd = Decay()
    odd.state_dict = lambda: {"rate": object()}
    with pytest.raises(InputError, match=r"callback Decay: required a state_dict\(\) of tensors, numbers, texts"):
        train_small(subsets, tmp_path / "odd", callback=odd, epochs=1)
    train_small(subsets, tmp_path / "run", callback=Decay(), epochs=1)
    train_small(subsets, tmp_path / "run", epochs=1)
    assert "last.pt: is of another run, with other callbacks; set aside in" in capsys.readouterr().out


@pytest.mark.slow
def test_a_compiled_training_goes_on_to_the_same_weights(subsets, train_small, tmp_path):
    train_small(subsets, tmp_path / "whole", epochs=2, compiled=True)
    with pytest.raises(KeyboardInterrupt):
        train_small(subsets, tmp_path / "killed", epochs=2, compiled=True, kill=(2, 2), minutes=OFTEN)
    train_small(subsets, tmp_path / "killed", epochs=2, compiled=True)
    assert same_files(tmp_path / "killed", tmp_path / "whole")


def test_a_training_that_is_stopped_and_started_again_in_one_process_begins_with_the_same_weights(
    subsets, build_small, killer, uninterrupted, tmp_path
):
    trainer, compute_loss = build_small(subsets, tmp_path, callbacks=[killer(1, 2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.run(compute_loss)
    trainer.callbacks.clear()
    begun = load_checkpoint(tmp_path / "last.pt", ("model",))["model"]
    assert hash_weights(trainer.model.state_dict()) != hash_weights(begun)
    trainer.run(compute_loss)
    assert same_files(tmp_path, uninterrupted[0])


def test_another_device_or_number_of_threads_is_told_by_epoch(subsets, train_small, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_small(subsets, tmp_path, kill=(2, 1))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    history = train_small(subsets, tmp_path)
    torch.set_num_threads(threads)
    assert history["conditions"].tolist() == [
        f"cpu, {count} threads, float32" for count in (threads, threads + 1, threads + 1)
    ]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def replace_by_another_file(path):
    torch.save({"weights": torch.zeros(3)}, path)


def change_architecture(path):
    torch.save(load_checkpoint(path, ()) | {"architecture": "Unet"}, path)


def change_parameter(path):
    torch.save(load_checkpoint(path, ()) | {"params": {"tag": 0.2, "seed": 5, "precision": "float32"}}, path)


def change_a_shape(path):
    state = load_checkpoint(path, ())
    name = next(iter(state["model"]))
    state["model"][name] = torch.zeros(1)
    torch.save(state, path)


def flip_a_bit_of_a_weight(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


def put(**entries):
    """Entries of types that no training writes."""
    return lambda path: torch.save(load_checkpoint(path, ()) | entries, path)


TAGGED = {"tag": 0.1, "seed": 5}


@pytest.fixture(scope="module")
def tagged(subsets, train_small, tmp_path_factory):
    """The same training with one more parameter; tests must not write into it."""
    folder = tmp_path_factory.mktemp("tagged")
    train_small(subsets, folder, params=TAGGED)
    return folder


@pytest.mark.parametrize(
    "spoil, words",
    [
        (truncate, r"last\.pt: required a checkpoint, got"),
        (replace_by_another_file, r"last\.pt: required a checkpoint with model, .* it has no model"),
        (change_architecture, r"last\.pt: is of another run, with other architecture"),
        (change_parameter, r"last\.pt: is of another run, with other tag"),
        (change_a_shape, r"last\.pt: is of another model, with other "),
        (flip_a_bit_of_a_weight, r"last\.pt: required a checkpoint, got BadZipFile: .*; train it again"),
        (put(model=None), r"last\.pt: required a checkpoint with model, .* it has no model"),
        (put(optimizer={"state": []}), r"last\.pt: cannot be gone on from \(KeyError"),
        (put(rows=None), r"last\.pt: cannot be gone on from \(TypeError"),
        (lambda path: flip_a_bit_of_a_weight(path.with_name("best.pt")), r"best\.pt: is damaged or gone"),
        (lambda path: path.with_name("confusion.npz").write_bytes(b""), r"confusion\.npz: is damaged or gone"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_named_and_set_aside(
    subsets, train_small, uninterrupted, tagged, tmp_path, spoil, words, capsys
):
    shutil.copytree(tagged, tmp_path, dirs_exist_ok=True)
    spoil(tmp_path / "last.pt")
    spoilt = {name: (tmp_path / name).read_bytes() for name in ("last.pt", "best.pt", "confusion.npz", "history.csv")}
    capsys.readouterr()
    train_small(subsets, tmp_path, params=TAGGED)
    out = capsys.readouterr().out
    assert pd.Series([out]).str.contains(words).item() and "set aside in" in out and "begins again" in out
    assert same_files(tmp_path, uninterrupted[0])
    assert {name: (tmp_path / "set_aside.1" / name).read_bytes() for name in spoilt} == spoilt


def finish(folder, **params):
    write_json(folder / "record.json", {"status": "ok", "params": {"seed": 5, "precision": "float32"} | params})


@pytest.mark.parametrize("schedule", ["constant", "plateau"])
def test_more_epochs_go_on_to_what_all_of_them_would_have_given(subsets, train_small, tmp_path, schedule, capsys):
    grid = tmp_path / "grid"
    grid.mkdir()
    for run, params in {"a": {"tag": 1.0, "epochs": 2}, "b": {"tag": 2.0, "epochs": 2}}.items():
        train_small(subsets, grid / run, epochs=2, schedule=schedule, params=params)
        finish(grid / run, **params, num_workers=3)
    for name, source in {"from scratch": "", "on": grid}.items():
        params = {"tag": 2.0, "epochs": 4}
        train_small(subsets, tmp_path / name, epochs=4, schedule=schedule, params=params, continue_from=str(source))
    assert same_files(tmp_path / "from scratch", tmp_path / "on")
    assert f"training {grid / 'b'} on, which has 2 epochs" in capsys.readouterr().out


def test_a_schedule_that_would_jump_is_refused_with_its_rates(subsets, train_small, tmp_path):
    params = {"scheduler": "cosine", "epochs": 2}
    train_small(subsets, tmp_path / "short", epochs=2, params=params)
    finish(tmp_path / "short", **params)
    words = r"continue_from .*short: cosine over 4 epochs has a learning rate of .* in epoch 2, where .* it would jump; take a"
    with pytest.raises(InputError, match=words):
        train_small(
            subsets, tmp_path / "long", epochs=4, params=params | {"epochs": 4}, continue_from=str(tmp_path / "short")
        )
    assert not [*(tmp_path / "long").glob("*.pt")]


def test_a_warm_up_that_would_have_been_another_is_refused_for_plateau_too(subsets, train_small, tmp_path):
    params = {"scheduler": "plateau", "epochs": 1}
    train_small(subsets, tmp_path / "short", epochs=1, schedule="plateau", warmup=0.5, params=params)
    finish(tmp_path / "short", **params)
    with pytest.raises(InputError, match=r"plateau over 3 epochs has a learning rate of .* in epoch 1, where"):
        train_small(subsets, tmp_path / "long", schedule="plateau", warmup=1.0, params=params | {"epochs": 3},
                    continue_from=str(tmp_path / "short"))  # fmt: skip


@pytest.mark.parametrize(
    "params, words",
    [
        ({"tag": 0.2, "epochs": 4}, r"it has other tag$"),
        ({"tag": 0.1, "epochs": 1}, r"it has 1 epochs, and 1 are asked for"),
    ],
)
def test_only_a_run_with_fewer_epochs_and_the_same_rest_is_trained_on(subsets, train_small, tmp_path, params, words):
    train_small(subsets, tmp_path / "short", epochs=1, params={"tag": 0.1, "epochs": 1})
    finish(tmp_path / "short", tag=0.1, epochs=1)
    with pytest.raises(
        InputError, match=rf"continue_from .*short: required a finished run with fewer epochs .*; {words}"
    ):
        train_small(
            subsets, tmp_path / "on", epochs=params["epochs"], params=params, continue_from=str(tmp_path / "short")
        )


@pytest.mark.parametrize(
    ("changes", "different"),
    [
        ({"seed": 3, "split_seed": 3}, []),
        ({"seed": 3, "split_seed": 4}, ["split_seed"]),
        ({"seed": 4, "split_seed": 3}, ["seed"]),
        ({"seed": 3, "split_seed": 4, "split": "given"}, ["split", "split_seed"]),
    ],
)
def test_a_checkpoint_from_before_split_seed_was_split_by_its_seed(changes, different):
    before = {"params": {"seed": 3, "split": "kfold", "lr": 0.1}}
    assert name_differences({"params": {"split": "kfold", "lr": 0.1} | changes}, before) == different
    given = {"params": {"seed": 3, "split": "given", "split_seed": 5}}
    assert name_differences(given, {"params": {"seed": 3, "split": "given"}}) == []


def test_the_best_of_each_score_is_found_among_plain_and_averaged_weights():
    history = pd.DataFrame({
        "epoch": [1, 2, 3], "miou": [0.1, 0.3, 0.2], "miou_image": [0.5, 0.3, 0.2], "accuracy": [np.nan] * 3,
        "val_loss": [1.0, 0.5, 0.7], "ema_miou": [0.0, 0.2, 0.4], "ema_val_loss": [2.0, 2.0, 2.0], "swa_miou": [np.nan, np.nan, 0.35],
    })  # fmt: skip
    assert find_best(history) == {
        "miou": {"epoch": 3, "weights": "ema", "score": 0.4},
        "miou_image": {"epoch": 1, "weights": "plain", "score": 0.5},
        "loss": {"epoch": 2, "weights": "plain", "score": 0.5},
    }

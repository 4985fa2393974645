"""Checkpoints are whole, safe to load, and hashed bit for bit."""

import pickle

import pytest
import torch

from seglib.errors import InputError
from seglib.training.checkpoint import hash_weights, load_checkpoint, save_checkpoint


def test_a_checkpoint_comes_back(tmp_path):
    save_checkpoint(tmp_path / "best.pt", {"model": {"weight": torch.arange(3.0)}, "epoch": 2})
    state = load_checkpoint(tmp_path / "best.pt", required=("model", "epoch"))
    assert state["epoch"] == 2
    assert torch.equal(state["model"]["weight"], torch.arange(3.0))
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


def test_what_cannot_be_saved_leaves_the_old_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "best.pt", {"epoch": 1})
    with pytest.raises(Exception, match=r"pickle|local object"):
        save_checkpoint(tmp_path / "best.pt", {"epoch": lambda: 2})
    assert load_checkpoint(tmp_path / "best.pt", required=())["epoch"] == 1


def test_a_truncated_checkpoint_is_named(tmp_path):
    save_checkpoint(tmp_path / "last.pt", {"model": {"weight": torch.zeros(1000)}})
    content = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"last\.pt: required a checkpoint, got"):
        load_checkpoint(tmp_path / "last.pt", required=("model",))


def test_a_foreign_checkpoint_says_what_it_lacks(tmp_path):
    save_checkpoint(tmp_path / "best.pt", {"model": {}})
    with pytest.raises(InputError, match="required a checkpoint with model, epoch; it has no epoch"):
        load_checkpoint(tmp_path / "best.pt", required=("model", "epoch"))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return (tmp_path.joinpath("owned").touch, ())

    (tmp_path / "best.pt").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(InputError, match="required a checkpoint, got"):
        load_checkpoint(tmp_path / "best.pt", required=())
    assert not (tmp_path / "owned").exists()


def test_the_hash_sees_one_bit_a_name_and_a_shape():
    weights = {"a": torch.zeros(4), "n": torch.tensor(3)}
    changed = torch.zeros(4)
    changed[2] = -0.0
    others = [
        {"b": torch.zeros(4), "n": torch.tensor(3)},
        {"a": torch.zeros(2, 2), "n": torch.tensor(3)},
        {"a": changed, "n": torch.tensor(3)},
    ]
    hashes = {hash_weights(state) for state in [weights, *others]}
    assert len(hashes) == 4
    assert hash_weights(dict(reversed(weights.items()))) == hash_weights(weights)


@pytest.mark.parametrize("words", ["unexpected pos 64 vs 0", "PytorchStreamWriter failed: file write failed"])
def test_a_full_disk_is_said_by_its_name(tmp_path, monkeypatch, words):
    def refuse(state, path):
        raise RuntimeError(words)

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(OSError, match=r"\[Errno 28\] No space left on device: '.*last.pt'"):
        save_checkpoint(tmp_path / "last.pt", {})
    assert not [*tmp_path.iterdir()]

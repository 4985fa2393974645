"""The trainer refuses what does not belong together, and takes the user's own loop, loss and model."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from seglib.data.layouts import fingerprint_sets
from seglib.errors import InputError
from seglib.training.averaging import build_averages
from seglib.training.checkpoint import hash_weights, load_checkpoint
from seglib.training.optim import build_optimizer, build_scheduler
from seglib.training.step import ForwardOnce, GradientStep
from seglib.training.trainer import Trainer


def rebuild(trainer, run_dir, **changes):
    """A trainer of the same objects but for some."""
    names = ("model", "train_loader", "val_loader", "num_epochs", "averages")
    objects = {name: getattr(trainer, name) for name in names}
    objects |= {"optimizer": trainer.optimizer, "scheduler": trainer.scheduler}
    return Trainer(**objects | {"parameters": {"seed": 5, "precision": "float32"}, "run_dir": run_dir} | changes)


@pytest.fixture
def trainer(subsets, build_small, tmp_path):
    return build_small(subsets, tmp_path, epochs=1)[0]


def other_model(trainer):
    return {"model": type(trainer.model)(nn.Conv2d(3, 12, 1), (0, 0, 0), (1, 1, 1))}


def other_optimizer(trainer):
    return {"optimizer": build_optimizer("sgd", trainer.model, 0.1, 0)}


def spent_schedule(trainer):
    schedule = build_scheduler("constant", trainer.optimizer, 1, len(trainer.train_loader), 0)
    trainer.optimizer.step()
    schedule.step()
    return {"scheduler": schedule}


def other_length(trainer):
    return {"scheduler": build_scheduler("cosine", trainer.optimizer, 7, len(trainer.train_loader), 0)}


def other_averages(trainer):
    return {"averages": build_averages({}, nn.Conv2d(3, 2, 1), 1, 4, 0)}


def other_rate(trainer):
    return {"parameters": {"seed": 5, "precision": "float32", "lr": 0.01}}


def other_seed(trainer):
    return {"parameters": {"seed": 6, "precision": "float32"}}


def other_painting(trainer):
    return {"parameters": {"seed": 5, "precision": "float32", "paint_order": "area"}}


def stale_hash(trainer):
    return {"data_hash": "0" * 32}


def no_extra(trainer):
    return {"parameters": {"seed": 5, "precision": "float32", "extra_data": [{"json": "more.json"}]}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_painting, "Subset was built with paint_order 'class_id', the parameter is 'area'; run its cell"),
        (no_extra, "the training images are without extra_data; run the cell that joins them"),
        (stale_hash, "data_hash is not that of the data which the images were opened from; run the cell that opens"),
        (other_model, "the optimizer is of another model; run the optimizer's cell again"),
        (other_optimizer, "the schedule is of another optimizer; run the schedule's cell again"),
        (spent_schedule, "the schedule was stepped already; run the cells of optimizer and schedule again"),
        (other_length, r"the schedule is for 7 epochs of \d+ steps, the training has 1 of \d+"),
        (other_averages, "the averages are of another model"),
        (other_rate, r"AdamW was built with lr 0\.001, the parameter is 0\.01; run its cell and those after it again"),
        (other_seed, "the model was built with seed 5, the parameter is 6; run the model's cell"),
    ],
)
def test_objects_that_do_not_belong_together_are_refused_with_the_cell_to_run(trainer, tmp_path, change, words):
    with pytest.raises(InputError, match=f"^trainer: {words}"):
        rebuild(trainer, tmp_path, **change(trainer))


def test_the_hash_of_the_data_that_was_opened_is_taken(trainer, small_data, tmp_path):
    data_hash = fingerprint_sets(small_data, ["train.json", "val.json"], [])
    assert rebuild(trainer, tmp_path, data_hash=data_hash).data_hash == data_hash


def test_a_model_that_was_trained_is_not_begun_again_and_a_finished_loop_does_nothing(subsets, build_small, tmp_path):
    trainer, compute_loss = build_small(subsets, tmp_path, epochs=1)
    trainer.run(compute_loss)
    before = hash_weights(trainer.model.state_dict())
    assert list(trainer.epochs()) == []
    assert hash_weights(trainer.model.state_dict()) == before
    with pytest.raises(InputError, match="the model is trained already; run the cell that builds it"):
        rebuild(trainer, tmp_path)


def test_a_parameter_that_changed_after_the_trainer_was_made_stops_the_loop(subsets, build_small, tmp_path):
    trainer, _ = build_small(subsets, tmp_path, epochs=1, clip_norm=0.0)
    trainer.parameters["clip_norm"] = 1.0
    with pytest.raises(InputError, match=r"clip_norm was 0\.0 when the trainer was made and is 1\.0 now"):
        next(trainer.epochs())


def test_a_loss_of_another_model_is_refused(subsets, build_small, tmp_path):
    trainer, _ = build_small(subsets, tmp_path, epochs=1)
    other = nn.Conv2d(3, 12, 1)
    next(trainer.epochs())
    images, targets = next(trainer.batches())
    with pytest.raises(
        InputError, match="compute_loss: required a call of the trainer's model, got none; run the cells"
    ):
        trainer.step(lambda images, targets: other(images.float()).mean(), images, targets)


def test_a_loop_without_an_evaluation_says_so(subsets, build_small, tmp_path):
    trainer, compute_loss = build_small(subsets, tmp_path, epochs=2)
    with pytest.raises(InputError, match=r"epoch 1 has no scores; end the loop's body with trainer\.evaluate"):
        for _ in trainer.epochs():
            for images, targets in trainer.batches():
                trainer.step(compute_loss, images, targets)


def test_the_gradient_can_be_changed_between_backward_and_update(subsets, build_small, tmp_path):
    """Gradient noise of zero gives the bits of a step, and of more does not; both are resumable and recorded."""
    hashes = []
    for name, scale in {"plain": None, "zero": 0.0, "noise": 0.1}.items():
        trainer, compute_loss = build_small(subsets, tmp_path / name, epochs=1)
        for _ in trainer.epochs():
            for images, targets in trainer.batches():
                if scale is None:
                    trainer.step(compute_loss, images, targets)
                    continue
                trainer.backward(compute_loss, images, targets)
                for weight in trainer.model.parameters():
                    if weight.grad is not None:
                        weight.grad += scale * torch.randn_like(weight.grad)
                trainer.update()
            trainer.evaluate()
        hashes.append(load_checkpoint(tmp_path / name / "last.pt", ("model",))["model"])
    plain, zero, noise = map(hash_weights, hashes)
    assert plain == zero != noise


def test_a_model_and_a_loss_made_by_hand_train_and_are_recorded_as_such(subsets, build_small, tmp_path):
    trainer, _ = build_small(subsets, tmp_path, epochs=1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 1))
    seen, loss = [], nn.CrossEntropyLoss(ignore_index=255)
    model.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0].dtype, inputs[0].mean().item())))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    names = {"architecture": "FPN", "loss": {"dice": 1.0}, "optimizer": "adamw", "scheduler": "cosine"}
    made = rebuild(
        trainer, tmp_path, model=model, optimizer=optimizer, scheduler=scheduler, averages=None,
        parameters={"seed": 5, "precision": "float32", **names},
    )  # fmt: skip
    made.run(lambda images, targets: loss(model(images), targets))
    assert {dtype for dtype, _ in seen} == {torch.float32} and abs(np.mean([mean for _, mean in seen])) < 2
    result = made.describe_result()
    assert result["made_by_hand"] == ["architecture", "loss", "optimizer", "scheduler"]
    best = load_checkpoint(tmp_path / "best.pt", ("model",))
    assert best["made_by_hand"] and best["architecture"] == "Sequential"
    assert json.dumps(result["metrics"]["miou"])


def test_one_forward_pass_serves_all_outputs_and_masks():
    model, images = nn.Conv2d(3, 2, 1), torch.rand(2, 3, 4, 4)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    with ForwardOnce(model, images) as once:
        first, again, other = model(images), model(images), model(images.clone())
    assert first is again and other is not first and torch.equal(first, other)
    assert once.called and len(once.outputs) == 1 and len(calls) == 2
    model(images)
    assert len(calls) == 3


def test_a_gradient_is_unscaled_for_whoever_looks_at_it():
    model = nn.Conv2d(3, 2, 1)
    images, masks = torch.rand(2, 3, 8, 8), torch.randint(0, 2, (2, 8, 8))
    loss, grads = nn.CrossEntropyLoss(), []
    for precision in ("float32", "float16"):
        step = GradientStep(model, torch.optim.SGD(model.parameters(), lr=0.0), precision=precision)
        step.backward(lambda images, targets: loss(model(images).float(), targets), images, masks, 2)
        grads.append(model.weight.grad.clone())
        step.update()
    assert torch.allclose(*grads, rtol=0.05, atol=1e-3)
